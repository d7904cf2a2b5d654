"""How predictions turned out, backend by backend: errors, coverage of what was promised, and whether to trust the next.

Believes: nothing; it counts. Must not know: how a prediction is made.

A forecast is ``LEARNING`` until enough first tokens were seen for the tails to speak for themselves, ``TRUSTED`` from
then on, and ``OFF`` while its errors are too large to decide by, or while what was promised for 9 in 10 comes true far
less often. It takes more to come back than to stay.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import exp, nan
from typing import Final

import numpy as np
from numpy.typing import NDArray

from router.core import lessons
from router.core.kernels import E2E, METRICS, TPOT, TTFT, Floats
from router.core.lessons import (
    BOOK,
    BOOK_COVERED,
    BOOK_ERROR,
    BOOK_KEPT,
    BOOK_SEEN,
    KEPT,
    LEARNING,
    OFF,
    QUANTILES,
    TRUSTED,
    TRUSTED_AFTER,
)

__all__ = ["E2E", "LEARNING", "OFF", "STATES", "TPOT", "TRUSTED", "TRUSTED_AFTER", "TTFT", "Accuracy", "Books", "Score"]
STATES: Final = ("learning", "trusted", "off")
ERROR_START: Final = 0.2
COVERED_START: Final = 0.9


@dataclass(frozen=True, slots=True)
class Accuracy:
    """How one metric's predictions did: outcomes seen, median size of the relative error of late, and the share of
    all outcomes that stayed within each promised quantile (nan: none seen).
    """

    seen: int
    error: float
    coverage: Mapping[float, float]


@dataclass(frozen=True, slots=True)
class Score:
    """How far one backend's forecast can be trusted; ``changes``: how often the backend was found to have changed."""

    state: str
    ttft: Accuracy
    tpot: Accuracy
    e2e: Accuracy
    changes: int


class Books:
    """The counts, one row a slot, and what they say of trust: ``LEARNING``, ``TRUSTED`` or ``OFF``."""

    def __init__(self, capacity: int) -> None:
        self._rows = np.zeros((capacity, BOOK))
        self.state: NDArray[np.int8] = np.zeros(capacity, dtype=np.int8)

    def grow(self, capacity: int) -> None:
        """Make room for more slots."""
        rows, state = self._rows, self.state
        self._rows = np.zeros((capacity, BOOK))
        self.state = np.zeros(capacity, dtype=np.int8)
        self._rows[: len(rows)], self.state[: len(state)] = rows, state

    def joined(self, slot: int) -> None:
        """Nothing was seen of what is now in the slot."""
        self._rows[slot] = 0.0
        self._rows[slot, BOOK_ERROR : BOOK_ERROR + METRICS] = ERROR_START
        self._rows[slot, BOOK_COVERED] = COVERED_START
        self.state[slot] = LEARNING

    def note(self, slot: int, metric: int, score: float, promised: Floats, width: float) -> None:
        """An outcome ``score`` widths off its prediction, for which these spreads (by metric) were promised."""
        lessons.note(self._rows, self.state, slot, metric, score, promised, width)

    def seen(self, slot: int, metric: int) -> int:
        """Outcomes seen."""
        return int(self._rows[slot, BOOK_SEEN + metric])

    def accuracy(self, slot: int, metric: int) -> Accuracy:
        """One metric's counts."""
        seen, first = self.seen(slot, metric), BOOK_KEPT + KEPT * metric
        shares = [kept / seen if seen else nan for kept in self._rows[slot, first : first + KEPT].tolist()]
        error = exp(self._rows[slot, BOOK_ERROR + metric]) - 1.0 if seen else nan
        return Accuracy(seen, error, dict(zip(QUANTILES, shares, strict=True)))
