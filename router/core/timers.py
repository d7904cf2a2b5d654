"""When the core wants to be woken, and for what.

A heap with lazy removal: a timer whose reason is gone stays in it until it surfaces.
"""

from collections.abc import Callable
from enum import Enum, auto
from heapq import heappop, heappush
from math import inf
from typing import NamedTuple


class Due(Enum):
    """What a timer is for."""

    ASK_HELD = auto()  # a held request's policy wants to be asked again, or its hold ends
    FIRST_BYTE = auto()  # an attempt has been silent for too long
    HEDGE = auto()  # an attempt has been silent for long enough to start another beside it
    PREFILLED = auto()  # a whole reply, whose first token nobody sees, should have its first token by now
    READMIT = auto()  # a backend's time aside is over


class Timer(NamedTuple):
    """``subject``: the request, or for READMIT the backend; ``attempt``: 0 where none is meant."""

    when_s: float
    number: int
    subject: str
    attempt: int
    due: Due


class Timers:
    """``live`` says whether a timer's reason still stands."""

    __slots__ = ("_heap", "_live", "_set")

    def __init__(self, live: Callable[[Timer], bool]) -> None:
        self._live = live
        self._heap: list[Timer] = []
        self._set = 0

    def set(self, when_s: float, subject: str, attempt: int, due: Due) -> None:
        """Wake at *when_s* for this reason."""
        self._set += 1
        heappush(self._heap, Timer(when_s, self._set, subject, attempt, due))

    @property
    def next_s(self) -> float:
        """When the first timer that still stands is due (inf: none)."""
        heap = self._heap
        while heap and not self._live(heap[0]):
            heappop(heap)
        return heap[0].when_s if heap else inf

    def pop(self, now_s: float) -> Timer | None:
        """Take the first timer that is due and still stands; None when there is none."""
        return heappop(self._heap) if self.next_s <= now_s else None
