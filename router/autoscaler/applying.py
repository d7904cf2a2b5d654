"""Applies advice to the scaling target: gauges, counts and the log. Must not depend on how advice is computed."""

import logging
from collections.abc import Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge

from router.targets import Advice, Applied, Outcome, Target

_log = logging.getLogger("headroom")


class Applying:
    """The way of advice to one target."""

    def __init__(self, registry: CollectorRegistry) -> None:
        labels = ["model", "variant"]
        self._wanted = Gauge("headroom_replicas_wanted", "Replicas the SLO needs", labels, registry=registry)
        self._running = Gauge("headroom_replicas_running", "Replicas there are", labels, registry=registry)
        self._applied = Counter(
            "headroom_autoscale_applied",
            "Advice applied to the scaling target, by model, variant and outcome",
            [*labels, "outcome"],
            registry=registry,
        )

    async def apply(self, advice: Sequence[Advice], target: Target) -> list[Applied]:
        """Apply each; a failure is counted and logged, and the others are applied all the same."""
        return [await self._apply(one, target) for one in advice]

    async def _apply(self, one: Advice, target: Target) -> Applied:
        self._wanted.labels(one.model, one.variant).set(one.replicas)
        self._running.labels(one.model, one.variant).set(one.running)
        applied = await target.apply(one)
        self._applied.labels(one.model, one.variant, applied.outcome.value).inc()
        if applied.outcome is Outcome.FAILED:
            _log.warning("%s: %d x %s was not applied: %s", one.model, one.replicas, one.variant, applied.reason)
        return applied
