"""The contract that every policy keeps, over worlds of the checks' own making and of hypothesis'."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import policies
from policies._contract import ask, check_admission, check_admitted, check_choice, check_routing
from tests.contract.strategies import TAPES, any_world

VARIED = [
    ("slo_headroom", {"prefer": "pack"}),
    ("slo_headroom", {"best_effort": "shed"}),
    ("llmd_headroom", {"prefer": "most"}),
    ("llmd_headroom", {"explore": 1.0}),
    ("prefix_affinity", {"match_min": 0.0, "balance": 1.0, "slack_tokens": 0}),
    ("session_affinity", {"bound": 1.0001}),
    ("pack_load", {"load_max": 1e-6}),
    ("polyserve", {"safety": 1e6}),
]


def every(kind):
    """Each policy there is with its defaults, and some with parameters that take other paths."""
    plain = [(name, {}) for name in policies.names(kind)]
    varied = VARIED if kind == "routing" else ADMISSION_VARIED
    made = [pytest.param(policies.find(kind, name, given), id=f"{name}{given or ''}") for name, given in plain + varied]
    return pytest.mark.parametrize("policy", made)


ADMISSION_VARIED = [
    ("deadline", {"held_max": 0, "hold_s_max": 0.0}),
    ("fair", {"weights": {"a": 0.001, "b": 1e6}, "hold_s_max": 0.001}),
]


@every("routing")
@pytest.mark.parametrize("seed", range(2))
def test_a_routing_policy_keeps_the_contract(policy, seed):
    """The check that a policy file has to pass before it may serve."""
    check_routing(policy, random.Random(seed))


@every("routing")
@settings(max_examples=40, deadline=None)
@given(world=any_world(), tape=TAPES)
def test_no_world_makes_a_routing_policy_raise_stray_or_change_its_mind(policy, world, tape):
    """Total, closed, without side effects and with one answer to one question."""
    assert check_choice(policy, world, tape) == ask(policy, world, tape)


@every("admission")
@pytest.mark.parametrize("seed", range(2))
def test_an_admission_policy_keeps_the_contract(policy, seed):
    """The same for admission."""
    check_admission(policy, random.Random(seed))


@every("admission")
@settings(max_examples=40, deadline=None)
@given(some=st.lists(any_world(), max_size=6))
def test_no_run_of_arrivals_makes_an_admission_policy_raise_or_forget(policy, some):
    """Each with the memory that the one before handed back."""
    check_admitted(policy, some)
