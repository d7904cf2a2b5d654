"""Rows of a comparison against each other: each difference has an interval, and seeds are played until it is narrow."""

import io
import json
from collections.abc import Iterable
from math import inf, isnan, nan
from pathlib import Path
from random import Random

import pytest
from rich.console import Console

from simulator.commands.replay import over_requests
from simulator.commands.replica_search import Fewest, bounded, fewest, grown, relative_widths
from simulator.experiment import Seeding, difference, differences, interval, is_clear, pairs, until_narrow
from simulator.pool import BUILT_IN, Member, Pool
from simulator.report.differences import print_differences
from simulator.report.table import difference_text
from simulator.world import Fault, World
from tests.commands import simulator_command

KEYS = ("pool", "rate", "policy")


def percent(value: float) -> str:
    return f"{value:.2%}"


def test_rows_are_paired_that_differ_in_one_thing() -> None:
    """Two policies on one pool, one policy on two pools; not both at once."""
    rows = [(pool, "x1", policy) for pool in ("a", "b") for policy in ("p", "q")]
    found = list(pairs(rows))
    assert len(found) == 4
    assert (("a", "x1", "p"), ("b", "x1", "q")) not in found
    assert (("a", "x1", "p"), ("a", "x1", "q")) in found


def test_a_difference_is_of_pairs_of_seeds() -> None:
    """What all rows have in common under a seed leaves no width."""
    luck = [Random(seed).random() for seed in range(5)]
    mean, half = difference(luck, [each + 0.25 for each in luck])
    assert (mean, half) == (pytest.approx(0.25), pytest.approx(0.0, abs=1e-12))
    assert interval(luck)[1] > 0.2
    mean, half = differences({("a",): [1.0], ("b",): [1.5]})[("a",), ("b",)]
    assert mean == 0.5
    assert isnan(half)
    assert not is_clear(mean, half)


def drawn(spread: float, seeding: Seeding) -> int:
    """How many seeds are played of a figure with that standard deviation."""
    values: list[float] = []
    chance = Random(7)

    def play(seeds: range) -> None:
        assert seeds.start == len(values)
        values.extend(chance.gauss(0.5, spread) for _ in seeds)

    def widths() -> Iterable[float]:
        yield interval(values)[1]

    played = until_narrow(seeding, play, widths)
    assert played == len(values)
    if played < seeding.most:
        assert seeding.half_width == inf or interval(values)[1] <= seeding.half_width
    return played


def test_seeds_are_played_until_the_interval_is_narrow() -> None:
    """More where a figure varies more, five at least, and no more than the most."""
    assert drawn(0.1, Seeding(5)) == 5
    few, many = drawn(0.01, Seeding(1, 0.01)), drawn(0.03, Seeding(1, 0.01))
    assert 5 <= few < many < 100
    assert drawn(0.0, Seeding(1, 0.01)) == 5
    assert drawn(1.0, Seeding(1, 0.001, most=20)) == 20
    assert drawn(1.0, Seeding(8, 0.0, most=10)) == 10


def test_intervals_that_end_the_playing_hold_nearly_as_often_as_they_state() -> None:
    """A width that is narrow by chance ends it too early; of so many seeds at first, seldom."""
    chance, held, cases = Random(3), 0, 8_000
    for _ in range(cases):
        values: list[float] = []
        until_narrow(
            Seeding(1, 0.7),
            lambda seeds, values=values: values.extend(chance.gauss(0.0, 1.0) for _ in seeds),
            lambda values=values: [interval(values)[1]],
        )
        mean, half = interval(values)
        held += abs(mean) <= half
    assert held / cases > 0.916


@pytest.mark.parametrize(
    ("mean", "half", "expected"),
    [
        (0.012, 0.004, "+1.20% +-0.40% *"),
        (-0.012, 0.02, "-1.20% +-2.00%"),
        (0.012, float("nan"), "+1.20%"),
        (float("nan"), 0.0, "-"),
        (0.0, 0.0, "+0.00% +-0.00%"),
    ],
)
def test_a_difference_has_a_sign_and_is_marked_where_it_leaves_out_0(mean: float, half: float, expected: str) -> None:
    """As it stands in a table."""
    assert difference_text(mean, half, percent) == expected


def test_of_very_many_differences_those_to_the_first_are_shown() -> None:
    """The others are counted; nothing is cut without a word."""
    rows = [("a", "x1", f"p{n}") for n in range(12)]
    between = {pair: {"attainment": (0.1, 0.01)} for pair in pairs(rows)}
    out = io.StringIO()
    print_differences(Console(file=out), KEYS, between, (("attainment", "attainment", percent),))
    shown = out.getvalue()
    assert shown.count("p0 -> ") == 11
    assert "p1 -> " not in shown
    assert f"{len(between) - 11} further differences" in shown


# ---- the commands ----------------------------------------------------------------------


def run(*words: str) -> str:
    result = simulator_command(words)
    assert result.exit_code == 0, result.output
    return result.stdout


def pools(folder: Path) -> list[str]:
    options = []
    for name, count in (("one", 1), ("two", 2)):
        path = folder / f"{name}.yaml"
        path.write_text(
            f"slo: ttft=1s,tpot=120ms\nbackends:\n  - {{name: a, card: l4, model: llama-3-8b, count: {count}}}\n"
        )
        options += ["--pool", str(path)]
    return options


def test_compare_has_an_interval_for_every_difference(tmp_path: Path) -> None:
    """Between policies and between pools, from the same seeds; on the screen and in the JSON."""
    out = tmp_path / "out.json"
    options = ["--policy", "round_robin", "--policy", "least_work", "--seeds", "3", "--jobs", "1", "--json", str(out)]
    shown = run("compare", "gen:poisson:rate=5,requests=40", *pools(tmp_path), *options)
    rows = {(row["pool"], row["policy"]): row for row in json.loads(out.read_text())}
    assert "differences, second minus first" in shown
    assert "one -> two" in shown
    assert [len(row["differences"]) for row in rows.values()] == [0, 1, 1, 2]
    last = rows["two", "least_work"]
    against = next(each for each in last["differences"] if each["minus"]["pool"] == "one")
    assert against["minus"] == {"pool": "one", "rate": "x1", "policy": "least_work"}
    before, after = (
        [run["attainment"] for run in rows[key]["runs"]] for key in (("one", "least_work"), ("two", "least_work"))
    )
    assert against["attainment"] == pytest.approx(difference(before, after))
    assert against["attainment"][0] > 0


def test_compare_plays_seeds_until_intervals_are_narrow(tmp_path: Path) -> None:
    """More than --seeds, all rows the same ones; of one seed there is no interval."""
    out = tmp_path / "out.json"
    options = ["compare", "gen:poisson:rate=2,requests=40", *pools(tmp_path), "--policy", "least_work", "--jobs", "1"]
    run(*options, "--seeds", "1", "--half-width", "0.05", "--seeds-most", "6", "--json", str(out))
    rows = json.loads(out.read_text())
    [count] = {len(row["runs"]) for row in rows}
    assert 5 <= count <= 6
    assert [run["seed"] for run in rows[0]["runs"]] == list(range(count))
    wide = max(*(row["intervals"]["attainment"][1] for row in rows), rows[1]["differences"][0]["attainment"][1])
    assert count == 6 or wide <= 0.05
    shown = run(*options, "--seeds", "1", "--json", str(out))
    assert "one seed has no interval" in shown
    assert json.loads(out.read_text())[1]["differences"][0]["attainment"][1] is None


def test_replay_of_one_seed_has_differences_over_its_requests(tmp_path: Path) -> None:
    """Pair by pair, of every two policies; of a policy alone there is none."""
    out = tmp_path / "out.json"
    policies = [word for name in ("round_robin", "least_work") for word in ("--policy", name)]
    shown = run("replay", "gen:poisson:rate=8,requests=60", *policies, "--json", str(out))
    facts = json.loads(out.read_text())
    first, second = (facts["runs"][name]["attainment"] for name in ("round_robin", "least_work"))
    [against] = facts["differences"]["least_work"]
    mean, half = against["attainment"]
    assert against["minus"] == {"policy": "round_robin"}
    assert mean == pytest.approx(second - first)
    assert "differences, second minus first, over the same requests" in " ".join(shown.split())
    assert difference_text(mean, half, percent) in shown
    run("replay", "gen:poisson:rate=8,requests=60", *policies[:2], "--json", str(out))
    assert json.loads(out.read_text())["differences"] == {"round_robin": []}


def test_requests_are_compared_pair_by_pair() -> None:
    """Only those that both have; a single one has no interval."""
    met = {"a": {"1": True, "2": False, "3": True}, "b": {"1": True, "2": True}, "c": {"3": False}, "d": {"4": True}}
    found = {(first[0], second[0]): spread["attainment"] for (first, second), spread in over_requests(met).items()}
    assert found["a", "b"] == pytest.approx((0.5, 12.706 * 0.5))
    assert found["a", "c"][0] == -1.0
    assert isnan(found["a", "c"][1])
    assert set(found) == {("a", "b"), ("a", "c")}


def test_replay_has_differences_of_its_policies(tmp_path: Path) -> None:
    """Under several seeds."""
    out = tmp_path / "out.json"
    options = ["--policy", "round_robin", "--policy", "least_work", "--seeds", "2", "--jobs", "1", "--json", str(out)]
    shown = run("replay", "gen:poisson:rate=8,requests=60", *options)
    facts = json.loads(out.read_text())
    assert "round_robin -> least_work" in shown
    assert facts["differences"]["round_robin"] == []
    [against] = facts["differences"]["least_work"]
    assert against["minus"] == {"policy": "round_robin"}
    assert len(against["attainment"]) == 2


def test_capacity_has_an_interval_for_every_difference(tmp_path: Path) -> None:
    """Of rates of two pools: twice as many cards carry more, beyond the interval."""
    out = tmp_path / "out.json"
    options = ["--policy", "least_work", "--goal", "0.8", "--precision", "0.3", "--seeds", "3", "--jobs", "1"]
    shown = run("capacity", "gen:poisson:rate=1,requests=40", *pools(tmp_path), *options, "--json", str(out))
    one, two = json.loads(out.read_text())["found"]
    assert one["differences"] == []
    [against] = two["differences"]
    assert against["minus"] == {"pool": "one", "policy": "least_work"}
    assert against["rate"] == pytest.approx(
        difference([r["rate"] for r in one["runs"]], [r["rate"] for r in two["runs"]])
    )
    assert "one -> two" in shown


# ---- replicas ---------------------------------------------------------------------------


@pytest.mark.parametrize("first", [1, 3, 100])
@pytest.mark.parametrize("needed", [1, 2, 7, 64, 256])
def test_the_fewest_that_attain_are_found(first: int, needed: int) -> None:
    """From any number on; none where even the most do not."""
    assert fewest(lambda count: count >= needed, first) == needed
    assert fewest(lambda _: False, first) == 0


def test_a_pool_grows_by_one_backend() -> None:
    """Its names stay distinct; a fault of a replica that is not there is refused."""
    pool = Pool((Member("a", "l4"), Member("a-1", "l4")), BUILT_IN.classes)
    assert [member.count for member in grown(pool, "a-1", 3).members] == [1, 3]
    with pytest.raises(ValueError, match="two replicas are named 'a-1'"):
        grown(pool, "a", 2)
    with pytest.raises(ValueError, match="has the backends a, a-1"):
        grown(pool, "b", 2)
    faulty = Pool((Member("a", "l4"),), BUILT_IN.classes, world=World(faults=(Fault(1.0, "a"),)))
    with pytest.raises(ValueError, match="crash of a at 1 s"):
        grown(faulty, "a", 2)


def test_capacity_searches_for_replicas(tmp_path: Path) -> None:
    """The fewest that attain at that rate, with the price of the pool; of a closed loop too."""
    pool = tmp_path / "pool.yaml"
    pool.write_text(
        "slo: ttft=2s,tpot=80ms\nbackends:\n  - {name: a, card: a10, model: llama-3-8b, price_per_hour: 2}\n"
        "  - {name: b, card: l20, model: llama-3-8b, price_per_hour: 1}\n"
    )
    out = tmp_path / "out.json"
    options = ["--pool", str(pool), "--policy", "least_work", "--goal", "0.8", "--jobs", "1", "--json", str(out)]
    counts = []
    for traffic in ("gen:poisson:rate=2,requests=40", "gen:closed:clients=8,requests=40"):
        shown = run("capacity", traffic, "--replicas", "a", *options, "--seeds", "2")
        facts = json.loads(out.read_text())
        [found] = facts["found"]
        assert facts["backend"] == "a"
        assert all(one["usd_per_hour"] == 1 + 2 * one["replicas"] for one in found["runs"])
        assert all(one["attainment"] >= 0.8 for one in found["runs"])
        assert "fewest replicas of a" in shown
        counts.append(found["replicas"][0])
    run("capacity", "gen:poisson:rate=2,requests=40", "--rate", "x8", "--replicas", "a", *options, "--seeds", "2")
    assert json.loads(out.read_text())["found"][0]["replicas"][0] > counts[0]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--rate", "x2"], "--rate goes with --replicas"),
        (["--replicas", "a", "--precision", "0.1"], "--precision is of the search for a rate"),
        (["--replicas", "a", "--beyond", "1.2"], "--beyond is of the search for a rate"),
    ],
)
def test_an_option_of_the_other_search_is_refused(options: list[str], expected: str) -> None:
    """It would change nothing."""
    refused = simulator_command(["capacity", "gen:closed", *options])
    assert (refused.exit_code, expected in refused.stderr) == (2, True)


def test_the_bound_needs_no_more_replicas_than_a_policy() -> None:
    """Seed by seed, on the same pool; a policy that attains under no number is none to go by."""
    needed = {("p", "clairvoyant"): (3, nan, 2), ("p", "good"): (2, 4, 5), ("p", "bad"): (nan, nan, nan),
              ("q", "good"): (1, 1, 1)}  # fmt: skip
    found = {key: [Fewest(n, float(each), each, 1.0) for n, each in enumerate(row)] for key, row in needed.items()}
    within = bounded(found)
    assert [one.replicas for one in within["p", "clairvoyant"]] == [2, 4, 2]
    assert within["p", "good"] == found["p", "good"]
    widths = list(relative_widths({key: [one.replicas for one in row] for key, row in within.items()}))
    assert not any(isnan(width) for width in widths)
