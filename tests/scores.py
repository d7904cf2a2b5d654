"""Folds scores into tails as a belief does."""

import numpy as np

from router.core import loops
from router.core.columns import EXPECTATION, SPREADS
from router.core.score import ForecastStats


def current_spreads(tails, band, slot):
    """All spreads (metrics x quantiles) of one backend in one band."""
    return tails.spread[:, :, band, slot].copy()


def fold_in(tails, metric, band, slot, score, spreads):
    """Fold in one score and count whether it is within ``spreads`` (of ``current_spreads``)."""
    sent, stats = np.zeros(EXPECTATION), ForecastStats(slot + 1)
    sent[SPREADS:] = spreads.ravel()
    stats.joined(slot)
    where, counts = (metric, band, slot), (tails.spread, tails.borrows, stats.rows, stats.state)
    if loops.judge(*tails.scores(*where), *counts, *where, score, 1.0, sent, True):
        tails.lend(*where)
