"""What the autoscaler exports for Prometheus. Must not depend on what sets it."""

from collections.abc import Mapping
from typing import Any, Final

from prometheus_client import CollectorRegistry, Counter, Gauge

_PLACE: Final = ["model", "variant"]


class ScalingMetrics:
    """The metrics of one autoscaler."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        """*registry*: of a router, whose page has them; None: of their own."""
        self.registry = CollectorRegistry() if registry is None else registry
        self.wanted = Gauge("headroom_replicas_wanted", "Replicas the SLO needs", _PLACE, registry=self.registry)
        self.running = Gauge("headroom_replicas_running", "Replicas there are", _PLACE, registry=self.registry)
        self.failures = Counter(
            "headroom_autoscale_failures",
            "Rounds in which the demand or the replicas could not be read",
            registry=self.registry,
        )
        self.applied = Counter(
            "headroom_autoscale_applied",
            "Advice applied to the scaling target, by model, variant and outcome",
            [*_PLACE, "outcome"],
            registry=self.registry,
        )
        self.leads = Gauge(
            "headroom_autoscale_leads", "Whether this autoscaler is the one that applies advice", registry=self.registry
        )
        self._reloads = Counter(
            "headroom_autoscale_config_reloads", "Configs taken or refused", ["result"], registry=self.registry
        )

    def reloaded(self, ok: bool, version: str, at_s: float) -> None:
        """A config was taken or refused."""
        self._reloads.labels("taken" if ok else "refused").inc()

    def validated(self, result: str, took_s: float, replays: tuple[Mapping[str, Any], ...]) -> None:
        """Policies were validated; the routers of the pool export the result."""
