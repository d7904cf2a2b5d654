"""Virtual time: a heap of callbacks, ties by the order in which they were asked for.

Believes: time only moves forward, and only between callbacks. Must not know: requests, engines,
policies. A caller that no longer wants a callback lets it come and ignores it (see the version a
replica hands along): cheaper than searching the heap.
"""

from collections.abc import Callable
from heapq import heappop, heappush
from typing import Any, Protocol


class Clock(Protocol):
    """What a replica needs of time: the simulator's heap here, an event loop in ``engine.py``."""

    @property
    def now_s(self) -> float:
        """The time."""
        ...

    def at(self, when_s: float, act: Callable[[Any], None], argument: Any) -> None:
        """Call ``act(argument)`` at ``when_s``."""
        ...


class Kernel:
    """A virtual clock; ``now_s`` is the time of the callback being run."""

    __slots__ = ("_heap", "_order", "now_s")

    def __init__(self, now_s: float = 0.0) -> None:
        """Start at *now_s* with nothing to do."""
        self.now_s = now_s
        self._heap: list[tuple[float, int, Callable[[Any], None], Any]] = []
        self._order = 0

    def at(self, when_s: float, act: Callable[[Any], None], argument: Any = None) -> None:
        """Call ``act(argument)`` at *when_s* (now, if that has passed)."""
        self._order = order = self._order + 1
        heappush(self._heap, (when_s, order, act, argument))

    def run_until(self, until_s: float) -> None:
        """Run what is due up to and including *until_s*, which is then the time."""
        heap = self._heap
        while heap and heap[0][0] <= until_s:
            when_s, _, act, argument = heappop(heap)
            self.now_s = max(self.now_s, when_s)
            act(argument)
        self.now_s = max(self.now_s, until_s)

    def run(self) -> None:
        """Run until nothing is left to do; the clock stays at the last callback."""
        heap = self._heap
        while heap:
            when_s, _, act, argument = heappop(heap)
            self.now_s = max(self.now_s, when_s)
            act(argument)

    @property
    def next_s(self) -> float:
        """When the next callback is due; ``inf`` with none."""
        return self._heap[0][0] if self._heap else float("inf")
