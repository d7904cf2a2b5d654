"""The explanation of a choice, requested afterwards."""

import sys
from math import isnan

import pytest

from router.core.decisions import EndState, Shed
from router.core.errors import Reason
from router.core.explain import CANDIDATES_KEPT, CHOICES_KEPT
from router.core.types import Slo, Usage
from tests.fakes import backend, core, request, sent


def test_a_choice_is_explained_with_every_candidate_and_what_became_of_it():
    """Predicted, chosen, why; and the account once it is over."""
    it = core(backend("fast"), backend("slow", slower=3.0), routing="slo_headroom")
    send = sent(it.arrived(request("r", slo=Slo(ttft_s=2.0, tpot_s=0.1)), 1.0))
    told = it.explain("r")
    assert (told.chosen, told.why, told.account, told.decided_s) == (send.backend, send.why, None, 1.0)
    ttft = {candidate.backend: candidate.ttft_s for candidate in told.candidates}
    assert ttft["slow"] > ttft["fast"] == send.predicted_ttft_s
    assert all(candidate.ttft_tail_s > candidate.ttft_s for candidate in told.candidates)
    it.first_token("r", 1, 1.1)
    it.ended("r", 1, Usage(10), 1.3)
    assert it.explain("r").account.outcome is EndState.SERVED


class Refuses:
    """Reads every TTFT and refuses the request."""

    def choose(self, request, fleet, forecast, rng):
        """Always the same answer."""
        return Shed(Reason.SATURATED, f"soonest in {forecast.ttft_s.min():.3f} s")


def test_a_refusal_is_explained_too():
    """No backend, the policy's reason, and the candidates it considered."""
    it = core(backend())
    it.adopt(Refuses(), it.admission)
    it.arrived(request("r"), 0.0)
    told = it.explain("r")
    assert told.chosen == ""
    assert told.account.outcome is EndState.REFUSED
    (candidate,) = told.candidates
    assert (candidate.backend, f"soonest in {candidate.ttft_s:.3f} s") == ("a", told.why)
    assert candidate.tpot_tail_s > candidate.tpot_s > 0.0


def test_what_the_policy_did_not_read_is_not_made_up():
    """A baseline that never forecasts: candidates by name, nothing predicted."""
    it = core(backend())
    it.arrived(request("r"), 0.0)
    (candidate,) = it.explain("r").candidates
    assert candidate.backend == "a"
    assert isnan(candidate.ttft_s)


def test_a_backend_that_left_keeps_its_name_in_its_explanation():
    """Its slot may be another's by now."""
    it = core(backend("a"))
    it.arrived(request("r"), 0.0)
    it.backend_left("a", 0.1)
    it.backend_joined(backend("z"), 0.2)
    assert it.explain("r").candidates[0].backend == "a"


def test_the_oldest_choices_are_forgotten():
    """Memory is bounded; an unknown request has no explanation."""
    it = core(backend())
    for n in range(CHOICES_KEPT + 1):
        it.arrived(request(f"r{n}"), 0.0)
    assert it.explain("r0") is None
    assert it.explain(f"r{CHOICES_KEPT}") is not None
    assert it.explain("never") is None


@pytest.mark.parametrize("routing", ["slo_headroom", "round_robin"])
def test_of_many_candidates_the_nearest_and_the_chosen_one_are_kept(routing):
    """What a choice takes in memory does not grow with the fleet; how many there were is stated."""
    it = core(*(backend(f"b{n}", slower=1.0 + n) for n in range(200)), routing=routing)
    for n in range(150):
        chosen = sent(it.arrived(request(f"r{n}", slo=Slo(ttft_s=900.0)), 0.0)).backend
        told = it.explain(f"r{n}")
        assert (len(told.candidates), told.compared) == (CANDIDATES_KEPT, 200)
        named = [each.backend for each in told.candidates]
        assert chosen in named
        assert len(set(named)) == CANDIDATES_KEPT
        if routing == "slo_headroom" and n == 0:  # with nothing in flight the faster is the nearer
            assert named == [f"b{near}" for near in range(CANDIDATES_KEPT)]
    note = it._explanations._notes[-1]
    held = [each for each in (note.slots, note.answer) if each is not None]
    assert all(each.base is None for each in held), "a view would keep the whole forecast"
    assert sum(map(sys.getsizeof, held)) < 3_000


def test_few_candidates_are_all_kept():
    """Up to the bound nothing is left out."""
    it = core(*(backend(f"b{n}") for n in range(CANDIDATES_KEPT)), routing="slo_headroom")
    it.arrived(request("r"), 0.0)
    assert (len(it.explain("r").candidates), it.explain("r").compared) == (CANDIDATES_KEPT, CANDIDATES_KEPT)
