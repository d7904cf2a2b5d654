"""A session stays where it was, unless that backend has more than its share: consistent hashing with bounded loads.

Mirrokni, Thorup, Zadimoghaddam 2018: no backend takes more than ``bound`` times its share of the requests in flight;
a key whose backend is full goes to the next in its own order, so it always overflows to the same place. Shares follow
the backends' weights. A session is ``request.session``; without one the beginning of the prompt stands for it, and
without that the request itself, which spreads evenly.
"""

from dataclasses import dataclass

from policies.routing._hashing import ranks
from router.core import Choice, Dispatch, Fleet, Forecast, Request, Rng


@dataclass(frozen=True, slots=True)
class SessionAffinity:
    """``bound``: how many times its share of the requests in flight a backend may have (above 1)."""

    bound: float = 1.25

    def __post_init__(self) -> None:
        """Refuse a bound under which requests could have no place at all."""
        if not self.bound > 1.0:
            raise ValueError(f"session_affinity: bound must be above 1, not {self.bound}")

    def choose(self, request: Request, fleet: Fleet, forecast: Forecast, rng: Rng) -> Choice:
        """The first backend in the session's order that is below its bound."""
        order = ranks(_key(request), fleet.name_hashes)
        requests, weight = fleet.requests, fleet.weight
        total = weight.sum()
        share = weight / total if total > 0 else 1.0 / len(fleet)
        room = (requests < self.bound * (requests.sum() + 1.0) * share)[order]
        place = int(room.argmax())  # 0 when none has room, which rounding alone can bring about
        why = "its session's backend" if place == 0 else "its session's backend is over its share: the next"
        return Dispatch(int(fleet.slots[order[place]]), why)


def _key(request: Request) -> str:
    if request.session:
        return f"{request.tenant}/{request.session}"
    return str(request.prefix[0]) if request.prefix else request.id


policy = SessionAffinity
