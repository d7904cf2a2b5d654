"""Scores told to tails as a belief tells them."""

import numpy as np

from router.core import loops
from router.core.columns import EXPECTATION, SPREADS
from router.core.score import ForecastStats


def promised(tails, band, slot):
    """All spreads (metrics x quantiles) as they stand for one backend: what its predictions promise now."""
    return tails.spread[:, :, band, slot].copy()


def saw(tails, metric, band, slot, score, spreads):
    """Fold in one score, and whether what was promised (as ``promised`` gave it) was kept."""
    told, books = np.zeros(EXPECTATION), ForecastStats(slot + 1)
    told[SPREADS:] = spreads.ravel()
    own, pooled = tails.scores(metric, band, slot)
    books.joined(slot)
    if loops.judge(
        own, pooled, tails.spread, tails.borrows, books.rows, books.state, metric, band, slot, score, 1.0, told, True
    ):
        tails.lend(metric, band, slot)
