"""Each backend in turn.

The fleet has the order, the policy has no memory: the backend whose last request is the oldest is next.
"""

from dataclasses import dataclass

from router.core import Choice, Dispatch, Fleet, Forecast, Request, Rng


@dataclass(frozen=True, slots=True)
class RoundRobin:
    """No parameters; blind to load and hardware."""

    def choose(self, request: Request, fleet: Fleet, forecast: Forecast, rng: Rng) -> Choice:
        """The one that was sent to longest ago."""
        return Dispatch(fleet.slots.item(fleet.last_sent.argmin()), "its turn")


policy = RoundRobin
