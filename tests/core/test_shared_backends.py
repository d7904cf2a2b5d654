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
    """A policy for tests: it sends those of ``sends`` and holds all others, with no time of their own."""

    def __init__(self, *sends):
        self.sends = set(sends)
        self.decided = []

    def choose(self, request, fleet, forecast, rng):
        """By name."""
        self.decided.append(request.id)
        if request.id in self.sends:
            return Dispatch(int(fleet.slots[0]), "yes")
        return Hold(fleet.now_s + 1e3, "not yet")


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
