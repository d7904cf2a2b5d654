"""The requests that wait at the gateway for one model, lowest rank first."""

from heapq import heappop, heappush

from router.core.types import RequestId


class HeldQueue:
    """A heap with lazy removal: whoever is discarded stays in the heap until it surfaces."""

    __slots__ = ("_heap", "_live", "_pushed")

    def __init__(self) -> None:
        self._heap: list[tuple[tuple[float, ...], int, RequestId]] = []
        self._live: dict[RequestId, int] = {}
        self._pushed = 0

    def __len__(self) -> int:
        return len(self._live)

    def push(self, rank: tuple[float, ...], request_id: RequestId) -> None:
        """Add a request; pushing one again moves it to its new rank."""
        self._pushed += 1
        self._live[request_id] = self._pushed
        heappush(self._heap, (rank, self._pushed, request_id))

    def discard(self, request_id: RequestId) -> None:
        """Take a request out, if it is there."""
        self._live.pop(request_id, None)

    def _surface(self) -> tuple[tuple[float, ...], int, RequestId]:
        while True:
            _, number, request_id = self._heap[0]
            if self._live.get(request_id) == number:
                return self._heap[0]
            heappop(self._heap)

    @property
    def first(self) -> RequestId:
        """The request to serve next; IndexError when nobody waits."""
        return self._surface()[2]

    @property
    def first_rank(self) -> tuple[float, ...]:
        """Its rank."""
        return self._surface()[0]
