"""Whether another model can serve a request now, and whether its own is expected to serve it in time.

Reads the candidates, the forecast and the policies' answers; sends nothing and holds nothing. A model can where its
policy dispatches: what would have to wait there might as well wait for its own model. Must not depend on why a request
needs another model.
"""

from collections.abc import Callable
from math import inf

import numpy as np

from router.core.arrays import Slots, frozen
from router.core.belief import Belief
from router.core.candidates import Candidates
from router.core.columns import E2E, TPOT, TTFT
from router.core.decisions import Choice, Dispatch, Shed
from router.core.fleet import Fleet
from router.core.flight import Flight
from router.core.forecast import Forecast
from router.core.held_queue import NO_LINE, Rank
from router.core.holding import Holding
from router.core.policy import Admission, Memory
from router.core.types import Request

Choose = Callable[[Request, Fleet, Forecast], Choice]


class Offer:
    """Another model takes the request: what is known of its backends, and the policies' answers."""

    __slots__ = ("choice", "fleet", "forecast", "memory", "rank", "request")

    def __init__(
        self, request: Request, fleet: Fleet, forecast: Forecast, choice: Dispatch, rank: Rank, memory: Memory
    ) -> None:
        self.request = request
        self.fleet = fleet
        self.forecast = forecast
        self.choice = choice
        self.rank = rank
        self.memory = memory  # of the admission policy, from now on


class Fallbacks:
    """Looks at the backends of other models."""

    __slots__ = ("_belief", "_candidates", "_holding")

    def __init__(self, candidates: Candidates, holding: Holding, belief: Belief) -> None:
        self._candidates = candidates
        self._holding = holding
        self._belief = belief

    def taking(self, flight: Flight, request: Request) -> Slots:
        """The backends that take the request, another model's in its place, without those that have failed, and those
        whose context is no longer than one that was too short for it.
        """
        slots = self._candidates.taking(request)
        left = frozen(slots[~np.isin(slots, flight.tried)]) if flight.tried else slots
        return self._candidates.holding_more(left, flight.context_exceeded_tokens)

    def offer(
        self,
        flight: Flight,
        request: Request,
        admission: Admission,
        memory: Memory,
        choose: Choose,
        now_s: float,
        in_time: bool,
    ) -> Offer | None:
        """What becomes of *request*, the one in flight with another model, if it is sent at once; None where it cannot
        be. *in_time*: nor where it is not expected to meet its SLO.
        """
        slots = self.taking(flight, request)
        if not len(slots):
            return None
        own = flight.request, flight.line, flight.rank
        flight.request = request  # who competes with it is judged by that
        try:
            return self._offer(flight, slots, admission, memory, choose, now_s, in_time)
        finally:
            flight.request, flight.line, flight.rank = own

    def _offer(
        self,
        flight: Flight,
        slots: Slots,
        admission: Admission,
        memory: Memory,
        choose: Choose,
        now_s: float,
        in_time: bool,
    ) -> Offer | None:
        request = flight.request
        queue = self._holding.queue(request.model)
        waits = bool(queue) or self._holding.held_elsewhere(request.model) > 0
        flight.line = self._candidates.line(flight) if waits else NO_LINE
        fleet = self._candidates.fleet(flight, slots, queue, admission.hold_s_max, now_s)
        forecast = Forecast(request, fleet, self._belief)
        rank = flight.rank
        if not flight.admitted:
            answer, memory = admission.admit(request, fleet, forecast, memory)
            if isinstance(answer, Shed):
                return None
            rank = flight.rank = answer.rank
        behind = queue is not None and queue.ahead(flight.line, rank) > 0
        if behind or (waits and not self._holding.is_first(flight)):
            return None
        if self._holding.keeper(queue, flight) is not None:
            return None
        choice = choose(request, fleet, forecast)
        if not isinstance(choice, Dispatch):
            return None
        if in_time and not attainable(request, forecast, now_s, fleet.index(choice.slot)):
            return None
        return Offer(request, fleet, forecast, choice, rank, memory)


def attainable(request: Request, forecast: Forecast, now_s: float, index: int = -1) -> bool:
    """Whether the SLO is expected to be met, in the mean, on some candidate; *index*: on this one."""
    slo = request.slo
    if min(slo.ttft_s, slo.tpot_s, slo.e2e_s) == inf:
        return True
    waited_s = now_s - request.arrived_s
    rows = forecast.means_s
    met = (waited_s + rows[TTFT] <= slo.ttft_s) & (rows[TPOT] <= slo.tpot_s) & (waited_s + rows[E2E] <= slo.e2e_s)
    return bool(met.any() if index < 0 else met[index])
