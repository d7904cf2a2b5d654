"""The trend of counts: steady traffic is averaged, a step is seen at once, a ramp is carried on."""

from math import exp
from random import Random

import pytest

from policies.scaling._trend import steady, trend


def poisson(mean: float, draw: Random) -> float:
    count, product, least = 0, draw.random(), exp(-mean)
    while product > least:
        product *= draw.random()
        count += 1
    return float(count)


@pytest.mark.parametrize("seed", range(5))
def test_steady_traffic_is_averaged_over_all_that_there_is(seed: int) -> None:
    """Its error is that of the whole window, and no slope is taken from noise."""
    draw = Random(seed)
    found = trend([poisson(20.0, draw) for _ in range(200)], 5.0)
    assert found.window_s >= 480.0
    assert found.rate_per_s == pytest.approx(4.0, abs=4 * found.error_per_s)
    assert found.peak(60.0) == pytest.approx(4.0, rel=0.15)


def test_a_step_is_seen_within_two_buckets() -> None:
    """And no line is drawn through it."""
    draw = Random(0)
    before = [poisson(10.0, draw) for _ in range(200)]
    for count in (2, 4, 8, 16):
        found = trend(before + [poisson(50.0, draw) for _ in range(count)], 5.0)
        assert found.rate_per_s == pytest.approx(10.0, rel=0.3)
        assert found.peak(60.0) < 14.0


@pytest.mark.parametrize("buckets", range(1, 9))
def test_what_was_before_a_rise_does_not_dilute_it(buckets: int) -> None:
    """From its first bucket on."""
    found = trend([20.0] * 200 + [60.0] * buckets, 5.0)
    assert found.rate_per_s == pytest.approx(12.0, rel=0.1)


def test_a_bucket_of_a_kind_that_each_hour_has_is_no_step() -> None:
    """Twelve parts of the counts are compared, 720 times an hour; one that is as far off as no day has, is a step."""
    draw = Random(0)
    before = [poisson(50.0, draw) for _ in range(200)]
    chance = trend([*before, 50.0 + 3.8 * 50.0**0.5], 5.0)
    assert chance.window_s >= 480.0
    assert chance.rate_per_s == pytest.approx(10.0, rel=0.05)
    assert trend([*before, 50.0 + 8.0 * 50.0**0.5], 5.0).rate_per_s == pytest.approx(21.3, rel=0.05)


def test_a_ramp_is_carried_on_while_a_replica_starts() -> None:
    """Within bounds."""
    draw = Random(0)
    found = trend([poisson(10.0 + 0.1 * at, draw) for at in range(240)], 5.0)
    assert found.at(60.0) == pytest.approx((10.0 + 0.1 * 252) / 5.0, rel=0.1)
    assert found.at(1e9) == 2.0 * found.rate_per_s
    falling = trend([poisson(40.0 - 0.1 * at, draw) for at in range(240)], 5.0)
    assert falling.peak(60.0) == falling.rate_per_s


@pytest.mark.parametrize("seed", range(5))
def test_a_ramp_is_carried_on_a_minute_after_it_began(seed: int) -> None:
    """A crowd that comes within minutes; what arrived before it began is left out."""
    draw = Random(seed)
    counts = [1000.0] * 200 + [1000.0 + 120.0 * at for at in range(12)]
    found = trend([draw.gauss(mean, mean**0.5) for mean in counts], 5.0)
    assert found.at(60.0) == pytest.approx((1000.0 + 120.0 * 24) / 5.0, rel=0.2)


@pytest.mark.parametrize("first", [150.0, 200.0, 300.0, 350.0])
@pytest.mark.parametrize("buckets", [4, 5, 6, 8, 11, 16, 22])
def test_no_line_is_drawn_through_a_step(buckets: int, first: float) -> None:
    """Nor through the bucket within which it came."""
    found = trend([100.0] * 200 + [first] + [400.0] * buckets, 5.0)
    assert found.peak(60.0) == pytest.approx(80.0, rel=0.05)


@pytest.mark.parametrize("first", [10.0, 90.0])
@pytest.mark.parametrize("buckets", range(24, 200, 8))
def test_a_step_long_ago_is_no_slope(buckets: int, first: float) -> None:
    """However much of the time before it is left in a window: a replica was ordered for it, and cancelled."""
    found = trend([first] * 200 + [50.0] * buckets, 5.0)
    assert found.peak(60.0) == pytest.approx(10.0, rel=0.03)


def test_counts_beyond_all_measure_are_as_many_as_can_be() -> None:
    """No float overflows."""
    assert trend([1e308] * 50, 5.0).rate_per_s == pytest.approx(2e11)


def test_bursts_are_scatter_and_no_steps() -> None:
    """Counts that scatter more than Poisson's have a larger error."""
    draw = Random(0)
    bursty = [poisson(20.0 * draw.choice([0.2, 0.5, 2.0]), draw) for _ in range(200)]
    calm = [poisson(20.0, draw) for _ in range(200)]
    assert trend(bursty, 5.0).error_per_s > 2.0 * trend(calm, 5.0).error_per_s


def test_nothing_is_no_trend() -> None:
    """Zeros, and a rate without counts."""
    assert trend([0.0] * 50, 5.0).rate_per_s == 0.0
    assert steady(3.0).peak(60.0) == 3.0
