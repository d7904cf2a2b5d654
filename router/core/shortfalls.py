"""By how much arrivals exceeded the plan, once the replicas that it ordered had started: steps that nothing foretold.

A forecast reaches as far ahead as a replica takes to start, and what comes sooner finds no room. How much of the
traffic that was is counted, and how much it would have been with so many times the plan, so that a policy can pay for
as much room as its quantile needs and no more. A week counts, the newest most; as if the day before the first had been
as planned. Must not depend on how a plan is made or on what is done with the counts.
"""

from collections import deque
from collections.abc import Sequence
from math import exp, isfinite
from typing import Any, Final

TIMES: Final = (1.0, 1.1, 1.25, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0)
SPAN_S: Final = 60.0  # that arrivals are averaged over: less is the noise of counts, which a plan has room for
MEMORY_S: Final = 604_800.0
BEFORE_S: Final = 86_400.0
PLANS_MAX: Final = 1024
HEAD: Final = 3  # numbers of an export before those of TIMES
REQUESTS_MAX: Final = 1e15

Beyond = tuple[tuple[float, float], ...]


class Shortfalls:
    """Of one model."""

    __slots__ = ("_beyond", "_highest_per_s", "_plans", "_requests", "_seconds", "_span")

    def __init__(self) -> None:
        self._plans: deque[tuple[float, float]] = deque()  # from when on, requests a second
        self._span = (0.0, 0.0, 0.0)  # seconds, requests and planned requests that are not counted yet
        self._beyond = [0.0] * len(TIMES)
        self._requests = self._seconds = self._highest_per_s = 0.0

    def planned(self, rate_per_s: float, from_s: float) -> None:
        """From then on there is room for so many requests a second. What is no number is left out."""
        if not (0.0 <= rate_per_s <= REQUESTS_MAX and isfinite(from_s)):
            return
        if len(self._plans) >= PLANS_MAX:  # of slow starts: every second one does, and the oldest has to stay
            self._plans = deque(tuple(self._plans)[::2])
        self._plans.append((from_s, rate_per_s))

    def add(self, requests: float, seconds: float, now_s: float) -> None:
        """So many arrived in the seconds before now; before the first plan had started, nothing is counted."""
        while len(self._plans) > 1 and self._plans[1][0] <= now_s:
            self._plans.popleft()
        if not self._plans or self._plans[0][0] > now_s:
            return
        so_far, arrived, expected = self._span
        self._span = so_far + seconds, arrived + requests, expected + self._plans[0][1] * seconds
        if self._span[0] >= SPAN_S:
            self._count(*self._span)
            self._span = (0.0, 0.0, 0.0)

    def _count(self, seconds: float, requests: float, expected: float) -> None:
        kept = exp(-seconds / MEMORY_S)
        pairs = zip(self._beyond, TIMES, strict=True)
        self._beyond = [kept * before + max(0.0, requests - times * expected) for before, times in pairs]
        self._requests = kept * self._requests + requests
        self._seconds = kept * self._seconds + seconds
        self._highest_per_s = max(kept * self._highest_per_s, requests / seconds)

    def beyond(self) -> Beyond:
        """The share of the traffic that came beyond so many times the plan, for several of these; nothing where nothing
        is known.
        """
        if not self._requests:
            return ()
        whole = self._requests * max(1.0, BEFORE_S / self._seconds)
        return tuple((times, each / whole) for times, each in zip(TIMES, self._beyond, strict=True))

    @property
    def highest_per_s(self) -> float:
        """The highest rate of a minute, which fades."""
        return self._highest_per_s

    # ---- over restarts -----------------------------------------------------------------

    def export(self) -> list[float]:
        """As plain values, for ``adopt``."""
        return [self._seconds, self._requests, self._highest_per_s, *self._beyond]

    def adopt(self, plain: Any) -> None:
        """Take over what ``export`` gave. Raises ValueError for anything else, and changes nothing then."""
        if not isinstance(plain, Sequence) or len(plain) != HEAD + len(TIMES) or not all(map(_is_amount, plain)):
            raise ValueError(f"what exceeded the plans of a model must be {HEAD + len(TIMES)} numbers of 0 or more")
        seconds, requests, *_ = plain
        if requests > 0.0 and not seconds >= SPAN_S / 2.0:  # what is counted spans more, and hardly fades
            raise ValueError("what exceeded the plans of a model must have the seconds in which its requests arrived")
        self._seconds, self._requests, self._highest_per_s, *self._beyond = map(float, plain)


def _is_amount(plain: Any) -> bool:
    return isinstance(plain, int | float) and not isinstance(plain, bool) and 0.0 <= plain <= REQUESTS_MAX
