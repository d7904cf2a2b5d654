"""From a mean to any quantile, such that each quantile covers the share of outcomes that it names.

Assumes nothing about the shape of errors. A score says how far off a prediction was, log(actual / predicted) over its
own expected spread; the quantile of recent scores, read at the finite-sample rank ceil((n + 1) q), is what split
conformal prediction adds (Vovk et al. 2005; normalised scores: Lei et al. 2018). Recent ones stand for new ones only
while nothing changes, so the level that is read is itself moved by every quantile met or missed (adaptive conformal
inference, Gibbs & Candes 2021). Must not depend on what is predicted, or why it was off.

Scores are kept by metric, backend and load band; where a backend has too few, those of its pool are used, and
before that the prior. Columns hold the spreads, so that a decision over a thousand backends only gathers.
"""

from functools import lru_cache
from statistics import NormalDist
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from router.core import loops
from router.core.arrays import Floats, Slots
from router.core.columns import BANDS, LEVELS, METRICS, SCORES, SEEN_SCORES
from router.core.estimators import FEW, QUANTILES

PRIOR_SIGMA: Final = (0.25, 0.25, 1.0)  # before any score: normal; as a data sheet is wrong, E2E in its own widths
_Z: Final = tuple(NormalDist().inv_cdf(q) for q in QUANTILES)
_PRIOR: Final = np.multiply.outer(PRIOR_SIGMA, _Z)


class Tails:
    """Spreads by metric, quantile, band and slot."""

    def __init__(self, capacity: int) -> None:
        self._pairs: dict[
            tuple[int, int, int], tuple[Floats, Floats]
        ] = {}  # metric, band, slot: own scores, the pool's
        self._pooled: dict[tuple[int, int, str], Floats] = {}
        self._pools: dict[str, Slots] = {}
        self._pool_of: dict[int, str] = {}
        self.spread, self.borrows = _columns(capacity)

    def grow(self, capacity: int) -> None:
        """Make room for more slots."""
        spread, borrows = self.spread, self.borrows
        self.spread, self.borrows = _columns(capacity)
        self.spread[..., : spread.shape[-1]], self.borrows[..., : spread.shape[-1]] = spread, borrows

    def joined(self, slot: int, pool: str) -> None:
        """Forget what was in the slot; what is there now starts with its pool's spreads."""
        for key in [key for key in self._pairs if key[2] == slot]:
            del self._pairs[key]
        self._pools.clear()
        self._pool_of[slot] = pool
        self.borrows[:, :, slot] = True
        self.spread[:, :, :, slot] = _PRIOR[:, :, None]
        for (metric, band, name), scores in self._pooled.items():
            if name == pool and scores[SEEN_SCORES] >= FEW:
                self._lend(metric, band, np.array([slot]), scores)

    def scores(self, metric: int, band: int, slot: int) -> tuple[Floats, Floats]:
        """A backend's own and its pool's, as ``estimators.judge`` folds one in."""
        pair = self._pairs.get((metric, band, slot))
        if pair is None:
            pool = self._pool_of[slot]
            pooled = self._pooled.get((metric, band, pool))
            if pooled is None:
                pooled = self._pooled[metric, band, pool] = _scores()
            pair = self._pairs[metric, band, slot] = _scores(), pooled
        return pair

    def lend(self, metric: int, band: int, slot: int) -> None:
        """The pool of this backend has new scores: backends with few scores of their own get the pool's spreads."""
        slots = self._slots(self._pool_of[slot])
        self._lend(metric, band, slots[self.borrows[metric, band].take(slots)], self.scores(metric, band, slot)[1])

    def _lend(self, metric: int, band: int, slots: Slots, pooled: Floats) -> None:
        """Write the pool's spreads into these slots."""
        spreads = np.empty(len(QUANTILES))
        loops.spreads(pooled, spreads)
        self.spread[metric, :, band, slots] = spreads

    def _slots(self, pool: str) -> Slots:
        slots = self._pools.get(pool)
        if slots is None:
            there = [slot for slot, name in self._pool_of.items() if name == pool]
            slots = self._pools[pool] = np.array(there, dtype=np.intp)
        return slots

    def plain(self, slot: int) -> list[Any]:
        """The spreads of one backend as plain numbers."""
        plain: list[Any] = self.spread[:, :, :, slot].tolist()
        return plain

    def adopt(self, slot: int, plain: list[Any]) -> None:
        """Start from spreads learnt elsewhere, until this backend has enough scores here."""
        self.spread[:, :, :, slot] = plain
        self.borrows[:, :, slot] = False


def _columns(capacity: int) -> tuple[Floats, NDArray[np.bool_]]:
    """The prior's spreads, borrowed."""
    spread = np.empty((METRICS, len(QUANTILES), BANDS, capacity))
    spread[:] = _PRIOR[:, :, None, None]
    return spread, np.ones((METRICS, BANDS, capacity), dtype=np.bool_)


def _scores() -> Floats:
    """No scores yet."""
    made = np.zeros(SCORES)
    made[LEVELS : LEVELS + len(QUANTILES)] = QUANTILES
    return made


@lru_cache(maxsize=64)
def between(quantile: float) -> tuple[int, float]:
    """The row of the tracked quantile at or below this one, and how far this one lies toward the next, linear in the
    normal quantile.
    """
    if not 0.0 < quantile < 1.0:
        raise ValueError(f"a quantile lies between 0 and 1, not at {quantile}")
    row = max(0, min(sum(q <= quantile for q in QUANTILES) - 1, len(QUANTILES) - 2))
    z = _NORMAL.inv_cdf(quantile)
    return row, (z - _Z[row]) / (_Z[row + 1] - _Z[row])


_NORMAL: Final = NormalDist()
