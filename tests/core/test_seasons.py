"""The rates of earlier days and weeks as a forecast: right where days repeat, silent where they do not."""

from math import isnan, pi, sin
from random import Random
from typing import Any

import pytest

from router.core.seasons import DAY, KEPT, SLOT_S, RateHistory

DAY_S = DAY * SLOT_S


def daily(at_s: float) -> float:
    """Between 5 and 15 requests a second."""
    return 10.0 + 5.0 * sin(2.0 * pi * at_s / DAY_S)


def watched(days: float, rate: Any, seed: int = 0, start_s: float = 0.0) -> tuple[RateHistory, float]:
    """A history of so many days, with the noise of counts, and the time at its end."""
    history, draw, now_s = RateHistory(), Random(seed), start_s
    while now_s < start_s + days * DAY_S:
        now_s += SLOT_S
        mean = rate(now_s - SLOT_S / 2.0) * SLOT_S
        history.add(max(0.0, draw.gauss(mean, mean**0.5)), SLOT_S, now_s)
    return history, now_s


@pytest.mark.parametrize("hour", [0, 5, 11, 17])
def test_the_same_time_of_yesterday_is_expected_where_days_repeat(hour: int) -> None:
    """Half an hour ahead, within three of the errors that it states."""
    history, now_s = watched(3.0 + hour / 24.0, daily)
    found = history.forecast(now_s, now_s + 1800.0)
    highest = max(daily(now_s + ahead_s) for ahead_s in (300.0, 900.0, 1500.0))
    assert found.rate_per_s == pytest.approx(highest, abs=3.0 * found.error_per_s)
    assert 0.0 < found.error_per_s < 1.0


def test_a_day_that_is_busier_than_the_last_is_expected_at_its_own_level() -> None:
    """All of it is 1.5 times as much."""
    history, now_s = watched(3.3, lambda at_s: daily(at_s) * (1.5 if at_s > 2.5 * DAY_S else 1.0))
    found = history.forecast(now_s, now_s + 1800.0)
    assert found.rate_per_s == pytest.approx(1.5 * daily(now_s + 900.0), rel=0.1)


def test_the_day_of_the_week_counts_once_it_is_known() -> None:
    """Nothing arrives in the first two hours of two days in seven: after a fortnight that is foretold."""

    def rate(at_s: float) -> float:
        weekend = int(at_s / DAY_S) % 7 >= 5
        return 1.0 if weekend and at_s % DAY_S > 4 * 3600.0 else daily(at_s)

    history, now_s = watched(12.0 + 4.2 / 24.0, rate)
    assert int(now_s / DAY_S) % 7 == 5
    found = history.forecast(now_s, now_s + 600.0)
    assert found.rate_per_s < 4.0


@pytest.mark.parametrize("seed", range(3))
def test_history_that_foretells_nothing_is_silent(seed: int) -> None:
    """A rate that wanders at random, a first day, and no history at all."""
    draw, level = Random(seed), [10.0]

    def wandering(_: float) -> float:
        level[0] = max(1.0, level[0] + draw.gauss(0.0, 0.4))
        return level[0]

    history, now_s = watched(3.0, wandering, seed)
    assert isnan(history.forecast(now_s, now_s + 60.0).rate_per_s)
    first, now_s = watched(0.9, daily)
    assert isnan(first.forecast(now_s, now_s + 60.0).rate_per_s)
    assert isnan(RateHistory().forecast(0.0, 60.0).rate_per_s)


def test_a_gap_is_unknown_and_not_zero() -> None:
    """Nobody watched for six hours of the day before."""
    history, now_s = watched(2.0, daily)
    later = RateHistory()
    plain = history.export()
    gap = [slot for slot in plain["slots"] if not 0 <= slot[0] - DAY - 6 < 36]
    later.adopt(plain | {"slots": gap})
    assert isnan(later.forecast(now_s + 3600.0, now_s + 3660.0).rate_per_s)
    assert not isnan(history.forecast(now_s + 3600.0, now_s + 3660.0).rate_per_s)


def test_it_outlives_a_restart_and_stays_bounded() -> None:
    """What was exported foretells the same; after three weeks two are kept."""
    history, now_s = watched(21.0, daily)
    plain = history.export()
    assert len(plain["slots"]) <= KEPT + 1
    again = RateHistory()
    again.adopt(plain)
    assert again.forecast(now_s, now_s + 60.0) == history.forecast(now_s, now_s + 60.0)


@pytest.mark.parametrize(
    "plain",
    [
        {},
        {"version": 2, "slot_s": SLOT_S, "slots": []},
        {"version": 1, "slot_s": 5.0, "slots": []},
        {"version": 1, "slot_s": SLOT_S, "slots": None},
        {"version": 1, "slot_s": SLOT_S, "slots": [[0, float("nan"), 600.0]]},
        {"version": 1, "slot_s": SLOT_S, "slots": [[0, -1.0, 600.0]]},
        {"version": 1, "slot_s": SLOT_S, "slots": [[0, 1.0, 0.0]]},
        {"version": 1, "slot_s": SLOT_S, "slots": [[0.5, 1.0, 600.0]]},
        {"version": 1, "slot_s": SLOT_S, "slots": [[0, 1.0]]},
        {"version": 1, "slot_s": SLOT_S, "slots": [[n, 1.0, 600.0] for n in range(KEPT + 2)]},
    ],
)
def test_what_is_no_history_is_refused_and_changes_nothing(plain: dict[str, Any]) -> None:
    """Numbers that are none, another form, too much."""
    history, now_s = watched(2.5, daily)
    before = history.forecast(now_s, now_s + 60.0)
    with pytest.raises(ValueError, match="history of rates"):
        history.adopt(plain)
    assert history.forecast(now_s, now_s + 60.0) == before


@pytest.mark.parametrize(
    ("requests", "seconds", "now_s"),
    [
        (float("nan"), 5.0, 0.0),
        (-1.0, 5.0, 0.0),
        (1.0, 0.0, 0.0),
        (1.0, 1e9, 0.0),
        (1.0, 5.0, float("inf")),
        (1e300, 5.0, 0.0),
    ],
)
def test_numbers_that_are_none_are_left_out(requests: float, seconds: float, now_s: float) -> None:
    """Nothing of them stays."""
    history = RateHistory()
    history.add(requests, seconds, now_s)
    assert history.export()["slots"] == []
