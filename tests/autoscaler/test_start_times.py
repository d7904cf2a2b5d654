"""Start times are learnt from order to first token, and take the place of the stated one as they become many."""

from math import nan

import pytest

from router.autoscaler.start_times import START_S_MOST, STARTS_MOST, StartTimes

SMALL = ("m", "small")


def test_from_order_over_appearance_to_the_first_token() -> None:
    """Ordered at 100, up at 190, and its first request, an hour later, took 5 s: 95 s."""
    known = StartTimes()
    known.seen(SMALL, {"a": 0.1}, 0.0)
    assert known.expected_s("small", 60.0) == 60.0
    known.ordered(SMALL, 1, 100.0)
    known.seen(SMALL, {"a": 0.1}, 150.0)
    known.seen(SMALL, {"a": 0.1, "b": nan}, 190.0)
    assert known.starts("small") == ()
    known.seen(SMALL, {"a": 0.1, "b": 5.0}, 3_790.0)
    assert known.starts("small") == (95.0,)
    assert known.expected_s("small", 60.0) == pytest.approx((2 * 60.0 + 95.0) / 3)


def test_more_evidence_counts_for_more_and_what_is_old_for_nothing() -> None:
    known, now_s = StartTimes(), 0.0
    for number, took_s in enumerate([1_000.0] * 5 + [90.0] * STARTS_MOST):
        known.seen(SMALL, {str(each): 0.0 for each in range(number)}, now_s)
        known.ordered(SMALL, 1, now_s)
        now_s += took_s
        known.seen(SMALL, {str(each): 0.0 for each in range(number + 1)}, now_s)
    assert len(known.starts("small")) == STARTS_MOST
    assert 60.0 < known.expected_s("small", 60.0) < 90.0
    assert known.expected_s("small", 60.0) == pytest.approx(90.0, rel=0.05)


def test_what_was_there_before_what_was_called_off_and_what_comes_unordered_teach_nothing() -> None:
    """A restart of the autoscaler, a drain before the start was over, a replica that somebody else added."""
    known = StartTimes()
    known.ordered(SMALL, 3, 0.0)
    known.ordered(SMALL, -3, 10.0)
    known.seen(SMALL, {"a": 0.1}, 20.0)
    known.seen(SMALL, {"a": 0.1, "b": 0.1}, 30.0)
    known.ordered(SMALL, 1, 40.0)
    known.seen(SMALL, {"a": 0.1, "b": 0.1, "c": 0.1}, 41.0 + START_S_MOST)
    known.ordered(SMALL, 1, 9_000.0)
    known.seen(SMALL, {"a": 0.1, "b": 0.1, "c": 0.1, "d": nan}, 9_060.0)
    known.seen(SMALL, {"a": 0.1, "b": 0.1, "c": 0.1}, 9_061.0)  # it has left without a token
    assert known.starts("small") == ()


def test_a_backend_that_was_down_for_a_moment_is_no_start() -> None:
    """As of an overload, when orders are pending: the one that was ordered counts, and one that left and came again."""
    known = StartTimes()
    known.seen(SMALL, {"a": 0.1}, 0.0)
    known.ordered(SMALL, 1, 100.0)
    known.seen(SMALL, {}, 105.0, down={"a"})
    known.seen(SMALL, {"a": 0.1}, 110.0, down={"b"})
    assert known.starts("small") == ()
    known.seen(SMALL, {"a": 0.1, "b": 5.0}, 190.0)
    assert known.starts("small") == (95.0,)
    known.seen(SMALL, {"a": 0.1}, 200.0)
    known.ordered(SMALL, 1, 300.0)
    known.seen(SMALL, {"a": 0.1, "b": 5.0}, 360.0)
    assert known.starts("small") == (95.0, 65.0)


def test_start_times_pass_through_a_restart_and_nothing_else_does() -> None:
    known = StartTimes()
    known.adopt({"small": [95.0, -1.0, float("inf"), "x", True, None, 120], "big": "x", "none": []})
    assert known.plain() == {"small": [95.0, 120.0]}
    again = StartTimes()
    again.adopt(known.plain())
    again.adopt(None)
    assert again.expected_s("small", 60.0) == known.expected_s("small", 60.0) > 60.0
