"""The requests that wait at the gateway for one model: lowest rank first, in lines.

Requests with nearly the same SLO and the same choice of backends stand in one line and are served in order. Lines are
independent: a request whose bounds cannot be met now must not block another that could be sent. Requests with the same
choice of backends are in one place, which has lines of its own: however many there are elsewhere, none of them is
behind a request that other backends serve. Holds ids and ranks alone; must not depend on requests, backends or time.

Sorted lists: at the few thousand requests that a queue may hold, moving memory costs less than a heap's bookkeeping,
and both ends are at hand: the first to serve, and the last, which a more urgent request displaces.
"""

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterator
from heapq import nsmallest
from typing import Final

from router.core.types import RequestId

Rank = tuple[float, ...]
Place = tuple[float | str, ...]  # what requests with the same choice of backends have in common
LineKey = tuple[Place, tuple[float, ...]]  # a place, and what the requests of one of its lines have in common
_Key = tuple[Rank, int, RequestId]
LINES_MAX: Final = 32  # of one place
NO_LINE: Final[LineKey] = ((), ())
_SHARED: Final = (-1.0,)
RANKS_A_LINE: Final = 8  # that a summary has


class HeldQueue:
    """Request ids by rank; equal ranks in the order in which they came."""

    __slots__ = ("_key_of", "_line_of", "_lines", "_places", "_pushed", "_sorted")

    def __init__(self) -> None:
        self._sorted: list[_Key] = []
        self._key_of: dict[RequestId, _Key] = {}
        self._line_of: dict[RequestId, LineKey] = {}
        self._lines: dict[LineKey, list[_Key]] = {}
        self._places: dict[Place, dict[LineKey, list[_Key]]] = {}  # the same lines, by place
        self._pushed = 0

    def __len__(self) -> int:
        return len(self._sorted)

    def __bool__(self) -> bool:
        return bool(self._sorted)  # compiled code calls this where there is no length

    def __contains__(self, request_id: object) -> bool:
        return request_id in self._key_of

    def __iter__(self) -> Iterator[RequestId]:
        """In the order of service, as it stands now: changes do not disturb it."""
        return iter([key[2] for key in self._sorted])

    def push(self, rank: Rank, request_id: RequestId, line: LineKey = NO_LINE) -> LineKey:
        """Add a request to a line and return the line; pushing it again moves it behind its equals.

        Beyond ``LINES_MAX`` lines of a place the further ones share one: a client's bounds must not multiply the work.
        """
        self.discard(request_id)
        line = self._shared(line)
        self._pushed += 1
        key = self._key_of[request_id] = (rank, self._pushed, request_id)
        self._line_of[request_id] = line
        insort(self._sorted, key)
        waiting = self._lines.get(line)
        if waiting is None:
            waiting = self._lines[line] = [key]
            self._places.setdefault(line[0], {})[line] = waiting
        else:
            insort(waiting, key)
        return line

    def _shared(self, line: LineKey) -> LineKey:
        lines = self._places.get(line[0])
        full = lines is not None and line not in lines and len(lines) >= LINES_MAX
        return (line[0], _SHARED) if full else line

    def discard(self, request_id: RequestId) -> None:
        """Take a request out, if it is there."""
        key = self._key_of.pop(request_id, None)
        if key is None:
            return
        del self._sorted[bisect_left(self._sorted, key)]
        line = self._line_of.pop(request_id)
        waiting = self._lines[line]
        del waiting[bisect_left(waiting, key)]
        if not waiting:
            del self._lines[line]
            lines = self._places[line[0]]
            del lines[line]
            if not lines:
                del self._places[line[0]]

    def ahead(self, line: LineKey, rank: Rank) -> int:
        """How many of this line a newcomer of that rank would wait behind."""
        waiting = self._lines.get(self._shared(line))
        if waiting is None:
            return 0
        return bisect_right(waiting, (rank, self._pushed + 1, ""))

    def first_of(self, line: LineKey) -> RequestId | None:
        """The request at the head of a line; None where the line is empty."""
        waiting = self._lines.get(line)
        return waiting[0][2] if waiting else None

    def heads(self, most: int) -> list[RequestId]:
        """The first of each line in the order of service, ``most`` of each place."""
        if len(self._lines) == 1:
            return [self._sorted[0][2]]
        found: list[_Key] = []
        for lines in self._places.values():
            found += nsmallest(most, [waiting[0] for waiting in lines.values()])
        if len(self._places) > 1:
            found.sort()
        return [key[2] for key in found]

    def places(self) -> list[tuple[Place, int, Rank, RequestId]]:
        """Each place: how many wait there, the rank of the first of them, and which that is."""
        found: list[tuple[Place, int, Rank, RequestId]] = []
        for place, lines in self._places.items():
            first = min([waiting[0] for waiting in lines.values()])
            found.append((place, sum([len(waiting) for waiting in lines.values()]), first[0], first[2]))
        return found

    def summaries(self) -> list[tuple[LineKey, int, tuple[Rank, ...], RequestId]]:
        """Each line: how many wait in it, the ranks of some of them in order, and which is the first."""
        return [
            (line, len(waiting), tuple([waiting[place][0] for place in sampled(len(waiting))]), waiting[0][2])
            for line, waiting in self._lines.items()
        ]

    def is_only(self, place: Place) -> bool:
        """Whether all that wait are in this place."""
        return len(self._places) == 1 and place in self._places

    @property
    def first(self) -> RequestId:
        """The request to serve next; IndexError when the queue is empty."""
        return self._sorted[0][2]

    @property
    def first_rank(self) -> Rank:
        """Its rank."""
        return self._sorted[0][0]

    @property
    def last(self) -> RequestId:
        """The request that would be served last; IndexError when the queue is empty."""
        return self._sorted[-1][2]

    @property
    def last_rank(self) -> Rank:
        """Its rank."""
        return self._sorted[-1][0]


def sampled(count: int) -> list[int]:
    """The places of the ranks that the summary of a line of so many has."""
    if count <= RANKS_A_LINE:
        return list(range(count))
    return [each * (count - 1) // (RANKS_A_LINE - 1) for each in range(RANKS_A_LINE)]
