"""The scaling policy answers whatever a window held: nothing at all, numbers that are none, variants that are gone."""

from dataclasses import replace
from math import inf, nan

import pytest
from hypothesis import given
from hypothesis import strategies as st

import policies
from router.core import Demand, Slo
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
