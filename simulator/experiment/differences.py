"""Differences between rows of a comparison, each with its interval: seed by seed, since a seed draws the same arrivals
and the same luck of replicas for every row.

Must not depend on what the rows are, or on how differences are shown.
"""

from collections.abc import Hashable, Iterator, Mapping, Sequence
from itertools import combinations
from math import nan
from typing import Final, TypeVar

from simulator.experiment.confidence import interval

Key = TypeVar("Key", bound=tuple[Hashable, ...])

NO_INTERVAL: Final = nan
"""The half width of what a single seed says."""


def pairs(keys: Sequence[Key]) -> Iterator[tuple[Key, Key]]:
    """Rows that differ in exactly one place of their keys, the earlier first: all else is equal there."""
    for first, second in combinations(keys, 2):
        if sum(a != b for a, b in zip(first, second, strict=True)) == 1:
            yield first, second


def difference(first: Sequence[float], second: Sequence[float]) -> tuple[float, float]:
    """The mean of *second* - *first*, which are in order of their seeds, and the half width of its 95 % interval."""
    mean, half = interval([b - a for a, b in zip(first, second, strict=True)])
    return mean, half if len(first) > 1 else NO_INTERVAL


def differences(values: Mapping[Key, Sequence[float]]) -> dict[tuple[Key, Key], tuple[float, float]]:
    """Of every pair of rows; *values*: one a seed."""
    return {(a, b): difference(values[a], values[b]) for a, b in pairs(list(values))}


def is_clear(mean: float, half: float) -> bool:
    """Whether an interval lies on one side of 0. False where there is none."""
    return abs(mean) > half
