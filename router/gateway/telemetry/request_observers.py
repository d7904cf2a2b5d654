"""Passes arrivals to what measures demand, and the end of each request to everything that counts it: metrics, demand,
the journal, a canary's trial, and what else is configured (an access log).

Must not depend on what any of them does with it.
"""

from collections.abc import Callable, Sequence

from router.core.types import Request, Slo
from router.gateway.rollout.policy_rollout import PolicyRollout
from router.gateway.telemetry.demand import DemandWindow
from router.gateway.telemetry.journal import Journal
from router.gateway.telemetry.metrics import Metrics
from router.gateway.traffic.ports import RequestObserver
from router.gateway.traffic.request_log import RequestLog


class RequestObservers:
    """The driver's TokenObserver."""

    def __init__(
        self,
        metrics: Metrics,
        demand: DemandWindow,
        journal: Journal,
        rollout: PolicyRollout,
        clock: Callable[[], float],
        more: Sequence[RequestObserver] = (),
    ) -> None:
        self._metrics, self._demand, self._journal, self._clock = metrics, demand, journal, clock
        self._rollout = rollout
        self._more = more

    def arrived(self, request: Request, class_slo: Slo) -> None:
        """A request goes to the core."""
        self._demand.arrived(request, self._clock(), class_slo)

    def ended(self, log: RequestLog) -> None:
        """A request that the core routed has ended."""
        self._metrics.ended(log)
        self._demand.recorded(log.record, self._clock(), log.class_slo)
        self._journal.ended(log)
        self._rollout.accounted(log.record)
        for each in self._more:
            each.ended(log)

    def late_tokens(self, request: Request, backend: str, tokens: int, *, estimated: bool) -> None:
        """A backend generated so many more for a request that has ended, before it noticed."""
        self._metrics.late_tokens(request, backend, tokens, estimated=estimated)

    def rejected(self, path: str, status: int, peer: tuple[str, int] | None) -> None:
        """A request was answered with an error before it reached the core."""
        self._metrics.rejected(path, status)
        for each in self._more:
            each.rejected(path, status, peer)
