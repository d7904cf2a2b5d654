"""The figures that two builds are compared by (``beside.py``), of this build. `make bench` prints them."""

import pytest

from tests.bench.figures import FIGURES

pytestmark = pytest.mark.benchmark


@pytest.mark.parametrize("name", FIGURES)
def test_the_figures_of_this_build(name: str) -> None:
    """Each is a time."""
    cost_us = FIGURES[name]()
    print(f"\n{name}: {cost_us:.2f} us")
    assert cost_us > 0.0
