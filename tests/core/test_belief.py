"""What the belief learns from streams, through the dispatcher's calls."""

import json
import random
from dataclasses import replace
from math import exp

import numpy as np
import pytest

from router.core.belief import STEPS_AHEAD, Belief
from router.core.columns import AHEAD, LEARNING, OFF, TERMS, TRUSTED
from router.core.fleet import Fleet
from router.core.forecast import Forecast
from router.core.ledger import Ledger
from router.core.record import Recording, replay
from router.core.text_size import TEXT_SIGMA
from router.core.types import Load, Usage
from tests.fakes import backend, core, request, sent

TRUTH = np.array([1.5, 0.7, 1.3, 0.6, 1.0, 1.4, 1.2])


class Engine:
    """One backend under a peer's load that changes from request to request; its truth is the model's, times factors."""

    def __init__(self, seed=1, truth=TRUTH, noise=0.05, facts=None):
        self.chance, self.truth, self.noise = random.Random(seed), truth, noise
        self.ledger, self.belief = Ledger(), Belief()
        joined = backend("a", **(facts or {}))
        self.belief.joined(self.ledger.join(joined, 0.0), joined)
        self.errors = []

    def forecast(self):
        """Of the next request, whatever is there."""
        prefilling = self.chance.choice([0, 0, 1, 3])
        load = Load(prefilling, 700.0 * prefilling, self.chance.randrange(80), self.chance.randrange(60_000))
        self.ledger.peers.on_peer_load("peer", {"a": load}, 0.0)
        fleet = Fleet(self.ledger, self.ledger.roster.pool("m"), 0.0)
        return Forecast(request(prompt_tokens=self.chance.randrange(1, 4000)), fleet, self.belief)

    def serve(self, count):
        """First tokens, and the relative error of each prediction."""
        for _ in range(count):
            predicted = self.forecast().at(0)
            expected = predicted.expectation
            actual_s = float(expected.terms_and_spreads[:TERMS] @ self.truth) * exp(
                self.noise * self.chance.gauss(0, 1)
            )
            self.errors.append(abs(predicted.ttft_s / actual_s - 1.0))
            self.belief.first_token(0, expected, predicted.ttft_s, actual_s)
        return self


def test_a_hundred_first_tokens_teach_a_backend_unlike_its_data_sheet():
    """Factors from 0.6 to 1.5: the median error of the next hundred is under 8 %, noise of 5 % included."""
    engine = Engine().serve(200)
    assert np.median(engine.errors[:3]) > 0.1
    assert np.median(engine.errors[100:]) < 0.08


@pytest.mark.parametrize("steps", [0.0, 1.0])
def test_how_many_steps_an_engine_schedules_ahead_is_learnt(steps):
    """None (its newcomers wait for the step under way alone) or one: vLLM does either, by an option."""
    it = Engine(truth=np.array([1.0] * 6 + [steps / STEPS_AHEAD])).serve(150)
    learnt = float(it.belief.prior[0, AHEAD] * it.belief.regression.factor[0, AHEAD])
    assert learnt == pytest.approx(steps, abs=0.3)
    assert np.median(it.errors[100:]) < 0.08


def test_after_a_step_change_the_error_is_back_under_20_percent_within_50_requests():
    """Half speed, and soon after the quantiles cover what they say again."""
    engine = Engine().serve(200)
    engine.truth = 2.0 * TRUTH
    engine.serve(250)
    assert np.median(engine.errors[200:205]) > 0.4
    assert np.median(engine.errors[225:250]) < 0.2
    assert engine.belief.score(0).changes >= 1


def test_a_quantile_covers_its_share_of_outcomes():
    """1,000 first tokens of a noisy engine."""
    engine = Engine(noise=0.3).serve(100)
    before = engine.belief.score(0).ttft
    engine.serve(1000)
    after = engine.belief.score(0).ttft
    covered = {q: (after.coverage[q] * 1100 - before.coverage[q] * 100) / 1000 for q in (0.9, 0.99)}
    assert 0.87 <= covered[0.9] <= 0.93
    assert covered[0.99] >= 0.975


def test_a_forecast_is_learning_then_trusted_then_off_while_it_misleads_and_trusted_again():
    """The state a policy sees."""
    engine = Engine()
    assert engine.belief.state[0] == LEARNING
    engine.serve(100)
    assert engine.forecast().state.tolist() == [TRUSTED]
    engine.noise = 3.0
    engine.serve(100)
    assert engine.belief.state[0] == OFF
    assert engine.belief.score(0).state == "off"
    engine.noise = 0.05
    engine.serve(200)
    assert engine.belief.state[0] == TRUSTED


def test_replies_of_a_few_tokens_put_no_forecast_off():
    """Their TPOT is chance, whether a prompt came or none: ten times off, either way. Longer ones say what is so."""
    states = []
    for tokens in (3, 60):
        it = core(backend(), routing="slo_headroom")
        for n in range(60):
            now_s = 10.0 * n
            it.arrived(request(f"r{n}", prompt_tokens=100, arrived_s=now_s), now_s)
            it.first_token(f"r{n}", 1, now_s + 0.05)
            it.ended(f"r{n}", 1, Usage(tokens, 100), now_s + 0.05 + (tokens - 1) * (0.1 if n % 2 else 0.001))
        assert it.score("a").tpot.seen == 60
        states.append(it.score("a").state)
    assert states == ["trusted", "off"]


def test_a_score_counts_and_is_nan_before_anything_was_seen():
    """Metrics read it."""
    engine = Engine()
    assert np.isnan(engine.belief.score(0).ttft.error)
    score = engine.serve(50).belief.score(0)
    assert (score.ttft.seen, score.tpot.seen) == (50, 0)
    assert 0.0 < score.ttft.error < 0.5
    assert score.ttft.coverage[0.99] >= score.ttft.coverage[0.5]


def stream(it, slower, count):
    """Streams of 101 tokens, one after the other, ``slower`` than the data sheet's 10.1 ms a step; the time after."""
    now_s = 0.0
    for n in range(count):
        it.arrived(request(f"{n}", arrived_s=now_s), now_s)
        it.first_token(f"{n}", 1, now_s + slower * 0.025)
        now_s += slower * (0.025 + 100 * 0.0101)
        it.ended(f"{n}", 1, Usage(101), now_s)
    return now_s


def test_streams_teach_tpot():
    """Through the dispatcher: twice as slow as the data sheet is predicted so."""
    it = core(backend(), routing="slo_headroom")
    now_s = stream(it, 2.0, 20)
    it.arrived(request("r", arrived_s=now_s), now_s)
    assert it._flights["r"].open[0].predicted.tpot_s == pytest.approx(2 * 0.0101, rel=0.05)


def test_prompts_that_came_meanwhile_are_not_blamed_on_tpot():
    """A stream slowed by 2,000 prompt tokens of 0.1 ms each leaves the step where it was."""
    it = core(backend(), routing="slo_headroom")
    for n in range(40):
        at_s = 10.0 * n
        it.arrived(request(f"{n}", arrived_s=at_s), at_s)
        it.first_token(f"{n}", 1, at_s + 0.025)
        for k in range(2):
            it.arrived(request(f"{n}-{k}", arrived_s=at_s + 0.1, prompt_tokens=1000), at_s + 0.1)
            it.first_token(f"{n}-{k}", 1, at_s + 0.22 + 0.1 * k)
            it.client_left(f"{n}-{k}", at_s + 0.22 + 0.1 * k)
        it.ended(f"{n}", 1, Usage(101, 100), at_s + 0.025 + 100 * 0.0101 + 0.2)
    assert it.belief.regression.factor[0, 0] == pytest.approx(1.0, abs=0.12)


def test_a_reply_of_a_few_tokens_is_judged_and_teaches_nothing():
    """Its TPOT is rounding: two steps, whatever was under way."""
    it = core(backend(), routing="slo_headroom")
    it.arrived(request("r"), 0.0)
    it.first_token("r", 1, 0.025)
    learnt = it.belief.regression.factor.copy()
    it.ended("r", 1, Usage(3), 0.1)
    assert it.belief.score(0).tpot.seen == 1
    assert (it.belief.regression.factor == learnt).all()


def test_a_policy_that_reads_no_forecast_teaches_lengths_alone():
    """Nothing was predicted, so nothing can be compared."""
    it = core(backend())
    stream(it, 2.0, 20)
    assert it.belief.seen(0) == 0
    assert it.belief.lengths.estimate("m", "default").tokens != pytest.approx(211, rel=0.05)


def test_the_same_streams_teach_the_same():
    """No chance, no clock."""
    assert Engine(3).serve(100).belief.export(0) == Engine(3).serve(100).belief.export(0)


def test_what_was_learnt_starts_another_router_warm():
    """Through JSON: the first predictions of a new router are as good as the last of the old."""
    old, new = Engine(seed=4).serve(200), Engine(seed=5)
    new.belief.adopt(0, json.loads(json.dumps(old.belief.export(0), allow_nan=False)))
    new.serve(20)
    assert np.median(new.errors) < 0.08
    assert new.belief.state[0] == TRUSTED


def test_a_belief_of_other_physics_or_another_version_is_refused():
    """Factors on one card's data sheet mean nothing on another's."""
    learnt = Engine().serve(10).belief.export(0)
    other = Engine(facts={"slower": 2.0})
    with pytest.raises(ValueError, match="other physics"):
        other.belief.adopt(0, learnt)
    with pytest.raises(ValueError, match="version 99"):
        Engine().belief.adopt(0, {**learnt, "version": 99})


def test_a_router_with_enough_outcomes_adopts_no_belief():
    """Its own observations take precedence; an unknown backend is ignored."""
    it, fresh = core(backend(), routing="slo_headroom"), core(backend(), routing="slo_headroom")
    stream(it, 3.0, 40)
    learnt = it.beliefs()["a"]
    fresh.adopt_belief("a", learnt, 0.0)
    assert fresh.beliefs()["a"]["regression"] == learnt["regression"]
    fresh.adopt_belief("nobody", learnt, 0.0)
    cold = core(backend(), routing="slo_headroom").beliefs()["a"]
    it.adopt_belief("a", cold, 0.0)
    assert it.beliefs()["a"]["regression"] == learnt["regression"]


def test_a_backend_that_was_away_is_learnt_anew_faster():
    """It came back at half speed: the first outcomes count for more than they would have."""
    factors = []
    for away in (True, False):
        it = core(backend(), routing="slo_headroom")
        now_s = stream(it, 1.0, 100)
        if away:
            it.backend_health("a", False, now_s)
            it.backend_health("a", True, now_s)
        it.arrived(request("r", arrived_s=now_s), now_s)
        it.first_token("r", 1, now_s + 0.05)
        it.ended("r", 1, Usage(101), now_s + 0.05 + 200 * 0.0101)
        factors.append(float(it.belief.regression.factor[0, 0]))
    assert factors[0] > 1.3 * factors[1]


def test_scores_are_read_by_name():
    """The score of an unknown backend is None."""
    it = core(backend(), routing="slo_headroom")
    stream(it, 1.0, 30)
    assert it.score("a").state == "trusted"
    assert it.score("a").e2e.seen == 30
    assert it.score("nobody") is None


def test_an_adopted_belief_is_part_of_its_record():
    """A replay predicts what the warm router predicted, not what a cold one would."""
    lines, cold = [], core(backend(), routing="slo_headroom")
    stream(cold, 3.0, 40)
    it = core(routing="slo_headroom")
    warm = Recording(it, lambda event: lines.append(json.dumps(event, allow_nan=False)))
    warm.backend_joined(backend(), 0.0)
    warm.adopt_belief("a", cold.beliefs()["a"], 0.0)
    assert sent(warm.arrived(request("r"), 1.0)).predicted_ttft_s > 0.04
    assert it.explain("r").chosen == "a"
    for event, commands in replay(map(json.loads, lines), core(routing="slo_headroom")):
        assert commands == event["answer"]


def test_a_backend_whose_facts_change_starts_anew():
    """Another card under the same name: what was learnt of the old one is gone."""
    it = core(backend("a"), routing="slo_headroom")
    stream(it, 3.0, 20)
    it.backend_joined(backend("a", slower=2.0), 99.0)
    assert (it.belief.prior[0, :6] * it.belief.regression.factor[0, :6]).tolist() == pytest.approx(
        [0.02, 2e-4, 2e-7, 2e-4, 0.0, 0.01]
    )
    assert it.belief.seen(0) == 0


def test_prefix_hits_that_engines_report_lessen_the_prompts_to_come():
    """Without prefixes to go by, the share that was lately cached is expected again."""
    it = core(backend(), routing="slo_headroom")
    for n in range(100):
        it.arrived(request(f"r{n}", prompt_tokens=1000, arrived_s=n), n)
        it.first_token(f"r{n}", 1, n + 0.1)
        it.ended(f"r{n}", 1, Usage(5, 1000, 800), n + 0.2)
    it.arrived(request("last", prompt_tokens=1000, arrived_s=200.0), 200.0)
    assert it.loads()["a"].prefill_tokens == pytest.approx(200, rel=0.1)


def test_prompts_that_are_longer_than_estimated_are_reserved_as_they_are():
    """The engine counts twice the estimate, time after time."""
    it = core(backend(), routing="slo_headroom")
    for n in range(100):
        it.arrived(request(f"r{n}", prompt_tokens=500, prompt_sigma=TEXT_SIGMA, arrived_s=n), n)
        it.ended(f"r{n}", 1, Usage(5, 1000), n + 0.2)
    it.arrived(request("last", prompt_tokens=500, prompt_sigma=TEXT_SIGMA, arrived_s=200.0), 200.0)
    assert it.loads()["a"].prefill_tokens == pytest.approx(1000, rel=0.05)


def test_columns_grow_with_the_fleet():
    """What was learnt of the first survives the fortieth."""
    engine = Engine().serve(100)
    learnt = engine.belief.export(0)
    for n in range(1, 40):
        engine.belief.joined(n, replace(backend(), name=f"b{n}"))
    assert engine.belief.export(0) == learnt
    assert engine.belief.state[39] == LEARNING
