"""What came beyond the plans of a model: counted once they had started, by the minute, as shares of all requests."""

from typing import Any

import pytest

from router.core.seasons import RateHistory
from router.core.shortfalls import BEFORE_S, TIMES, Shortfalls


def watched(*parts: tuple[float, float], plan_per_s: float = 2.0) -> Shortfalls:
    """Rates, each for so many seconds, under one plan."""
    found, now_s = Shortfalls(), 0.0
    found.planned(plan_per_s, 0.0)
    for rate, seconds in parts:
        for _ in range(int(seconds / 5.0)):
            now_s += 5.0
            found.add(rate * 5.0, 5.0, now_s)
    return found


def test_a_step_beyond_the_plan_is_a_share_of_a_day() -> None:
    """Five times as much for a minute, in the first ten: by the rate so far, a day has many more requests."""
    found = watched((2.0, 540.0), (10.0, 60.0))
    shares = dict(found.beyond())
    requests = (540.0 * 2.0 + 600.0) * BEFORE_S / 600.0
    assert shares[1.0] == pytest.approx((600.0 - 120.0) / requests, rel=0.01)
    assert shares[4.0] == pytest.approx((600.0 - 480.0) / requests, rel=0.01)
    assert shares[6.0] == 0.0
    assert found.highest_per_s == pytest.approx(10.0, rel=0.01)


def test_a_plan_counts_from_when_it_has_started() -> None:
    """Before the first there is nothing to compare with; the one before holds until the next."""
    found = Shortfalls()
    found.add(1000.0, 60.0, 60.0)
    assert found.beyond() == ()
    found.planned(1.0, 100.0)
    found.add(1000.0, 60.0, 99.0)
    assert found.beyond() == ()
    found.planned(20.0, 200.0)
    found.add(300.0, 60.0, 160.0)
    found.add(300.0, 60.0, 260.0)
    assert dict(found.beyond())[1.0] == pytest.approx((300.0 - 60.0) / (600.0 * BEFORE_S / 120.0), rel=0.01)


def test_plans_count_also_where_replicas_start_slowly() -> None:
    """A plan of every second, each from half an hour later on: more than are kept, and one of about then counts."""
    found = Shortfalls()
    for now_s in range(3_600):
        found.planned(1.0 if now_s < 900 else 5.0, now_s + 1_800.0)
        found.add(3.0, 1.0, float(now_s))
    shares = dict(found.beyond())
    assert shares[1.0] == pytest.approx(900.0 * 2.0 / (1_800.0 * 3.0 * BEFORE_S / 1_800.0), rel=0.1)


def test_bursts_within_a_minute_are_no_shortfall() -> None:
    """A plan has room for them."""
    found = watched(*[(4.0, 5.0), (0.0, 5.0)] * 60)
    assert dict(found.beyond())[1.0] == 0.0


@pytest.mark.parametrize("rate", [float("nan"), float("inf"), -1.0, 1e300])
def test_a_plan_that_is_no_number_is_left_out(rate: float) -> None:
    """The one before goes on."""
    found = watched((2.0, 60.0))
    found.planned(rate, 70.0)
    found.planned(2.0, float("nan"))
    found.add(600.0, 60.0, 120.0)
    assert dict(found.beyond())[1.0] == pytest.approx(480.0 / (720.0 * BEFORE_S / 120.0), rel=0.01)


def test_they_outlive_a_restart_with_the_history_of_rates() -> None:
    """And a history without them, of an earlier release, is taken over."""
    history, again = RateHistory(), RateHistory()
    history.shortfalls.planned(2.0, 0.0)
    for at in range(1, 41):
        history.add(50.0, 5.0, at * 5.0)
    again.adopt(history.export())
    assert again.shortfalls.beyond() == history.shortfalls.beyond() != ()
    again.adopt({name: value for name, value in history.export().items() if name != "shortfalls"})
    assert again.shortfalls.beyond() == ()


@pytest.mark.parametrize(
    "plain",
    [
        None,
        [],
        [1.0] * 3,
        [float("nan")] * (3 + len(TIMES)),
        ["1"] * (3 + len(TIMES)),
        [0.0] + [9.0] * (2 + len(TIMES)),
        [5e-324] + [9.0] * (2 + len(TIMES)),
    ],
)
def test_what_is_no_export_is_refused_and_changes_nothing(plain: Any) -> None:
    """Alone, and within a history of rates."""
    found = watched((2.0, 600.0), (10.0, 60.0))
    before = found.beyond()
    with pytest.raises(ValueError, match="exceeded the plans"):
        found.adopt(plain)
    assert found.beyond() == before
    history = RateHistory()
    history.add(10.0, 5.0, 5.0)
    with pytest.raises(ValueError, match="exceeded the plans"):
        history.adopt({**RateHistory().export(), "shortfalls": plain})
    assert len(history.export()["slots"]) == 1
