"""Models that serve others' requests: splits by weight, fallbacks where they are allowed, on virtual time."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from random import Random
from typing import Any

import pytest

import policies
from router.core import Choice, Fleet, Forecast, Rng
from router.core.decisions import Command, Dispatch, EndState, Hold, Refuse, RequestRecord, Send
from router.core.dispatcher import Dispatcher
from router.core.errors import Reason
from router.core.flight import DispatchLimits, Failure, FailureKind
from router.core.model_rules import ModelRule, ModelRules, rules_of
from router.core.record import Recording, replay
from router.core.types import EngineReport, Load, Request, Slo, Usage
from tests.fakes import account, backend, core, refused, request, sent

SPLIT = ModelRules({"big": ModelRule((("big-a", 0.9), ("big-b", 0.1)))})
FALLBACK = ModelRules({"big": ModelRule(fallback=("small",))})


def pool(*backends: Any, models: ModelRules = FALLBACK, **facts: Any) -> Dispatcher:
    """Engine b serves big and engine s small, unless others are given."""
    there = backends or (backend("b", models=("big",)), backend("s", models=("small",)))
    made = core(*there, **facts)
    made.models = models
    return made


def asks(request_id: str | None = None, **facts: Any) -> Request:
    """A request for big that allows another model."""
    return request(request_id, **{"model": "big", "fallback": "allow", **facts})


# -- splits ----------------------------------------------------------------------------------------------------------


def test_a_split_follows_its_weights_and_a_session_stays() -> None:
    """By a hash alone: the same in every router; requests without a session are split one by one."""
    chosen = Counter(SPLIT.resolved(request(f"r{n}", model="big")).model for n in range(4_000))
    assert chosen["big-b"] / 4_000 == pytest.approx(0.1, abs=0.02)
    assert chosen["big-a"] + chosen["big-b"] == 4_000
    for session in map(str, range(50)):
        assert len({SPLIT.resolved(request(model="big", session=session)).model for _ in range(5)}) == 1


def test_changed_weights_move_no_more_sessions_than_they_have_to() -> None:
    """From 90:10 to 80:20 a tenth moves, all of it to the model that gets more."""
    after = ModelRules({"big": ModelRule((("big-a", 8.0), ("big-b", 2.0)))})
    moves = Counter((SPLIT.arm("big", str(n)), after.arm("big", str(n))) for n in range(4_000))
    assert moves["big-b", "big-a"] == 0
    assert moves["big-a", "big-b"] / 4_000 == pytest.approx(0.1, abs=0.02)


def test_a_name_may_be_an_arm_of_its_own_split() -> None:
    """A request that was split once is not split again."""
    rules = ModelRules({"m": ModelRule((("m", 1.0), ("new", 1.0)))})
    for n in range(20):
        once = rules.resolved(request(f"r{n}", model="m"))
        assert rules.resolved(once) == once
        assert (once.requested_model, once.model in {"m", "new"}) == ("m", True)
    assert rules.resolved(request(model="other")).requested_model == ""


def test_a_model_of_a_split_without_a_backend_is_passed_over() -> None:
    """Its requests go to the other; what is recorded states the model that served them."""
    it = pool(backend("a", models=("big-a",)), backend("b", models=("big-b",)), models=SPLIT)
    it.backend_health("a", False, 0.0)
    for n in range(20):
        send = sent(it.arrived(request(f"r{n}", model="big"), 0.0))
        assert (send.backend, send.model, send.fallback_why) == ("b", "big-b", "")
    it.backend_health("b", False, 0.0)
    assert refused(it.arrived(request(model="big"), 0.0)).reason is Reason.NO_BACKEND


def test_a_request_that_was_split_before_it_came_is_sent_to_its_model() -> None:
    """As the gateway does it, for demand and quotas; the client's name goes with it."""
    it = pool(backend("a", models=("big-a",)), backend("b", models=("big-b",)), models=SPLIT)
    before = SPLIT.resolved(request("r1", model="big"))
    send = sent(it.arrived(before, 0.0))
    assert (send.model, send.backend) == ("", before.model[-1])
    done = account(it.ended("r1", 1, Usage(3), 1.0))
    assert (done.model, done.served_model, done.request.requested_model) == ("", before.model, "big")


# -- fallbacks -------------------------------------------------------------------------------------------------------


def test_without_a_backend_of_its_own_another_model_serves_what_allows_it() -> None:
    """Down, or not there at all; why is said with the send, in the record and in the explanation."""
    it = pool()
    assert sent(it.arrived(asks(), 0.0)).backend == "b"
    it.backend_health("b", False, 0.0)
    send = sent(it.arrived(asks("r"), 0.0))
    assert (send.backend, send.model) == ("s", "small")
    assert send.fallback_why == "no backend of 'big' that takes it is up and awake"
    it.first_token("r", 1, 0.1)
    done = account(it.ended("r", 1, Usage(3), 1.0))
    assert (done.outcome, done.model, done.fallback_why) == (EndState.SERVED, "small", send.fallback_why)
    assert done.request.model == "big"
    explained = it.explain("r")
    assert explained is not None
    assert (explained.model, [each.backend for each in explained.candidates]) == ("small", ["s"])
    assert "'small' serves it: no backend of 'big'" in explained.why
    gone = pool(backend("s", models=("small",)))
    assert sent(gone.arrived(asks(), 0.0)).model == "small"


@pytest.mark.parametrize(
    ("rule", "facts", "allowed"),
    [
        ({}, {}, False),
        ({}, {"fallback": "allow"}, True),
        ({"everyone": True}, {}, True),
        ({"everyone": True}, {"fallback": "deny"}, False),
        ({"tenants": frozenset({"t"})}, {"tenant": "t"}, True),
        ({"tenants": frozenset({"t"})}, {"tenant": "u"}, False),
        ({"classes": frozenset({"batch"})}, {"slo_class": "batch"}, True),
        ({"classes": frozenset({"batch"})}, {"slo_class": "batch", "fallback": "deny"}, False),
    ],
)
def test_only_requests_that_allow_it_fall_back(rule: dict[str, Any], facts: dict[str, str], allowed: bool) -> None:
    """A request's own word counts before the rule's."""
    it = pool(models=ModelRules({"big": ModelRule(fallback=("small",), **rule)}))
    it.backend_health("b", False, 0.0)
    commands = it.arrived(request(model="big", **facts), 0.0)
    assert (sent(commands).model == "small") if allowed else (refused(commands).reason is Reason.NO_BACKEND)


@pytest.mark.parametrize(("small_slower", "model"), [(1.0, "small"), (100.0, "")])
def test_where_no_backend_is_expected_to_meet_the_slo_one_that_is_takes_it(small_slower: float, model: str) -> None:
    """And none does where the other model would miss it too: then it stays with its own."""
    slow, other = backend("b", models=("big",), slower=100.0), backend("s", models=("small",), slower=small_slower)
    it = pool(slow, other)
    send = sent(it.arrived(asks(slo=Slo(tpot_s=0.05)), 0.0))
    assert send.model == model
    assert ("no backend of 'big' is expected to meet the SLO" in send.why) == bool(model)
    assert sent(it.arrived(asks(slo=Slo(tpot_s=5.0)), 0.0)).model == ""
    assert sent(it.arrived(asks(), 0.0)).model == ""


def test_what_the_policy_refuses_goes_to_the_other_model() -> None:
    """Even where that is refused at once as infeasible."""
    it = pool(backend("b", models=("big",), slower=100.0), backend("s", models=("small",)), routing="slo_headroom")
    strict = Slo(tpot_s=0.05, refuse_infeasible=True)
    assert refused(it.arrived(asks(slo=strict, fallback=""), 0.0)).reason is Reason.INFEASIBLE
    assert sent(it.arrived(asks(slo=strict), 0.0)).model == "small"


def test_a_prompt_too_long_for_every_backend_of_its_model_goes_to_one_that_takes_it() -> None:
    """No backend of its own could ever serve it."""
    it = pool(backend("b", models=("big",), context_tokens_max=1_000), backend("s", models=("small",)))
    assert refused(it.arrived(asks(prompt_tokens=2_000, fallback=""), 0.0)).reason is Reason.TOO_LONG
    assert sent(it.arrived(asks(prompt_tokens=2_000), 0.0)).model == "small"


def test_when_every_attempt_has_failed_the_other_model_has_attempts_of_its_own() -> None:
    """On backends that did not fail it; a failure that is the client's own is tried nowhere."""
    both = backend("both", models=("big", "small"))
    it = pool(
        backend("b", models=("big",)), both, backend("s", models=("small",)), limits=DispatchLimits(attempts_max=2)
    )
    first = sent(it.arrived(asks("r"), 0.0))
    second = sent(it.failed("r", first.attempt, Failure("reset"), 0.1))
    third = sent(it.failed("r", second.attempt, Failure("reset"), 0.2))
    assert ({first.backend, second.backend}, third.backend, third.model) == ({"b", "both"}, "s", "small")
    assert third.fallback_why == "reset"
    assert refused(it.failed("r", third.attempt, Failure("reset"), 0.3)).reason is Reason.BACKEND_FAILED
    last = sent(it.arrived(asks("q"), 1.0))
    final = it.failed("q", last.attempt, Failure("bad", backend_fault=False, retryable=False), 1.1)
    assert isinstance(final[0], Refuse)


def test_the_first_model_of_several_that_can_serves_it() -> None:
    """In the order of the rule; a name that is split stands for its models."""
    rules = ModelRules({"big": ModelRule(fallback=("gone", "mid", "small")), "mid": ModelRule((("mid-1", 1.0),))})
    it = pool(backend("m", models=("mid-1",)), backend("s", models=("small",)), models=rules)
    assert sent(it.arrived(asks(), 0.0)).model == "mid-1"
    it.backend_health("m", False, 0.0)
    assert sent(it.arrived(asks(), 0.0)).model == "small"
    it.backend_health("s", False, 0.0)
    assert refused(it.arrived(asks(), 0.0)).reason is Reason.UNKNOWN_MODEL
    assert it.in_flight == 2


def test_where_the_other_model_has_no_room_at_once_the_request_waits_for_it() -> None:
    """As any request of that model does, and is served when there is room."""
    busy = backend("s", models=("small",), slower=4.0)
    it = pool(busy, routing="slo_headroom")
    for _ in range(100):
        it.belief.lengths.update("small", "default", 20)
    it.on_peer_load("peer", {"s": Load(decoding=100.0, context_tokens=1e5)}, 0.0)
    assert not it.arrived(asks("r", slo=Slo(tpot_s=0.06)), 0.0)
    assert it.held_of("small") == 1
    send = sent(it.peer_lost("peer", 0.2))
    assert (send.request_id, send.model) == ("r", "small")
    assert send.fallback_why.startswith("no backend serves 'big'")


EXCEEDED = Failure("too long", backend_fault=False, kind=FailureKind.CONTEXT_EXCEEDED, context_tokens_max=4_096)
BAD = Failure("no pictures", backend_fault=False, retryable=False, kind=FailureKind.CLIENT_ERROR)


@pytest.mark.parametrize("failure", [EXCEEDED, BAD])
def test_what_another_model_cannot_serve_its_own_gets_after_all(failure: Failure) -> None:
    """The client named the own one: no answer of another is final while that could serve it, if late."""
    slow = backend("b", models=("big",), slower=100.0)
    it = pool(slow, backend("s", models=("small",)))
    first = sent(it.arrived(asks("r", slo=Slo(tpot_s=0.05)), 0.0))
    assert (first.model, first.backend) == ("small", "s")
    second = sent(it.failed("r", first.attempt, failure, 0.1))
    assert (second.backend, second.model, second.fallback_why) == ("b", "", "")
    done = account(it.ended("r", second.attempt, Usage(3), 1.0))
    assert (done.outcome, done.model, done.fallback_why) == (EndState.SERVED, "", "")


@pytest.mark.parametrize("failure", [EXCEEDED, BAD])
def test_what_another_model_cannot_serve_is_refused_for_the_reason_of_its_own(failure: Failure) -> None:
    """It may come again once its own is there; another fallback is tried before, where what one lacks is no mistake."""
    rules = ModelRules({"big": ModelRule(fallback=("small", "last"))})
    it = pool(
        backend("b", models=("big",)), backend("s", models=("small",)), backend("l", models=("last",)), models=rules
    )
    it.backend_health("b", False, 0.0)
    send = sent(it.arrived(asks("r"), 0.0))
    assert send.model == "small"
    commands = it.failed("r", send.attempt, failure, 0.1)
    if failure is EXCEEDED:
        send = sent(commands)
        assert (send.model, send.fallback_why) == ("last", "too long")
        commands = it.failed("r", send.attempt, failure, 0.2)
    refuse = refused(commands)
    assert (refuse.reason, refuse.why) == (Reason.NO_BACKEND, "no backend of 'big' that takes it is up and awake")
    assert refuse.retry_after_s > 0.0


def test_a_prompt_that_its_own_engine_finds_too_long_goes_to_a_model_with_a_longer_context() -> None:
    """As one does that is known to be too long before it is sent; where no model takes it, that is the client's."""
    own = backend("b", models=("big",), context_tokens_max=4_096)
    it = pool(own, backend("s", models=("small",), context_tokens_max=8_192))
    send = sent(it.failed("r", sent(it.arrived(asks("r"), 0.0)).attempt, EXCEEDED, 0.1))
    assert (send.model, send.fallback_why) == ("small", "too long")
    longer = replace(EXCEEDED, context_tokens_max=8_192)
    assert refused(it.failed("r", send.attempt, longer, 0.2)).reason is Reason.CLIENT_ERROR
    short = pool(own, backend("s", models=("small",), context_tokens_max=4_096))
    first = sent(short.arrived(asks("r"), 0.0))
    assert refused(short.failed("r", first.attempt, EXCEEDED, 0.1)).reason is Reason.CLIENT_ERROR


class NoRoomForBig:
    """A policy that holds all requests for big, and while it is ``full`` for any model, and sends all others."""

    def __init__(self, full: bool = False) -> None:
        self.full, self.decisions = full, 0

    def choose(self, request: Request, fleet: Fleet, forecast: Forecast, rng: Rng) -> Choice:
        """See Routing."""
        self.decisions += 1
        if self.full or request.model == "big":
            return Hold(fleet.now_s + 0.05, "wait")
        return Dispatch(int(fleet.slots[0]), "go")


@pytest.mark.parametrize("full", [False, True])
def test_requests_that_wait_for_a_model_whose_backends_die_fall_back_then(full: bool) -> None:
    """At once, or as soon as the other model has room: not when their hold ends. Others wait on."""
    it, policy = pool(admission={"hold_s_max": 9.0}), NoRoomForBig(full)
    it.adopt(policy, it.admission)
    for each in (request("own", model="big"), asks("r"), asks("q")):
        assert not it.arrived(each, 0.0)
    commands = list(it.backend_health("b", False, 0.5))
    if full:
        assert not commands
        policy.full = False
        while it.wake_s < 1.0:
            commands += it.ticked(it.wake_s)
    sends = [each for each in commands if isinstance(each, Send)]
    assert [(each.request_id, each.model) for each in sends] == [("r", "small"), ("q", "small")]
    assert sends[0].fallback_why == "no backend of 'big' is up"
    assert (it.held_of("big"), it.held) == (1, 1)
    assert not it.backend_health("b", True, 1.5)


def test_those_who_wait_for_a_model_without_backends_are_offered_to_another_once_an_event() -> None:
    """However many bounds they have, and so lines: else each event costs as many forecasts as there are lines."""
    it, policy = pool(admission={"hold_s_max": 9.0}), NoRoomForBig(full=True)
    it.adopt(policy, it.admission)
    for number in range(8):
        it.arrived(asks(f"r{number}", slo=Slo(e2e_s=10.0 * 2.0**number)), 0.0)
    it.backend_health("b", False, 0.5)
    before = policy.decisions
    it.reported("s", EngineReport(0.6), 0.6)
    assert policy.decisions == before + 1
    policy.full = False
    sends = [each for each in it.reported("s", EngineReport(0.7), 0.7) if isinstance(each, Send)]
    assert (len(sends), it.held) == (8, 0)


def test_a_hold_that_ends_without_room_ends_at_the_other_model() -> None:
    """The others that wait for its own model end as ever."""
    it = pool(admission={"hold_s_max": 0.5})
    it.adopt(NoRoomForBig(), it.admission)
    assert not it.arrived(request("own", model="big"), 0.0)
    assert not it.arrived(asks("r"), 0.0)
    assert it.held_of("big") == 2
    ends: list[Any] = []
    while it.wake_s <= 0.5:
        ends += it.ticked(it.wake_s)
    sends = [each for each in ends if isinstance(each, Send)]
    assert [(each.request_id, each.model) for each in sends] == [("r", "small")]
    assert sends[0].fallback_why == "held 0.50 s without room"
    assert [each.request_id for each in ends if isinstance(each, Refuse)] == ["own"]
    assert it.held == 0


def test_a_fallback_that_is_split_offers_all_its_models_but_the_own() -> None:
    """Whichever of them a session's hash selects: what cannot serve a request is no fallback for it."""
    rules = ModelRules({"big": ModelRule(fallback=("any",)), "any": ModelRule((("big", 1.0), ("small", 1.0)))})
    it = pool(models=rules)
    it.backend_health("b", False, 0.0)
    for n in range(20):
        assert sent(it.arrived(asks(session=str(n)), 0.0)).model == "small"
    both = ModelRules({"chat": ModelRule((("big", 1.0), ("small", 1.0)), fallback=("small", "big"))})
    for n in range(20):
        own = both.resolved(request(model="chat", session=str(n), fallback="allow"))
        assert both.fallbacks(own) == (("small",) if own.model == "big" else ("big",))


def test_a_request_that_another_model_of_its_split_takes_has_the_fallbacks_of_that() -> None:
    """Not those of the model that was selected and has no backend."""
    split = ModelRule((("a", 1.0), ("b", 1e-9)))
    rules = ModelRules({"chat": split, "a": ModelRule(fallback=("gone",)), "b": ModelRule(fallback=("small",))})
    it = pool(backend("b", models=("b",)), backend("s", models=("small",)), models=rules)
    first = sent(it.arrived(asks("r", model="chat"), 0.0))
    assert first.model == "b"
    assert sent(it.failed("r", first.attempt, Failure("reset"), 0.1)).model == "small"


def test_rules_and_their_effects_survive_a_record() -> None:
    """A fresh core with the same rules answers the same; requests and commands without rules look as they did."""
    events: list[dict[str, Any]] = []
    first = core(routing="power_of_two")
    first.models = FALLBACK
    record = Recording(first, events.append)
    record.backend_joined(backend("s", models=("small",)), 0.0)
    record.backend_joined(backend("m"), 0.0)
    record.arrived(asks("r"), 0.1)
    record.first_token("r", 1, 0.2)
    record.ended("r", 1, Usage(3), 0.3)
    record.arrived(request("plain"), 0.4)
    again = core(routing="power_of_two")
    again.models = rules_of(FALLBACK.plain())
    assert again.models == FALLBACK
    assert all(event["answer"] == answer for event, answer in replay(events, again))
    assert events[2]["request"]["fallback"] == "allow"
    plain = events[-1]
    assert not {"fallback", "requested_model"} & plain["request"].keys()
    assert not {"model", "fallback_why"} & plain["answer"][0].keys()


def test_a_model_that_can_be_started_is_no_unknown_one_while_nothing_runs() -> None:
    """Unavailable, with the time of the next try, which counts as demand; another name is unknown as before."""
    it = pool(backend("s", models=("small",)), models=ModelRules({"big": ModelRule(startable=True)}))
    refuse, record = it.arrived(asks(), 0.0)
    assert isinstance(refuse, Refuse)
    assert isinstance(record, RequestRecord)
    assert (refuse.reason, record.outcome) == (Reason.NO_BACKEND, EndState.REFUSED)
    assert refuse.retry_after_s > 0.0
    assert refused(it.arrived(asks(model="other"), 0.0)).reason is Reason.UNKNOWN_MODEL


def test_every_kind_of_rule_survives_json() -> None:
    """Splits, tenants and classes too."""
    rule = ModelRule((("a", 0.25), ("b", 3.0)), ("c",), False, frozenset({"t"}), frozenset({"x", "y"}))
    rules = ModelRules({"m": rule, "n": replace(rule, everyone=True, tenants=frozenset(), classes=frozenset())})
    rules = ModelRules({**rules.rules, "o": ModelRule(startable=True)})
    assert rules_of(rules.plain()) == rules


class Driven:
    """A dispatcher and what its commands came to."""

    def __init__(self, seed: int) -> None:
        routing, admission = policies.find("routing", "slo_headroom"), policies.find("admission", "deadline")
        self.it = Dispatcher(routing, admission, Random(seed))
        self.it.models = ModelRules({"big": ModelRule((("big", 1.0), ("new", 1.0)), ("small",), everyone=True)})
        for name, model in (("b", "big"), ("n", "new"), ("s", "small")):
            self.it.backend_joined(backend(name, models=(model,), slower=4.0), 0.0)
        self.open: dict[str, int] = {}
        self.ended: Counter[str] = Counter()

    def note(self, commands: Sequence[Command]) -> None:
        """Follow them."""
        for each in commands:
            if isinstance(each, Send):
                self.open[each.request_id] = each.attempt
            elif isinstance(each, RequestRecord):
                self.ended[each.request.id] += 1
                self.open.pop(each.request.id, None)

    def end_some(self, draw: Random, now_s: float) -> None:
        """A third of the attempts fail or end."""
        for name, attempt in draw.sample(sorted(self.open.items()), len(self.open) // 3):
            if draw.random() < 0.4:
                self.note(self.it.failed(name, attempt, Failure("reset"), now_s))
            else:
                self.note(self.it.first_token(name, attempt, now_s))
                self.note(self.it.ended(name, attempt, Usage(5), now_s))


@pytest.mark.parametrize("seed", range(20))
def test_in_any_order_every_request_ends_once_and_leaves_nothing_reserved(seed: int) -> None:
    """Backends of all models fail and come back while requests arrive, fail, are held and leave."""
    draw, driven, now_s = Random(seed), Driven(seed), 0.0
    it = driven.it
    for n in range(120):
        now_s += draw.random() * 0.05
        driven.note(it.arrived(request(f"r{n}", model="big", arrived_s=now_s, slo=Slo(1.0, 0.1)), now_s))
        driven.note(it.backend_health(draw.choice("bns"), draw.random() < 0.7, now_s))
        driven.end_some(draw, now_s)
        driven.note(it.ticked(now_s))
    for n in range(120):
        driven.note(it.client_left(f"r{n}", now_s))
    assert it.in_flight == it.held == 0
    assert driven.ended == Counter(f"r{n}" for n in range(120))
    assert all(load == Load() for load in it.loads().values())
