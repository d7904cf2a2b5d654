"""compare, capacity, diff and the files of replay, through the command line."""

import csv
import gzip
import json
from pathlib import Path

import pytest

from simulator.commands.capacity import Found, highest, highest_of
from simulator.experiment import Case, Source, batched, interval
from simulator.pool import BUILT_IN
from tests.commands import simulator_command

GEN = "gen:poisson:rate=8,requests=150"


def run(*arguments: str) -> str:
    result = simulator_command(arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_replay_writes_one_row_a_request(tmp_path: Path) -> None:
    """CSV with names for outcome and backend, gzipped where the name says so."""
    path = tmp_path / "requests.csv.gz"
    run("replay", GEN, "--policy", "least_work", "--policy", "round_robin", "--requests", str(path))
    with gzip.open(path, "rt") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 300
    assert {row["policy"] for row in rows} == {"least_work", "round_robin"}
    assert all(row["outcome"] == "served" and row["backend"] and float(row["ttft_s"]) > 0 for row in rows)


def test_replay_writes_a_trace_that_chrome_reads(tmp_path: Path) -> None:
    """Complete events with microseconds, named lanes, none overlapping another in its lane."""
    path = tmp_path / "trace.json"
    run("replay", GEN, "--policy", "least_work", "--chrome-trace", str(path))
    events = json.loads(path.read_text())["traceEvents"]
    spans = [event for event in events if event["ph"] == "X"]
    assert len(spans) == 300
    lanes: dict[int, float] = {}
    for span in sorted(spans, key=lambda span: span["ts"]):
        assert span["ts"] >= lanes.get(span["tid"], 0.0) - 1.0
        lanes[span["tid"]] = span["ts"] + span["dur"]
    assert {event["tid"] for event in events if event["name"] == "thread_name"} == set(lanes)


def test_replay_writes_a_page_that_needs_no_network(tmp_path: Path) -> None:
    """One file: plots against the SLO, every policy and backend named, nothing fetched."""
    path = tmp_path / "report.html"
    run("replay", GEN, "--policy", "least_work", "--policy", "slo_headroom", "--html", str(path))
    page = path.read_text()
    for word in (
        "Time to first token",
        "SLO attainment",
        "Predicted against actual",
        "a100",
        "Replicas",
        "Cost, USD",
        "truth:",
    ):
        assert word in page
    assert page.count("<svg") > 15
    assert not any(word in page for word in ("http://", "https://", "<script", "@import", "url("))


def test_replay_over_seeds_tells_intervals(tmp_path: Path) -> None:
    """Three seeds: means with half widths, in the file and on the screen."""
    path = tmp_path / "out.json"
    told = run("replay", GEN, "--policy", "least_work", "--seeds", "3", "--jobs", "2", "--json", str(path))
    assert "means over seeds" in told
    mean, half = json.loads(path.read_text())["intervals"]["least_work"]["ttft_p99_s"]
    assert mean > half > 0


def test_the_clairvoyant_stands_beside_the_policies(tmp_path: Path) -> None:
    """As one more column, which says what attained it, on the screen and on the page."""
    page = tmp_path / "report.html"
    told = run("replay", GEN, "--policy", "least_work", "--policy", "clairvoyant", "--html", str(page))
    assert "clairvoyant" in told
    assert "bound attained by" in told
    assert "clairvoyant: attained by" in page.read_text()


def test_a_strategy_of_the_clairvoyant_can_be_played_alone(tmp_path: Path) -> None:
    """By its name; another name is refused in one line that lists them."""
    path = tmp_path / "out.json"
    run("replay", GEN, "--policy", "clairvoyant:strategy=lightest", "--json", str(path))
    played = json.loads(path.read_text())["runs"]["clairvoyant:strategy=lightest"]
    assert played["strategy"] == "clairvoyant:strategy=lightest"
    result = simulator_command(["replay", GEN, "--policy", "clairvoyant:strategy=best"])
    assert result.exit_code == 2
    assert "soonest, lightest, greedy, fastest" in " ".join(result.stderr.split())


def test_a_policy_that_finds_a_higher_rate_is_the_bound_there() -> None:
    """Of capacity's findings under one seed."""
    own = Found("clairvoyant", 0, 1.0, 10.0, 0.99, {1.0: 9.9}, "clairvoyant:strategy=soonest")
    other = Found("least_work", 0, 1.1, 11.0, 0.99, {1.0: 10.9})
    best = highest_of(own, [other, own])
    assert (best.policy, best.rate, best.strategy) == ("clairvoyant", 1.1, "least_work")
    assert highest_of(own, [Found("least_work", 0, 0.9, 9.0, 0.99)]) == own


def test_compare_makes_one_row_a_combination(tmp_path: Path) -> None:
    """Two policies, two rates, two pools, two seeds: eight rows of two runs each."""
    pool = tmp_path / "small.yaml"
    pool.write_text("slo: ttft=1s,tpot=60ms\nbackends:\n  - {name: a, card: h100, model: llama-3-8b}\n")
    out = tmp_path / "out.json"
    options = ["--policy", "round_robin", "--policy", "least_work", "--rate", "x1", "--rate", "x2", "--seeds", "2"]
    second = ["--pool", str(pool), "--pool", str(pool.with_name("other.yaml"))]
    pool.with_name("other.yaml").write_text(pool.read_text().replace("h100", "h200"))
    told = run("compare", "gen:poisson:rate=2,requests=40", *options, *second, "--jobs", "2", "--json", str(out))
    rows = json.loads(out.read_text())
    assert len(rows) == 8
    assert all(len(row["runs"]) == 2 for row in rows)
    assert {row["pool"] for row in rows} == {"small", "other"}
    assert "x2" in told


def two_pools(folder: Path) -> list[str]:
    """Options that name two files ``pool.yaml``, of an H100 and of an L4."""
    options = []
    for name, truth in (("h100", 0.15), ("l4", 0.3)):
        path = folder / name / "pool.yaml"
        path.parent.mkdir()
        path.write_text(
            f"slo: ttft=1s,tpot=60ms\ntruth: {{spread: {truth}}}\n"
            f"backends:\n  - {{name: a, card: {name}, model: llama-3-8b}}\n"
        )
        options += ["--pool", str(path)]
    return options


@pytest.mark.parametrize("command", ["compare", "capacity"])
def test_pools_whose_files_have_one_name_are_kept_apart(tmp_path: Path, command: str) -> None:
    """By their paths; each has results of its own, and its truth is stated."""
    out, pools = tmp_path / "out.json", two_pools(tmp_path)
    more = {"compare": ["--seeds", "1"], "capacity": ["--precision", "0.5", "--goal", "0.9", "--seeds", "1"]}[command]
    options = ["--policy", "least_work", "--jobs", "1", "--json", str(out), *more]
    told = run(command, "gen:poisson:rate=1,requests=60", *pools, *options)
    facts = json.loads(out.read_text())
    rows = facts if command == "compare" else facts["found"]
    assert [row["pool"] for row in rows] == pools[1::2]
    assert all(text in told for text in (*pools[1::2], "spread 15%", "spread 30%"))
    twice = simulator_command([command, GEN, *pools[:2], *pools[:2]])
    assert (twice.exit_code, "is given twice" in twice.stderr) == (2, True)


def test_cards_given_in_place_are_played_in_other_processes(tmp_path: Path) -> None:
    """Their facts reach a worker."""
    pool = tmp_path / "own.yaml"
    pool.write_text(
        "slo: ttft=1s,tpot=60ms\nbackends:\n  - {name: a, card: {like: h100, memory_gib: 60}, model: llama-3-8b}\n"
    )
    told = run("compare", "gen:poisson:rate=2,requests=20", "--policy", "least_work", "--pool", str(pool))
    assert "own" in told


def test_compare_refuses_an_executor_it_does_not_know() -> None:
    """In one line."""
    result = simulator_command(["compare", GEN, "--executor", "threads"])
    assert (result.exit_code, "expected 'processes' or dask://" in result.stderr) == (2, True)


def test_capacity_finds_a_rate_that_holds_and_orders_policies(tmp_path: Path) -> None:
    """A policy that knows its engines carries more than taking turns."""
    out = tmp_path / "out.json"
    options = [
        "--policy",
        "round_robin",
        "--policy",
        "slo_headroom",
        "--precision",
        "0.2",
        "--goal",
        "0.9",
        "--seeds",
        "1",
    ]
    told = run("capacity", "gen:poisson:rate=1,requests=200", *options, "--jobs", "2", "--json", str(out))
    found = {one["policy"]: one["rate"] for one in json.loads(out.read_text())["found"]}
    assert found["slo_headroom"] > found["round_robin"]
    assert "highest rate" in told


def test_capacity_over_seeds_tells_intervals_and_what_overload_leaves(tmp_path: Path) -> None:
    """One search a seed; goodput at the rate found and at multiples of it, of policies and of the bound."""
    out = tmp_path / "out.json"
    options = [
        "--policy",
        "least_work",
        "--policy",
        "clairvoyant",
        "--precision",
        "0.3",
        "--seeds",
        "2",
        "--goal",
        "0.8",
    ]
    beyond = ["--beyond", "1.1", "--beyond", "1.5", "--jobs", "2", "--json", str(out)]
    told = run("capacity", "gen:poisson:rate=4,requests=150", *options, *beyond)
    assert "means over 2 seeds" in told
    assert "goodput left at x1.5" in told
    work, bound = json.loads(out.read_text())["found"]
    assert [one["seed"] for one in work["runs"]] == [0, 1]
    assert set(work["runs"][0]["goodput_per_s"]) == {"1.0", "1.1", "1.5"}
    assert work["half_widths"]["requests_per_s"] > 0
    assert bound["requests_per_s"] >= work["requests_per_s"] > 0


def test_a_run_that_has_missed_too_much_is_not_played_to_its_end() -> None:
    """The search learns no more from it."""
    source = Source(("gen:poisson:rate=40,requests=4000",))
    case = Case(source, BUILT_IN, "least_work")
    table = case.play(stop=lambda table: len(table) - table.met().sum() > 40).table
    assert 40 < len(table) - table.met().sum() < len(table) < 4000


@pytest.mark.parametrize("edge", [0.3, 1.0, 1.7, 40.0])
def test_the_search_stops_below_the_edge_and_not_far_from_it(edge: float) -> None:
    """Whatever the edge, the rate found holds and 5 % more does not."""
    found = highest(lambda rate: rate <= edge, 0.05)
    assert edge / 1.05 <= found <= edge


def test_a_goal_that_no_rate_holds_is_said_to_be_none() -> None:
    """0, not a guess."""
    assert highest(lambda _: False, 0.05) == 0.0


def test_diff_pairs_requests(tmp_path: Path) -> None:
    """Counts add up to all requests, and flows to those routed differently."""
    out = tmp_path / "out.json"
    told = run("diff", GEN, "--policy", "round_robin", "--policy", "slo_headroom", "--json", str(out))
    facts = json.loads(out.read_text())
    kept = ("both_met", "only_first_met", "only_second_met", "neither_met")
    assert sum(facts[key] for key in kept) == facts["requests"] == 150
    assert sum(facts["flows"].values()) == facts["routed_differently"]
    mean, half = facts["attainment_gain"]
    assert mean * facts["requests"] == pytest.approx(facts["only_second_met"] - facts["only_first_met"])
    assert half >= 0.0
    assert "gains most" in told
    assert "Attainment of slo_headroom less that of round_robin: " in told


def test_diff_needs_two_policies() -> None:
    """Not one, not three."""
    result = simulator_command(["diff", GEN, "--policy", "least_work"])
    assert (result.exit_code, "give --policy twice" in result.stderr) == (2, True)


def test_the_interval_of_a_run_is_of_batches() -> None:
    """Of requests that take turns there is no doubt; one alone states nothing."""
    assert batched([0.0, 1.0] * 100) == (0.5, 0.0)
    assert batched([0.0] * 100 + [1.0] * 100) == pytest.approx((0.5, 2.131 * 0.512989 / 20**0.5), rel=0.03)
    assert batched([1.0]) == (1.0, None)


def test_intervals_are_students() -> None:
    """Of 1, 2, 3: mean 2, half width 4.303 / sqrt(3); of one value no width at all."""
    assert interval([1.0, 2.0, 3.0]) == pytest.approx((2.0, 4.303 / 3**0.5))
    assert interval([5.0]) == (5.0, 0.0)


def test_a_pool_file_describes_a_world(tmp_path: Path) -> None:
    """Faults, clients, routers and scaling of the file happen; what cannot be is refused with its place."""
    pool = tmp_path / "world.yaml"
    text = """
slo: chat:ttft=1s,tpot=60ms
routers: 2
clients: {timeout_s: 5, retries: 1}
scaling: {every_s: 5, cold_start_s: 5}
faults: [{at_s: 3, backend: b, kind: crash, for_s: 5}]
backends:
  - {name: a, card: h100, model: llama-3-8b}
  - {name: b, card: a10, tp: 2, model: llama-3-8b}
"""
    pool.write_text(text)
    assert "failed mid-stream" in run("replay", GEN, "--pool", str(pool), "--policy", "least_work")
    for wrong, expected in (("backend: b, kind", "a backend among a, b"), ("kind: crash", "kind must be one of")):
        pool.write_text(text.replace(wrong, {"backend: b, kind": "backend: c, kind"}.get(wrong, "kind: burn")))
        result = simulator_command(["replay", GEN, "--pool", str(pool)])
        assert (result.exit_code, expected in result.stderr) == (2, True)
