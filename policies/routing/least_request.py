"""Fewest requests in flight."""

from dataclasses import dataclass

from policies.routing._pick import lowest
from router.core import Choice, Dispatch, Fleet, Forecast, Request, Rng


@dataclass(frozen=True, slots=True)
class LeastRequest:
    """No parameters; counts requests, so a long prompt weighs as much as a short one."""

    def choose(self, request: Request, fleet: Fleet, forecast: Forecast, rng: Rng) -> Choice:
        """The backend with the fewest requests in flight, those of other routers included."""
        return Dispatch(int(fleet.slots[lowest(fleet.requests, rng)]), "fewest requests in flight")


policy = LeastRequest
