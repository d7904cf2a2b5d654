"""The arrivals of a workload whose later requests follow from earlier ends, were every reply to take a given time.

Without an engine: what a load comes to is known before anything is played. Must not depend on policies or replicas.
"""

from collections.abc import Callable, Sequence
from heapq import heappop, heappush
from typing import cast

from simulator.workload.arrivals import Arrival, Workload


def walked(workload: Sequence[Arrival] | Workload, takes_s: Callable[[Arrival], float]) -> list[Arrival]:
    """Every arrival in order of time; *takes_s*: from a request's arrival to its end. A workload is used up by it."""
    if not hasattr(workload, "after"):
        return list(workload)
    return _Walk(cast("Workload", workload), takes_s).run()


class _Walk:
    """Arrivals so far, and what is to come: ends, and arrivals that follow from ends."""

    def __init__(self, workload: Workload, takes_s: Callable[[Arrival], float]) -> None:
        self._workload, self._takes_s = workload, takes_s
        self._arrivals: list[Arrival] = []
        self._events: list[tuple[float, int, Arrival, bool]] = []  # time, number, request, whether it ends
        self._count = 0

    def run(self) -> list[Arrival]:
        for arrival in self._workload:
            self._until(arrival.request.arrived_s)
            self._arrive(arrival)
        self._until(float("inf"))
        return self._arrivals

    def _until(self, at_s: float) -> None:
        while self._events and self._events[0][0] <= at_s:
            now_s, _, arrival, ends = heappop(self._events)
            if not ends:
                self._workload.pending -= 1
                self._arrive(arrival)
                continue
            for later in self._workload.after(arrival, now_s):
                self._push(later.request.arrived_s, later, ends=False)

    def _arrive(self, arrival: Arrival) -> None:
        self._arrivals.append(arrival)
        self._push(arrival.request.arrived_s + self._takes_s(arrival), arrival, ends=True)

    def _push(self, at_s: float, arrival: Arrival, *, ends: bool) -> None:
        self._count += 1
        heappush(self._events, (at_s, self._count, arrival, ends))
