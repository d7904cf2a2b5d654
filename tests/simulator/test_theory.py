"""The simulator against queueing theory: a replica that serves one at a time is a queue with known waits."""

from math import exp
from random import Random

import pytest

import policies
from router.core.cards import card
from router.core.models import model
from router.core.physics import StepCoefficients
from router.core.types import Backend, Slo
from simulator.bounds.clairvoyant import Clairvoyant
from simulator.bounds.gpu_seconds import gpu_seconds_lower_bound
from simulator.pool import BUILT_IN, Member, Pool, Site
from simulator.replica.replica import Replica
from simulator.replica.sequence import EngineLimits, Sequence
from simulator.replica.truth import EXACT, true_of
from simulator.run.kernel import Kernel
from simulator.run.play import play
from simulator.run.summary import summarise
from simulator.workload.arrivals import Shaping, SloClass
from simulator.workload.generators import generate, parse_recipe

STEP_S = 0.01
CONSTANT = StepCoefficients(STEP_S, 0.0, 0.0, 0.0, 0.0, 0.0)


def mean_wait_s(rate: float, steps: list[int], seed: int) -> float:
    """Mean time from arrival to the start of service, one server, *steps* of 10 ms for each customer in turn."""
    kernel, draw, ended = Kernel(), Random(seed), {}
    replica = Replica(
        "r",
        true_of(CONSTANT, EXACT, 0, "r"),
        EngineLimits(seqs_max=1, kv_blocks=1_000_000),
        kernel,
        lambda _: None,
        lambda s: ended.__setitem__(s.id, kernel.now_s),
    )
    at_s, arrived = 0.0, {}
    for number, length in enumerate(steps):
        at_s += draw.expovariate(rate)
        arrived[str(number)] = at_s
        sequence = Sequence(str(number), 1, length)
        kernel.at(at_s, lambda pair: replica.add(*pair), (sequence, at_s))
    kernel.run()
    waits = [ended[name] - arrived[name] - length * STEP_S for name, length in zip(arrived, steps, strict=True)]
    return sum(waits) / len(waits)


@pytest.mark.parametrize("load", [0.5, 0.7])
def test_waits_of_one_server_with_exponential_service_are_those_of_m_m_1(load: float) -> None:
    """W = rho / (mu - lambda), within 6 % over 60,000 customers."""
    mean_steps, draw = 200.0, Random(1)
    steps = [max(1, round(draw.expovariate(1 / mean_steps))) for _ in range(60_000)]
    service_s = mean_steps * STEP_S
    expected_s = load * service_s / (1 - load)
    assert mean_wait_s(load / service_s, steps, 2) == pytest.approx(expected_s, rel=0.06)


@pytest.mark.parametrize("sigma", [0.0, 0.8])
def test_waits_of_one_server_with_general_service_are_those_of_pollaczek_and_khinchine(sigma: float) -> None:
    """W = lambda E[S^2] / 2 (1 - rho), with constant and with log-normal service, within 8 %."""
    draw, load = Random(3), 0.6
    steps = [max(1, round(100 * exp(sigma * draw.gauss(0, 1)))) for _ in range(60_000)]
    first = sum(steps) / len(steps) * STEP_S
    second = sum(n * n for n in steps) / len(steps) * STEP_S**2
    rate = load / first
    assert mean_wait_s(rate, steps, 4) == pytest.approx(rate * second / (2 * (1 - load)), rel=0.08)


def test_littles_law_holds_for_a_whole_fleet() -> None:
    """Mean number in the system = rate x mean time in it, sampled over a run of every kind of engine."""
    recipe = parse_recipe("gen:poisson:rate=6,requests=3000")
    classes = (SloClass("chat", Slo(ttft_s=1, tpot_s=0.06)),)
    arrivals = generate(recipe, Shaping("llama-3-8b", classes), 0)
    routing, admission = policies.find("routing", "least_work"), policies.find("admission", "deadline")
    run = play(arrivals, BUILT_IN, routing, admission, 0, sample_s=0.25)
    assert run.timeline is not None
    until_s = max(run.table.column("arrived_s"))
    inside = [n for n, at_s in enumerate(run.timeline.at_s) if 60 <= at_s <= until_s]
    columns = [*run.timeline.running.values(), *run.timeline.waiting.values()]
    in_system = sum(column[n] for column in columns for n in inside) / len(inside)
    rate = 3000 / until_s
    assert in_system == pytest.approx(rate * float(run.table.e2e_s().mean()), rel=0.05)


def test_tokens_and_work_are_conserved() -> None:
    """Every prompt token is computed or found in the cache, every reply token is made, without preemption.

    There is none because each engine has room for all requests of the run at once.
    """
    recipe = parse_recipe("gen:sessions:rate=1,requests=400,think=2")
    arrivals = generate(recipe, Shaping("llama-3-8b"), 0)
    routing, admission = policies.find("routing", "session_affinity"), policies.find("admission", "deadline")
    roomy = Pool((Member("h100", "h100", count=3, kv_blocks=10**6),))
    run = play(arrivals, roomy, routing, admission, 0)
    replicas = [engine.replica for engine in run.engines.values()]
    prompts = int(run.table.column("prompt_tokens").sum())
    assert prompts + int(run.table.column("output_tokens").sum()) < 16 * 10**6
    assert not any(replica.preemptions for replica in replicas)
    assert sum(r.prefilled_tokens + r.cached_tokens for r in replicas) == prompts
    assert sum(r.generated_tokens for r in replicas) == int(run.table.column("output_tokens").sum())
    assert sum(r.cached_tokens for r in replicas) == int(run.table.column("cached_tokens").sum()) > 0


def test_no_engine_is_faster_than_its_hardware() -> None:
    """A cold prompt takes no less than its arithmetic at the card's peak: 2 x parameters x tokens / FLOP/s."""
    pool = Pool((Member("a100", "a100-80g-sxm"),))
    arrivals = generate(parse_recipe("gen:poisson:rate=0.01,requests=1,prompt=4000,output=2"), Shaping("llama-3-8b"), 0)
    routing, admission = policies.find("routing", "round_robin"), policies.find("admission", "deadline")
    for seed in range(10):
        run = play(arrivals, pool, routing, admission, seed)
        body = model("llama-3-8b").active_params - model("llama-3-8b").embedding_params
        floor_s = 2 * body * 4000 / card("a100-80g-sxm").flops_per_s["bf16"]
        assert float(run.table.ttft_s()[0]) > floor_s


def test_a_clairvoyant_attains_no_less_than_any_policy() -> None:
    """On a loaded pool the bound stands above the baselines and above slo_headroom."""
    classes = (SloClass("chat", Slo(ttft_s=1, tpot_s=0.06)),)
    arrivals = generate(parse_recipe("gen:poisson:rate=9,requests=800"), Shaping("llama-3-8b", classes), 0)
    admission = policies.find("admission", "deadline")
    attained = {}
    for name in ("round_robin", "least_work", "slo_headroom"):
        run = play(arrivals, BUILT_IN, policies.find("routing", name), admission, 0)
        attained[name] = summarise(run)["attainment"]
        assert 0 < gpu_seconds_lower_bound(run) < summarise(run)["gpu_seconds"]
    bound = play(arrivals, BUILT_IN, policies.find("routing", "round_robin"), admission, 0, clairvoyant=Clairvoyant)
    assert summarise(bound)["attainment"] >= max(attained.values()) - 0.01


def test_belief_and_truth_never_share_an_object() -> None:
    """A replica's truth is not what its router was told, unless the run says so."""
    sites: list[Site] = BUILT_IN.sites(0)
    backends: list[Backend] = [site.backend for site in sites]
    assert all(backend.prior is not site.truth.coefficients for backend, site in zip(backends, sites, strict=True))
