"""From a mean to any quantile, such that promised quantiles cover what they promise.

Believes: nothing of the shape of errors. A score says how far off a prediction was, log(actual / predicted) over its
own expected spread; the quantile of recent scores, read at the finite-sample rank ceil((n + 1) q), is what split
conformal prediction adds (Vovk et al. 2005; normalised scores: Lei et al. 2018). Recent ones stand for new ones only
while nothing changes, so the level that is read is itself moved by every promise kept or broken (adaptive conformal
inference, Gibbs & Candes 2021). Must not know: what is predicted, or why it was off.

Scores are kept by metric, backend and load band; where a backend has too few, its pool speaks for it, and before that
the prior. Columns hold the ready spreads, so that a decision over a thousand backends only gathers.
"""

from array import array
from bisect import bisect_left, insort
from collections.abc import Sequence
from math import ceil
from statistics import NormalDist
from typing import Any, Final

import numpy as np

from router.core.ledger import Floats, Slots

QUANTILES: Final = (0.5, 0.75, 0.9, 0.95, 0.99)
BANDS: Final = 3  # engines with no prompt ahead; with some; full
FULL: Final = 2
WINDOW: Final = 160  # scores that stand for the next one: the 0.99 rank needs 99
FEW: Final = 20  # below so many scores of its own a backend's band borrows from its pool
SETTLED: Final = 64  # from then on the columns follow every REFRESH scores
REFRESH: Final = 4
ACI_GAIN: Final = 0.01  # step of the level for a broken promise; Gibbs & Candes use 0.005
LEVEL_MAX: Final = 0.9995
BEYOND: Final = 0.35  # above the largest score there is only a guess: this share of what lies above the median
PRIOR_SIGMA: Final = (0.25, 0.25, 1.0)  # before any score: normal; as a data sheet is wrong, E2E in its own widths
ONLY_WIDER: Final = 0.95  # the level of a promise this high is only ever raised: one broken says too little
_ACI: Final = tuple(
    (ACI_GAIN * (1.0 - q), ACI_GAIN * q, q if q >= ONLY_WIDER else max(0.3, 1.5 * q - 0.5)) for q in QUANTILES
)
_Z: Final = tuple(NormalDist().inv_cdf(q) for q in QUANTILES)
_PRIOR: Final = np.multiply.outer(PRIOR_SIGMA, _Z)


class Scores:
    """The last ``WINDOW`` scores, in order of time and of size, and the level that each quantile is read at."""

    __slots__ = ("_ring", "_sorted", "levels", "seen")

    def __init__(self) -> None:
        self._ring = array("d")
        self._sorted = array("d")
        self.levels = list(QUANTILES)
        self.seen = 0

    def add(self, score: float) -> None:
        """The newest score; the oldest makes room."""
        ring, ranked = self._ring, self._sorted
        if len(ring) < WINDOW:
            ring.append(score)
        else:
            place = self.seen % WINDOW
            del ranked[bisect_left(ranked, ring[place])]
            ring[place] = score
        insort(ranked, score)
        self.seen += 1

    def at(self, level: float) -> float:
        """The score at the finite-sample rank of a level; above the largest seen, a guess that grows with spread."""
        ranked, count = self._sorted, len(self._sorted)
        rank = ceil((count + 1) * level)
        if rank <= count:
            return ranked[rank - 1]
        largest = ranked[-1]
        return largest + BEYOND * (largest - ranked[count // 2])

    def spreads(self) -> list[float]:
        """The score for each kept quantile, never falling from one to the next."""
        spreads = [self.at(level) for level in self.levels]
        for i in range(1, len(spreads)):
            spreads[i] = max(spreads[i], spreads[i - 1])
        return spreads

    def adapt(self, score: float, promised: Sequence[float]) -> None:
        """Move each level by whether its promise was kept."""
        levels = self.levels
        for i, (down, up, least) in enumerate(_ACI):
            if score <= promised[i]:
                levels[i] = max(least, levels[i] - down)
            else:
                levels[i] = min(LEVEL_MAX, levels[i] + up)


class Tails:
    """Spreads by metric, quantile, band and slot."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._spread = np.empty((*_PRIOR.shape, BANDS, capacity))
        self._spread[:] = _PRIOR[:, :, None, None]
        self._scores: dict[tuple[int, int, int], Scores] = {}  # metric, band, slot
        self._pooled: dict[tuple[int, int, str], Scores] = {}
        self._pools: dict[str, Slots] = {}
        self._borrows = np.ones((len(_PRIOR), BANDS, capacity), dtype=np.bool_)
        self._pool_of: dict[int, str] = {}

    def grow(self, capacity: int) -> None:
        """Make room for more slots."""
        spread = np.empty((*_PRIOR.shape, BANDS, capacity))
        spread[:] = _PRIOR[:, :, None, None]
        spread[..., : self._capacity] = self._spread
        borrows = np.ones((len(_PRIOR), BANDS, capacity), dtype=np.bool_)
        borrows[..., : self._capacity] = self._borrows
        self._spread, self._borrows, self._capacity = spread, borrows, capacity

    def joined(self, slot: int, pool: str) -> None:
        """Forget what was in the slot; what is there now starts with what its pool knows."""
        for key in [key for key in self._scores if key[2] == slot]:
            del self._scores[key]
        self._pools.clear()
        self._pool_of[slot] = pool
        self._borrows[:, :, slot] = True
        self._spread[:, :, :, slot] = _PRIOR[:, :, None]
        for (metric, band, name), scores in self._pooled.items():
            if name == pool and scores.seen >= FEW:
                self._spread[metric, :, band, slot] = scores.spreads()

    def where(self, bands: Slots, slots: Slots) -> Slots:
        """Places in the columns of these slots in these bands; what ``spread`` wants."""
        places: Slots = bands * self._capacity + slots
        return places

    def spread(self, metric: int, quantile: float, where: Slots) -> Floats:
        """The score at a quantile; between and beyond the kept ones straight in the normal quantile's scale."""
        row, share = _between(quantile)
        kept = self._spread[metric].reshape(len(QUANTILES), -1)
        low: Floats = kept[row].take(where)
        if share:
            low += share * (kept[row + 1].take(where) - low)
        return low

    def promised(self, band: int, slot: int) -> list[list[float]]:
        """All spreads (metrics x quantiles) as they stand for one backend: what its predictions promise now."""
        promised: list[list[float]] = self._spread[:, :, band, slot].tolist()
        return promised

    def saw(self, metric: int, band: int, slot: int, score: float, promised: Sequence[float]) -> None:
        """Fold in one score, and whether what was promised with it was kept."""
        own = self._scores.get((metric, band, slot))
        if own is None:
            own = self._scores[metric, band, slot] = Scores()
        pool = self._pool_of[slot]
        pooled = self._pooled.get((metric, band, pool))
        if pooled is None:
            pooled = self._pooled[metric, band, pool] = Scores()
        own.add(score)
        own.adapt(score, promised)
        if own.seen >= FEW and (own.seen < SETTLED or own.seen % REFRESH == 0):
            self._spread[metric, :, band, slot] = own.spreads()
            self._borrows[metric, band, slot] = False
        if own.seen < FEW or own.seen % FEW == 0:
            pooled.add(score)
            if pooled.seen >= FEW and pooled.seen % REFRESH == 0:
                self._lend(metric, band, pool, pooled.spreads())

    def _lend(self, metric: int, band: int, pool: str, spreads: list[float]) -> None:
        """Those with few scores of their own get the pool's, which hears all of the new and one in FEW of the old."""
        slots = self._slots(pool)
        slots = slots[self._borrows[metric, band].take(slots)]
        self._spread[metric, :, band, slots] = spreads

    def _slots(self, pool: str) -> Slots:
        slots = self._pools.get(pool)
        if slots is None:
            there = [slot for slot, name in self._pool_of.items() if name == pool]
            slots = self._pools[pool] = np.array(there, dtype=np.intp)
        return slots

    def plain(self, slot: int) -> list[Any]:
        """The spreads of one backend as plain numbers."""
        plain: list[Any] = self._spread[:, :, :, slot].tolist()
        return plain

    def adopt(self, slot: int, plain: list[Any]) -> None:
        """Start from spreads learnt elsewhere, until this backend has enough scores here."""
        self._spread[:, :, :, slot] = plain
        self._borrows[:, :, slot] = False


def _between(quantile: float) -> tuple[int, float]:
    """The kept quantile at or below this one, and how far it lies toward the next."""
    if quantile in QUANTILES:
        return QUANTILES.index(quantile), 0.0
    if not 0.0 < quantile < 1.0:
        raise ValueError(f"a quantile lies between 0 and 1, not at {quantile}")
    row = max(0, min(sum(q < quantile for q in QUANTILES) - 1, len(QUANTILES) - 2))
    z = _NORMAL.inv_cdf(quantile)
    return row, (z - _Z[row]) / (_Z[row + 1] - _Z[row])


def interpolated(spreads: Sequence[float], quantile: float) -> float:
    """The spread at any quantile, from one at each kept quantile."""
    row, share = _between(quantile)
    low = spreads[row]
    return low + share * (spreads[row + 1] - low) if share else low


_NORMAL: Final = NormalDist()
