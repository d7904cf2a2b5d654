"""pool.yaml: what it may say, and how it says no; belief and truth of one member."""

import json
import pickle
from dataclasses import replace
from pathlib import Path

import pytest

import policies
from router.core.errors import ConfigError
from router.core.flight import DispatchLimits
from router.core.physics import coefficients
from router.core.types import Slo
from router.gateway.config.plan import plan_file
from simulator.experiment import Source
from simulator.pool import BUILT_IN, Member, Pool
from simulator.pool_file import load_pool
from simulator.replica.replica import Replica
from simulator.replica.truth import EXACT
from simulator.run.fleet import SimulatedEngine
from simulator.run.kernel import Kernel
from simulator.run.play import Run, play
from simulator.run.summary import summarise
from simulator.traces import TraceEntry
from simulator.workload.arrivals import Shaping, SloClass, shape
from tests.refusals import refused

GOOD = """
defaults: {model: llama-3-8b}
slo: ["chat:ttft=2s,tpot=80ms"]
truth: {spread: 0.2, drift: 0}
backends:
  - {name: big, card: h100, price_per_hour: 3}
  - {name: small, card: a10, tp: 2, count: 2}
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "pool.yaml"
    path.write_text(text)
    return path


def test_what_an_engines_scheduler_is_started_with_is_read(tmp_path: Path) -> None:
    """Each option reaches the engine's limits; one that cannot be is named with its line."""
    options = (
        "reserve_prompt: false, watermark: 0.02, active_max: 9, long_prompt_chunk: 512, long_prompt_adaptive: true"
    )
    limits = load_pool(written(tmp_path, f"backends:\n  - {{card: h100, {options}}}\n")).members[0].limits()
    assert (limits.reserve_prompt, limits.watermark, limits.active_max) == (False, 0.02, 9)
    assert (limits.long_prompt_chunk, limits.long_prompt_adaptive) == (512, True)
    engines = ("engine: vllm@0.9", "engine: vllm-2024", "engine: vllm@0.32", "engine: vllm@0.9, reserve_prompt: true")
    pools = [load_pool(written(tmp_path, f"backends:\n  - {{card: h100, {engine}}}\n")) for engine in engines]
    assert [pool.members[0].limits().reserve_prompt for pool in pools] == [False, False, True, True]
    with pytest.raises(ConfigError, match=r"pool.yaml:2: backends\[0\].engine: .*expected a version after @"):
        load_pool(written(tmp_path, "backends:\n  - {card: h100, engine: vllm@new}\n"))
    with pytest.raises(ConfigError, match=r"pool.yaml:2: backends\[0\]: active_max must be between 0 and seqs_max"):
        load_pool(written(tmp_path, "backends:\n  - {card: h100, seqs_max: 8, active_max: 9}\n"))


def test_a_pool_is_read(tmp_path: Path) -> None:
    """Members, counts, prices, classes and truth are those of the file."""
    pool = load_pool(written(tmp_path, GOOD))
    assert [site.name for site in pool.sites(0)] == ["big", "small-0", "small-1"]
    assert pool.sites(0)[0].backend.price_per_hour == 3
    assert pool.classes == (SloClass("chat", Slo(ttft_s=2, tpot_s=0.08)),)
    assert (pool.truth.spread, pool.truth.drift) == (0.2, 0.0)
    refusing = load_pool(written(tmp_path, GOOD.replace("tpot=80ms", "tpot=80ms,infeasible=refuse")))
    assert refusing.classes[0].slo == Slo(ttft_s=2, tpot_s=0.08, refuse_infeasible=True)


def test_a_replica_bears_the_labels_that_it_would_have_in_a_gateway(tmp_path: Path) -> None:
    """Card, model, TP and PP, and those of the file."""
    pool = load_pool(written(tmp_path, GOOD.replace("count: 2", "count: 2, labels: {zone: 7}")))
    big, small, _ = (site.backend.labels for site in pool.sites(0))
    assert big == {"card": "h100-sxm", "model": "llama-3-8b", "tp": "1", "pp": "1"}
    assert small == {"card": "a10", "model": "llama-3-8b", "tp": "2", "pp": "1", "zone": "7"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (GOOD.replace("backends", "backend"), "pool.yaml:5: backend: unknown key; did you mean 'backends'"),
        (GOOD.replace("tp: 2", "tpp: 2"), "pool.yaml:7: backends[1].tpp: unknown key; did you mean 'tp'"),
        (GOOD.replace("tp: 2", "tp: two"), "pool.yaml:7: backends[1].tp: input should be a valid integer"),
        (GOOD.replace("tp: 2", "tp: 3"), "backends[1].model: does not fit: TP 3 does not divide the 32 heads"),
        (GOOD.replace("h100", "h1000"), "pool.yaml:6: backends[0].card: no card named 'h1000'"),
        (GOOD.replace("tp: 2", "engine: vlllm"), "backends[1].engine: unknown engine 'vlllm'; did you mean 'vllm'"),
        (
            GOOD.replace("llama-3-8b}", "llama-3-8b, tpp: 2}"),
            "pool.yaml:2: defaults.tpp: unknown key; did you mean 'tp'",
        ),
        (GOOD.replace("tp: 2", "served_as: m"), "pool.yaml:7: backends[1].served_as: is now models"),
        (
            GOOD.replace("tp: 2", "network_ms: .inf"),
            "pool.yaml:7: backends[1].network_ms: input should be a finite number",
        ),
        (GOOD.replace("tp: 2", "network_s: 0.1"), "network_s: is now network_ms, in milliseconds"),
        (GOOD.replace("tp: 2", "seqs_max: 4000"), "backends[1]: chunk_tokens (2048) must be at least seqs_max (4000)"),
        (GOOD.replace("spread: 0.2", "spread: -1"), "pool.yaml:4: truth: truth: spread must be 0 or more"),
        (GOOD.replace("spread: 0.2", "sprad: 1"), "pool.yaml:4: truth.sprad: unknown key; did you mean 'spread'"),
        (
            GOOD.replace("name: small, card: a10, tp: 2, count: 2", "name: big, card: a10"),
            "two replicas are named 'big'",
        ),
        (GOOD + "belief: sure\n", "pool.yaml:8: belief: expected one of learnt, given, wrong"),
        (GOOD + "faults: [{at_s: 1, backend: x}]\n", "faults[0].backend: expected a backend among big, small-0"),
        ("backends: []", "pool.yaml:1: backends: needs at least one entry"),
        ("[1]", "expected keys with values"),
        ("a: [", ": not valid YAML: did not find"),
    ],
)
def test_a_pool_that_cannot_be_is_refused(tmp_path: Path, text: str, expected: str) -> None:
    """With file, place and what was expected."""
    path = written(tmp_path, text)
    with refused(ConfigError, path, expected):
        load_pool(path)


def test_a_pool_goes_to_other_processes(tmp_path: Path) -> None:
    """Whose replays run side by side: without a profile too."""
    pool = load_pool(written(tmp_path, GOOD))
    assert pickle.loads(pickle.dumps(pool)) == pool


def test_belief_learnt_is_the_data_sheet_and_not_the_truth() -> None:
    """What a router starts from is physics; what a replica does is something else."""
    site = BUILT_IN.sites(1)[0]
    assert site.backend.prior == coefficients(site.member.shape)
    assert site.truth.coefficients.fixed_s != site.backend.prior.fixed_s


def test_belief_given_is_the_truth_and_wrong_is_neither() -> None:
    """A run says which; these two are for experiments."""
    given = replace(BUILT_IN, belief="given").sites(1)[0]
    assert given.backend.prior == given.truth.coefficients
    wrong = replace(BUILT_IN, belief="wrong", wrong_factor=3.0).sites(1)[0]
    assert wrong.backend.prior.fixed_s == pytest.approx(3 * coefficients(wrong.member.shape).fixed_s)


def test_the_truth_is_drawn_by_seed_and_name() -> None:
    """Same seed and name, same truth; else another. Without spread it is the data sheet."""
    assert BUILT_IN.sites(1) == BUILT_IN.sites(1)
    assert BUILT_IN.sites(1)[0].truth != BUILT_IN.sites(2)[0].truth
    assert BUILT_IN.sites(1)[2].truth != BUILT_IN.sites(1)[3].truth
    exact = replace(BUILT_IN, truth=EXACT).sites(1)[0]
    assert exact.truth.coefficients == replace(coefficients(exact.member.shape), first_token_s=0.0)


def test_slow_nodes_are_slow_and_said_to_be() -> None:
    """With a share of 1 every node is slower by the factor."""
    slow = replace(BUILT_IN, truth=replace(EXACT, slow_share=1.0, slow_factor=2.0)).sites(0)[0]
    assert slow.truth.slow
    assert slow.truth.coefficients.fixed_s == pytest.approx(2 * coefficients(slow.member.shape).fixed_s)


def test_price_and_kv_follow_from_the_cards() -> None:
    """Two cards cost twice one; blocks are what memory leaves, unless given."""
    one, two = Member("a", "a10", tp=1, precision="int8"), Member("b", "a10", tp=2)
    assert two.price() == pytest.approx(2 * one.price())
    assert Member("c", "h100", kv_blocks=100).limits().kv_blocks == 100


def test_the_pool_of_the_readme_is_one(tmp_path: Path) -> None:
    """What the README shows can be played as it stands."""
    readme = (Path(__file__).parents[2] / "simulator" / "README.md").read_text()
    pool = load_pool(written(tmp_path, readme.split("```yaml\n")[1].split("```")[0]))
    assert [site.name for site in pool.sites(0)] == ["a100-0", "a100-1", "a10"]
    assert (pool.world.routers, pool.world.faults[0].kind, len(pool.classes)) == (3, "crash", 2)


ROUTER = """
slo_classes: {default: {ttft_ms: 500}, slow: {e2e_ms: 60000}}
scrape: {period_s: 3}
backends:
  - {name: a, url: "http://h:1", models: {m: big-m}, card: l4, model: qwen3-4b, engine: trtllm,
     context_tokens_max: 4096}
  - name: b
    url: http://h:2
    models: [m]
    card: {like: l4, memory_gib: 48}
    model: {params_billions: 1.0, layers: 10, hidden: 2048, heads: 16}
    kv_tokens_max: 4096
"""


def test_a_gateways_file_is_a_pool_as_it_stands(tmp_path: Path) -> None:
    """What a router believes of a backend live is what it believes in a replay of its own config."""
    path = written(tmp_path, ROUTER)
    pool, live = load_pool(path), plan_file(path).backends
    for site, backend in zip(pool.sites(0), live, strict=True):
        believed = replace(site.backend, variant=backend.variant, context_tokens_max=backend.context_tokens_max)
        assert believed == replace(backend, kv_tokens_max=believed.kv_tokens_max)
    a, b = pool.sites(0)
    assert a.limits.no_evict
    assert (a.limits.model_tokens_max, b.limits.kv_blocks) == (4096, 256)
    assert [(each.name, each.share) for each in pool.classes] == [("default", 1.0), ("slow", 0.0)]
    assert pool.classes[0].slo == Slo(ttft_s=0.5)
    assert pool.world.scrape_s == 3


def test_a_fault_in_a_gateways_file_is_named_by_line(tmp_path: Path) -> None:
    """By the same reader as the gateway's."""
    with pytest.raises(ConfigError, match=r"pool.yaml:5: backends\[0\].modls: unknown key; did you mean 'models'"):
        load_pool(written(tmp_path, ROUTER.replace("models: {m", "modls: {m")))


def test_a_gateways_file_without_backends_is_no_pool(tmp_path: Path) -> None:
    """Which ones its sources find is not known here."""
    with pytest.raises(ConfigError, match=r"pool.yaml:1: discover: a simulation cannot find backends; list those"):
        load_pool(written(tmp_path, "discover: [{file: targets.yaml}]\n"))


@pytest.mark.parametrize("file", sorted((Path(__file__).parents[2] / "deploy").rglob("router.yaml")), ids=str)
def test_every_config_in_deploy_can_be_replayed(file: Path) -> None:
    """One that holds Kubernetes' own objects is not a config of ours."""
    if "apiVersion" not in file.read_text():
        assert load_pool(file).sites(0)


def test_facts_in_place_and_none_at_all(tmp_path: Path) -> None:
    """A pool may describe a card and a model as router.yaml does; what is left out is assumed with wide errors."""
    text = "backends:\n  - {name: x, card: {like: l4, memory_gib: 48}, model: qwen3-4b}\n  - {name: y}\n"
    given, assumed = load_pool(written(tmp_path, text)).sites(0)
    assert given.backend.labels["card"] == "l4"
    assert assumed.backend.labels["card"] == assumed.backend.labels["model"] == "unknown"
    assert min(assumed.backend.prior.sigma) >= 1.0


# ---- routers and their surroundings ------------------------------------------------


@pytest.mark.parametrize(
    "scaling",
    [
        "{policy: headroom, parameters: {load_max: 0.5}, every_s: 5}",
        "{policy: {name: headroom, parameters: {load_max: 0.5}}, every_s: 5}",
    ],
)
def test_a_pools_scaling_policy_takes_parameters(tmp_path: Path, scaling: str) -> None:
    """Beside its name, or as in router.yaml."""
    pool = load_pool(written(tmp_path, GOOD + f"scaling: {scaling}\n"))
    assert pool.world.scaling is not None
    assert (pool.world.scaling.policy, pool.world.scaling.parameters) == ("headroom", {"load_max": 0.5})
    assert pool.world.scaling.every_s == 5


@pytest.mark.parametrize(
    ("scaling", "expected"),
    [
        ("{parameters: {lod_max: 0.5}}", "scaling: scaling policy 'headroom' has no parameter 'lod_max'; did you mean"),
        ("{parameters: {load_max: 7}}", "load_max must be above 0 and at most 1, not 7"),
        ("{policy: headrom}", "scaling: unknown scaling policy 'headrom'; did you mean 'headroom'"),
    ],
)
def test_a_scaling_policy_that_cannot_be_is_refused_at_once(tmp_path: Path, scaling: str, expected: str) -> None:
    """With file and line, not in the middle of a run."""
    path = written(tmp_path, GOOD + f"scaling: {scaling}\n")
    with refused(ConfigError, path, expected):
        load_pool(path)


def test_a_pool_sets_the_limits_of_its_routers(tmp_path: Path) -> None:
    """As router.yaml does under policy; the others have the core's defaults."""
    pool = load_pool(written(tmp_path, GOOD + "limits: {first_byte_s_max: 300, attempts_max: 1}\n"))
    assert pool.limits == DispatchLimits(first_byte_s_max=300, attempts_max=1)
    assert load_pool(written(tmp_path, GOOD)).limits == DispatchLimits()
    router = ROUTER + "policy: {limits: {first_byte_s_max: 120}}\n"
    assert load_pool(written(tmp_path, router)).limits.first_byte_s_max == 120
    path = written(tmp_path, GOOD + "limits: {first_byte_s: 3}\n")
    with refused(ConfigError, path, "limits.first_byte_s: unknown key; did you mean 'first_byte_s_max'"):
        load_pool(path)


def test_an_engine_that_is_silent_for_longer_than_the_limit_is_given_up(tmp_path: Path) -> None:
    """A first token that takes some minutes: lost within the default 60 s, served with a limit above it."""
    text = """
backends: [{name: a, card: l4, model: llama-3-8b}]
truth: {spread: 0}
faults: [{at_s: 0, backend: a, kind: slow, factor: 400}]
"""
    for limits, served in (("", False), ("limits: {first_byte_s_max: 36000}\n", True)):
        pool = load_pool(written(tmp_path, text + limits))
        routing, admission = policies.find("routing", "round_robin"), policies.find("admission", "deadline")
        arrivals = shape([TraceEntry(0, 4000, 2)], Shaping("llama-3-8b"), 0)
        run = play(arrivals, pool, routing, admission, 0)
        assert bool(summarise(run)["served"]) == served


@pytest.mark.parametrize("length", [1, 100])
def test_what_no_evict_reserves_does_not_follow_from_the_true_length(length: int) -> None:
    """TensorRT-LLM reserves the longest reply: the cap of the request, else all that the context has room for."""
    pool = Pool((Member("t", "h100", engine="trtllm", model_tokens_max=4096),))
    site = pool.sites(0)[0]
    engine = SimulatedEngine(site, Replica("t", site.truth, site.limits, Kernel(), print, print), 0.0)
    (uncapped,) = shape([TraceEntry(0, 96, length)], Shaping("m"), 0)
    assert engine.preview(uncapped).reply_tokens_max == 4000
    (capped,) = shape([TraceEntry(0, 96, length)], Shaping("m", output_tokens_max=512), 0)
    assert engine.preview(capped).reply_tokens_max == 512
    assert engine.preview(capped).output_tokens == length


def test_clients_state_a_cap_that_their_replies_fit(tmp_path: Path) -> None:
    """Where the trace has none; one with a longer reply had a higher cap."""
    pool = load_pool(written(tmp_path, GOOD + "clients: {output_tokens_max: 512}\n"))
    lines = ({"output_tokens": 8}, {"output_tokens": 1500}, {"output_tokens": 8, "output_tokens_max": 9})
    path = tmp_path / "trace"
    path.write_text("".join(json.dumps({"arrived_s": 0, "prompt_tokens": 1, **line}) + "\n" for line in lines))
    requests = [arrival.request for arrival in Source((str(path),)).arrivals(pool, 0)]
    assert [request.output_tokens_max for request in requests] == [512, 2048, 9]


def test_a_replica_that_scaling_adds_has_a_name_of_its_own() -> None:
    """Beside a member whose name looks like that of a second replica."""
    pool = Pool((Member("a", "l4"), Member("a-1", "a10", tp=2)))
    run = Run(pool, 0)
    run.open_routers(policies.find("routing", "round_robin"), policies.find("admission", "deadline"), None)
    added = [run.fleet.add_replica(pool.members[0], 0.0).name for _ in range(2)]
    assert added == ["a-2", "a-3"]
    assert list(run.fleet.engines) == ["a", "a-1", "a-2", "a-3"]
    assert run.fleet.engines["a-1"].site.member.card == "a10"
