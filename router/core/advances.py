"""What an admission policy counts for each of its lanes, shared among routers: a tenant's share is one of all of them.

What is sent are totals, and what counts is how much they grew: a message that is lost or comes twice counts nothing
twice, and a router that starts anew counts from there. Must not depend on what a lane is, or how it is advanced.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from router.core.types import Fact

ADVANCES_A_MESSAGE: Final = 128
LANES_MOST: Final = 4_096  # of one peer, that are remembered
GROWTH_S_MOST: Final = 3_600.0  # between two messages


@dataclass(frozen=True, slots=True)
class Advance(Fact):
    """How far a router has advanced a lane in all, in seconds, and the lane's weight."""

    lane: int
    total_s: float
    weight: float


def shares(admission: object) -> bool:
    """Whether an admission policy shares what it counts: by ``advances(memory)``, which gives by lane how many seconds
    this router's own requests have advanced it and its weight, and ``advanced(memory, more, now_s)``, the memory after
    lanes were advanced elsewhere by so many seconds. Both are optional.
    """
    return callable(getattr(admission, "advances", None)) and callable(getattr(admission, "advanced", None))


class Advances:
    """What was sent last, and the last totals of each peer."""

    __slots__ = ("_of_peers", "_sent", "_whole")

    def __init__(self) -> None:
        self._sent: dict[int, float] = {}
        self._of_peers: dict[str, dict[int, float]] = {}
        self._whole: set[str] = set()  # peers that have stated all their lanes once: one that comes later began at 0

    def to_send(self, now: Mapping[int, tuple[float, float]], *, whole: bool) -> tuple[Advance, ...]:
        """The lanes that were advanced since they were sent, or all; no more than a message may have."""
        changed = [
            Advance(lane, total_s, weight)
            for lane, (total_s, weight) in now.items()
            if whole or self._sent.get(lane) != total_s
        ][:ADVANCES_A_MESSAGE]
        for each in changed:
            self._sent[each.lane] = each.total_s
        if len(self._sent) > len(now):
            self._sent = {lane: total_s for lane, total_s in self._sent.items() if lane in now}
        return tuple(changed)

    def grown(self, peer: str, totals: Sequence[Advance], *, whole: bool) -> dict[int, tuple[float, float]]:
        """By how much a peer advanced lanes since its last message, and their weights; *whole*: those are all its
        lanes. A total that is lower than before is one that began anew; of one that is stated for the first time it is
        not known since when it grows, before all were.
        """
        known, first = self._of_peers.setdefault(peer, {}), peer not in self._whole
        if whole and len(totals) < ADVANCES_A_MESSAGE:
            self._whole.add(peer)
        grown: dict[int, tuple[float, float]] = {}
        for each in totals:
            if each.lane not in known and len(known) >= LANES_MOST:
                continue
            before_s = known.get(each.lane, each.total_s if first else 0.0)
            seconds = each.total_s - before_s if each.total_s >= before_s else each.total_s
            if seconds > 0.0:
                grown[each.lane] = min(seconds, GROWTH_S_MOST), each.weight
            known[each.lane] = each.total_s
        return grown

    def keep(self, peers: Collection[str]) -> None:
        """Forget all but these peers."""
        for peer in [peer for peer in self._of_peers if peer not in peers]:
            del self._of_peers[peer]
            self._whole.discard(peer)
