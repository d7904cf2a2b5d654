"""pool.yaml: what it may say, and how it says no; belief and truth of one member."""

from dataclasses import replace
from pathlib import Path

import pytest

from router.core.errors import ConfigError
from router.core.physics import coefficients
from router.core.types import Slo
from router.gateway.config.plan import plan_file
from simulator.pool import BUILT_IN, Member
from simulator.pool_file import load_pool
from simulator.replica.truth import EXACT
from simulator.workload.arrivals import SloClass
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
