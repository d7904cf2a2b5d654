"""Beyond capacity goodput stays: from the rate a pool carries to twice that it never falls under 0.97 of its maximum.

A rate at which goodput still grows is no loss: only those beyond the maximum count. All pools: ``make bench``.
"""

import pytest

from tests.cell_runs import goodput_kept, overloaded
from tests.cells import Cell

TIMES = (1.0, 1.25, 1.5, 2.0)
KEPT = 0.97
ERRORS = 1.0
"""Standard errors of the ratio that are allowed; what a full pool serves varies less than the binomial says."""
PROMISES = ("ttft", "e2e", "ttft+tpot", "classes")
SHORT = ("four-slow", "classes")
"""Where the law does not hold yet: at twice the capacity the loose class, which can wait, takes from the tight one, and
0.93 of the most is left under one seed of three."""
PLACES = [(pool, promise) for pool in ("one", "four", "four-slow") for promise in PROMISES if (pool, promise) != SHORT]


@pytest.mark.parametrize(
    ("pool", "promise"),
    [
        *PLACES,
        ("mixed", "e2e"),
        ("mixed", "ttft+tpot"),
        pytest.param(*SHORT, marks=pytest.mark.xfail(reason="0.93 is left", strict=True)),
    ],
)
def test_goodput_stays_at_its_maximum_under_overload(pool: str, promise: str) -> None:
    """At 1.0 to 2.0 times capacity."""
    runs = overloaded(Cell("azure-conv", promise, "edge", pool, "1.3", seed=1), TIMES)
    ratio, error = goodput_kept(runs)
    goodput = ", ".join(f"x{times:g} {times * run.attained:.3f}" for times, run in runs.items())
    assert ratio >= KEPT - ERRORS * error, f"{ratio:.3f} +- {error:.3f} is left; goodput over capacity {goodput}"
