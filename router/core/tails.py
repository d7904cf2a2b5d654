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
from router.core.columns import BANDS, LEVELS, METRICS, SCORES, SEEN_SCORES, WINDOW
from router.core.estimators import FEW, QUANTILES

PRIOR_SIGMA: Final = (0.25, 0.25, 1.0)  # before any score: normal; as a data sheet is wrong, E2E in its own widths
_Z: Final = tuple(NormalDist().inv_cdf(q) for q in QUANTILES)
_PRIOR: Final = np.multiply.outer(PRIOR_SIGMA, _Z)
Ranks = NDArray[np.uint8]
_Scores = tuple[Floats, Ranks]  # by time, and their places by size: a byte each, for a thousand backends have many


class Tails:
    """Spreads by metric, quantile, band and slot."""

    def __init__(self, capacity: int) -> None:
        self._own: dict[int, list[_Scores | None]] = {}  # by slot, then by metric and band
        self._pooled: dict[str, list[_Scores | None]] = {}  # by pool
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
        self._own[slot] = [None] * (METRICS * BANDS)
        pooled = self._pooled.setdefault(pool, [None] * (METRICS * BANDS))
        self._pools.clear()
        self._pool_of[slot] = pool
        self.borrows[:, :, slot] = True
        self.spread[:, :, :, slot] = _PRIOR[:, :, None]
        for at, scores in enumerate(pooled):
            if scores is not None and scores[0][SEEN_SCORES] >= FEW:
                self._lend(at // BANDS, at % BANDS, np.array([slot]), scores)

    def scores(self, metric: int, band: int, slot: int) -> tuple[Floats, Ranks, Floats, Ranks]:
        """A backend's own and its pool's, each with its order, as ``estimators.judge`` folds one in."""
        at = metric * BANDS + band
        own, pooled = _made(self._own[slot], at), _made(self._pooled[self._pool_of[slot]], at)
        return own[0], own[1], pooled[0], pooled[1]

    def lend(self, metric: int, band: int, slot: int) -> None:
        """The pool of this backend has new scores: backends with few scores of their own get the pool's spreads."""
        slots = self._slots(self._pool_of[slot])
        pooled = _made(self._pooled[self._pool_of[slot]], metric * BANDS + band)
        self._lend(metric, band, slots[self.borrows[metric, band].take(slots)], pooled)

    def _lend(self, metric: int, band: int, slots: Slots, pooled: _Scores) -> None:
        """Write the pool's spreads into these slots."""
        spreads = np.empty(len(QUANTILES))
        loops.spreads(pooled[0], pooled[1], spreads)
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


def _made(scores: list[_Scores | None], at: int) -> _Scores:
    """The scores of one metric and band; none were seen where there were none."""
    found = scores[at]
    if found is None:
        found = scores[at] = np.zeros(SCORES), np.zeros(WINDOW, dtype=np.uint8)
        found[0][LEVELS : LEVELS + len(QUANTILES)] = QUANTILES
    return found


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
