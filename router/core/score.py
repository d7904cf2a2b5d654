"""The accuracy of predictions, by backend: errors, coverage of the quantiles, and the state of the forecast.

It counts, and assumes nothing. Must not depend on how a prediction is made.

A forecast is ``LEARNING`` until enough first tokens were seen for the tails to speak for themselves, ``TRUSTED`` from
then on, and ``OFF`` while its errors are too large to decide by, or while the 0.9 quantile covers far
fewer than 9 in 10. The limits to regain trust are stricter.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import exp, nan
from typing import Final

import numpy as np
from numpy.typing import NDArray

from router.core.arrays import view_of
from router.core.columns import (
    E2E,
    KEPT_QUANTILES,
    LEARNING,
    METRICS,
    OFF,
    STATS,
    STATS_COVERAGE,
    STATS_ERROR,
    STATS_MET,
    STATS_SEEN,
    TPOT,
    TRUSTED,
    TTFT,
)
from router.core.estimators import QUANTILES, TRUSTED_AFTER

__all__ = [
    "E2E",
    "LEARNING",
    "OFF",
    "STATES",
    "TPOT",
    "TRUSTED",
    "TRUSTED_AFTER",
    "TTFT",
    "Accuracy",
    "ForecastStats",
    "Score",
]
STATES: Final = ("learning", "trusted", "off")
ERROR_START: Final = 0.2
COVERED_START: Final = 0.9


@dataclass(frozen=True, slots=True)
class Accuracy:
    """How one metric's predictions did: outcomes seen, median size of the relative error of late (TPOT: of replies long
    enough that their TPOT is no chance), and the share of all outcomes that stayed within each predicted quantile (nan:
    none seen).
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


class ForecastStats:
    """The counts, one row per slot as ``estimators.judge`` fills it, and the state of each forecast."""

    def __init__(self, capacity: int) -> None:
        self.rows = np.zeros((capacity, STATS))
        self.state: NDArray[np.int8] = np.zeros(capacity, dtype=np.int8)
        self.shown_state = view_of(self.state)  # what policies see

    def grow(self, capacity: int) -> None:
        """Make room for more slots."""
        rows, state = self.rows, self.state
        self.rows = np.zeros((capacity, STATS))
        self.state = np.zeros(capacity, dtype=np.int8)
        self.shown_state = view_of(self.state)
        self.rows[: len(rows)], self.state[: len(state)] = rows, state

    def joined(self, slot: int) -> None:
        """Nothing was seen of what is now in the slot."""
        self.rows[slot] = 0.0
        self.rows[slot, STATS_ERROR : STATS_ERROR + METRICS] = ERROR_START
        self.rows[slot, STATS_COVERAGE] = COVERED_START
        self.state[slot] = LEARNING

    def seen(self, slot: int, metric: int) -> int:
        """Outcomes seen."""
        return int(self.rows[slot, STATS_SEEN + metric])

    def accuracy(self, slot: int, metric: int) -> Accuracy:
        """One metric's counts."""
        seen, first = self.seen(slot, metric), STATS_MET + KEPT_QUANTILES * metric
        shares = [met / seen if seen else nan for met in self.rows[slot, first : first + KEPT_QUANTILES].tolist()]
        error = exp(self.rows[slot, STATS_ERROR + metric]) - 1.0 if seen else nan
        return Accuracy(seen, error, dict(zip(QUANTILES, shares, strict=True)))
