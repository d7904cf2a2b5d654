"""A proxy has the reply from another backend than the one that the core chose."""

import json

import pytest

from router.core.decisions import EndState
from router.core.flight import DispatchLimits
from router.core.record import Recording, replay
from router.core.types import Load, Usage
from tests.fakes import account, backend, core, request, sent

IDLE = Load()


def test_the_reply_counts_for_the_backend_that_sends_it():
    """Load, record and end; the one chosen has a fault, and what was predicted for it teaches nothing."""
    it = core(backend("a"), backend("b"), routing="slo_headroom")
    first = sent(it.arrived(request("r"), 0.0)).backend
    other = "b" if first == "a" else "a"
    assert not it.served_by("r", 1, other, 1.0)
    assert it.loads()[first] == IDLE
    assert (it.loads()[other].prefilling, it.loads()[other].prefill_tokens) == (1, 100)
    it.first_token("r", 1, 1.5)
    assert it.loads()[other].decoding == 1
    done = account(it.ended("r", 1, Usage(5, 100), 2.0))
    assert (done.backend, done.attempts, done.outcome) == (other, 2, EndState.SERVED)
    assert it.loads() == {"a": IDLE, "b": IDLE}
    assert (it.failures[first].in_a_row, other in it.failures and it.failures[other].in_a_row) == (1, 0)
    assert it.belief.seen(0) == it.belief.seen(1) == 0


def test_an_adapter_is_loaded_where_the_reply_comes_from():
    """The next request for it is taken to be ready there."""
    facts = {"models": ("m", "x"), "adapters": ("x",), "adapter_load_s": 0.5}
    it = core(backend("a", **facts), backend("b", **facts), routing="round_robin")
    assert sent(it.arrived(request("r", model="x"), 0.0)).backend == "a"
    it.served_by("r", 1, "b", 1.0)
    assert it.ledger.adapters.ready(1, "x")


def test_a_backend_that_the_proxy_passes_over_again_and_again_is_ejected():
    """It cannot be used from there, whatever its health checks say."""
    it = core(backend("a"), backend("b"), routing="round_robin", limits=DispatchLimits(failures_max=2, eject_s=60.0))
    for number in range(4):
        chosen = sent(it.arrived(request(f"r{number}"), number)).backend
        if chosen == "a":
            it.served_by(f"r{number}", 1, "b", number + 0.5)
    assert it.failures["a"].ejected
    assert sent(it.arrived(request("next"), 5.0)).backend == "b"


@pytest.mark.parametrize("backend_name", ["a", "nobody"])
def test_the_chosen_one_or_one_that_is_not_there_changes_nothing(backend_name):
    """Nor does anything once the reply has begun."""
    it = core(backend("a"), backend("b"), routing="round_robin")
    assert sent(it.arrived(request("r"), 0.0)).backend == "a"
    assert not it.served_by("r", 1, backend_name, 1.0)
    assert not it.served_by("r", 2, "b", 1.0)
    it.committed("r", 1, 2.0)
    assert not it.served_by("r", 1, "b", 3.0)
    assert account(it.ended("r", 1, Usage(5), 4.0)).backend == "a"
    assert not it.failures


def test_a_record_of_it_replays():
    """It is an event as others are."""
    events = []
    it = Recording(core(routing="round_robin"), events.append)
    for name in ("a", "b"):
        it.backend_joined(backend(name), 0.0)
    it.arrived(request("r"), 0.0)
    it.served_by("r", 1, "b", 1.0)
    it.ended("r", 1, Usage(5), 2.0)
    for event, answer in replay(json.loads(json.dumps(events)), core(routing="round_robin")):
        assert answer == event["answer"]
