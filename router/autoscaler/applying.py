"""Applies advice to the scaling target: gauges, the audit log, and retries further and further apart.

A change that fails is tried again for as long as it is advised: what a target needs may be back at any time. Must not
depend on how advice is computed or on any one target.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from router.autoscaler.metrics import ScalingMetrics
from router.gateway.rollout.audit import Audit
from router.targets import Advice, Applied, Outcome, Target

ROUNDS_APART_MAX: Final = 16  # of two attempts at one change: some 80 s at the usual period

_log = logging.getLogger("headroom")


@dataclass(slots=True)
class _Failing:
    """A change that failed: how often, why the last time, and in how many rounds it is tried again."""

    replicas: int
    failures: int = 0
    wait_rounds: int = 0
    why: str = ""

    @property
    def again(self) -> str:
        """For people: what follows."""
        rounds = self.wait_rounds + 1
        return f"attempt {self.failures} failed; the next is made in {rounds} {'rounds' if rounds > 1 else 'round'}"


class Applying:
    """The way of advice to a target."""

    def __init__(self, metrics: ScalingMetrics, audit: Audit) -> None:
        self._metrics, self._audit = metrics, audit
        self._failing: dict[tuple[str, str], _Failing] = {}

    def show(self, advice: Sequence[Advice]) -> None:
        """Set the gauges."""
        for one in advice:
            self._metrics.wanted.labels(one.model, one.variant).set(one.replicas)
            self._metrics.running.labels(one.model, one.variant).set(one.running)

    def restart(self) -> None:
        """Forget what failed: the target is another, or another autoscaler has applied advice since."""
        self._failing.clear()

    async def apply(self, advice: Sequence[Advice], target: Target, holds: Callable[[], bool]) -> list[Applied]:
        """Apply each piece of advice while *holds*; one that fails does not stop the others."""
        return [await self._apply(one, target, holds) for one in advice]

    async def _apply(self, one: Advice, target: Target, holds: Callable[[], bool]) -> Applied:
        if not holds():
            return Applied(Outcome.UNCHANGED, "another autoscaler applies advice")
        failing = self._failing.get((one.model, one.variant))
        if failing is not None and failing.replicas == one.replicas and failing.wait_rounds > 0:
            failing.wait_rounds -= 1
            return Applied(Outcome.WAITING, f"{failing.why}; {failing.again}")
        try:
            applied = await target.apply(one)
        except Exception as error:
            applied = Applied(Outcome.FAILED, f"the target failed: {error!r}")
        self._metrics.applied.labels(one.model, one.variant, applied.outcome.value).inc()
        if applied.outcome is Outcome.FAILED:
            applied = self._failed(one, applied.reason)
        else:
            self._failing.pop((one.model, one.variant), None)
        self._note(one, applied)
        return applied

    def _failed(self, one: Advice, why: str) -> Applied:
        before = self._failing.get((one.model, one.variant))
        failing = before if before is not None and before.replicas == one.replicas else _Failing(one.replicas)
        failing.failures, failing.why = failing.failures + 1, why
        failing.wait_rounds = min(2 ** min(failing.failures - 1, 10), ROUNDS_APART_MAX) - 1
        self._failing[one.model, one.variant] = failing
        failed = Applied(Outcome.FAILED, f"{why}; {failing.again}")
        _log.warning("%s: %d x %s was not applied: %s", one.model, one.replicas, one.variant, failed.reason)
        return failed

    def _note(self, one: Advice, applied: Applied) -> None:
        if applied.outcome is not Outcome.UNCHANGED:
            facts = {"model": one.model, "variant": one.variant, "replicas": one.replicas, "running": one.running}
            self._audit.note(f"scaling {applied.outcome.value}", **facts, result=applied.reason, why=one.why)
