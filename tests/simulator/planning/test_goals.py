"""SLOs with the share that each bound has to hold for."""

from math import nan

import pytest

from router.core.decisions import EndState, RequestRecord, Usage
from router.core.types import Request, Slo
from simulator.planning.goals import WHOLE, Goal, goals_of
from simulator.run.result_table import ResultTable
from simulator.workload.arrivals import SloClass


def test_a_share_goes_with_a_bound() -> None:
    """The others have the share that holds where none is given; the SLO itself is without shares."""
    goals = goals_of(["ttft=1s@0.95,tpot=50ms"], 0.99)
    assert goals.classes == (SloClass("default", Slo(ttft_s=1, tpot_s=0.05)),)
    assert goals.goals == (Goal("default", "ttft", 1.0, 0.95), Goal("default", "tpot", 0.05, 0.99))
    assert goals.texts == ("ttft=1s,tpot=50ms",)


def test_classes_have_shares_of_the_load_and_of_each_bound() -> None:
    """``chat@0.7:`` is the class's share of the requests."""
    goals = goals_of(["chat@0.7:ttft=1s@99%", "batch@0.3:e2e=60s@0.9"], 0.99)
    assert [(each.name, each.share) for each in goals.classes] == [("chat", 0.7), ("batch", 0.3)]
    assert [goals.label(goal) for goal in goals.goals] == ["chat ttft", "batch e2e"]
    assert [goal.share for goal in goals.goals] == [0.99, 0.9]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ttft=1s@1.5", "expected a share such as 0.99 after @, got '1.5'"),
        ("ttft=1s@0", "expected a share"),
        ("ttft=1s@nan", "expected a share"),
        ("ttft=1s@high", "expected a share"),
        ("ttft=1s,quantile=0.9@0.9", "a share goes with one of ttft, tpot, e2e"),
        ("quantile=0.9", "expected a bound"),
        ("ttft", "expected key=value"),
        ("speed=1s", "unknown key 'speed'"),
    ],
)
def test_what_is_wrong_is_named(text: str, message: str) -> None:
    """With what was expected."""
    with pytest.raises(ValueError, match=message):
        goals_of([text], 0.99)


def test_a_class_is_named_once() -> None:
    """Two of one name would share their requests."""
    with pytest.raises(ValueError, match="two classes are named 'default'"):
        goals_of(["ttft=1s", "tpot=1s"], 0.99)


def ended(number: int, ttft_s: float, outcome: EndState = EndState.SERVED, slo_class: str = "default") -> RequestRecord:
    """A reply of eleven tokens, one each 40 ms."""
    request = Request(f"r{number}", "m", 0.0, 10, slo=Slo(ttft_s=1, tpot_s=0.05), slo_class=slo_class)
    return RequestRecord(request, outcome, "a", 1, 0.0, ttft_s, ttft_s + 0.4, Usage(11), None, nan, nan, nan)


def test_a_request_that_was_not_served_is_within_no_bound() -> None:
    """Shares are of all requests of a class; those with an SLO of their own count as a whole."""
    goals = goals_of(["ttft=1s@0.5,tpot=50ms@0.5"], 0.6)
    table = ResultTable()
    records = [
        ended(0, 0.5), ended(1, 2.0), ended(2, 0.5, EndState.REFUSED), ended(3, nan, EndState.REFUSED),
        ended(4, 0.5, slo_class="own"), ended(5, 2.0, slo_class="own"),
    ]  # fmt: skip
    for record in records:
        table.add(record, 0.0)
    attained = goals.attained(table)
    assert attained == {"ttft": 0.25, "tpot": 0.5, WHOLE: 0.5}
    assert goals.margin(attained) == pytest.approx(-0.25)
    assert goals.allowed_misses == 1.0
