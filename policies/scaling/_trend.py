"""The rate of arrivals now and while a replica starts, with its error: from counts in short buckets alone.

The longest window that one straight line explains is read: a step is seen in its first bucket, and steady traffic is
averaged over all that there is. Counts scatter as Poisson's do or more; how much more is estimated too.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Final

import numpy as np

from router.core import Floats

WINDOWS: Final = (1, 2, 3, 6, 12, 24, 48, 96, 192)  # buckets
SURPRISE: Final = 3.5  # standard errors by which a part of a window must differ from its line, to begin a new window
LINE_MIN: Final = 24  # buckets: through fewer, any step looks like a line
SCATTER_MIN: Final = 3  # buckets that scatter is read from
CHI_SQUARED_MEDIAN: Final = 0.455  # of one degree of freedom
GROWTH_MAX: Final = 2.0  # a trend changes a rate no more than so many times while a replica starts


@dataclass(frozen=True, slots=True)
class Trend:
    """``rate_per_s`` now, and what it changes by in a second; ``error_per_s``: the standard error of the rate;
    ``window_s`` that both are read from.
    """

    rate_per_s: float
    slope_per_s2: float
    error_per_s: float
    window_s: float

    def at(self, ahead_s: float) -> float:
        """The rate so far ahead."""
        rate = self.rate_per_s + self.slope_per_s2 * ahead_s
        return min(max(rate, self.rate_per_s / GROWTH_MAX), self.rate_per_s * GROWTH_MAX)

    def peak(self, ahead_s: float) -> float:
        """The highest rate until then."""
        return max(self.rate_per_s, self.at(ahead_s))


def steady(rate_per_s: float) -> Trend:
    """A rate of which nothing else is known."""
    return Trend(rate_per_s, 0.0, 0.0, 0.0)


def trend(arrivals: Sequence[float], bucket_s: float) -> Trend:
    """The trend of counts in buckets, oldest first (at least two)."""
    counts = np.asarray(arrivals, dtype=np.float64)
    scatter = _scatter(counts)
    windows = [size for size in WINDOWS if size <= len(counts)]
    size = next((size for size in reversed(windows) if _holds(counts[-size:], scatter)), windows[0])
    if size == 1 and counts[-1] < counts[-2]:
        size = WINDOWS[1]  # one bucket that is empty ends no replica
    level, slope, slope_error = _line(counts[-size:], scatter)
    sure = max(0.0, 1.0 - (2.0 * slope_error / slope) ** 2) if slope and size >= LINE_MIN else 0.0
    slope *= sure
    error = sqrt(scatter * max(level, 1.0 / size) / size) * sqrt(1.0 + 3.0 * sure)  # of the end of a line: twice
    now = max(0.0, level + slope * size / 2.0)
    return Trend(now / bucket_s, slope / bucket_s**2, error / bucket_s, size * bucket_s)


def _holds(counts: Floats, scatter: float) -> bool:
    """Whether the newest parts of a window, and each quarter of it, are what its line lets expect."""
    size = len(counts)
    if size <= WINDOWS[0]:
        return True
    level, slope, _ = _line(counts, scatter)
    slope = slope if size >= LINE_MIN else 0.0
    expected: Floats = level + slope * (np.arange(size, dtype=np.float64) - (size - 1) / 2.0)
    ends = [(size - part, size) for part in WINDOWS if part <= size // 2]
    quarter = max(1, size // 4)
    parts = [*ends, *((start, start + quarter) for start in range(0, size - quarter + 1, quarter))]
    return all(_usual(counts[start:end], expected[start:end], level, scatter, size) for start, end in parts)


def _usual(counts: Floats, expected: Floats, level: float, scatter: float, size: int) -> bool:
    """Whether so many are no surprise where so many are expected, from a window of that size of which they are part.

    What a part has in common with its window does not differ, which counts for a rise alone: late by a bucket, it costs
    requests, while a fall that was none costs replicas that have to start again.
    """
    mean, found = max(float(expected.sum()), 0.0), float(counts.sum())
    variance = scatter * max(mean, 0.25 * level * len(counts), 1.0)
    if found > mean:
        variance *= 1.0 - len(counts) / size
    return abs(found - mean) <= SURPRISE * sqrt(variance)


def _line(counts: Floats, scatter: float) -> tuple[float, float, float]:
    """Mean, slope a bucket and its standard error."""
    size, level = len(counts), float(counts.mean())
    at = np.arange(size) - (size - 1) / 2.0
    spread = float((at**2).sum())
    slope = float((at * counts).sum()) / spread if spread else 0.0
    return level, slope, sqrt(scatter * max(level, 1.0 / size) / spread) if spread else 0.0


def _scatter(counts: Floats) -> float:
    """How much more the counts of neighbouring buckets differ than Poisson's would, 1 at least; a median, so that a
    step is no scatter.
    """
    if len(counts) < SCATTER_MIN:
        return 1.0
    means = np.maximum((counts[1:] + counts[:-1]) / 2.0, 0.5)
    ratios = (counts[1:] - counts[:-1]) ** 2 / (2.0 * means)
    return max(1.0, float(np.median(ratios)) / CHI_SQUARED_MEDIAN)
