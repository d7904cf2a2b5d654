"""The record of a request that was not served: what was generated for it, and how long it waited."""

import json
from math import inf, isnan, nan

import pytest

from router.core.decisions import Dispatch, EndState, Hold
from router.core.errors import Reason
from router.core.flight import Failure
from router.core.record import Recording, replay
from router.core.types import Slo, Usage
from tests.fakes import account, backend, busy_core, core, request, sent

SLO = Slo(ttft_s=10.0, tpot_s=0.06)
CAME = Usage(11, 90, 20, True)


@pytest.mark.parametrize("how", ["left", "broken"])
def test_what_was_generated_is_in_the_record(how):
    """Tokens, TTFT, TPOT and duration of a client that left, and of a stream that broke."""
    it = core(backend())
    it.arrived(request("r"), 0.0)
    it.committed("r", 1, 0.1)
    it.first_token("r", 1, 0.5)
    commands = it.client_left("r", 1.5, CAME) if how == "left" else it.failed("r", 1, Failure("x"), 1.5, CAME)
    done = account(commands)
    assert (done.outcome, done.backend, done.usage) == (EndState(how), "a", CAME)
    assert (done.ttft_s, done.tpot_s, done.e2e_s, done.slo_met) == (0.5, 0.1, 1.5, False)


@pytest.mark.parametrize("how", ["left", "broken"])
def test_counts_that_cannot_be_are_dropped_however_the_request_ends(how):
    """An engine that counts wrongly is not believed because its client left."""
    it = core(backend())
    it.arrived(request("r"), 0.0)
    it.first_token("r", 1, 0.5)
    odd = Usage(10**12, 90)
    done = account(it.client_left("r", 1.5, odd) if how == "left" else it.failed("r", 1, Failure("x"), 1.5, odd))
    assert done.usage == Usage(0, 90)
    assert it.dropped_numbers.by_source["usage"] == 1


def test_of_an_attempt_that_is_tried_elsewhere_nothing_is_recorded():
    """The client got nothing of it: only what the second backend generated counts."""
    it = core(backend("a"), backend("b"))
    it.arrived(request("r"), 0.0)
    again = sent(it.failed("r", 1, Failure("x"), 0.1, Usage(7)))
    it.first_token("r", 2, 0.2)
    done = account(it.client_left("r", 0.5, Usage(3)))
    assert (done.backend, done.usage, done.queue_s) == (again.backend, Usage(3), 0.1)


def test_a_client_that_leaves_before_anything_came_has_waited():
    """Its attempt was sent; no token came."""
    it = core(backend())
    it.arrived(request("r"), 0.0)
    done = account(it.client_left("r", 2.0))
    assert (done.usage, done.held_s, done.queue_s, done.e2e_s) == (Usage(0), 0.0, 0.0, 2.0)
    assert isnan(done.ttft_s)


def busy():
    """A core that holds every request, for 5 s at most."""
    return busy_core(admission={"held_max": 2, "hold_s_max": 5.0})


def test_a_hold_that_ends_in_a_refusal_states_how_long_it_was():
    """Nothing was sent: the time held, and the same as queue time."""
    it = busy()
    assert it.arrived(request("r", slo=SLO), 0.0) == ()
    done = account(it.ticked(5.0))
    assert (done.outcome, done.reason) == (EndState.REFUSED, Reason.HOLD_EXPIRED)
    assert (done.held_s, done.queue_s, done.e2e_s) == (5.0, 5.0, 5.0)


def test_a_hold_that_a_client_leaves_states_how_long_it_was():
    """It was sent nowhere."""
    it = busy()
    it.arrived(request("r", slo=SLO), 0.0)
    done = account(it.client_left("r", 3.0))
    assert (done.outcome, done.backend, done.held_s, done.queue_s) == (EndState.LEFT, "", 3.0, 3.0)


def test_a_refusal_at_once_has_not_waited():
    """No backend serves the model."""
    done = account(core(backend()).arrived(request("r", model="other"), 0.0))
    assert (done.held_s, done.queue_s, done.e2e_s) == (0.0, 0.0, 0.0)


class Gate:
    """Holds every request until it is opened, then sends it to the first backend."""

    open = False

    def choose(self, request, fleet, forecast, rng):
        """By the gate alone."""
        return Dispatch(int(fleet.slots[0]), "open") if self.open else Hold(inf, "closed")


def test_holds_and_failed_attempts_are_told_apart():
    """Held 1 s, then 2 s on an engine that failed, then held 1.5 s: 2.5 s held, 4.5 s before the last send."""
    it, gate = core(backend("a"), backend("b"), admission={"hold_s_max": 60.0}), Gate()
    it.adopt(gate, it.admission)
    it.arrived(request("r"), 0.0)
    gate.open = True
    assert sent(it.backend_draining("a", False, 1.0)).attempt == 1
    gate.open = False
    it.failed("r", 1, Failure("x"), 3.0)
    gate.open = True
    assert sent(it.backend_draining("b", False, 4.5)).attempt == 2
    it.first_token("r", 2, 5.0)
    done = account(it.ended("r", 2, Usage(3), 6.0))
    assert (done.held_s, done.queue_s, done.ttft_s) == (2.5, 4.5, 5.0)


def test_partial_usage_is_in_a_recorded_run():
    """A replay gives the same records."""
    lines = []
    it = Recording(core(backend()), lambda event: lines.append(json.dumps(event, allow_nan=False)))
    for name in ("left", "broken"):
        it.arrived(request(name), 0.0)
        it.first_token(name, 1, 0.5)
    it.client_left("left", 1.0, CAME)
    it.failed("broken", 1, Failure("x"), 1.0, Usage(5, estimated=True))
    events = [json.loads(line) for line in lines]
    again = list(replay(events, core(backend())))
    assert [json.loads(json.dumps(commands)) for _, commands in again] == [event["answer"] for event in events]
    assert events[-1]["answer"][-1]["usage"]["estimated"] is True


@pytest.mark.parametrize("estimated", [False, True])
def test_an_estimated_count_teaches_neither_tpot_nor_length(estimated):
    """It is in the record all the same, as an estimate."""
    it = core(backend(), routing="slo_headroom")
    lengths, tpot_s = it.belief.lengths.export("m"), None
    for n in range(20):
        now_s = 10.0 * n
        send = sent(it.arrived(request(f"r{n}", arrived_s=now_s), now_s))
        predicted = it.explain(f"r{n}").candidates[0].tpot_s
        tpot_s = predicted if tpot_s is None else tpot_s
        it.first_token(f"r{n}", send.attempt, now_s + send.predicted_ttft_s)
        done = account(it.ended(f"r{n}", 1, Usage(5, estimated=estimated), now_s + send.predicted_ttft_s + 4.0))
        assert (done.usage.output_tokens, done.usage.estimated) == (5, estimated)
        assert done.tpot_s == pytest.approx(nan if estimated else 1.0, nan_ok=True)
    last_s = it.explain("r19").candidates[0].tpot_s
    assert (last_s == pytest.approx(tpot_s, rel=0.01)) is estimated
    assert (it.belief.lengths.export("m") == lengths) is estimated


def test_an_estimate_that_cannot_be_is_dropped():
    """And 0 tokens are no estimate."""
    it = core(backend())
    it.arrived(request("r"), 0.0)
    it.first_token("r", 1, 0.1)
    assert account(it.ended("r", 1, Usage(-3, estimated=True), 1.0)).usage == Usage(0)
