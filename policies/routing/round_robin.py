"""Each backend in turn.

The turn is a fact of the fleet, not a memory of the policy: whoever was sent to longest ago is next.
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
