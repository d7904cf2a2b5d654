"""The scaling policy answers whatever a window held: nothing at all, numbers that are none, variants that are gone."""

from dataclasses import replace
from math import exp, inf, isnan, nan
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import policies.scaling.headroom
from router.core import Demand, KindDemand, ReplicaLoad, Slo, Supply
from tests.bench.fluid import remembered
from tests.fakes import backend

HEADROOM = policies.find("scaling", "headroom")
SMALL = backend("small", price_per_hour=1.0)
BIG = backend("big", slower=0.5, price_per_hour=3.0)
ODD = st.sampled_from([nan, inf, -inf, -1.0, 0.0, 1e-300, 1.0, 1e308])
NUMBERS = ODD | st.floats()


def demand(**facts):
    """Ten requests a second of a chat, on two replicas of the small variant."""
    usual = {
        "model": "m",
        "requests_per_s": 10.0,
        "prompt_tokens": 500.0,
        "output_tokens": 200.0,
        "slo": Slo(ttft_s=2.0, tpot_s=0.05),
        "replicas": {"small": 2, "big": 1},
        "variants": {"small": SMALL, "big": BIG},
        "attainment": 1.0,
    }
    return Demand(**(usual | facts))


def wanted(**facts):
    """Replicas by variant."""
    return {answer.variant: answer.replicas for answer in HEADROOM.scale(demand(**facts))}


def test_a_window_without_arrivals_asks_for_the_minimum():
    """No requests have no mean lengths and no attainment; one replica stays, of the cheapest variant."""
    running = {"small": 2, "big": 3}
    idle = {"requests_per_s": 0.0, "prompt_tokens": 0.0, "output_tokens": 0.0, "attainment": nan, "replicas": running}
    assert wanted(**idle) == {"small": 1, "big": 0}
    assert wanted(**idle, replicas_min=0) == {"small": 0, "big": 0}
    held = idle | {"replicas": {}, "held": 1.0}
    assert wanted(**held, replicas_min=0) == {"small": 1, "big": 0}


def test_an_attainment_of_nobody_changes_nothing():
    """Nothing ended in the window: neither good nor bad."""
    assert wanted(attainment=nan) == wanted(attainment=1.0)


def test_without_variants_there_is_nothing_to_scale():
    """The model has no backends."""
    assert wanted(variants={}, replicas={}) == {}
    assert wanted(variants={}) == {}


def test_replicas_of_a_variant_that_is_gone_serve_nothing():
    """What no longer has a pattern cannot be counted on."""
    assert wanted(replicas={"small": 2, "gone": 9}) == wanted(replicas={"small": 2})


def test_a_rate_beyond_all_measure_asks_for_the_most():
    """More replicas than a number can say are as many as are allowed."""
    many = {"small": 60, "big": 60}
    slow = wanted(requests_per_s=1.7e308, prompt_tokens=50_000.0, output_tokens=5_000.0, slo=Slo(), replicas=many)
    assert 64 in slow.values()


def test_what_experts_add_to_a_step_counts():
    """Steps are those of the core's physics: one that reads experts as well serves fewer requests."""
    prior = replace(SMALL.prior, weights_s=0.01, experts_s=0.02, expert_share=0.1)
    variants = {"small": replace(SMALL, prior=prior)}
    assert wanted(variants=variants, replicas={})["small"] > wanted(variants={"small": SMALL}, replicas={})["small"]


@pytest.mark.parametrize("field", ["requests_per_s", "prompt_tokens", "output_tokens"])
@pytest.mark.parametrize("value", [nan, inf, -1.0])
def test_a_demand_that_is_not_known_leaves_all_as_they_run(field, value):
    """Without sound data nothing is done."""
    answers = HEADROOM.scale(demand(**{field: value}))
    assert {answer.variant: answer.replicas for answer in answers} == {"small": 2, "big": 1}
    assert {answer.why for answer in answers} == {"the demand is not known"}


@settings(deadline=None)  # how long it takes depends on who else uses the cores
@given(rate=NUMBERS, prompt=NUMBERS, output=NUMBERS, attainment=NUMBERS, ttft_s=st.floats(0.0), tpot_s=st.floats(0.0))
def test_no_demand_makes_it_raise_or_leave_its_bounds(rate, prompt, output, attainment, ttft_s, tpot_s):
    """One answer a variant, each within the bounds."""
    answers = HEADROOM.scale(
        demand(
            requests_per_s=rate,
            prompt_tokens=prompt,
            output_tokens=output,
            attainment=attainment,
            slo=Slo(ttft_s, tpot_s),
        )
    )
    assert sorted(answer.variant for answer in answers) == ["big", "small"]
    assert all(0 <= answer.replicas <= 64 for answer in answers)
    assert sum(answer.replicas for answer in answers) >= 1
    assert all(answer.why for answer in answers)


# ---- decisions ------------------------------------------------------------------------


def test_numbers_that_are_stale_change_nothing():
    """Whatever they say."""
    answers = HEADROOM.scale(demand(age_s=61.0, requests_per_s=1000.0))
    assert {answer.variant: answer.replicas for answer in answers} == {"small": 2, "big": 1}
    assert {answer.why for answer in answers} == {"the demand is 61 s old"}


@pytest.mark.parametrize(("error_per_s", "left"), [(0.1, 2), (8.0, 4)])
def test_the_error_of_the_seasonal_forecast_keeps_replicas(error_per_s, left):
    """Earlier days foretell 10 a second, like the trend: where they were often far off, what serves more stays."""
    one = {"variants": {"small": SMALL}, "arrivals": (50.0,) * 240, "bucket_s": 5.0, "settled_s": 900.0}
    enough = wanted(**one, replicas={})["small"]
    seasonal = {"seasonal_per_s": 10.0, "seasonal_error_per_s": error_per_s}
    (answer,) = HEADROOM.scale(demand(**one, replicas={"small": enough + 2}, **seasonal))
    assert answer.replicas == enough + left - 2
    assert answer.decision.bound_per_s >= 10.0 + 2.5 * error_per_s
    assert f"at most {answer.decision.bound_per_s:.2f}" in answer.why


def test_steps_that_nothing_foretold_are_planned_for_as_often_as_the_goal_leaves_no_room_for_them():
    """So many times the rate as lets a hundredth come beyond it; no more than came before, and not where none does."""
    one = {"variants": {"small": SMALL}, "replicas": {}}
    often = ((1.0, 0.03), (2.0, 0.02), (4.0, 0.008), (8.0, 0.0))
    base = {rate: wanted(**one, requests_per_s=rate)["small"] for rate in (10.0, 17.0, 40.0)}
    assert wanted(**one, beyond=often, highest_per_s=90.0)["small"] == base[40.0]
    assert wanted(**one, beyond=often, highest_per_s=17.0)["small"] == base[17.0]
    assert wanted(**one, beyond=often, highest_per_s=3.0)["small"] == base[10.0]
    assert wanted(**one, beyond=((1.0, 0.009), (2.0, 0.0)), highest_per_s=90.0)["small"] == base[10.0]
    assert wanted(**one, beyond=((1.0, 0.5), (16.0, 0.4)), highest_per_s=90.0)["small"] == base[10.0]
    (answer,) = HEADROOM.scale(demand(**one, beyond=often, highest_per_s=90.0))
    assert (answer.decision.times, answer.decision.forecast_per_s) == (4.0, 10.0)
    assert 10.0 < answer.decision.planned_per_s < 15.0
    assert "planned for 4.00 times the forecast because of steps" in answer.why
    (capped,) = HEADROOM.scale(demand(**one, beyond=often, highest_per_s=12.0))
    assert capped.decision.times == pytest.approx(1.2)
    assert "planned for 1.20 times" in capped.why


def test_a_decision_states_where_the_search_for_the_cheapest_mix_stopped():
    """A few variants are compared in full."""
    decision = HEADROOM.scale(demand())[0].decision
    assert decision.stopped_after == 0
    assert "search stopped" not in decision.described()
    cut = replace(decision, stopped_after=812)
    assert "the cheapest of the 812 mixes compared, at which the search stopped" in cut.described()


def test_a_decision_explains_itself():
    """Demand, forecast, capacity, mix, cost and the runner-up, as a value and in words."""
    answers = HEADROOM.scale(demand())
    (decision,) = {id(answer.decision): answer.decision for answer in answers}.values()
    assert decision.mix == {answer.variant: answer.replicas for answer in answers}
    assert decision.demand_per_s == decision.forecast_per_s == 10.0
    assert decision.capacity["small"] > 0.0
    assert decision.usd_per_hour == decision.mix["small"] * 1.0 + decision.mix["big"] * 3.0
    assert decision.runner_up != decision.mix
    mix = ", ".join(f"{name} {count}" for name, count in decision.mix.items())
    for part in ("10.00 req/s", f"{mix} at ", "USD/h", "a replica serves small", "next "):
        assert part in decision.described()


@pytest.mark.parametrize("rate", [0.0, 1.0, 10.0, 40.0])
@pytest.mark.parametrize("replicas", [{}, {"small": 2, "big": 1}, {"small": 9, "big": 9}])
def test_the_runner_up_is_no_mix_that_was_chosen(rate, replicas):
    """Where the cheapest mix is not chosen, as a change would not pay, that one is."""
    starting = Supply(start_usd=100.0)
    supply = {"small": starting, "big": starting}
    for answer in HEADROOM.scale(demand(requests_per_s=rate, replicas=replicas, supply=supply)):
        assert answer.decision.runner_up != answer.decision.mix


def test_without_a_runner_up_there_is_no_cost_of_one():
    """It is not free."""
    frugal = policies.find("scaling", "headroom", {"usd_per_hour_max": 3.0})
    (answer,) = frugal.scale(demand(requests_per_s=40.0, replicas={}, variants={"small": SMALL}))
    assert answer.decision.runner_up == {}
    assert isnan(answer.decision.runner_up_usd_per_hour)


def test_replicas_with_the_least_in_flight_are_drained_first():
    """Their loss costs least."""
    running = tuple(ReplicaLoad(name, load) for name, load in (("a", 3.0), ("b", 0.0), ("c", 9.0)))
    idle = demand(
        requests_per_s=0.1, replicas={"small": 3}, variants={"small": SMALL}, supply={"small": Supply(running=running)}
    )
    (answer,) = HEADROOM.scale(idle)
    assert (answer.replicas, answer.drain) == (1, ("b", "a"))


def test_a_replica_that_serves_stays_until_the_one_in_its_place_serves():
    """And while requests are held."""
    facts = {"requests_per_s": 0.1, "replicas": {"small": 1, "big": 1}}
    starting = {"small": Supply(starting=1), "big": Supply()}
    assert wanted(**facts, supply=starting) == {"small": 1, "big": 1}
    assert wanted(**facts, held=1.0) == {"small": 1, "big": 1}
    assert wanted(**facts) == {"small": 1, "big": 0}


def test_no_mix_costs_more_than_the_budget():
    """Nor do more change at once than a step."""
    frugal = policies.find("scaling", "headroom", {"usd_per_hour_max": 5.0})
    facts = demand(requests_per_s=1000.0, replicas={"small": 0, "big": 0})
    assert sum(answer.replicas * facts.variants[answer.variant].price_per_hour for answer in frugal.scale(facts)) <= 5.0
    assert max(answer.replicas for answer in HEADROOM.scale(facts)) == 8


@pytest.mark.parametrize("replicas", [{"small": 0, "big": 4}, {"small": 12, "big": 0}, {"small": 3, "big": 1}])
@pytest.mark.parametrize("held", [0.0, 1.0])
def test_replicas_that_cost_more_than_the_budget_are_given_back(replicas, held):
    """Also where the load needs them, and while others are to take their place: it comes to rest within the budget."""
    frugal = policies.find("scaling", "headroom", {"usd_per_hour_max": 5.0})
    for _ in range(6):
        facts = demand(requests_per_s=60.0, replicas=replicas, held=held)
        answers = frugal.scale(facts)
        before, replicas = replicas, {answer.variant: answer.replicas for answer in answers}
    assert replicas == before
    assert 3.0 <= replicas["small"] * 1.0 + replicas["big"] * 3.0 <= 5.0


def test_a_budget_that_was_lowered_is_the_reason_for_fewer():
    """And not that fewer would do."""
    frugal = policies.find("scaling", "headroom", {"usd_per_hour_max": 3.0})
    (answer,) = frugal.scale(demand(requests_per_s=40.0, replicas={"small": 6}, variants={"small": SMALL}))
    assert answer.replicas == 3
    assert "the replicas cost more than the budget" in answer.why


def test_others_take_the_place_of_replicas_as_far_as_the_budget_has_room_for_both():
    """What serves stays until they do."""
    running = {"small": 0, "big": 2}
    least = {"requests_per_s": 10.0, "replicas": running, "settled_s": 900.0}
    assert wanted(**least) == {"small": 2, "big": 2}
    frugal = policies.find("scaling", "headroom", {"usd_per_hour_max": 7.0})
    assert {each.variant: each.replicas for each in frugal.scale(demand(**least))} == {"small": 1, "big": 2}


@pytest.mark.parametrize("correction", [-3.0, 0.0, 1e-300, nan, inf])
def test_a_correction_that_cannot_be_costs_no_replicas(correction):
    """The decision before may have been read from a store."""
    (usual,) = HEADROOM.scale(demand(variants={"small": SMALL}, replicas={}))
    last = replace(usual.decision, correction=correction)
    (answer,) = HEADROOM.scale(demand(variants={"small": SMALL}, replicas={}, last=last))
    assert answer.replicas <= 2 * usual.replicas
    assert 0.5 <= answer.decision.correction <= 1.0


def test_replicas_that_miss_what_they_should_attain_lower_the_capacity_for_a_while():
    """One more is wanted, and what was learnt is handed back; without requests to judge by, it fades."""
    kind = KindDemand("chat", Slo(ttft_s=2.0, tpot_s=0.05), 10.0, 500.0, 200.0, ended=1000, attained=700)
    one = {"variants": {"small": SMALL}}
    enough = wanted(**one, replicas={})["small"]
    (answer,) = HEADROOM.scale(demand(**one, replicas={"small": enough}, kinds=(kind,)))
    assert answer.replicas == enough + 1
    assert answer.decision.correction < 1.0
    (later,) = HEADROOM.scale(demand(**one, replicas={"small": enough + 1}, last=answer.decision))
    assert answer.decision.correction < later.decision.correction < 1.0
    assert later.replicas == enough + 1
    (starting,) = HEADROOM.scale(
        demand(**one, replicas={"small": enough}, kinds=(kind,), supply={"small": Supply(starting=1)})
    )
    assert starting.decision.correction == 1.0


# ---- over time, in worlds drawn at random ---------------------------------------------------


def poisson(mean, draw):
    """A count."""
    count, product, least = 0, draw.random(), exp(-mean)
    while product > least:
        product *= draw.random()
        count += 1
    return count


def changes(rate, hours, draw, **facts):
    """The times at which the policy changed something, and the replicas at the end."""
    start_s, period_s, bucket_s = draw.choice([20.0, 60.0, 180.0]), 15.0, 5.0
    counts, replicas, orders, found, now_s, last = [], 1, [], [], 0.0, None
    slo, pattern = Slo(ttft_s=2.0, tpot_s=0.05), backend("a", slower=draw.uniform(0.5, 2.0), price_per_hour=2.0)
    prompt, output = draw.uniform(100, 3000), draw.uniform(20, 600)
    while now_s < hours * 3600.0:
        now_s += period_s
        counts += [float(poisson(rate(now_s) * bucket_s, draw)) for _ in range(int(period_s / bucket_s))]
        orders = [at_s for at_s in orders if at_s > now_s]
        lately = sum(counts[-24:]) / (bucket_s * len(counts[-24:]))
        kinds = (KindDemand("chat", slo, lately, prompt, output),) if lately else ()
        seen = Demand(
            "m", lately, prompt, output, slo, {"a": replicas}, {"a": pattern}, 1.0, kinds, tuple(counts[-240:]), 5.0,
            supply={"a": Supply(start_s, starting=len(orders), **facts)}, period_s=period_s, last=last,
        )  # fmt: skip
        (answer,) = HEADROOM.scale(seen)
        last = answer.decision
        if answer.replicas != replicas:
            found.append(now_s)
            orders += [now_s + start_s] * (answer.replicas - replicas)
            replicas = answer.replicas
    return found, replicas


@pytest.mark.parametrize("seed", range(2))
def test_more_load_never_needs_fewer_replicas_and_none_needs_the_least(seed, monkeypatch):
    """In a steady state, of one world."""
    monkeypatch.setattr(policies.scaling.headroom, "capacity", remembered)
    ends = [changes(lambda _, r=r: r, 0.4, Random(seed))[1] for r in (0.0, 1.0, 4.0, 16.0)]
    assert ends == sorted(ends)
    assert ends[0] == 1
    gone = changes(lambda at_s: 8.0 if at_s < 900 else 0.0, 0.6, Random(seed))
    assert gone[1] == 1


def test_a_step_is_answered_within_two_evaluations():
    """All that is missing is ordered at once."""
    found, _ = changes(lambda at_s: 2.0 if at_s < 1500 else 12.0, 0.5, Random(1))
    assert any(1500 <= at_s <= 1530 for at_s in found)


@pytest.mark.parametrize(("attained", "left"), [(990, 10), (0, 1)])
def test_replicas_stay_where_an_slo_is_met_that_the_forecast_takes_for_impossible(attained, left):
    """The forecast may be wrong, and what is served is not taken away for it; what is never met holds no replicas."""
    impossible = Slo(ttft_s=0.001, tpot_s=0.0001)
    kind = KindDemand("chat", impossible, 10.0, 500.0, 200.0, 1000, attained)
    running = {"small": 10, "big": 0}
    facts = {"slo": impossible, "kinds": (kind,), "arrivals": (50.0,) * 240, "bucket_s": 5.0, "settled_s": 900.0}
    counts = wanted(**facts, replicas=running, attainment=attained / 1000)
    for _ in range(6):  # one step after another
        counts = wanted(**facts, replicas=counts, attainment=attained / 1000)
    assert counts == {"small": left, "big": 0}
