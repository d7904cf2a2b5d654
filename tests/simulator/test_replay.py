"""Replays: whole, deterministic, through the command line, with every request answered and every error in one line."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import policies
from router.core.types import Slo
from simulator.pool import BUILT_IN
from simulator.run.play import play
from simulator.run.summary import summarise
from simulator.traces import TraceEntry, read_trace
from simulator.workload.arrivals import Shaping, SloClass, shape
from tests.commands import simulator_command

CHAT = (SloClass("chat", Slo(ttft_s=1.0, tpot_s=0.06)),)
AZURE = Path("../shared/data/traces/AzureLLMInferenceTrace_conv.csv.gz")


def entries(count: int, every_s: float = 0.2) -> list[TraceEntry]:
    return [TraceEntry(n * every_s, 200 + 37 * n % 2000, 1 + 53 * n % 300) for n in range(count)]


def played(routing: str, count: int = 300, seed: int = 1, every_s: float = 0.2):
    arrivals = shape(entries(count, every_s), Shaping("llama-3-8b", CHAT), seed)
    return play(arrivals, BUILT_IN, policies.find("routing", routing), policies.find("admission", "deadline"), seed)


def written(folder: Path, count: int = 60) -> str:
    path = folder / "trace.jsonl"
    lines = [
        json.dumps({"arrived_s": e.arrived_s, "prompt_tokens": e.prompt_tokens, "output_tokens": e.output_tokens})
        for e in entries(count)
    ]
    path.write_text("\n".join(lines) + "\n")
    return str(path)


@pytest.mark.parametrize("routing", policies.names("routing"))
def test_every_request_is_accounted_once_under_every_policy(routing: str) -> None:
    """As many rows as arrivals, each id once, and the outcomes add up."""
    run = played(routing)
    figures = summarise(run)
    assert sorted(run.table.ids) == sorted(f"r{n}" for n in range(300))
    assert sum(figures[kind] for kind in ("served", "refused", "broken", "left")) == 300


def test_the_same_seed_gives_the_same_figures() -> None:
    """To the last digit; another seed gives others."""
    once, again, other = played("power_of_two"), played("power_of_two"), played("power_of_two", seed=2)
    assert summarise(once) == summarise(again)
    assert summarise(once) != summarise(other)


def test_output_lengths_come_back_as_served() -> None:
    """What was asked for in the trace is what the replicas made."""
    run = played("least_work")
    assert run.table.column("output_tokens").sum() == sum(e.output_tokens for e in entries(300))


def test_a_reply_that_comes_whole_is_judged_by_its_end_alone() -> None:
    """As the gateway does: it has no first token, and what was promised of that cannot be missed."""
    whole = [replace(entry, streamed=False) for entry in entries(20)]
    slos = (SloClass("x", Slo(ttft_s=1e-6, e2e_s=60.0)),)
    run = play(
        shape(whole, Shaping("llama-3-8b", slos), 1),
        BUILT_IN,
        policies.find("routing", "slo_headroom"),
        policies.find("admission", "deadline"),
        1,
    )
    assert run.table.served().all()
    assert np.isnan(run.table.ttft_s()).all()
    assert np.isnan(run.table.tpot_s()).all()
    assert run.table.met().all()


def test_time_of_a_lone_request_is_network_api_and_steps() -> None:
    """TTFT is no less than the round trip and one step, E2E no less than TTFT and the decode steps."""
    run = played("round_robin", count=1)
    site = run.engines[run.table.backends[0]].site
    ttft_s, e2e_s = float(run.table.ttft_s()[0]), float(run.table.e2e_s()[0])
    assert ttft_s > site.member.network_s + site.truth.coefficients.fixed_s * 0.8
    assert e2e_s >= ttft_s


def test_replay_prints_tables_and_writes_json(tmp_path: Path) -> None:
    """One command, three policies: every figure the table names is in the file too."""
    out = tmp_path / "out.json"
    names = ["round_robin", "least_work", "slo_headroom"]
    options = [part for name in names for part in ("--policy", name)]
    result = simulator_command(["replay", written(tmp_path), *options, "--json", str(out)])
    assert result.exit_code == 0, result.output
    for word in ("SLO attainment", "goodput", "TTFT p99", "TPOT p50", "E2E mean", "shed", "held", "busy", "truth:"):
        assert word in result.stdout
    runs = json.loads(out.read_text())["runs"]
    assert list(runs) == names
    assert all(run["requests"] == 60 for run in runs.values())
    assert "learnt" in json.loads(out.read_text())["world"]


def test_policy_parameters_reach_the_policy(tmp_path: Path) -> None:
    """NAME:key=value,...: an unknown key is refused with what there is."""
    ok = simulator_command(["replay", written(tmp_path), "--policy", "slo_headroom:safety=1.2,prefer=pack"])
    assert ok.exit_code == 0, ok.output
    bad = simulator_command(["replay", written(tmp_path), "--policy", "slo_headroom:safty=1.2"])
    assert (bad.exit_code, "did you mean 'safety'" in bad.stderr) == (2, True)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--policy", "rund_robin"], "did you mean 'round_robin'"),
        (["--rate", "fast"], "--rate: expected a factor"),
        (["--window", "5m"], "--window: expected FROM-TO"),
        (["--window", "9m-5m"], "ends before it begins"),
        (["--window", "100m-200m"], "no requests in it"),
        (["--slo", "ttft=never"], "expected a time such as 2s"),
        (["--pool", "/nowhere.yaml"], "/nowhere.yaml"),
    ],
)
def test_what_was_typed_wrong_is_said_in_one_line(tmp_path: Path, options: list[str], expected: str) -> None:
    """No traceback: exit status 2 and what was expected."""
    result = simulator_command(["replay", written(tmp_path), *options])
    assert result.exit_code == 2
    assert expected in result.stderr
    assert result.stderr.count("\n") == 1


def test_skip_bad_says_how_many(tmp_path: Path) -> None:
    """The good lines are played, the bad ones counted."""
    path = written(tmp_path)
    Path(path).write_text(Path(path).read_text() + "{bad\n")
    assert simulator_command(["replay", path]).exit_code == 2
    result = simulator_command(["replay", path, "--skip-bad", "--policy", "round_robin"])
    assert (result.exit_code, "skipped 1 bad lines" in result.stderr) == (0, True)


def test_an_overloaded_queue_is_refused_and_tried_elsewhere() -> None:
    """With room for two that run and one that waits an engine refuses; the core tries others and accounts for all."""
    pool = replace(BUILT_IN, members=tuple(replace(m, queue_max=3, seqs_max=2) for m in BUILT_IN.members))
    arrivals = shape(entries(200, 0.01), Shaping("llama-3-8b", CHAT), 0)
    run = play(arrivals, pool, policies.find("routing", "round_robin"), policies.find("admission", "deadline"), 0)
    figures = summarise(run)
    assert figures["refused"] > 0
    assert figures["shed_by_reason"] == {"backend-failed": figures["refused"]}
    assert figures["served"] + figures["refused"] == 200


@pytest.mark.skipif(not AZURE.exists(), reason="the Azure trace is not beside this checkout")
def test_headroom_attains_no_less_than_the_baselines_on_the_azure_trace() -> None:
    """The first 3,000 requests of production chat on the built-in pool."""
    arrivals = shape(read_trace(AZURE, limit=3000).entries, Shaping("llama-3-8b", BUILT_IN.classes), 0)
    admission = policies.find("admission", "deadline")
    attained = {
        name: summarise(play(arrivals, BUILT_IN, policies.find("routing", name), admission, 0))["attainment"]
        for name in ("round_robin", "least_work", "slo_headroom")
    }
    assert attained["slo_headroom"] == max(attained.values())
