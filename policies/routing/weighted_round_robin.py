"""Each backend in turn, as often as its weight says.

The turn is a fact of the fleet, not a memory of the policy: a backend's claim is its weight times the number of sends
that went elsewhere since its last; the highest claim goes next. Claims reach one level in sends proportional to 1 /
weight, so shares are proportional to weights, and turns interleave as in nginx's smooth weighted round robin.
"""

from dataclasses import dataclass

from router.core import Choice, Dispatch, Fleet, Forecast, Request, Rng


@dataclass(frozen=True, slots=True)
class WeightedRoundRobin:
    """No parameters; weights are the backends' own (``weight`` in the config). Weight 0: only when all others are."""

    def choose(self, request: Request, fleet: Fleet, forecast: Forecast, rng: Rng) -> Choice:
        """The backend with the highest claim."""
        last = fleet.last_sent
        claim = (last.max() + 1.0 - last) * fleet.weight
        return Dispatch(int(fleet.slots[claim.argmax()]), "its weighted turn")


policy = WeightedRoundRobin
