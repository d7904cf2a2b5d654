"""slo_headroom is not worse than the best baseline, whatever is promised: a fixed sample of the grid's cells.

The whole grid, with other draws, is ``python -m tests.bench.grid``.
"""

from dataclasses import replace
from functools import lru_cache

import pytest

from tests.cell_runs import BASELINES, POLICY, Result, figures, results
from tests.cells import Cell, drawn

SAMPLE = [replace(cell, small=True) for cell in drawn(40, 14, {})]
POINT = 0.01
NOISE = 2.0
"""Standard errors of the paired difference. The best of nine baselines is taken, so the comparison already leans on
their side."""


@lru_cache
def result(cell: Cell) -> Result:
    """All policies in *cell*."""
    return next(results([cell], (POLICY, *BASELINES), jobs=1))


@pytest.mark.parametrize("cell", SAMPLE, ids=str)
def test_a_cell_is_within_a_point_of_its_best_baseline(cell: Cell) -> None:
    """Attained by slo_headroom, at least the best baseline's less 1 point and two standard errors."""
    one = result(cell)
    assert one.ahead >= -POINT - NOISE * one.noise, f"{one.ours:.1%}, {one.best} {one.ours - one.ahead:.1%}"


def test_near_capacity_the_policy_is_ten_points_above_the_best_single_baseline() -> None:
    """Mean over the sample's cells at loads 0.95 and 1.3."""
    near = figures([result(cell) for cell in SAMPLE])["near_capacity"]
    assert near["over_single"] >= 0.10, near
