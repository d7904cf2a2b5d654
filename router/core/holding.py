"""The requests that wait at the gateway for one model, lowest rank first.

A sorted list: at the few thousand requests that a queue may hold, moving memory costs less than a heap's bookkeeping,
and both ends are at hand: the first to serve, and the last, whom a more urgent one displaces.
"""

from bisect import bisect_left, insort
from collections.abc import Iterator

from router.core.types import RequestId

Rank = tuple[float, ...]


class HeldQueue:
    """Request ids by rank; equal ranks in the order in which they came."""

    __slots__ = ("_key_of", "_pushed", "_sorted")

    def __init__(self) -> None:
        self._sorted: list[tuple[Rank, int, RequestId]] = []
        self._key_of: dict[RequestId, tuple[Rank, int, RequestId]] = {}
        self._pushed = 0

    def __len__(self) -> int:
        return len(self._sorted)

    def __bool__(self) -> bool:
        return bool(self._sorted)  # compiled code asks for this where it has no length to ask for

    def __iter__(self) -> Iterator[RequestId]:
        """In the order of service, as it stands now: changes do not disturb it."""
        return iter([key[2] for key in self._sorted])

    def at(self, place: int) -> tuple[Rank, RequestId]:
        """Who is at this place in the order of service, the first at 0."""
        rank, _, request_id = self._sorted[place]
        return rank, request_id

    def push(self, rank: Rank, request_id: RequestId) -> None:
        """Add a request; pushing one again moves it to its new rank, behind its equals."""
        self.discard(request_id)
        self._pushed += 1
        key = self._key_of[request_id] = (rank, self._pushed, request_id)
        insort(self._sorted, key)

    def discard(self, request_id: RequestId) -> None:
        """Take a request out, if it is there."""
        key = self._key_of.pop(request_id, None)
        if key is not None:
            del self._sorted[bisect_left(self._sorted, key)]

    @property
    def first(self) -> RequestId:
        """The request to serve next; IndexError when nobody waits."""
        return self._sorted[0][2]

    @property
    def first_rank(self) -> Rank:
        """Its rank."""
        return self._sorted[0][0]

    @property
    def last(self) -> RequestId:
        """The request that would be served last; IndexError when nobody waits."""
        return self._sorted[-1][2]

    @property
    def last_rank(self) -> Rank:
        """Its rank."""
        return self._sorted[-1][0]
