"""The history of arrivals is fed once from each bucket, through gaps and restarts, and foretells the hours of a day."""

import zlib
from math import cos, isnan, pi

import pytest

from router.autoscaler.arrivals import MODELS_MOST, ArrivalHistories

BUCKET_S = 5.0
DAY_S = 86_400.0
BEGAN_S = 1_000.0 * DAY_S


def rate(at_s: float) -> float:
    """Twenty a second at midnight, a hundred and twenty at noon."""
    return 70.0 - 50.0 * cos(2.0 * pi * at_s / DAY_S)


def arrivals(until_s: float) -> tuple[float, ...]:
    """What routers publish then."""
    return tuple(rate(until_s - ago * BUCKET_S - BUCKET_S / 2) * BUCKET_S for ago in range(239, -1, -1))


def days(histories: ArrivalHistories, from_s: float, to_s: float, every_s: float = 600.0) -> None:
    """Rounds of an autoscaler."""
    now_s = from_s
    while now_s <= to_s:
        histories.add("m", arrivals(now_s), BUCKET_S, now_s)
        now_s += every_s


def test_the_rise_of_a_day_is_foretold_before_it_comes() -> None:
    """At six o'clock of the third day, for the two hours that follow."""
    histories = ArrivalHistories()
    now_s = BEGAN_S + 2.25 * DAY_S
    days(histories, BEGAN_S, now_s)
    found = histories.forecast("m", now_s, 7_200.0)
    assert found.rate_per_s == pytest.approx(rate(now_s + 7_200.0), rel=0.05)
    assert 0.0 < found.error_per_s < 5.0
    assert isnan(histories.forecast("other", now_s, 600.0).rate_per_s)


def slots(histories: ArrivalHistories) -> dict[tuple[int, str], float]:
    """Requests and seconds of each slot of the history."""
    found = histories._histories["m"].export()["slots"]
    return {(number, name): value for number, *both in found for name, value in zip("rs", both, strict=True)}


def test_each_bucket_counts_once_however_often_it_is_read() -> None:
    """Rounds are shorter than the twenty minutes that are published, of any length, and skipped now and then."""
    often, seldom = ArrivalHistories(), ArrivalHistories()
    days(often, BEGAN_S, BEGAN_S + 3_600.0, every_s=15.0)
    days(seldom, BEGAN_S, BEGAN_S + 3_600.0, every_s=1_200.0)
    assert slots(often) == pytest.approx(slots(seldom))


def test_a_restart_loses_nothing_of_what_routers_still_publish() -> None:
    before, after, whole = ArrivalHistories(), ArrivalHistories(), ArrivalHistories()
    days(before, BEGAN_S, BEGAN_S + 3_600.0)
    after.adopt(before.written())
    days(after, BEGAN_S + 3_600.0 + 900.0, BEGAN_S + 7_500.0)
    days(whole, BEGAN_S, BEGAN_S + 7_500.0, every_s=300.0)
    assert slots(after) == pytest.approx(slots(whole))


def test_a_clock_that_is_set_back_far_begins_anew() -> None:
    """Else nothing would be counted until it has caught up."""
    histories = ArrivalHistories()
    histories.add("m", (5.0,), BUCKET_S, BEGAN_S + DAY_S)
    histories.add("m", (5.0,), BUCKET_S, BEGAN_S)
    histories.add("m", (5.0,), BUCKET_S, BEGAN_S + BUCKET_S)
    assert sum(value for (_, name), value in slots(histories).items() if name == "r") == 10.0


def test_memory_is_bounded_and_what_cannot_be_read_begins_anew() -> None:
    histories = ArrivalHistories()
    for number in range(MODELS_MOST + 5):
        histories.add(f"m{number}", (5.0,), BUCKET_S, BEGAN_S)
    assert len(histories._histories) == MODELS_MOST
    odd = b'{"version": 1, "models": {"m": {"until_s": 1, "rates": {"version": 9}}, "n": 7, "o": {"until_s": null}}}'
    for raw in (b"", b"x", zlib.compress(b"{"), zlib.compress(b'{"version": 9}'), zlib.compress(odd)):
        none = ArrivalHistories()
        none.adopt(raw)
        assert none._histories == {}
    histories.add("m0", (), BUCKET_S, BEGAN_S)
    histories.add("m0", (5.0,), 0.0, BEGAN_S)
