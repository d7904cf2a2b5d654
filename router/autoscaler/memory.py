"""What the scaling policy is given of earlier rounds, by model: its last decision, and since when as many serve.

Lost with the process, and then learnt again. Must not depend on policies or targets; the time is an argument.
"""

from router.core.scaling import ScalingDecision


class ScalingMemory:
    """By model."""

    def __init__(self) -> None:
        self.decisions: dict[str, ScalingDecision] = {}
        self._serving: dict[str, tuple[int, float]] = {}

    def settled_s(self, model: str, serving: int, now_s: float) -> float:
        """For how long as many replicas have served as now."""
        before, since_s = self._serving.get(model, (serving, now_s))
        self._serving[model] = (serving, since_s if before == serving else now_s)
        return max(0.0, now_s - self._serving[model][1])
