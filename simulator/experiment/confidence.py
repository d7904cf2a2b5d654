"""Confidence intervals: over the seeds of an experiment, and over the requests of one run."""

from collections.abc import Sequence
from itertools import pairwise
from math import sqrt
from statistics import fmean
from typing import Final

BATCHES: Final = 20  # of consecutive requests

# Student's t at 97.5 %, by degrees of freedom 1 to 10, then 15, 20, 30 (any table of it).
_T: Final = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)
_T_BEYOND: Final = ((15, 2.131), (20, 2.086), (30, 2.042))


def interval(values: Sequence[float]) -> tuple[float, float]:
    """The mean and the half width of its 95 % confidence interval (0 for a single value)."""
    n = len(values)
    mean = sum(values) / n
    if n == 1:
        return mean, 0.0
    spread = sqrt(sum((value - mean) ** 2 for value in values) / (n - 1))
    return mean, _student(n - 1) * spread / sqrt(n)


def batched(values: Sequence[float]) -> tuple[float, float | None]:
    """The mean over the requests of a run, in their order, and the half width of its 95 % interval; None where one
    request says nothing of the spread. Neighbouring requests share a queue and are not independent: the interval is
    over the means of consecutive batches.
    """
    batches = min(BATCHES, len(values))
    edges = [number * len(values) // batches for number in range(batches + 1)]
    half = interval([fmean(values[low:high]) for low, high in pairwise(edges)])[1]
    return fmean(values), half if batches > 1 else None


def _student(freedom: int) -> float:
    if freedom <= len(_T):
        return _T[freedom - 1]
    return next((t for bound, t in reversed(_T_BEYOND) if freedom >= bound), _T[-1])
