"""The rate of arrivals now and while a replica starts, with its error: from counts in short buckets alone.

The longest window that one straight line explains is read: a step is seen in its first bucket, and steady traffic is
averaged over all that there is. Where the newest buckets are more than a window's line lets expect, the rate has risen:
no window is read that reaches further back than the rise, and half a minute after it a ramp differs from a step. Counts
scatter as Poisson's do or more; how much more is estimated too.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Final

import numpy as np

from router.core import Floats

COUNT_MAX: Final = 1e12  # of a bucket: what is more is as impossible, and no float overflows
WINDOWS: Final = (1, 2, 3, 6, 12, 24, 48, 96, 192)  # buckets
SURPRISE: Final = 4.5  # standard errors by which a part of a window must differ from its line, to begin a new window:
# parts of every length are compared in every bucket, and of a day of steady traffic none differs so much by chance
LINE_MIN: Final = 24  # buckets: through fewer, any step looks like a line
SHORT_LINE_MIN: Final = 6  # the same, after a rise: its window begins with it
LINE_SIGMA: Final = 2.0  # standard errors that a slope has to be; of a short line, SURPRISE
MEAN_MIN: Final = 0.25  # of the mean of a window: a line that falls to nothing makes no count a surprise
SCATTER_MIN: Final = 3  # buckets that scatter is read from
ROOT_SHIFT: Final = 0.375  # Anscombe's: with it, the roots of counts have a variance of a quarter
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
    counts = np.minimum(np.asarray(arrivals, dtype=np.float64), COUNT_MAX)
    scatter = _scatter(counts)
    size = _size(counts, scatter)
    if size == 1 and counts[-1] < counts[-2]:
        size = WINDOWS[1]  # one bucket that is empty ends no replica
    line = _line(counts[-size:], scatter)
    sure = line.sure()
    slope = line.slope * sure
    error = sqrt(scatter * max(line.level, 1.0 / size) / size) * sqrt(1.0 + 3.0 * sure)  # of the end of a line: twice
    now = max(0.0, line.level + slope * line.size / 2.0)
    return Trend(now / bucket_s, slope / bucket_s**2, error / bucket_s, size * bucket_s)


def _size(counts: Floats, scatter: float) -> int:
    """Buckets of the longest window that its line explains, and that reaches no further back than the last rise."""
    size = max(each for each in WINDOWS if each <= len(counts))
    while size > 1:
        window = counts[-size:]
        line = _line(window, scatter)
        expected: Floats = line.level + line.kept() * (np.arange(size, dtype=np.float64) - size + (line.size + 1) / 2.0)
        since = _rise(window, expected, line.level, scatter)
        if since < size:
            size = since
        elif _even(window, expected, line.level, scatter):
            return size
        else:
            size = max(each for each in WINDOWS if each < size)
    return size


def _rise(counts: Floats, expected: Floats, level: float, scatter: float) -> int:
    """Since how many buckets there is more than the line of a window lets expect; all of them where there is not.

    What a part has in common with its window does not differ, which counts for a rise alone: late by a bucket, it costs
    requests, while a fall that was none costs replicas that have to start again. The square roots of counts scatter
    like one another, and those far above a small mean are rarer by them than by its standard error.
    """
    size = len(counts)
    parts = np.arange(1, size // 2 + 1)
    found, mean = np.cumsum(counts[::-1])[: len(parts)], np.maximum(np.cumsum(expected[::-1])[: len(parts)], 0.0)
    apart = _above(found, np.maximum(mean, MEAN_MIN * level * parts)) / np.sqrt(scatter * (1.0 - parts / size))
    best = int(np.argmax(apart))
    return best + 1 if apart[best] > SURPRISE else size


def _above(found: Floats, mean: Floats) -> Floats:
    """By how many standard errors of Poisson's counts there are more than the mean."""
    return 2.0 * (np.sqrt(found + ROOT_SHIFT) - np.sqrt(mean + ROOT_SHIFT))


def _even(counts: Floats, expected: Floats, level: float, scatter: float) -> bool:
    """Whether the newest and the oldest parts of a window, and each quarter of it, are what its line lets expect.

    What is left of a rate before a step, at the beginning of a long window, makes a slope of it that is none.
    """
    size, quarter = len(counts), max(1, len(counts) // 4)
    ends = [each for part in WINDOWS if part <= size // 2 for each in ((size - part, size), (0, part))]
    parts = [*ends, *((start, start + quarter) for start in range(0, size - quarter + 1, quarter))]
    starts, stops = [start for start, _ in parts], [end for _, end in parts]
    sums, means = np.concatenate(([0.0], np.cumsum(counts))), np.concatenate(([0.0], np.cumsum(expected)))
    found, mean = sums[stops] - sums[starts], np.maximum(means[stops] - means[starts], 0.0)
    lengths = np.array(stops) - np.array(starts)
    usual = np.maximum(mean, MEAN_MIN * level * lengths)
    above = _above(found, usual) / np.sqrt(1.0 - lengths / size)
    below = (mean - found) / np.sqrt(np.maximum(usual, 1.0))
    return bool((np.maximum(above, below) <= SURPRISE * sqrt(scatter)).all())


@dataclass(frozen=True, slots=True)
class _Line:
    """Through the newest ``size`` buckets: mean, change a bucket, and the standard error of that. ``sigma``: so many of
    these a change has to be, to be one.
    """

    size: int
    level: float
    slope: float
    error: float
    sigma: float

    def kept(self) -> float:
        """The slope, unless it may be a chance of few buckets."""
        return self.slope if self.sigma < SURPRISE or self.slope > self.sigma * self.error else 0.0

    def sure(self) -> float:
        """The share of the slope that is carried on."""
        least = self.sigma * self.error
        return 1.0 - (least / self.slope) ** 2 if self.kept() and abs(self.slope) > least else 0.0


def _line(counts: Floats, scatter: float) -> _Line:
    """Through a window; through a short one without its first bucket, within which the rate may have risen."""
    size = len(counts)
    if size < LINE_MIN:
        short = counts[1:] if size >= SHORT_LINE_MIN else counts
        level, slope, error = _fitted(short, scatter)
        return _Line(len(short), level, slope if size >= SHORT_LINE_MIN else 0.0, error, SURPRISE)
    return _Line(size, *_fitted(counts, scatter), LINE_SIGMA)


def _fitted(counts: Floats, scatter: float) -> tuple[float, float, float]:
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
