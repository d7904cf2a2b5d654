"""When the core is to act without an event, and why.

Most are deadlines of one length, which come due in the order in which they were set: those stand in a line, the others
in a heap. Removal is lazy: a timer whose reason is gone stays where it is until its turn comes, or until such
timers are most of all: one long deadline at the front must not keep all behind it.
"""

from collections import deque
from collections.abc import Callable
from enum import Enum, auto
from heapq import heapify, heappop, heappush
from math import inf
from typing import Final

_SWEPT_FROM: Final = 1_024  # timers: fewer are not worth looking through


class Due(Enum):
    """What a timer is for."""

    ASK_HELD = auto()  # a held request is to be decided anew, or its hold ends
    FIRST_BYTE = auto()  # an attempt has been silent for too long
    HEDGE = auto()  # an attempt has been silent for long enough to start another one
    PREFILLED = auto()  # a whole reply, whose first token cannot be observed, should have its first token by now
    READMIT = auto()  # a backend's ejection is over
    REOFFER = auto()  # a backend is tried again for what it refused


class Timer:
    """``number`` in the order in which they were set; ``subject``: the request, the backend (READMIT) or its refusal;
    ``attempt``: 0 where none is meant.
    """

    __slots__ = ("attempt", "due", "number", "subject", "when_s")

    def __init__(self, when_s: float, number: int, subject: str, attempt: int, due: Due) -> None:
        self.when_s = when_s
        self.number = number
        self.subject = subject
        self.attempt = attempt
        self.due = due


class Timers:
    """``live`` says whether a timer's reason still stands; ``soonest_s``: no later than ``next_s``, always at hand."""

    __slots__ = ("_heap", "_last_s", "_line", "_live", "_set", "_sweep_at", "soonest_s")

    def __init__(self, live: Callable[[Timer], bool]) -> None:
        self._live = live
        self._line: deque[Timer] = deque()
        self._last_s = inf  # of the line, while there is one
        self._heap: list[tuple[float, int, Timer]] = []
        self._set = 0
        self._sweep_at = _SWEPT_FROM
        self.soonest_s = inf

    def set(self, when_s: float, subject: str, attempt: int, due: Due) -> None:
        """Wake at *when_s* for this reason."""
        self._set += 1
        timer = Timer(when_s, self._set, subject, attempt, due)
        self.soonest_s = min(self.soonest_s, when_s)
        if when_s >= self._last_s or not self._line:
            self._last_s = when_s
            self._line.append(timer)
        else:
            heappush(self._heap, (when_s, timer.number, timer))
        if len(self._heap) + len(self._line) > self._sweep_at:
            self._sweep(timer)

    def _sweep(self, new: Timer) -> None:
        """Remove all whose reason is gone. That of *new* may come about in this event only, so it stays."""
        self._heap = [entry for entry in self._heap if entry[2] is new or self._live(entry[2])]
        heapify(self._heap)
        self._line = deque([timer for timer in self._line if timer is new or self._live(timer)])
        self._sweep_at = max(_SWEPT_FROM, 2 * (len(self._heap) + len(self._line)))

    def postpone(self, dues: frozenset[Due], by_s: float) -> None:
        """All timers of these kinds come later by so much; their order among themselves stays."""
        timers = [*self._line, *(entry[2] for entry in self._heap)]
        for timer in timers:
            if timer.due in dues:
                timer.when_s += by_s
        self._line.clear()
        self._heap = [(timer.when_s, timer.number, timer) for timer in timers]
        heapify(self._heap)
        self.soonest_s = self._heap[0][0] if self._heap else inf

    @property
    def next_s(self) -> float:
        """When the first timer that still stands is due (inf: none)."""
        heap, line, live = self._heap, self._line, self._live
        while heap and not live(heap[0][2]):
            heappop(heap)
        while line and not live(line[0]):
            line.popleft()
        self.soonest_s = min(heap[0][0] if heap else inf, line[0].when_s if line else inf)
        return self.soonest_s

    def pop(self, now_s: float) -> Timer | None:
        """Take the first timer that is due and still stands; None when there is none."""
        if self.next_s > now_s:
            return None
        heap, line = self._heap, self._line
        if heap and not (line and (line[0].when_s, line[0].number) < heap[0][:2]):
            return heappop(heap)[2]
        return line.popleft()
