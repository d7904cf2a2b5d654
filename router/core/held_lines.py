"""What routers hold, so that all of it is one queue in effect: a summary of each line, and who goes before whom.

Each router sends its peers how many wait in each of its lines and the ranks of some of them. A request gives way to a
peer's that is before it in the same line, or for which a peer reserves the next room: then room goes to the first of
all, whichever router holds that, and newcomers anywhere wait behind it. That holds among routers that find the same
backends up: room is not kept for one that may be unable to use it. Giving way has an end: where the room that a
request gives up is still there ``YIELD_S`` later, the other router does not take it (it is gone, cut off, or decides
otherwise), and the request goes. So nothing starves for a message that was lost.

The same order parts routers that decide at once. Of a burst that meets several of them each sees the same room, and all
send their prompts there, however fast news travel. So a request whose prompt takes a good part of its TTFT SLO is held
for ``SETTLE_S`` first: by then each router knows of all that came, and they are decided one after another.

Clocks of two hosts have nothing in common, so moments travel as seconds from the sending on. Must not depend on
requests, policies or backends.
"""

from bisect import bisect_left
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from math import inf
from typing import Final

from router.core.hashing import hash64
from router.core.held_queue import LineKey, Place, Rank
from router.core.types import Fact, RequestId

LINES_A_MESSAGE: Final = 64  # those whose first has the lowest rank
RANK_MOST: Final = 8  # numbers in a rank
YIELD_S: Final = 0.02  # several times what a change takes to a peer and back
SAME_MOMENT_S: Final = 0.005  # twice what a change takes to a peer
TICKET_SHIFT: Final = 11
SETTLE_S: Final = 0.003  # in which peers hear of a request, and it of theirs
SETTLE_SHARE_MOST: Final = 0.01  # of its TTFT SLO, that a request may spend on that
PROMPT_SHARE_MIN: Final = 0.15  # of its TTFT SLO that a prompt takes on an idle backend, where it is worth that
LOOK_S: Final = 0.05  # after which one that gave way is decided anew in any case


@dataclass(frozen=True, slots=True)
class HeldLine(Fact):
    """A line of held requests for ``model``: ``count`` of them, and the ranks of the first, of the last and of some
    between, evenly spaced. ``times``: the places in a rank that are moments; ``alone``: the next room is reserved for
    the first; ``ticket``: of the first, a number by which all routers order what comes at the same moment; ``pool``: of
    the backends that its router may send it to now (see ``Roster.pool_digest``), 0: not stated.
    """

    model: str
    place: Place
    bounds: tuple[float, ...]
    count: int
    ranks: tuple[Rank, ...]
    times: tuple[int, ...] = ()
    alone: bool = False
    ticket: int = 0
    pool: int = 0

    def later(self, seconds: float) -> "HeldLine":
        """The same with its moments by another clock."""
        if not self.times:
            return self
        return replace(self, ranks=tuple([_later(rank, self.times, seconds) for rank in self.ranks]))

    def goes_before(self, rank: Rank, ticket: int) -> bool:
        """Whether the first of them is before a request. Moments arrive as late as the message that states them, so
        those that are near each other are one.
        """
        first = self.ranks[0]
        if len(rank) != len(first):
            return False  # another policy's
        for place, (one, other) in enumerate(zip(first, rank, strict=True)):
            if abs(one - other) > (SAME_MOMENT_S if place in self.times else 0.0):
                return one < other
        return self.ticket < ticket

    def before(self, rank: Rank) -> int:
        """How many of them are before that rank, as far as the ranks tell."""
        if len(rank) != len(self.ranks[0]):
            return 0  # another policy's
        lower = bisect_left(self.ranks, rank)
        return -(-self.count * lower // len(self.ranks))


def _later(rank: Rank, times: tuple[int, ...], seconds: float) -> Rank:
    return tuple([each + seconds if place in times else each for place, each in enumerate(rank)])


def first_lines(lines: Sequence[HeldLine]) -> tuple[HeldLine, ...]:
    """As many as one message may have, by the rank of their first."""
    if len(lines) <= LINES_A_MESSAGE:
        return tuple(lines)
    return tuple(sorted(lines, key=lambda line: (line.ranks[0], line.model))[:LINES_A_MESSAGE])


def ticket_of(request_id: RequestId) -> int:
    """Below 2**53: other readers of a record have no larger number."""
    return hash64(request_id) >> TICKET_SHIFT


def settles(bound_s: float, prompt_s: float) -> bool:
    """Whether to let routers know of a request before it is decided: it has so long for its first token, and its prompt
    takes so long on an idle backend.
    """
    return SETTLE_S <= SETTLE_SHARE_MOST * bound_s < inf and prompt_s >= PROMPT_SHARE_MIN * bound_s


class PeersHeld:
    """What peers hold: the lines of each, in this router's time."""

    __slots__ = ("_by_line", "_by_peer", "_counts", "_first", "_reserving")

    def __init__(self) -> None:
        self._by_peer: dict[str, tuple[HeldLine, ...]] = {}
        self._by_line: dict[tuple[str, LineKey], list[HeldLine]] = {}
        self._counts: dict[tuple[str, int], int] = {}  # by model and pool
        self._first: dict[tuple[str, int], Rank] = {}  # likewise
        self._reserving: dict[str, list[HeldLine]] = {}  # by model

    def __bool__(self) -> bool:
        return bool(self._by_peer)

    def replace(self, peer: str, lines: Sequence[HeldLine], now_s: float) -> bool:
        """What a peer holds from now on, as it came; whether that is another thing than before."""
        before = self._by_peer.pop(peer, ())
        if lines:
            self._by_peer[peer] = tuple([line.later(now_s) for line in lines])
        if before or lines:
            self._add_up()
        return bool(before or lines)

    def _add_up(self) -> None:
        self._by_line, self._counts, self._first, self._reserving = {}, {}, {}, {}
        for lines in self._by_peer.values():
            for line in lines:
                self._by_line.setdefault((line.model, (line.place, line.bounds)), []).append(line)
                of = line.model, line.pool
                self._counts[of] = self._counts.get(of, 0) + line.count
                self._first[of] = min(line.ranks[0], self._first.get(of, line.ranks[0]))
                if line.alone:
                    self._reserving.setdefault(line.model, []).append(line)

    def keep(self, peers: Collection[str]) -> bool:
        """Forget what all but these peers hold; whether any held something."""
        gone = [peer for peer in self._by_peer if peer not in peers]
        for peer in gone:
            del self._by_peer[peer]
        if gone:
            self._add_up()
        return bool(gone)

    # A request is in the way of those that may be sent to the same backends (``pool``: of this router, now). Where its
    # own router alone cannot reach some, the room may be where it cannot go.

    def count(self, model: str, pool: int = 0) -> int:
        """How many requests for a model peers hold for the same backends."""
        return sum([self._counts.get((model, each), 0) for each in {0, pool}])

    def first_rank(self, model: str, pool: int = 0) -> Rank:
        """The rank of the first of those; () where there is none."""
        return min([self._first[model, each] for each in {0, pool} if (model, each) in self._first], default=())

    def ahead(self, model: str, line: LineKey, rank: Rank, pool: int = 0) -> int:
        """How many of those are in this line and before that rank."""
        lines = self._by_line.get((model, line), ())
        return sum([each.before(rank) for each in lines if each.pool in (0, pool)])

    def is_first(self, model: str, line: LineKey, rank: Rank, ticket: int = 0, pool: int = 0) -> bool:
        """Whether none of those goes before one of that rank and ticket in this line."""
        if not self.count(model, pool):
            return True
        before = (*self._by_line.get((model, line), ()), *self._reserving.get(model, ()))
        return not any(each.goes_before(rank, ticket) for each in before if each.pool in (0, pool))
