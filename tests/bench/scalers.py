"""Autoscalers to compare with, as their own documents describe them, and one that can see what is to come.

They read what a metrics server shows of a run (``Metrics``), not what the policies of this project are passed; each is
in an order of its own: from its rule to what Kubernetes makes of it. Sources: kubernetes.io, Horizontal Pod
Autoscaling, algorithm details and default behaviour; keda.sh, ScaledObject, and vLLM production-stack's recipe
(``vllm:num_requests_waiting``); llm-d-autoscaling, pull request 1376 (thresholds of P90 TTFT and TPOT over their SLOs).
"""

from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from math import ceil, isnan
from typing import Final

import numpy as np

from router.core.decisions import ScaleTo
from router.core.scaling import Demand
from router.core.types import Slo
from simulator.run.play import Run
from simulator.workload.arrivals import Arrival

SYNC_S: Final = 15.0  # of the controller of HPAs
TOLERANCE: Final = 0.1
DOWN_S: Final = 300.0  # stabilisation of fewer replicas
UP_PODS: Final = 4  # at once; or as many again as there are
WAITING: Final = 5.0  # requests a replica, in vLLM production-stack's ScaledObject
POLLING_S: Final = 30.0
WINDOW_S: Final = 60.0  # of a rate or a quantile in Prometheus
UP_ABOVE: Final = 0.55
DOWN_BELOW: Final = 0.40


class Metrics:
    """A run as Prometheus shows it."""

    def __init__(self, run: Run, arrivals: Sequence[Arrival]) -> None:
        """*arrivals* of the whole run, in order: those that have not come yet are never read."""
        self._run, self._arrivals = run, arrivals
        self._times = [arrival.request.arrived_s for arrival in arrivals]

    @property
    def now_s(self) -> float:
        """The time of the run."""
        return self._run.kernel.now_s

    def ready(self) -> int:
        """Replicas that serve."""
        return sum(engine.joined for engine in self._run.fleet.serving())

    def waiting(self) -> float:
        """Requests that wait, at routers and engines."""
        engines = self._run.fleet.engines.values()
        held = sum(router.core.held_of(model) for router in self._run.routers for model in self._models())
        return held + sum(engine.replica.waiting for engine in engines)

    def in_flight(self) -> float:
        """Those, and those that run."""
        return self.waiting() + sum(engine.replica.running for engine in self._run.fleet.engines.values())

    def slo_use(self, slo: Slo) -> float:
        """The larger of P90 TTFT and P90 TPOT over their SLOs, of the last minute; one that waits has waited so long
        as yet.
        """
        table, since_s = self._run.table, self.now_s - WINDOW_S
        lately = table.column("arrived_s") >= since_s if len(table) else np.zeros(0, dtype=np.bool_)
        ttfts = [*table.ttft_s()[lately], *self._open_ttfts(since_s)] if len(table) else self._open_ttfts(since_s)
        ended = table.column("ended_s") >= since_s if len(table) else lately
        tpots = table.tpot_s()[ended] if len(table) else np.zeros(0)
        return max(_p90(np.asarray(ttfts)) / slo.ttft_s, _p90(tpots) / slo.tpot_s)

    def _open_ttfts(self, since_s: float) -> list[float]:
        first, last = bisect_right(self._times, since_s), bisect_right(self._times, self.now_s)
        found = []
        for arrival in self._arrivals[first:last]:
            there = self._run.lookup(arrival.request.id)
            if there is not None:
                first_s = self.now_s if isnan(there[1]) else there[1]
                found.append(first_s - arrival.request.arrived_s)
        return found

    def _models(self) -> set[str]:
        return {name for member in self._run.pool.members for name in member.models}


def _p90(values: "np.typing.NDArray[np.float64]") -> float:
    there = values[~np.isnan(values)]
    return float(np.percentile(there, 90)) if len(there) else 0.0


class HorizontalPodAutoscaler:
    """``ceil(total / target)`` of a metric that is averaged over replicas, with the default behaviour: no change within
    the tolerance, doubling or four more at once, and the most of the last five minutes before there are fewer.
    """

    def __init__(self, metric: Callable[[], float], target: float, now_s: Callable[[], float], most: int) -> None:
        """*most* replicas."""
        self._metric, self._target, self._now_s, self._most = metric, target, now_s, most
        self._wanted: deque[tuple[float, int]] = deque()

    def scale(self, demand: Demand) -> Sequence[ScaleTo]:
        """Of the one variant that there is."""
        ((variant, there),) = demand.replicas.items()
        now_s, total = self._now_s(), self._metric()
        usual = there > 0 and abs(total / (self._target * there) - 1.0) <= TOLERANCE
        wanted = there if usual else ceil(total / self._target)
        wanted = min(max(wanted, demand.replicas_min), self._most)
        self._wanted.append((now_s, wanted))
        while self._wanted[0][0] < now_s - DOWN_S:
            self._wanted.popleft()
        if wanted < there:
            wanted = min(there, max(count for _, count in self._wanted))
        return [ScaleTo(variant, min(wanted, max(2 * there, there + UP_PODS)), f"{total:g} of {self._target:g}")]


class Polled:
    """A metric that is read once in a while, as KEDA's operator does."""

    def __init__(self, metric: Callable[[], float], now_s: Callable[[], float], every_s: float = POLLING_S) -> None:
        """Not read yet."""
        self._metric, self._now_s, self._every_s = metric, now_s, every_s
        self._value, self._due_s = 0.0, 0.0

    def __call__(self) -> float:
        """The value of the last reading."""
        if self._now_s() >= self._due_s:
            self._value, self._due_s = self._metric(), self._now_s() + self._every_s
        return self._value


class SloThresholds:
    """llm-d's: demand is ``use x replicas``; more where it is above 0.55 of those that serve or start, fewer where it
    is below 0.40.
    """

    def __init__(self, metrics: Metrics, slo: Slo, most: int) -> None:
        """*most* replicas."""
        self._metrics, self._slo, self._most = metrics, slo, most

    def scale(self, demand: Demand) -> Sequence[ScaleTo]:
        """Of the one variant that there is."""
        ((variant, there),) = demand.replicas.items()
        use = self._metrics.slo_use(self._slo)
        load = use * self._metrics.ready()
        wanted = there
        if load / UP_ABOVE > there:
            wanted = ceil(load / UP_ABOVE)
        elif load / DOWN_BELOW < there:
            wanted = ceil(load / DOWN_BELOW)
        return [ScaleTo(variant, min(max(wanted, demand.replicas_min), self._most), f"{use:.2f} of the SLO")]


class Planned:
    """Replicas by time: what a scaler would do that knows all arrivals, and orders each replica in time."""

    def __init__(self, plan: Callable[[float], Mapping[str, int]], now_s: Callable[[], float]) -> None:
        """*plan*: the replicas of each variant that are paid for at a time."""
        self._plan, self._now_s = plan, now_s

    def scale(self, demand: Demand) -> Sequence[ScaleTo]:
        """As planned."""
        wanted = self._plan(self._now_s())
        return [ScaleTo(name, wanted.get(name, 0), "planned") for name in demand.variants]


def in_time(
    rate: Callable[[float], float], per_replica: float, ahead_s: float, least: int, most: int
) -> Callable[[float], int]:
    """Replicas to pay for at a time, so that at each moment there is one for each *per_replica* requests a second."""

    def count(at_s: float) -> int:
        moments = np.arange(at_s, at_s + ahead_s + 1.0, 5.0)
        needed = ceil(max(rate(float(moment)) for moment in moments) / per_replica - 1e-9)
        return min(max(needed, least), most)

    return count
