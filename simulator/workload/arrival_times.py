"""Arrival times of generated workloads that depend on nothing else: memoryless, bursty, daily, or by a curve of rates.

Must not depend on the lengths of requests, or on what becomes of them.
"""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import exp, lgamma, log, pi, sin, sqrt
from random import Random
from typing import Final

NIGHT: Final = 0.15
"""The lowest rate of a day as a share of its mean. ServeGen's production curves stay above 0.3 of it."""


def poisson(rate: float, draw: Random) -> Iterator[float]:
    """A memoryless process."""
    at_s = 0.0
    while True:
        at_s -= log(1.0 - draw.random()) / rate
        yield at_s


def gamma(rate: float, cv: float, draw: Random) -> Iterator[float]:
    """Gaps are gamma with coefficient of variation *cv*."""
    at_s, shape_k = 0.0, 1 / cv**2
    while True:
        at_s += draw.gammavariate(shape_k, 1 / (rate * shape_k))
        yield at_s


# ---- days -----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Day:
    """The rate over one period, as a multiple of its mean: a floor, and a power of a raised sine above it.

    Mean 1 and maximum ``peak`` hold exactly, for every peak: up to ``2 - NIGHT`` it is a plain sine, beyond that the
    nights stay at ``NIGHT`` and the days become narrower.
    """

    peak: float
    floor: float
    power: float

    def rate(self, phase: float) -> float:
        """At *phase*, in periods."""
        raised = max(0.0, 0.5 + 0.5 * sin(2 * pi * phase))
        return self.floor + (self.peak - self.floor) * (exp(self.power * log(raised)) if raised else 0.0)


def day(peak: float) -> Day:
    """The day whose highest rate is *peak* times its mean."""
    floor = max(2.0 - peak, NIGHT)
    return Day(peak, floor, 1.0 if peak <= 2.0 - NIGHT else _power_of_mean((1.0 - floor) / (peak - floor)))


def _power_of_mean(mean: float) -> float:
    """The power of a raised sine whose mean over a period is *mean*, by bisection."""
    low, high = 0.0, 1e6
    for _ in range(200):
        middle = 0.5 * (low + high)
        if _mean_of_power(middle) > mean:
            low = middle
        else:
            high = middle
    return 0.5 * (low + high)


def _mean_of_power(power: float) -> float:
    """The mean of ``((1 + sin x) / 2) ** power`` over a period: a Beta function."""
    return exp(lgamma(power + 0.5) - lgamma(power + 1.0)) / sqrt(pi)


def diurnal(requests: int, rate: float, peak: float, period_s: float, draw: Random) -> Iterator[float]:
    """*requests* arrivals over ``requests / rate`` seconds, so that the last day is not cut short by chance.

    Given their number, the times of a Poisson process are independent draws of its density; each is drawn by rejection.
    """
    shape, span_s, random = day(peak), requests / rate, draw.random
    times: list[float] = []
    while len(times) < requests:
        at_s = span_s * random()
        if random() * peak < shape.rate(at_s / period_s):
            times.append(at_s)
    return iter(sorted(times))


# ---- curves ---------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class RateCurve:
    """A rate that is constant between its times. ``end_s``: where the last one ends."""

    from_s: tuple[float, ...]
    rates: tuple[float, ...]
    end_s: float

    @property
    def mean(self) -> float:
        """Over its whole length."""
        return self.expected()[-1] / (self.end_s - self.from_s[0])

    def expected(self) -> list[float]:
        """Requests expected up to each of the times, and up to the end."""
        sums, so_far = [0.0], 0.0
        for start_s, end_s, rate in zip(self.from_s, (*self.from_s[1:], self.end_s), self.rates, strict=True):
            so_far += rate * (end_s - start_s)
            sums.append(so_far)
        return sums

    def part(self, start_s: float, span_s: float) -> "RateCurve":
        """The curve from *start_s* on, counted from its own begin, for *span_s*. Raises ValueError: it is shorter."""
        start_s += self.from_s[0]
        end_s = min(self.end_s, start_s + span_s)
        if start_s >= end_s:
            raise ValueError(f"the curve lasts {self.end_s - self.from_s[0]:g} s, no part of it begins after that")
        first = bisect_right(self.from_s, start_s) - 1
        kept = [n for n, at_s in enumerate(self.from_s) if n >= first and at_s < end_s]
        times = (start_s, *(self.from_s[n] for n in kept[1:]))
        return RateCurve(times, tuple(self.rates[n] for n in kept), end_s)


def by_curve(curve: RateCurve, factor: float, draw: Random) -> Iterator[float]:
    """Arrivals of a Poisson process of *factor* times the curve's rate, from 0 on; they end with the curve."""
    sums, at = curve.expected(), 0.0
    while True:
        at -= log(1.0 - draw.random()) / factor
        if at >= sums[-1]:
            return
        yield _time_of(curve, sums, at) - curve.from_s[0]


def _time_of(curve: RateCurve, sums: Sequence[float], expected: float) -> float:
    window = bisect_right(sums, expected) - 1
    return curve.from_s[window] + (expected - sums[window]) / curve.rates[window]
