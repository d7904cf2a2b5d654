"""The grid of cells: slo_headroom against every baseline. More options: ``python -m tests.bench.grid``."""

from pathlib import Path

import pytest

from tests.bench import grid
from tests.cell_runs import BASELINES, POLICY, figures, results
from tests.cells import drawn

pytestmark = pytest.mark.benchmark

CELLS = 240
SEED = 1


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
