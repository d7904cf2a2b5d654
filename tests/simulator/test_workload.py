"""Entries to arrivals: rate, window, limit, classes by share; SLOs in words."""

import pytest

from router.core.types import NO_SLO, Slo
from simulator.traces import TraceEntry
from simulator.workload.arrivals import Shaping, SloClass, parse_seconds, parse_slo, shape, with_distinct_ids

TEN = [TraceEntry(100.0 + n, 10, 5) for n in range(10)]


def test_the_first_arrival_is_time_zero_and_the_rate_shortens_gaps() -> None:
    """x2 halves every gap."""
    arrivals = shape(TEN, Shaping("m", rate=2.0), 0)
    assert [arrival.request.arrived_s for arrival in arrivals] == [n / 2 for n in range(10)]


def test_a_window_and_a_limit_cut() -> None:
    """From 2 s to 6 s of the trace, three of them at most."""
    arrivals = shape(TEN, Shaping("m", from_s=2, to_s=6, limit=3), 0)
    assert [arrival.request.arrived_s for arrival in arrivals] == [0, 1, 2]


def test_classes_are_drawn_by_share_and_the_seed_replays_them() -> None:
    """Nine to one, over a thousand requests."""
    classes = (SloClass("a", Slo(ttft_s=1), 0.9), SloClass("b", Slo(ttft_s=9), 0.1))
    entries = [TraceEntry(float(n), 1, 1) for n in range(1000)]
    names = [arrival.request.slo_class for arrival in shape(entries, Shaping("m", classes), 3)]
    assert names == [arrival.request.slo_class for arrival in shape(entries, Shaping("m", classes), 3)]
    assert 60 < names.count("b") < 140


def test_what_a_trace_says_itself_comes_first() -> None:
    """Its own SLO, its own class, its own model."""
    classes = (SloClass("a", Slo(ttft_s=1)), SloClass("b", Slo(ttft_s=9), 0.0))
    entries = [
        TraceEntry(0, 1, 1, slo=Slo(tpot_s=3)),
        TraceEntry(1, 1, 1, slo_class="b", model="n"),
        TraceEntry(2, 1, 1),
    ]
    requests = [arrival.request for arrival in shape(entries, Shaping("m", classes), 0)]
    assert [request.slo for request in requests] == [Slo(tpot_s=3), Slo(ttft_s=9), Slo(ttft_s=1)]
    assert [request.model for request in requests] == ["m", "n", "m"]


def test_without_classes_nothing_is_promised() -> None:
    """No SLO at all."""
    assert shape(TEN, Shaping("m"), 0)[0].request.slo == NO_SLO


def test_ids_that_come_twice_are_told_apart() -> None:
    """A core takes an id for one request at a time."""
    arrivals = with_distinct_ids(shape([TraceEntry(0, 1, 1, id="x"), TraceEntry(1, 1, 1, id="x")], Shaping("m"), 0))
    assert len({arrival.request.id for arrival in arrivals}) == 2


@pytest.mark.parametrize(("text", "seconds"), [("2s", 2), ("100ms", 0.1), ("1.5", 1.5), ("3m", 180), ("1h", 3600)])
def test_times_in_words(text: str, seconds: float) -> None:
    """With and without a unit."""
    assert parse_seconds(text) == pytest.approx(seconds)


def test_an_slo_in_words() -> None:
    """Class, share, bounds."""
    assert parse_slo("chat@0.7:ttft=2s,tpot=100ms") == SloClass("chat", Slo(ttft_s=2, tpot_s=0.1), 0.7)
    assert parse_slo("e2e=60s,quantile=0.95") == SloClass("default", Slo(e2e_s=60, quantile=0.95))
    assert parse_slo("tpot=1ms,infeasible=refuse").slo == Slo(tpot_s=0.001, refuse_infeasible=True)
    assert parse_slo("tpot=1ms,infeasible=best_effort").slo == Slo(tpot_s=0.001)


@pytest.mark.parametrize("text", ["ttft", "tftt=1s", "ttft=soon", "ttft=0s", "quantile=1", "ttft=1s,infeasible=yes"])
def test_an_slo_that_cannot_be_is_refused(text: str) -> None:
    """With what was expected."""
    with pytest.raises(ValueError, match=r"expected|must be|did you mean 'ttft'"):
        parse_slo(text)
