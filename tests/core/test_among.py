"""Requests that may be sent to some backends alone."""

import json

from router.core.decisions import EndState, Send
from router.core.errors import Reason
from router.core.record import Recording, replay
from router.core.types import Load, Slo
from tests.fakes import account, backend, core, refused, request, sent


def test_only_those_are_chosen():
    """Whichever's turn it is."""
    it = core(backend("a"), backend("b"), backend("c"), routing="round_robin")
    for number in range(6):
        assert sent(it.arrived(request(f"r{number}", among=("b",)), 0.0)).backend == "b"


def test_a_request_whose_backends_are_all_down_is_refused():
    """Though another one is up; so is one whose backends there are none of."""
    it = core(backend("a"), backend("b"))
    it.backend_health("b", False, 0.0)
    for names in (("b",), ("nobody",)):
        refusal = refused(it.arrived(request(among=names), 0.0))
        assert refusal.reason is Reason.NO_BACKEND
        assert "allowed" in refusal.why


def test_a_held_request_waits_for_its_own_backends():
    """Room elsewhere is none for it, and it blocks no request that may go there; its own room ends its wait."""
    it = core(backend("a", slower=4.0), backend("b", slower=4.0), routing="slo_headroom")
    for _ in range(100):
        it.belief.lengths.update("m", "default", 20)
    busy = {name: Load(decoding=100.0, context_tokens=1e5) for name in ("a", "b")}
    it.on_peer_load("peer", busy, 0.0)
    slo = Slo(tpot_s=0.05)
    assert it.arrived(request("waits", slo=slo, among=("a",)), 0.0) == ()
    commands = list(it.on_peer_load("peer", {"a": busy["a"]}, 0.1))
    assert not [c for c in commands if isinstance(c, Send)]
    assert sent(it.arrived(request("other", slo=slo, among=("b",)), 0.1)).backend == "b"
    assert sent(it.on_peer_load("peer", {}, 0.2)).backend == "a"


def test_a_held_request_whose_backends_go_down_waits_on_as_any_other_does():
    """Until its time is up: they may come back."""
    it = core(backend("a", slower=4.0), backend("b", slower=4.0), routing="slo_headroom")
    for _ in range(100):
        it.belief.lengths.update("m", "default", 20)
    busy = Load(decoding=100.0, context_tokens=1e5)
    it.on_peer_load("peer", {"a": busy, "b": busy}, 0.0)
    assert it.arrived(request("waits", slo=Slo(tpot_s=0.05), among=("a",)), 0.0) == ()
    assert not it.backend_health("a", False, 0.1)
    it.on_peer_load("peer", {"b": busy}, 0.2)
    assert sent(it.backend_health("a", True, 0.3)).backend == "a"


def test_a_record_of_it_replays():
    """Its backends are part of the arrival."""
    events = []
    it = Recording(core(routing="round_robin"), events.append)
    for name in ("a", "b", "c"):
        it.backend_joined(backend(name), 0.0)
    for number in range(3):
        it.arrived(request(f"r{number}", among=("c", "b")), 0.0)
    account(it.client_left("r0", 1.0))
    for event, answer in replay(json.loads(json.dumps(events)), core(routing="round_robin")):
        assert answer == event["answer"]
    assert account(it.client_left("r1", 1.0)).outcome is EndState.LEFT
