"""Models that the same backends serve, such as adapters of one base: room that one leaves is room for the others."""

import pytest

from router.core import Dispatch, Hold
from router.core.decisions import Send
from router.core.flight import Failure
from router.core.holding import LOOK_AHEAD
from router.core.model_rules import ModelRule, ModelRules
from router.core.types import Usage
from tests.fakes import backend, core, request, sent


class Desk:
    """A policy for tests: it sends those of ``sends`` and holds all others, with no time of their own; the next room is
    to be that of those of ``alone``.
    """

    def __init__(self, *sends):
        self.sends, self.alone = set(sends), set()
        self.decided = []
        self.held = {}
        self.again_s = 1e3

    def choose(self, request, fleet, forecast, rng):
        """By name."""
        self.decided.append(request.id)
        self.held[request.id] = fleet.held, fleet.held_rank
        if request.id in self.sends:
            return Dispatch(int(fleet.slots[0]), "yes")
        return Hold(fleet.now_s + self.again_s, "not yet", request.id in self.alone)


def at_a_desk(*backends, sends=("r",)):
    """A core with the policy ``Desk``."""
    it, desk = core(*backends), Desk(*sends)
    it.adopt(desk, it.admission)
    return it, desk


def names(commands):
    """Whose requests are sent, in order."""
    return [command.request_id for command in commands if isinstance(command, Send)]


@pytest.mark.parametrize("how", ["first token", "ended", "left", "failed"])
def test_room_that_a_request_of_one_model_leaves_is_offered_to_the_other(how):
    """At once, not when the held one's own time has come; one that other backends serve is not decided."""
    it, desk = at_a_desk(backend("a", models=("m", "n")), backend("b", models=("o",)))
    sent(it.arrived(request("r"), 0.0))
    for model in "no":
        assert it.arrived(request(f"waits for {model}", model=model), 0.0) == ()
    desk.sends |= {"waits for n", "waits for o"}
    if how == "first token":
        commands = it.first_token("r", 1, 1.0)
    elif how == "ended":
        commands = it.ended("r", 1, Usage(5), 1.0)
    elif how == "left":
        commands = it.client_left("r", 1.0)
    else:
        commands = it.failed("r", 1, Failure("reset"), 1.0)
    assert names(commands) == ["waits for n"]


def test_the_first_in_rank_is_first_whichever_model_it_is_for():
    """A model with many requests does not take the room from another whose request is due before."""
    it, desk = at_a_desk(backend("a", models=("m", "n")))
    sent(it.arrived(request("r"), 0.0))
    it.arrived(request("later", arrived_s=0.2), 0.2)
    it.arrived(request("sooner", model="n", arrived_s=0.1), 0.2)
    desk.sends |= {"later", "sooner"}
    assert names(it.ended("r", 1, Usage(5), 1.0)) == ["sooner", "later"]


def test_however_many_models_wait_a_bounded_number_of_requests_is_decided_at_once():
    """Those that are first in rank, and one line of each."""
    many = [f"m{number}" for number in range(3 * LOOK_AHEAD)]
    it, desk = at_a_desk(backend("a", models=("m", *many)))
    sent(it.arrived(request("r"), 0.0))
    for number, model in reversed(list(enumerate(many))):
        it.arrived(request(model, model=model, arrived_s=number / 1e3), 0.1)
    decided = len(desk.decided)
    it.first_token("r", 1, 1.0)
    assert desk.decided[decided:] == many[:LOOK_AHEAD]


def test_a_failed_request_that_another_model_takes_leaves_room_for_its_own():
    """The backend that failed has one request less, whichever backend serves that now."""
    it, desk = at_a_desk(backend("a"), backend("b", models=("n",)))
    it.models = ModelRules({"m": ModelRule(fallback=("n",), everyone=True)})
    sent(it.arrived(request("r"), 0.0))
    assert it.arrived(request("waits", fallback="deny"), 0.0) == ()
    desk.sends.add("waits")
    assert names(it.failed("r", 1, Failure("reset"), 1.0)) == ["r", "waits"]


def test_a_room_that_is_reserved_for_one_model_is_not_given_to_another():
    """Not to one that comes, nor to one that waits; one that another backend serves, or of an earlier rank, goes."""
    both, other = backend("a", models=("m", "n")), backend("b", models=("n",))
    it, desk = at_a_desk(both, sends=("comes", "urgent"))
    desk.alone.add("patient")
    it.arrived(request("patient"), 0.0)
    it.arrived(request("waits", model="n", arrived_s=0.1), 0.1)
    assert it.arrived(request("comes", model="n", arrived_s=0.2), 0.2) == ()
    desk.sends.add("waits")
    assert names(it.on_peer_load("peer", {}, 0.3)) == []
    assert names(it.arrived(request("urgent", model="n", priority=-1, arrived_s=0.4), 0.4)) == ["urgent"]
    it.backend_joined(other, 0.5)
    it.arrived(request("elsewhere", model="n", arrived_s=0.6, among=("b",)), 0.6)
    desk.sends.add("elsewhere")
    assert names(it.on_peer_load("peer", {}, 0.7)) == ["elsewhere"]


@pytest.mark.parametrize("how", ["sent", "left", "timer"])
def test_who_waits_for_another_model_is_decided_once_the_room_is_no_longer_reserved(how):
    """As those of the same model are."""
    it, desk = at_a_desk(backend("a", models=("m", "n")), sends=("waits",))
    desk.again_s = 0.05
    desk.alone.add("patient")
    it.arrived(request("patient"), 0.0)
    assert it.arrived(request("waits", model="n", arrived_s=0.01), 0.01) == ()
    while it.wake_s < 0.3:
        assert names(it.ticked(it.wake_s)) == []
    commands = []
    if how == "sent":
        desk.sends.add("patient")
    elif how == "left":
        commands += it.client_left("patient", 0.3)
    else:
        desk.alone.clear()
    while it.wake_s < 0.4:
        commands += it.ticked(it.wake_s)
    assert [name for name in names(commands) if name != "patient"] == ["waits"]


def test_two_that_each_want_the_next_room_do_not_wait_for_one_another():
    """Of equal ranks and different models: one is before the other, whichever is asked."""
    it, desk = at_a_desk(backend("a", models=("m", "n")), sends=())
    desk.again_s = 0.05
    desk.alone |= {"one", "two"}
    it.arrived(request("one", model="n"), 0.0)
    it.arrived(request("two", model="m"), 0.0)
    desk.sends |= {"one", "two"}
    commands = []
    while it.wake_s < 0.2:
        commands += it.ticked(it.wake_s)
    assert sorted(names(commands)) == ["one", "two"]


def test_those_that_wait_for_another_model_count_where_the_same_backend_serves_them():
    """``held`` and ``held_rank`` are of all that one competes with."""
    it, desk = at_a_desk(backend("a", models=("m", "n")), backend("b", models=("n", "o")), backend("c", models=("p",)))
    for number, model in enumerate("nnop"):
        it.arrived(request(f"{number}", model=model, arrived_s=float(number)), float(number))
    for model, held in (("m", 2), ("n", 3), ("o", 3), ("p", 1)):
        it.arrived(request(model, model=model, arrived_s=9.0), 9.0)
        it.client_left(model, 9.0)
        assert desk.held[model][0] == held, model
    assert desk.held["m"][1] == desk.held["o"][1] == desk.held["n"][1] != desk.held["p"][1]
