"""The grid of cells: slo_headroom against every baseline. More options: ``python -m tests.bench.grid``."""

from pathlib import Path

import pytest

from tests.bench import grid
from tests.cell_runs import BASELINES, POLICY, figures, goodput_kept, overloaded, results
from tests.cells import POOLS, PROMISES, Cell, drawn

pytestmark = pytest.mark.benchmark

CELLS = 240
SEED = 1
TIMES = (1.0, 1.25, 1.5, 2.0)


def test_the_policy_is_never_worse_than_a_baseline(tmp_path: Path) -> None:
    """No cell more than a point below its best baseline; near capacity ten points above the best single one."""
    found = []
    for one in results(drawn(CELLS, SEED, {}), (POLICY, *BASELINES), jobs=0):
        found.append(one)
        print(f"\r{len(found)}/{CELLS}", end="", flush=True)
    print("\n".join(grid.summary(found)))
    page = tmp_path / "grid.html"
    page.write_text(grid.html(found), encoding="utf-8")
    print(f"heat map: {page}")
    facts = figures(found)
    assert not facts["worse"]
    assert facts["near_capacity"]["over_single"] >= 0.10


@pytest.mark.parametrize("promise", [promise for promise in PROMISES if promise != "none"])
def test_goodput_stays_under_overload_in_every_pool(promise: str) -> None:
    """From the rate a pool carries to twice that, never under 0.97 of its maximum."""
    left = {}
    for pool in POOLS:
        runs = overloaded(Cell("azure-conv", promise, "edge", pool, "1.3", SEED), TIMES)
        left[pool], error = goodput_kept(runs)
        goodput = ", ".join(f"x{times:g} {times * run.attained:.2f}" for times, run in runs.items())
        print(f"\n{promise:10s} {pool:10s} {left[pool]:.3f} +- {error:.3f} is left; goodput over capacity {goodput}")
    assert min(left.values()) >= 0.97
