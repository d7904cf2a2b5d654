"""A backend that refuses a model or an endpoint is not chosen for it for a while, and goes on serving the rest."""

from router.core.columns import EJECTED
from router.core.flight import DispatchLimits, Failure, FailureKind
from router.core.record import Recording, replay
from router.core.types import Usage
from tests.fakes import backend, core, refused, request, sent

MODEL = Failure("a answered 404", backend_fault=False, kind=FailureKind.MODEL_MISSING)
PATH = Failure("a answered 404", backend_fault=False, kind=FailureKind.ENDPOINT_MISSING)
BOTH = ("m", "n")


def pool(it, model="m"):
    """The names of the backends that are chosen from."""
    return [it.ledger.roster.name(slot) for slot in it.ledger.roster.pool(model).tolist()]


def refuse(it, failure, at_s=0.0, **facts):
    """A request for which backend a was the first choice, and which b serves."""
    it.backend_draining("b", True, at_s)
    first = sent(it.arrived(request("r", **facts), at_s))
    it.backend_draining("b", False, at_s)
    assert first.backend == "a"
    second = sent(it.failed("r", first.attempt, failure, at_s))
    assert second.backend == "b"
    it.ended("r", second.attempt, Usage(1), at_s)


def test_a_model_is_refused_for_a_bounded_time_and_no_other_with_it():
    """``refused_s`` later the backend is tried again; it was never ejected."""
    it = core(backend("a", models=BOTH), backend("b", models=BOTH), limits=DispatchLimits(refused_s=10.0))
    refuse(it, MODEL)
    assert (pool(it, "m"), pool(it, "n")) == (["b"], ["a", "b"])
    assert not it.ledger.table.columns[EJECTED].any()
    assert it.wake_s == 10.0
    it.ticked(10.0)
    assert pool(it) == ["a", "b"]


def test_an_endpoint_is_refused_apart_from_the_model():
    """The backend is a candidate for every other path."""
    it = core(backend("a"), backend("b"))
    refuse(it, PATH, endpoint="/v1/responses")
    roster = it.ledger.roster
    assert list(roster.taking(request(endpoint="/v1/responses"), 100.0, 100.0)) == [roster.slot("b")]
    assert len(roster.taking(request(endpoint="/v1/chat/completions"), 100.0, 100.0)) == 2


def test_when_all_refuse_they_are_tried_again_within_the_limit_of_attempts():
    """What was known is an attempt like any other."""
    it = core(*[backend(name) for name in "abcde"], limits=DispatchLimits(attempts_max=2))
    for tries in (5, 2):
        commands, attempt = it.arrived(request("r"), 0.0), 0
        for attempt in range(1, tries + 1):
            assert sent(commands).attempt == attempt
            commands = it.failed("r", attempt, MODEL, 0.0)
        assert refused(commands).why == "a answered 404"


def test_a_backend_that_answers_refuses_no_longer():
    """It was the only one left, and has loaded the model since."""
    it = core(backend("a"), backend("b"))
    refuse(it, MODEL)
    it.backend_health("b", False, 1.0)
    assert sent(it.arrived(request("s"), 1.0)).backend == "a"
    it.first_token("s", 1, 1.1)
    it.backend_health("b", True, 1.2)
    assert pool(it) == ["a", "b"]


def test_a_restart_a_new_description_or_leaving_ends_a_refusal():
    """What is there now may have loaded the model; a slot that is used again inherits nothing."""
    for change in ("restart", "facts", "leave"):
        it = core(backend("a"), backend("b"))
        refuse(it, MODEL)
        if change == "restart":
            it.backend_health("a", False, 1.0)
            it.backend_health("a", True, 2.0)
        elif change == "facts":
            it.backend_joined(backend("a", seqs_max=7), 1.0)
        else:
            it.backend_left("a", 1.0)
            it.backend_joined(backend("c"), 1.0)
        assert len(pool(it)) == 2
        it.ticked(20.0)
        assert len(pool(it)) == 2


def test_an_adapter_that_is_listed_again_is_refused_no_longer():
    """By an answer to what was sent after the refusal; the model that it adapts, or a path, is no adapter."""
    lines = []
    it = core(*[backend(name, models=("m", "x"), adapters=("x",)) for name in "ab"])
    recording = Recording(it, lines.append)
    refuse(recording, MODEL, at_s=1.0, model="x")
    recording.adapters_listed("a", ("x",), 0.5, 1.5)  # sent before
    recording.adapters_listed("a", ("y",), 2.0, 2.5)
    recording.adapters_listed("b", ("x",), 2.0, 2.5)
    recording.adapters_listed("gone", ("x",), 2.0, 2.5)
    assert pool(it, "x") == ["b"]
    recording.adapters_listed("a", ("x",), 3.0, 3.5)
    assert (pool(it, "x"), it.refusals("a")) == (["a", "b"], ())
    again = core(*[backend(name, models=("m", "x"), adapters=("x",)) for name in "ab"])
    assert [answer for _, answer in replay(lines, again)] == [line["answer"] for line in lines]
