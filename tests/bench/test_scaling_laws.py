"""The laws of ``scaling_laws.py`` in many worlds: minutes, so it runs with ``make bench``."""

import pytest

from tests.bench.scaling_laws import LAWS

SEEDS = range(40)
pytestmark = pytest.mark.benchmark


@pytest.mark.parametrize("law", LAWS)
def test_no_world_breaks_a_law(law: str) -> None:
    """Each world that does is named, with what went wrong there."""
    broken = {seed: why for seed in SEEDS if (why := LAWS[law](seed))}
    print(f"{law}: {len(SEEDS) - len(broken)} of {len(SEEDS)} hold")
    assert not broken
