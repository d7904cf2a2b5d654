"""The ledger: who is in flight where, from three sources."""

import numpy as np
import pytest

from router.core.fleet import Fleet
from router.core.ledger import Ledger
from router.core.types import EngineReport, Load
from tests.fakes import backend, request


@pytest.fixture
def ledger():
    """Two backends of one model."""
    made = Ledger(capacity=2)
    made.join(backend("a"), 0.0)
    made.join(backend("b"), 0.0)
    return made


def view(ledger, now_s=0.0):
    """What a policy would see."""
    return Fleet(ledger, ledger.roster.pool("m"), now_s)


def test_a_reservation_moves_from_prefill_to_decode_to_nothing(ledger):
    """Prefill and decode are different loads: one is released when the other begins."""
    held = ledger.load.reserve(0, 100.0, 150.0, 0.05, 1.0)
    assert ledger.peers.own_loads()["a"] == Load(1.0, 100.0, 0.0, 0.0, 0.05)
    ledger.load.prefilled(held, 2.0)
    assert ledger.peers.own_loads()["a"] == Load(0.0, 0.0, 1.0, 150.0, 0.05)
    ledger.load.release(held, 3.0)
    ledger.load.release(held, 3.0)
    assert ledger.peers.own_loads()["a"] == Load()


def test_prompts_that_do_not_add_up_in_floats_leave_nothing_behind(ledger):
    """0.1 + 0.2 + 0.3 tokens taken off in another order: with no request in prefill the prompt tokens are 0."""
    held = [ledger.load.reserve(0, tokens, 1.0, np.inf, 0.0) for tokens in (0.1, 0.2, 0.3)]
    for one in held:
        ledger.load.prefilled(one, 1.0)
    assert ledger.peers.own_loads()["a"].prefill_tokens == 0.0


def test_the_tightest_tpot_bound_follows_the_requests_in_flight(ledger):
    """The minimum rises again when the tightest has gone."""
    tight, loose = ledger.load.reserve(0, 1.0, 1.0, 0.02, 0.0), ledger.load.reserve(0, 1.0, 1.0, 0.05, 0.0)
    assert view(ledger).tpot_bound_s[0] == 0.02
    ledger.load.release(tight, 1.0)
    assert view(ledger).tpot_bound_s[0] == 0.05
    ledger.load.release(loose, 1.0)
    assert view(ledger).tpot_bound_s[0] == np.inf


def test_growing_keeps_what_is_booked(ledger):
    """Columns double when the slots run out; reservations made before are released after."""
    held = ledger.load.reserve(1, 10.0, 20.0, np.inf, 0.0)
    for number in range(40):
        ledger.join(backend(f"more-{number}"), 0.0)
    assert ledger.peers.own_loads()["b"].prefilling == 1.0
    ledger.load.release(held, 1.0)
    assert ledger.peers.own_loads()["b"] == Load()


def test_a_mark_difference_is_what_a_stream_lived_through(ledger):
    """Two sequences for one second and one for another: three sequence-seconds."""
    ledger.load.prefilled(ledger.load.reserve(0, 10.0, 100.0, np.inf, 0.0), 0.0)
    second = ledger.load.reserve(0, 10.0, 100.0, np.inf, 0.0)
    ledger.load.prefilled(second, 0.0)
    start = ledger.metering.snapshot(0, 0.0)
    ledger.load.release(second, 1.0)
    end = ledger.metering.snapshot(0, 2.0)
    assert (end.decoding_s - start.decoding_s, end.context_s - start.context_s) == (3.0, 300.0)


def test_traffic_that_no_router_knows_of_counts(ledger):
    """The engine runs five, this router has one: four are unattributed, until its next report."""
    ledger.load.reserve(0, 10.0, 10.0, np.inf, 0.0)
    ledger.reports.probe_started(0, 1.0)
    ledger.reports.reported(0, EngineReport.by_name(1.0, running=5.0, waiting=0.0, kv_usage=0.1), 1.0)
    assert view(ledger).requests[0] == 5.0
    ledger.reports.probe_started(0, 2.0)
    ledger.reports.reported(0, EngineReport.by_name(2.0, running=1.0, waiting=0.0, kv_usage=0.1), 2.0)
    assert view(ledger).requests[0] == 1.0


def test_what_was_sent_while_the_engine_was_asked_counts_on_top(ledger):
    """A report of an empty engine does not hide the send that came after the question."""
    ledger.reports.probe_started(0, 1.0)
    ledger.load.reserve(0, 10.0, 10.0, np.inf, 1.1)
    ledger.reports.reported(0, EngineReport.by_name(1.0, running=0.0, waiting=0.0, kv_usage=0.0), 1.0)
    assert view(ledger).requests[0] == 1.0


def test_an_older_report_is_ignored(ledger):
    """Answers can overtake each other."""
    ledger.reports.reported(0, EngineReport.by_name(2.0, running=3.0, waiting=0.0, kv_usage=0.1), 2.0)
    ledger.reports.reported(0, EngineReport.by_name(1.0, running=9.0, waiting=0.0, kv_usage=0.1), 1.0)
    assert view(ledger).requests[0] == 3.0


def test_foreign_load_is_forgotten_when_its_report_is_old(ledger):
    """A dead scraper must not pin a load on a backend for ever."""
    ledger.reports.reported(0, EngineReport.by_name(0.0, running=3.0, waiting=0.0, kv_usage=0.1), 0.0)
    ledger.reports.forget_stale(29.0)
    assert view(ledger).requests[0] == 3.0
    ledger.reports.forget_stale(31.0)
    assert view(ledger).requests[0] == 0.0


def test_peers_add_up_and_go_away(ledger):
    """Each peer's word replaces its last; an empty word forgets it."""
    ledger.peers.on_peer_load("one", {"a": Load(1.0, 10.0, 2.0, 20.0)}, 0.0)
    ledger.peers.on_peer_load("two", {"a": Load(1.0, 10.0, 0.0, 0.0), "b": Load(1.0, 5.0, 0.0, 0.0)}, 0.0)
    assert list(view(ledger).requests) == [4.0, 1.0]
    ledger.peers.on_peer_load("one", {"b": Load(1.0, 1.0, 0.0, 0.0)}, 0.0)
    assert list(view(ledger).requests) == [1.0, 2.0]
    ledger.peers.on_peer_load("two", {}, 0.0)
    assert list(view(ledger).requests) == [0.0, 1.0]


def test_the_prefill_rate_fades(ledger):
    """Tokens per second lately: e-folded after its time constant."""
    ledger.load.reserve(0, 100.0, 1.0, np.inf, 0.0)
    now, later = view(ledger, 0.0).prefill_tokens_per_s[0], view(ledger, 5.0).prefill_tokens_per_s[0]
    assert now == pytest.approx(20.0)
    assert later == pytest.approx(20.0 / np.e)


def test_a_drained_backend_is_in_no_pool_but_keeps_its_load(ledger):
    """What runs there runs on."""
    ledger.load.reserve(0, 10.0, 10.0, np.inf, 0.0)
    ledger.mark_state(0, draining=True)
    assert list(ledger.roster.pool("m")) == [1]
    assert ledger.peers.own_loads()["a"].prefilling == 1.0


def test_names_of_models_that_no_backend_serves_are_not_kept(ledger):
    """Clients send any name; nor is that of a model whose last backend has left."""
    for number in range(100):
        assert not len(ledger.roster.taking(request(model=f"guess{number}"), 1.0, 1.0))
    assert len(ledger.roster.taking(request(), 1.0, 1.0))
    assert list(ledger.roster._pools) == list(ledger.roster._shortest) == ["m"]
    for name in list(dict(ledger.roster.slots)):
        ledger.roster.remove(name)
    assert not ledger.roster._pools
    assert not ledger.roster._shortest
