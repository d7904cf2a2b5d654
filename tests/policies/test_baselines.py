"""What each baseline does, one rule a test; that they keep the contract is tested in tests/contract."""

import random
from collections import Counter
from dataclasses import replace
from math import inf

import pytest

import policies
from policies._worlds import World, scene
from router.core import Slo
from router.core.types import Load
from tests.fakes import backend, core, request, sent


def world(*loads, turns=(), backends=None, bounds=None, **facts):
    """Backends with these loads from others, and one request."""
    pool = backends or [backend(f"b{i}") for i in range(len(loads))]
    return World(request("r", **facts), tuple(pool), loads, bounds or (inf,) * len(pool), turns)


def chosen(name, situation, seed=1, **parameters):
    """The index of the backend it picks."""
    policy = policies.find("routing", name, parameters)
    return policy.choose(situation.request, *scene(situation), random.Random(seed)).slot


def shares(name, situation, draws=2000, **parameters):
    """How often each backend is picked."""
    policy, rng = policies.find("routing", name, parameters), random.Random(3)
    counts = Counter(policy.choose(situation.request, *scene(situation), rng).slot for _ in range(draws))
    return [counts[i] / draws for i in range(len(situation.backends))]


def turns(routing, *backends, requests=300):
    """Where requests go one after the other, each over before the next."""
    it = core(*backends, routing=routing)
    went = []
    for number in range(requests):
        send = sent(it.arrived(request(f"r{number}", arrived_s=float(number)), float(number)))
        it.client_left(f"r{number}", number + 0.5)
        went.append(send.backend)
    return went


IDLE, BUSY = Load(), Load(prefilling=2.0, prefill_tokens=2000.0, decoding=8.0, context_tokens=6000.0)
LOAD_AWARE = ["least_request", "least_work", "least_kv", "power_of_two", "prefix_affinity", "slo_headroom"]


@pytest.mark.parametrize("name", LOAD_AWARE)
def test_the_idle_one_of_two_equals_is_chosen(name):
    """Monotone in load: more work of every kind never makes a twin more attractive."""
    assert chosen(name, world(BUSY, IDLE)) == 1
    assert chosen(name, world(IDLE, BUSY)) == 0


@pytest.mark.parametrize(("weights", "expected"), [((1, 1), (0.5, 0.5)), ((3, 1), (0.75, 0.25)), ((2, 3), (0.4, 0.6))])
def test_weighted_round_robin_shares_by_weight(weights, expected):
    """In proportion over time."""
    went = Counter(turns("weighted_round_robin", *(backend(f"b{i}", weight=w) for i, w in enumerate(weights))))
    assert [went[f"b{i}"] / 300 for i in range(2)] == pytest.approx(expected, abs=0.02)


def test_weighted_round_robin_interleaves():
    """Not five of the one and then one of the other."""
    went = turns("weighted_round_robin", backend("a", weight=2.0), backend("b", weight=1.0), requests=9)
    assert "".join(went) in {"aabaabaab", "abaabaaba", "baabaabaa"}


def test_weighted_round_robin_does_not_flood_a_backend_that_was_away():
    """What it missed is not made up for: from its return on it has its share."""
    it = core(backend("a"), backend("b"), routing="weighted_round_robin")
    it.backend_health("b", False, 0.0)
    for number in range(50):
        it.arrived(request(f"r{number}"), 0.0)
    it.backend_health("b", True, 1.0)
    went = Counter(sent(it.arrived(request(f"s{number}"), 1.0)).backend for number in range(10))
    assert 4 <= went["b"] <= 6


def test_random_knows_nothing():
    """Half of the requests go to a backend that is full."""
    assert shares("random", world(BUSY, IDLE)) == pytest.approx([0.5, 0.5], abs=0.05)


def test_least_kv_measures_a_cache_by_what_it_holds():
    """The same tokens fill half of a small cache and a tenth of a large one."""
    small, large = backend("small", kv_tokens_max=10_000), backend("large", kv_tokens_max=50_000)
    load = Load(decoding=5.0, context_tokens=5000.0)
    assert chosen("least_kv", world(load, load, backends=[small, large])) == 1


def test_a_session_stays_where_it_was_whatever_the_seed():
    """Deterministic: every router sends it to the same backend."""
    here = world(*[IDLE] * 8, session="s")
    assert len({chosen("session_affinity", here, seed) for seed in range(5)}) == 1


def test_sessions_spread_and_most_stay_when_a_backend_goes():
    """Consistent hashing: only those of the backend that left move."""
    all_up = [chosen("session_affinity", world(*[IDLE] * 4, session=f"s{i}")) for i in range(200)]
    without = [
        chosen("session_affinity", replace(world(*[IDLE] * 4, session=f"s{i}"), down=frozenset({3})))
        for i in range(200)
    ]
    assert min(Counter(all_up).values()) > 20
    assert all(before == after for before, after in zip(all_up, without, strict=True) if before != 3)


def test_a_session_leaves_a_backend_that_has_more_than_its_share():
    """Bounded load: 1.25 times the mean and no more."""
    first = chosen("session_affinity", world(*[IDLE] * 4, session="s"))
    loads = [Load(decoding=10.0 if i == first else 1.0) for i in range(4)]
    assert chosen("session_affinity", world(*loads, session="s")) != first


PROMPT = {"prompt_tokens": 2048, "prefix": (1, 2, 3, 4), "prefix_block_tokens": 512}


def test_prefix_affinity_follows_a_cached_prompt():
    """Though that backend is the busier one, within bounds."""
    assert chosen("prefix_affinity", world(IDLE, Load(1.0, 500.0), turns=(1,), **PROMPT)) == 1


def test_prefix_affinity_does_not_follow_into_overload():
    """The trap of blind affinity: beyond the balance bound the least work wins."""
    crowd = Load(decoding=200.0, context_tokens=100_000.0)
    assert chosen("prefix_affinity", world(IDLE, crowd, turns=(1,), **PROMPT)) == 0


def test_prefix_affinity_does_not_follow_a_short_match():
    """Preble's rule: explore unless more is cached than is not."""
    longer = {**PROMPT, "prompt_tokens": 10_000}
    assert chosen("prefix_affinity", world(IDLE, Load(1.0, 500.0), turns=(1,), **longer)) == 1
    assert chosen("prefix_affinity", world(IDLE, Load(1.0, 5000.0), turns=(1,), **longer), match_min=0.9) == 0


SLO = Slo(ttft_s=1.0, tpot_s=0.05)
FULL = Load(decoding=600.0, context_tokens=300_000.0)


def test_llmd_headroom_draws_from_those_with_headroom_but_for_one_in_a_hundred():
    """Tiers: 99 % and 1 %."""
    assert shares("llmd_headroom", world(FULL, IDLE, slo=SLO))[0] == pytest.approx(0.01, abs=0.01)


def test_llmd_headroom_prefers_little_headroom_unless_told_otherwise():
    """``least`` packs, ``most`` spreads."""
    situation = world(Load(decoding=100.0, context_tokens=50_000.0), IDLE, slo=SLO)
    assert shares("llmd_headroom", situation)[0] > 0.9
    assert shares("llmd_headroom", situation, prefer="most")[1] > 0.9


def test_llmd_headroom_keeps_to_the_tightest_tpot_bound_of_those_running():
    """The bound of a stream running there counts as the request's own."""
    situation = world(IDLE, IDLE, turns=(0,), bounds=(0.001, inf), slo=SLO)
    assert shares("llmd_headroom", situation)[1] > 0.98


@pytest.mark.parametrize("name", ["pack_load", "polyserve"])
def test_packing_fills_the_busier_one_while_it_has_room_and_then_the_next(name):
    """Most loaded that still has room; full, the other."""
    some = Load(decoding=20.0, context_tokens=10_000.0)
    assert chosen(name, world(some, IDLE, slo=SLO)) == 0
    assert chosen(name, world(FULL, IDLE, slo=SLO)) == 1


def test_pack_load_takes_the_least_loaded_when_all_are_full():
    """Nobody has room: the smaller excess."""
    fuller = Load(decoding=900.0, context_tokens=400_000.0)
    assert chosen("pack_load", world(fuller, FULL)) == 1


def test_polyserve_misses_by_the_least_when_nobody_attains():
    """An impossible SLO goes to the faster."""
    pool = [backend("slow", slower=3.0), backend("fast")]
    assert chosen("polyserve", world(IDLE, IDLE, backends=pool, slo=Slo(ttft_s=1e-4))) == 1


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("session_affinity", {"bound": 1.0}),
        ("prefix_affinity", {"match_min": 1.5}),
        ("prefix_affinity", {"balance": 0.5}),
        ("llmd_headroom", {"prefer": "best"}),
        ("llmd_headroom", {"explore": 2.0}),
        ("pack_load", {"load_max": 0.0}),
        ("polyserve", {"safety": 0.0}),
        ("slo_headroom", {"prefer": "best"}),
        ("slo_headroom", {"best_effort": "never"}),
        ("slo_headroom", {"safety": 0.0}),
    ],
)
def test_parameters_that_mean_nothing_are_refused(name, parameters):
    """With the policy's and the parameter's name in the message."""
    with pytest.raises(ValueError, match=f"{name}: .*{next(iter(parameters))}"):
        policies.find("routing", name, parameters)
