"""pool.yaml: what it may say, and how it says no; belief and truth of one member."""

from dataclasses import replace
from pathlib import Path

import pytest

from router.core.physics import coefficients
from router.core.types import Slo
from simulator.errors import BadPool
from simulator.pool import BUILT_IN, Member, load_pool
from simulator.replica.truth import EXACT
from simulator.workload.arrivals import SloClass

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
        (GOOD.replace("backends", "backend"), "unknown key backend; did you mean 'backends'"),
        (GOOD.replace("tp: 2", "tpp: 2"), "unknown key backends[1].tpp; did you mean 'tp'"),
        (GOOD.replace("tp: 2", "tp: two"), "backends[1].tp: expected int, got 'two'"),
        (GOOD.replace("tp: 2", "tp: 3"), "backends[1]: TP 3 does not divide the 32 heads"),
        (GOOD.replace("h100", "h1000"), "no card named 'h1000'"),
        (GOOD.replace("spread: 0.2", "spread: -1"), "spread must be 0 or more"),
        (GOOD.replace("name: small, card: a10, tp: 2, count: 2", "name: big, card: a10"), "names must differ"),
        (GOOD + "belief: sure\n", "belief: expected one of learnt, given, wrong"),
        ("backends: []", "expected a list with at least one entry"),
        ("[1]", "expected keys such as 'backends'"),
        ("a: [", "pool.yaml:1: not valid YAML"),
    ],
)
def test_a_pool_that_cannot_be_is_refused(tmp_path: Path, text: str, expected: str) -> None:
    """With file, place and what was expected."""
    path = written(tmp_path, text)
    with pytest.raises(BadPool) as caught:
        load_pool(path)
    assert str(path) in str(caught.value)
    assert expected in str(caught.value)


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
