"""Whoever counts is told how each request ended: metrics, demand, the journal, the trial of a canary.

Believes: the driver's outcomes as they pass. Must not know what any of them makes of it.
"""

from collections.abc import Callable

from router.gateway.rollout.policy_rollout import PolicyRollout
from router.gateway.telemetry.demand import DemandWindow
from router.gateway.telemetry.journal import Journal
from router.gateway.telemetry.metrics import Metrics
from router.gateway.traffic.request_log import RequestLog


class RequestObservers:
    """Tells everyone who counts how a request ended."""

    def __init__(
        self,
        metrics: Metrics,
        demand: DemandWindow,
        journal: Journal,
        steering: PolicyRollout,
        clock: Callable[[], float],
    ) -> None:
        self._metrics, self._demand, self._journal, self._clock = metrics, demand, journal, clock
        self._steering = steering

    def ended(self, outcome: RequestLog) -> None:
        """A request that the core knew is over."""
        self._metrics.ended(outcome)
        self._demand.accounted(outcome.account, self._clock(), outcome.class_slo)
        self._journal.ended(outcome)
        self._steering.accounted(outcome.account)

    def rejected(self, path: str, status: int) -> None:
        """A request was answered before the core heard of it."""
        self._metrics.rejected(path, status)
