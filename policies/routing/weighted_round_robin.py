"""Each backend in turn, as often as its weight says.

The turn is a fact of the fleet, not a memory of the policy: every send moves its backend's turn on by 1 / weight
(stride scheduling, Waldspurger 1995), and the lowest turn is next. Shares are in proportion to weights, and turns
interleave as in nginx's smooth weighted round robin; a backend that was away does not catch up on what it missed.
"""

from dataclasses import dataclass

from router.core import Choice, Dispatch, Fleet, Forecast, Request, Rng


@dataclass(frozen=True, slots=True)
class WeightedRoundRobin:
    """No parameters; weights are the backends' own (``weight`` in the config)."""

    def choose(self, request: Request, fleet: Fleet, forecast: Forecast, rng: Rng) -> Choice:
        """The backend whose turn it is."""
        return Dispatch(int(fleet.slots[fleet.turn.argmin()]), "its weighted turn")


policy = WeightedRoundRobin
