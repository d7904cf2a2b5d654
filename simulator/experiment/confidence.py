"""Confidence intervals over the seeds of an experiment."""

from collections.abc import Sequence
from math import sqrt
from typing import Final

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


def _student(freedom: int) -> float:
    if freedom <= len(_T):
        return _T[freedom - 1]
    return next((t for bound, t in reversed(_T_BEYOND) if freedom >= bound), _T[-1])
