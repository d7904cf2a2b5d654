"""The figures that two builds are compared by (``beside.py``), of this build. `make bench` prints them."""

import pytest

from tests.bench.figures import FIGURES

pytestmark = pytest.mark.benchmark


@pytest.mark.parametrize("name", FIGURES)
def test_the_figures_of_this_build(name: str) -> None:
    """Each is a time."""
    rounds, begun = FIGURES[name]
    measure = begun()
    least_us = min(measure() for _ in range(rounds))
    print(f"\n{name}: {least_us:.2f} us")
    assert least_us > 0.0
