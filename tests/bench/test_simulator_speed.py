"""How fast the simulator is: whole process, CPU seconds, Azure chat lengths at 2.5 requests/s per A100, an 8B model.

KV limits and accounting are on. Run with ``make bench``; the bounds are for one core of a server of today.
"""

import json
import resource
import subprocess
import sys
from pathlib import Path
from time import perf_counter

import pytest

TRACE = Path("../shared/data/traces/AzureLLMInferenceTrace_conv.csv.gz")
LENGTHS = str(TRACE) if TRACE.exists() else "azure-conv"


def pool(folder: Path, replicas: int, *, mixed: bool = False) -> str:
    """A pool file of so many A100 replicas, or of four kinds of cards."""
    kinds = ["a100-80g-sxm", "h100", "l40s", "a30"] if mixed else ["a100-80g-sxm"]
    lines = ["slo: chat:ttft=2s,tpot=100ms", "scrape_s: 5", "backends:"]
    lines += [f"  - {{name: {k}, card: {k}, model: llama-3-8b, count: {replicas // len(kinds)}}}" for k in kinds]
    path = folder / f"pool-{replicas}-{mixed}.yaml"
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def measured(folder: Path, policy: str, requests: int, replicas: int, *, mixed: bool = False) -> tuple[float, float]:
    """CPU seconds and peak MB of one whole replay in a process of its own; prints its figures."""
    out = folder / "out.json"
    workload = f"gen:poisson:rate={2.5 * replicas},requests={requests},lengths={LENGTHS}"
    command = [sys.executable, "-m", "simulator", "replay", workload, "--policy", policy, "--json", str(out)]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([*command, "--pool", pool(folder, replicas, mixed=mixed)], check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    result = json.loads(out.read_text())["runs"][policy]
    assert result["served"] + result["refused"] == requests
    print(
        f"\n{policy}, {requests:,} requests, {replicas} replicas: {requests / cpu_s:,.0f} requests/CPU-s "
        f"({cpu_s:.2f} s), peak {after.ru_maxrss / 1024:,.0f} MB, attainment {result['attainment']:.2%}"
    )
    return cpu_s, after.ru_maxrss / 1024


@pytest.mark.benchmark
def test_round_robin_over_eight_replicas(tmp_path: Path) -> None:
    """100,000 requests; the best compiled peer does 7,500 to 10,200 a CPU second."""
    cpu_s, _ = measured(tmp_path, "round_robin", 100_000, 8)
    assert 100_000 / cpu_s > 35_000


@pytest.mark.benchmark
@pytest.mark.parametrize(("replicas", "requests", "least"), [(8, 100_000, 10_000), (100, 20_000, 3_000)])
def test_slo_headroom_with_forecasts_and_learning(tmp_path: Path, replicas: int, requests: int, least: int) -> None:
    """Predicting and learning for every request, on every replica."""
    cpu_s, _ = measured(tmp_path, "slo_headroom", requests, replicas)
    assert requests / cpu_s > least


@pytest.mark.benchmark
def test_cost_grows_linearly_in_requests(tmp_path: Path) -> None:
    """Ten times the requests cost ten times the CPU, within 15 %, the start of the process apart."""
    small, _ = measured(tmp_path, "round_robin", 100_000, 8)
    large, _ = measured(tmp_path, "round_robin", 1_000_000, 8)
    start_s, _ = measured(tmp_path, "round_robin", 1, 8)
    assert (large - start_s) / (small - start_s) == pytest.approx(10, rel=0.15)


@pytest.mark.benchmark
def test_cost_does_not_depend_on_the_length_of_replies(tmp_path: Path) -> None:
    """The same load in tokens, replies ten times as long: the same cost a request."""
    costs = []
    for output, rate in ((100, 20), (1000, 2)):
        command = [sys.executable, "-m", "simulator", "replay", "--policy", "round_robin", "--json", "-"]
        workload = f"gen:poisson:rate={rate},requests=30000,prompt=1000,output={output}"
        told = subprocess.run([*command, workload, "--pool", pool(tmp_path, 8)], check=True, stdout=subprocess.PIPE)
        costs.append(json.loads(told.stdout)["runs"]["round_robin"]["cpu_s"])
    print(f"\n100 tokens {costs[0]:.2f} s, 1,000 tokens {costs[1]:.2f} s")
    assert costs[1] < 1.3 * costs[0]


@pytest.mark.benchmark
def test_a_million_requests_over_a_hundred_mixed_replicas(tmp_path: Path) -> None:
    """Under five minutes on one core and under 2 GB."""
    cpu_s, peak_mb = measured(tmp_path, "round_robin", 1_000_000, 100, mixed=True)
    assert cpu_s < 300
    assert peak_mb < 2_048


@pytest.mark.benchmark
def test_help_and_a_small_replay_answer_at_once() -> None:
    """--help under half a second, a thousand requests under two, start included."""
    for arguments, most_s in ((["--help"], 0.5), (["replay", "gen:poisson:requests=1000"], 2.0)):
        began_s = perf_counter()
        subprocess.run([sys.executable, "-m", "simulator", *arguments], check=True, stdout=subprocess.DEVNULL)
        took_s = perf_counter() - began_s
        print(f"\n{' '.join(arguments)}: {took_s:.2f} s")
        assert took_s < most_s
