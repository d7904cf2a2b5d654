"""The less loaded of two backends drawn at random (Mitzenmacher 2001): nearly as even as a full scan, and immune to
herding when several routers see the same stale counts."""

from dataclasses import dataclass

from policies.routing._pick import power_of_two
from router.core import Choice, Dispatch, Fleet, Forecast, Request, Rng


@dataclass(frozen=True, slots=True)
class PowerOfTwo:
    """No parameters; counts requests in flight."""

    def choose(self, request: Request, fleet: Fleet, forecast: Forecast, rng: Rng) -> Choice:
        """The one of two with fewer requests in flight."""
        return Dispatch(int(fleet.slots[power_of_two(fleet.requests, rng)]), "less loaded of two")


policy = PowerOfTwo
