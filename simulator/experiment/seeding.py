"""How many seeds an experiment is played under: a fixed number, or as many as make its intervals narrow enough.

Must not depend on what is played.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import ceil, inf
from typing import Final

LEAST: Final = 5
"""Of few seeds an interval may be narrow by chance, and then none follows. With 3 at first, the 95 % intervals that end
the playing hold in 91 % of all cases, with 5 in 92.5 to 94 % (normal figures; ``tests/simulator/test_differences.py``).
"""


@dataclass(frozen=True, slots=True)
class Seeding:
    """``count`` seeds at first. With a ``half_width``, further ones until every interval is that narrow, or ``most`` of
    them have been played.
    """

    count: int = 1
    half_width: float = inf
    most: int = 40

    @property
    def first(self) -> int:
        """How many are played before any width is known."""
        return self.count if self.half_width == inf else max(self.count, LEAST)

    def further(self, played: int, widest: float) -> int:
        """How many more seeds are played after *played* of them left the *widest* interval; 0: no more.

        Widths shrink with the square root of the number, so that says how many are needed; at most twice as many at
        once, since a width is an estimate itself.
        """
        if not widest > self.half_width or played >= self.most:
            return 0
        needed = inf if self.half_width == 0.0 else played * (widest / self.half_width) ** 2
        return int(max(1, min(2 * played, ceil(min(needed, self.most)), self.most) - played))


def until_narrow(seeding: Seeding, play: Callable[[range], None], widths: Callable[[], Iterable[float]]) -> int:
    """Play ranges of seed numbers, counted from 0, until *widths* are narrow enough; returns how many were played."""
    played = 0
    more = seeding.first
    while more:
        play(range(played, played + more))
        played += more
        more = 0 if seeding.half_width == inf else seeding.further(played, max(widths(), default=0.0))
    return played
