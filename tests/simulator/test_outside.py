"""What is refused before anything is played: files that cannot be written, faults that would never happen."""

import json
from pathlib import Path

import pytest

from tests.commands import simulator_command

GEN = "gen:poisson:rate=8,requests=40"
POOL = "backends: [{name: a, card: a10}]\nfaults: [{at_s: %s, backend: a, kind: slow}]\n"


@pytest.mark.parametrize(
    ("command", "option"),
    [
        *(("replay", option) for option in ("--json", "--html", "--requests", "--chrome-trace")),
        *((command, "--json") for command in ("compare", "capacity", "diff", "cards", "models", "formats")),
        ("calibrate", "--write"),
    ],
)
def test_a_file_that_cannot_be_written_is_refused_before_the_run(tmp_path: Path, command: str, option: str) -> None:
    """What is read is not even looked for: it does not exist."""
    missing = tmp_path / "missing" / "out"
    for path, expected in (
        (missing, f"there is no folder {missing.parent}"),
        (tmp_path, "is a folder, expected a file"),
    ):
        result = simulator_command([command, "no-such-trace", option, str(path)])
        assert result.exit_code == 2
        assert f"{path}" in result.output
        assert expected in result.output
        assert "no-such-trace" not in result.output


def test_a_fault_after_the_last_request_is_refused(tmp_path: Path) -> None:
    """By its place and what it is; one within the run is played."""
    pool = tmp_path / "pool.yaml"
    pool.write_text(POOL % 900)
    result = simulator_command(["replay", GEN, "--pool", str(pool)])
    assert result.exit_code == 2
    assert "pool 'pool': faults[0] (slow of a at 900 s) after the last request, which arrives at" in result.output
    pool.write_text(POOL % 1)
    out = tmp_path / "out.json"
    result = simulator_command(["replay", GEN, "--pool", str(pool), "--policy", "least_work", "--json", str(out)])
    assert result.exit_code == 0, result.output
    assert json.loads(out.read_text())["runs"]["least_work"]["faults_outside"] == []


def test_a_fault_after_the_end_of_a_loop_is_named(tmp_path: Path) -> None:
    """How long a loop takes is known afterwards."""
    pool, out = tmp_path / "pool.yaml", tmp_path / "out.json"
    pool.write_text(POOL % 90_000)
    trace = "gen:closed:clients=2,requests=6"
    result = simulator_command(["replay", trace, "--pool", str(pool), "--policy", "least_work", "--json", str(out)])
    assert result.exit_code == 0, result.output
    assert "outside of the run: slow of a at 90000 s" in result.stderr
    assert json.loads(out.read_text())["runs"]["least_work"]["faults_outside"] == ["slow of a at 90000 s"]


def test_a_capacity_search_names_faults_that_its_rate_leaves_out(tmp_path: Path) -> None:
    """At a higher rate the same requests are over sooner."""
    pool, out = tmp_path / "pool.yaml", tmp_path / "out.json"
    pool.write_text(POOL % 150 + "slo: ['ttft=100s']\n")
    trace = "gen:poisson:rate=0.2,requests=40,prompt=100,output=10"
    result = simulator_command(
        ["capacity", trace, "--pool", str(pool), "--policy", "least_work", "--jobs", "1", "--json", str(out)]
    )
    assert result.exit_code == 0, result.output
    assert "outside of the run: slow of a at 150 s, at x" in result.stderr


def test_undefined_figures_over_seeds_are_null_and_no_error_after_the_run(tmp_path: Path) -> None:
    """A run in which nothing is served has no latencies; JSON has no nan."""
    pool, out = tmp_path / "pool.yaml", tmp_path / "out.json"
    pool.write_text("backends: [{name: a, card: a10, context_tokens_max: 64}]\n")
    trace = "gen:poisson:rate=8,requests=4,prompt=100,output=10"
    for command in ("replay", "compare"):
        result = simulator_command(
            [command, trace, "--pool", str(pool), "--policy", "least_work", "--seeds=2", "--jobs=1", "--json", str(out)]
        )
        assert result.exit_code == 0, result.output
        facts = json.loads(out.read_text())
        intervals = facts["intervals"]["least_work"] if command == "replay" else facts[0]["intervals"]
        assert intervals["ttft_p99_s"] == [None, None]
