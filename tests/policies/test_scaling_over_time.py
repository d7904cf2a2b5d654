"""What the scaling policy does over time, in a few of the worlds that ``tests/bench/scaling_laws.py`` draws."""

import pytest

from tests.bench.scaling_laws import (
    a_steady_state_attains_and_costs_no_more_than_it_needs,
    a_step_is_answered_within_half_a_minute,
    constant_load_changes_at_most_once_an_hour,
    no_replica_is_held_without_traffic,
)


@pytest.mark.parametrize("seed", range(2))
def test_constant_load_changes_at_most_once_an_hour(seed: int) -> None:
    """An order that is cancelled is two changes."""
    assert not constant_load_changes_at_most_once_an_hour(seed, hours=1.0)


@pytest.mark.parametrize("seed", range(2))
def test_a_step_is_answered_within_half_a_minute(seed: int) -> None:
    """The rest is the cold start."""
    assert not a_step_is_answered_within_half_a_minute(seed)


@pytest.mark.parametrize("seed", range(2))
def test_no_replica_is_held_without_traffic(seed: int) -> None:
    """Once the requests have ended."""
    assert not no_replica_is_held_without_traffic(seed)


@pytest.mark.parametrize("seed", range(1))
def test_a_steady_state_attains_and_costs_no_more_than_it_needs(seed: int) -> None:
    """Neither too few nor too many."""
    assert not a_steady_state_attains_and_costs_no_more_than_it_needs(seed)
