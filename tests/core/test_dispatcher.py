"""The commands of the dispatcher for each event, one behaviour per test."""

import math

import pytest

import policies
from router.core.columns import EJECTED
from router.core.decisions import Abort, Break, EndState, RequestRecord, Send
from router.core.errors import PolicyRejected, Reason, status_of
from router.core.flight import DispatchLimits, Failure
from router.core.types import Load, Slo, Usage
from tests.fakes import account, backend, busy_core, core, refused, request, sent

FAULT = Failure("connection reset")


def test_a_request_is_sent_accounted_and_forgotten():
    """One Send, then one RequestRecord with the times of the events."""
    it = core(backend())
    send = sent(it.arrived(request("r", arrived_s=1.0), 1.0))
    assert (send.backend, send.attempt) == ("a", 1)
    assert not it.first_token("r", 1, 1.5)
    done = account(it.ended("r", 1, Usage(11), 2.5))
    assert (done.outcome, done.ttft_s, done.e2e_s, done.tpot_s) == (EndState.SERVED, 0.5, 1.5, 0.1)
    assert it.in_flight == 0
    assert it.loads() == {"a": Load()}


def test_an_unknown_model_is_refused_with_the_names_there_are():
    """404, and the message lists the known models."""
    answer = refused(core(backend(models=("m", "n"))).arrived(request(model="x"), 0.0))
    assert status_of(answer.reason) == 404
    assert "'x'" in answer.why
    assert "m, n" in answer.why


def test_a_known_model_with_no_backend_up_is_refused_as_unavailable():
    """503, not 404: the model exists, its backends are down."""
    it = core(backend())
    it.backend_health("a", False, 0.0)
    assert status_of(refused(it.arrived(request(), 0.0)).reason) == 503


def test_a_failure_before_the_first_byte_goes_to_another_backend():
    """The client sees nothing of the first attempt."""
    it = core(backend("a"), backend("b"))
    first = sent(it.arrived(request("r"), 0.0))
    second = sent(it.failed("r", 1, FAULT, 0.1))
    assert {first.backend, second.backend} == {"a", "b"}
    assert second.attempt == 2
    assert second.why.endswith(", after connection reset")
    assert it.loads()[first.backend] == Load()


def test_without_another_backend_the_failure_is_the_answer():
    """502 with what the engine said, and the ledger is empty."""
    it = core(backend())
    it.arrived(request("r"), 0.0)
    answer = refused(it.failed("r", 1, FAULT, 0.1))
    assert (status_of(answer.reason), answer.why) == (502, "connection reset")
    assert it.in_flight == 0


def test_a_failure_that_is_the_clients_own_is_not_retried_nor_blamed():
    """Another backend would answer the same; three such failures do not eject the backend."""
    it = core(backend("a"), backend("b"))
    for _ in range(5):
        send = sent(it.arrived(request("r"), 0.0))
        refused(it.failed("r", send.attempt, Failure("bad", backend_fault=False, retryable=False), 0.1))
    assert len(it.ledger.roster.pool("m")) == 2


@pytest.mark.parametrize("event", ["committed", "first_token"])
def test_a_failure_after_the_reply_has_begun_breaks_the_stream(event):
    """It is too late for another backend: the client gets an error event."""
    it = core(backend("a"), backend("b"))
    it.arrived(request("r"), 0.0)
    getattr(it, event)("r", 1, 0.1)
    commands = it.failed("r", 1, FAULT, 0.2)
    assert commands[0] == Break("r", "connection reset")
    assert account(commands).outcome is EndState.BROKEN


def test_frames_before_the_first_token_are_no_first_token():
    """The reply is committed by them, its prompt is still prefill load; TTFT is the token's, and is stamped once."""
    it = core(backend(), routing="slo_headroom")
    it.arrived(request("r", slo=Slo(ttft_s=1.0)), 0.0)
    assert not it.committed("r", 1, 0.1)
    assert (it.loads()["a"].prefilling, it.loads()["a"].decoding) == (1.0, 0.0)
    assert math.isnan(it.first_token_s("r"))
    it.first_token("r", 1, 2.0)
    assert (it.loads()["a"].prefilling, it.loads()["a"].decoding) == (0.0, 1.0)
    assert [*it.committed("r", 1, 2.1), *it.first_token("r", 1, 2.2)] == []
    assert it.first_token_s("r") == 2.0
    done = account(it.ended("r", 1, Usage(11), 3.0))
    assert (done.ttft_s, done.tpot_s, done.slo_met) == (2.0, 0.1, False)


def test_what_is_learnt_of_ttft_is_learnt_at_the_token():
    """A backend that opens its replies at once and prefills for 3 s is not forecast as a fast one."""
    it = core(backend("fast"), backend("late"), routing="slo_headroom")
    predicted_s = {}
    for n in range(60):
        send = sent(it.arrived(request(f"r{n}", arrived_s=10.0 * n), 10.0 * n))
        predicted_s[send.backend] = send.predicted_ttft_s
        it.committed(f"r{n}", 1, 10.0 * n + 0.01)
        it.first_token(f"r{n}", 1, 10.0 * n + 3.0)
        it.ended(f"r{n}", 1, Usage(20), 10.0 * n + 4.0)
    assert min(predicted_s.values()) > 0.5


def test_committing_closes_the_other_attempts():
    """And ends the first-byte deadline and hedging; the late first token of another attempt changes nothing."""
    limits = DispatchLimits(hedge_slo_share=0.5, hedges_max_share=1.0, first_byte_s_max=2.0)
    it = core(backend("a"), backend("b"), backend("c"), limits=limits)
    it.arrived(request("r", slo=Slo(ttft_s=1.0)), 0.0)
    (hedge,) = it.ticked(0.5)
    (abort,) = it.committed("r", hedge.attempt, 0.6)
    assert (abort.attempt, it.loads()[abort.backend]) == (1, Load())
    assert not it.first_token("r", 1, 0.7)
    assert it.wake_s == math.inf
    assert sum(load.prefilling for load in it.loads().values()) == 1.0


def test_a_client_that_leaves_closes_what_is_open():
    """The attempt is aborted at once, and the ledger is empty."""
    it = core(backend())
    it.arrived(request("r"), 0.0)
    commands = it.client_left("r", 0.1)
    assert [type(c) for c in commands] == [Abort, RequestRecord]
    assert it.loads() == {"a": Load()}


def test_events_about_what_is_over_change_nothing():
    """A late end, failure or departure is ignored."""
    it = core(backend())
    it.arrived(request("r"), 0.0)
    it.client_left("r", 0.1)
    assert [*it.first_token("r", 1, 0.2), *it.ended("r", 1, Usage(1), 0.2), *it.failed("r", 1, FAULT, 0.2)] == []
    assert [*it.client_left("r", 0.3), *it.ended("never", 1, Usage(1), 0.3)] == []


def test_an_id_in_flight_cannot_arrive_again():
    """Two requests under one id could not be distinguished."""
    it = core(backend())
    it.arrived(request("r"), 0.0)
    with pytest.raises(ValueError, match="already in flight"):
        it.arrived(request("r"), 0.1)


def test_a_silent_attempt_is_closed_at_its_deadline_and_tried_elsewhere():
    """The first-byte deadline is the core's own timer."""
    it = core(backend("a"), backend("b"), limits=DispatchLimits(first_byte_s_max=2.0))
    first = sent(it.arrived(request("r"), 0.0))
    assert it.wake_s == first.first_byte_due_s == 2.0
    commands = it.ticked(2.0)
    assert commands[0] == Abort("r", first.backend, 1, f"{first.backend} sent no first byte in 2.00 s")
    assert sent(commands).attempt == 2
    it.ticked(4.0)
    assert it.in_flight == 0


def test_the_last_deadline_to_pass_answers_with_a_timeout():
    """504 when it was silence, not failure, that used up the attempts."""
    it = core(backend(), limits=DispatchLimits(first_byte_s_max=2.0))
    it.arrived(request("r"), 0.0)
    assert refused(it.ticked(2.0)).reason is Reason.FIRST_BYTE_LATE


def test_the_slo_can_set_the_first_byte_deadline():
    """A multiple of what is left of the TTFT SLO, where the operator sets one."""
    it = core(backend(), limits=DispatchLimits(first_byte_slo_factor=2.0))
    assert sent(it.arrived(request(slo=Slo(ttft_s=0.5)), 0.0)).first_byte_due_s == 1.0


def test_a_first_byte_stops_the_deadline():
    """A stream that runs is not late."""
    it = core(backend(), limits=DispatchLimits(first_byte_s_max=2.0))
    it.arrived(request("r"), 0.0)
    it.first_token("r", 1, 1.0)
    assert it.wake_s == math.inf


def test_three_faults_in_a_row_eject_a_backend_for_twice_as_long_each_time():
    """It is ejected after three, re-admitted on time, and ejected for longer at the next fault."""
    it = core(backend("a"), backend("b"))

    def fail_on_a(now_s):
        it.backend_draining("b", True, now_s)
        it.arrived(request("r"), now_s)
        it.backend_draining("b", False, now_s)
        it.failed("r", 1, FAULT, now_s)
        it.client_left("r", now_s)

    for _ in range(3):
        fail_on_a(0.0)
    assert list(it.ledger.roster.pool("m")) == [it.ledger.roster.slot("b")]
    it.ticked(1.0)
    assert len(it.ledger.roster.pool("m")) == 2
    fail_on_a(1.0)
    it.ticked(2.9)
    assert len(it.ledger.roster.pool("m")) == 1
    it.ticked(3.0)
    assert len(it.ledger.roster.pool("m")) == 2


def test_a_crash_that_cut_many_streams_is_forgiven_once_health_says_it_is_back():
    """One crash, not eight faults in a row: it is tried at once, and the timers of its ejection change nothing."""
    it = core(backend("a"), backend("b"))
    it.backend_draining("b", True, 0.0)
    ids = [f"r{n}" for n in range(8)]
    for name in ids:
        it.arrived(request(name), 0.0)
        it.first_token(name, 1, 0.5)
    it.backend_draining("b", False, 0.9)
    for name in ids:
        it.failed(name, 1, FAULT, 1.0)
    it.backend_health("a", False, 1.1)
    assert list(it.ledger.roster.pool("m")) == [it.ledger.roster.slot("b")]
    it.backend_health("a", True, 1.2)
    assert len(it.ledger.roster.pool("m")) == 2
    it.backend_draining("b", True, 1.3)
    it.arrived(request("again"), 1.4)
    it.failed("again", 1, FAULT, 1.5)
    assert not it.ledger.table.columns[EJECTED].any()
    it.ticked(70.0)
    assert not it.ledger.table.columns[EJECTED].any()


def test_when_every_backend_is_ejected_all_are_tried():
    """A guess beats a certain refusal."""
    it = core(backend("a"), limits=DispatchLimits(failures_max=1))
    it.arrived(request("r"), 0.0)
    it.failed("r", 1, FAULT, 0.0)
    assert sent(it.arrived(request("s"), 0.1)).backend == "a"


def test_a_hedge_starts_after_its_share_of_the_slo_and_the_first_answer_wins():
    """The loser is closed and its reservation released."""
    limits = DispatchLimits(hedge_slo_share=0.5, hedges_max_share=1.0)
    it = core(backend("a"), backend("b"), limits=limits)
    first = sent(it.arrived(request("r", slo=Slo(ttft_s=1.0)), 0.0))
    assert it.wake_s == 0.5
    second = sent(it.ticked(0.5))
    assert (second.attempt, second.backend != first.backend) == (2, True)
    (abort,) = it.first_token("r", 2, 0.6)
    assert abort == Abort("r", first.backend, 1, "another attempt answered first")
    assert it.loads()[first.backend] == Load()
    assert account(it.ended("r", 2, Usage(5), 1.0)).backend == second.backend


def test_hedges_keep_to_their_budget():
    """At a budget of 5 % the first of a few requests gets none."""
    it = core(backend("a"), backend("b"), limits=DispatchLimits(hedge_slo_share=0.5))
    it.arrived(request("r", slo=Slo(ttft_s=1.0)), 0.0)
    assert it.ticked(0.5) == []


def test_a_failed_attempt_next_to_a_hedge_leaves_the_other_running():
    """One of two dead is not a failed request."""
    it = core(backend("a"), backend("b"), limits=DispatchLimits(hedge_slo_share=0.5, hedges_max_share=1.0))
    it.arrived(request("r", slo=Slo(ttft_s=1.0)), 0.0)
    it.ticked(0.5)
    assert it.failed("r", 1, FAULT, 0.6) == ()
    assert it.in_flight == 1


def hold(it, request_id, *, now_s=0.0, ttft_s=10.0, priority=0):
    """A request that waits, because the room for its TPOT is taken."""
    slo = Slo(ttft_s=ttft_s, tpot_s=0.06)
    return it.arrived(request(request_id, arrived_s=now_s, slo=slo, priority=priority), now_s)


@pytest.fixture
def busy():
    """A core whose one backend has no headroom yet: every request is held."""
    return busy_core(admission={"held_max": 2, "hold_s_max": 5.0})


def test_without_headroom_a_request_is_held_and_served_when_room_appears(busy):
    """The peer's load goes: the event that reports it sends the held request."""
    assert hold(busy, "r") == ()
    assert busy.held == 1
    assert sent(busy.on_peer_load("peer", {}, 1.0)).request_id == "r"
    assert busy.held == 0


def test_held_requests_are_served_in_deadline_order_and_priority_first(busy):
    """Earliest due first, the urgent before all."""
    busy.adopt(busy.routing, policies.find("admission", "deadline", {}))
    hold(busy, "late", ttft_s=9.0)
    hold(busy, "early", ttft_s=8.0)
    hold(busy, "urgent", ttft_s=9.5, priority=-1)
    order = [c.request_id for c in busy.on_peer_load("peer", {}, 1.0) if isinstance(c, Send)]
    assert order == ["urgent", "early", "late"]


def test_the_hold_queue_has_a_bound(busy):
    """The third is refused with the reason."""
    hold(busy, "one")
    hold(busy, "two")
    assert refused(hold(busy, "three")).reason is Reason.QUEUE_FULL


def test_a_hold_ends_at_its_bound(busy):
    """Held for 5 s at most, whatever the policy decides: a request without an SLO would wait for ever."""
    busy.on_peer_load("peer", {"a": Load(decoding=100.0, context_tokens=1e5, tpot_bound_s=0.06)}, 0.0)
    assert busy.arrived(request("r"), 0.0) == ()
    while busy.held:
        assert busy.wake_s <= 5.0
        commands = busy.ticked(busy.wake_s)
    assert refused(commands).reason is Reason.HOLD_EXPIRED


def test_a_hold_ends_once_what_it_waits_for_would_come_too_late(busy):
    """The TPOT needs sequences to end for 2 s; with less than that left of its 5 s the request is refused at once."""
    assert hold(busy, "r", ttft_s=60.0) == ()
    while busy.held:
        now_s = busy.wake_s
        commands = busy.ticked(now_s)
    assert refused(commands).reason is Reason.SATURATED
    assert 2.0 < now_s < 4.0


def test_a_held_client_that_leaves_is_forgotten(busy):
    """Nothing to abort; the queue is empty."""
    hold(busy, "r")
    assert account(busy.client_left("r", 0.5)).outcome is EndState.LEFT
    assert (busy.held, busy.wake_s) == (0, math.inf)


def test_newcomers_do_not_overtake_those_who_wait(busy):
    """The same SLO and room for both: the newcomer queues behind all the same, and follows at once."""
    hold(busy, "first")
    busy.ledger.peers.on_peer_load("peer", {}, 0.0)  # the room is there before anybody who waits was asked
    assert hold(busy, "second", now_s=0.01) == ()
    assert busy.held == 2
    assert [c.request_id for c in busy.ticked(busy.wake_s) if isinstance(c, Send)] == ["first", "second"]


def test_a_backend_that_left_takes_its_reservations_with_it():
    """Its slot is re-used by another, whose count starts at zero and stays there when the old stream fails."""
    it = core(backend("a"))
    it.arrived(request("r"), 0.0)
    it.backend_left("a", 0.1)
    it.backend_joined(backend("b"), 0.2)
    it.failed("r", 1, Failure("backend removed", backend_fault=False), 0.3)
    it.first_token("r", 2, 0.4)
    it.ended("r", 2, Usage(3), 0.5)
    assert it.loads() == {"b": Load()}


def test_a_policy_that_names_a_stranger_is_rejected():
    """A slot outside the candidates never reaches the ledger."""
    from router.core.decisions import Dispatch  # noqa: PLC0415

    class Stray:
        def choose(self, *_):
            return Dispatch(99, "because")

    it = core(backend())
    it.adopt(Stray(), it.admission)
    with pytest.raises(PolicyRejected, match="slot 99"):
        it.arrived(request(), 0.0)


def test_a_whole_reply_without_a_first_token_event_has_it_by_its_end():
    """A reply of one read: the end is also the beginning."""
    it = core(backend())
    it.arrived(request("r", streamed=False), 0.0)
    done = account(it.ended("r", 1, Usage(1), 0.5))
    assert (done.outcome, done.first_token_s) == (EndState.SERVED, 0.5)


@pytest.mark.parametrize("committed", [True, False])
@pytest.mark.parametrize(("ended_s", "met"), [(0.5, True), (1.5, False)])
def test_a_stream_without_a_token_has_no_ttft_and_is_judged_by_its_end(committed, ended_s, met):
    """Nothing is stamped or learnt of a token that never came, and the ledger is empty after it."""
    it = core(backend(), routing="slo_headroom")
    it.arrived(request("r", slo=Slo(ttft_s=1.0, tpot_s=0.02)), 0.0)
    if committed:
        it.committed("r", 1, 0.1)
    learnt = it.beliefs()["a"]
    done = account(it.ended("r", 1, Usage(0), ended_s))
    assert (done.outcome, done.slo_met) == (EndState.SERVED, met)
    assert all(math.isnan(value_s) for value_s in (done.first_token_s, done.ttft_s, done.tpot_s))
    assert (it.loads()["a"], it.beliefs()["a"]) == (Load(), learnt)
    assert it.ledger.table.own.min() >= 0.0


def test_a_whole_reply_that_is_committed_still_gives_up_its_prefill_load_in_time():
    """Its head came; its first token cannot be seen, so the forecast ends the prefill load."""
    it = core(backend(), routing="slo_headroom")
    send = sent(it.arrived(request("r", prompt_tokens=500, streamed=False), 0.0))
    it.committed("r", 1, send.predicted_ttft_s / 2)
    it.ticked(send.predicted_ttft_s)
    assert (it.loads()["a"].prefilling, it.loads()["a"].decoding) == (0.0, 1.0)


def test_a_whole_reply_holds_its_prefill_load_no_longer_than_forecast():
    """The gateway does not see its first token; by the time it was due, the load is that of decoding."""
    it = core(backend(), routing="slo_headroom")
    send = sent(it.arrived(request("r", prompt_tokens=500, streamed=False), 0.0))
    assert it.wake_s == send.predicted_ttft_s
    it.ticked(it.wake_s)
    assert (it.loads()["a"].prefilling, it.loads()["a"].decoding) == (0.0, 1.0)
    it.ended("r", 1, Usage(50), 1.0)
    assert it.loads()["a"] == Load()


def test_a_whole_reply_is_judged_by_its_end_and_teaches_nothing_of_first_tokens():
    """Its first byte comes with its last: that is no TTFT."""
    it = core(backend(), routing="slo_headroom")
    it.arrived(request("r", streamed=False, slo=Slo(ttft_s=0.5, e2e_s=9.0)), 0.0)
    done = account(it.ended("r", 1, Usage(50), 1.5))
    assert done.slo_met
    assert math.isnan(done.ttft_s)
    assert it.belief.seen(0) == 0
