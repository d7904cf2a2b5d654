"""Virtual time: a heap of callbacks; ties run in the order in which they were scheduled.

Time moves forward only, and only between callbacks. Must not depend on requests, engines or policies. A callback cannot
be cancelled: the caller ignores it when it comes (see the version of a replica), which is cheaper than searching the
heap.
"""

from collections.abc import Callable
from heapq import heappop, heappush
from math import inf
from typing import Any


class Kernel:
    """A virtual clock; ``now_s`` is the time of the callback being run, ``next_s`` when the next is due (inf: none)."""

    __slots__ = ("_heap", "_order", "next_s", "now_s")

    def __init__(self, now_s: float = 0.0) -> None:
        """Start at *now_s* with nothing to do."""
        self.now_s = now_s
        self.next_s = inf
        self._heap: list[tuple[float, int, Callable[[Any], None], Any]] = []
        self._order = 0

    def at(self, when_s: float, act: Callable[[Any], None], argument: Any = None) -> None:
        """Call ``act(argument)`` at *when_s* (now, if that has passed)."""
        self._order = order = self._order + 1
        heappush(self._heap, (when_s, order, act, argument))
        self.next_s = min(self.next_s, when_s)

    def run_until(self, until_s: float) -> None:
        """Run what is due up to and including *until_s*, which is then the time."""
        while self.next_s <= until_s and self._heap:
            self._run_next()
        self.now_s = max(self.now_s, until_s)

    def run(self) -> None:
        """Run until nothing is left to do; the clock stays at the last callback."""
        while self._heap:
            self._run_next()

    def _run_next(self) -> None:
        heap = self._heap
        when_s, _, act, argument = heappop(heap)
        self.next_s = heap[0][0] if heap else inf
        self.now_s = max(self.now_s, when_s)
        act(argument)
