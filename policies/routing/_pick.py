"""Scores into a pick: the half of a routing policy that is the same for all of them. Lower scores are better."""

import numpy as np
from numpy.typing import NDArray

from router.core import Rng


def lowest(scores: NDArray[np.float64], rng: Rng) -> int:
    """The index of the lowest score; ties are resolved at random, so that equal routers do not herd."""
    best = int(scores.argmin())
    ties = (scores == scores[best]).nonzero()[0]
    return best if len(ties) == 1 else int(ties[int(rng.random() * len(ties))])


def power_of_two(scores: NDArray[np.float64], rng: Rng) -> int:
    """The lower of two different candidates drawn at random (Mitzenmacher 2001)."""
    count = len(scores)
    if count == 1:
        return 0
    first = int(rng.random() * count)
    second = (first + 1 + int(rng.random() * (count - 1))) % count
    return first if scores[first] <= scores[second] else second


def weighted(weights: NDArray[np.float64], rng: Rng) -> int:
    """An index drawn with the chances that ``weights`` (none negative, one at least above 0) are in proportion to."""
    upto = weights.cumsum()
    return min(int(upto.searchsorted(rng.random() * upto[-1], side="right")), int(weights.nonzero()[0][-1]))
