"""Does slo_headroom win? Capacity, overload, stale routers over seeds: ``python -m tests.bench.policies_win``.

The pool: six engines of four kinds (an H100, an A100, two L40S, two pairs of A10), Llama 3 8B; the SLO that of the
simulator's built-in pool (TTFT 1 s, TPOT 60 ms) unless ``--slo`` says otherwise. Truth: every term of every replica's
step off by a random factor of 20 %, of which no router is told. Workloads: Azure's chat trace (``--trace``; without it
its published lengths, Poisson), bursts of chat lengths and bursts of code lengths.

Every baseline is searched for under the first seed; the best ``--finalists`` of each workload, the policy, the same
with four routers whose views are 100 ms old, and the clairvoyant under all seeds. Ratios are taken seed by seed.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import isfinite
from pathlib import Path
from time import monotonic

import policies
from simulator.commands.capacity import Summary, highest_of, searched, summary
from simulator.experiment import CLAIRVOYANT, Case, Seeding, Source, interval
from simulator.pool import BUILT_IN, Member, Pool
from simulator.replica.truth import HiddenFactors
from simulator.workload.arrivals import parse_slo
from simulator.world import World

POLICY = "slo_headroom"
GOAL, OVERLOAD = 0.99, (1.1, 1.2)
AZURE = Path("../shared/data/traces/AzureLLMInferenceTrace_conv.csv.gz")
POOL = Pool(
    members=(
        Member("h100", "h100-sxm"),
        Member("a100", "a100-80g-sxm"),
        Member("l40s", "l40s", count=2),
        Member("a10x2", "a10", tp=2, count=2),
    ),
    classes=BUILT_IN.classes,
    truth=HiddenFactors(spread=0.2),
    name="mixed",
)
Row = tuple[float, float]


@dataclass(frozen=True)
class Asked:
    """What was typed."""

    pool: Pool
    seeds: int
    bound_seeds: int
    first_seed: int
    finalists: int
    precision: float
    jobs: int


def workloads(trace: Path, requests: int) -> dict[str, Source]:
    """By name; rates near what the pool carries, so that searches are short."""
    bursts = f"gen:gamma:rate=32,requests={requests}"
    chat = Source((str(trace),), rate=6.0, limit=requests)
    return {
        "azure-conv": chat if trace.exists() else Source((f"gen:poisson:rate=32,requests={requests}",)),
        "chat bursts (cv 3)": Source((f"{bursts},cv=3",)),
        "code bursts (cv 2)": Source((f"{bursts},cv=2,lengths=azure-code",)),
    }


def best_baselines(source: Source, asked: Asked) -> list[str]:
    """The best few under the first seed; all of them are printed."""
    names = [name for name in policies.names("routing") if name != POLICY]
    cases = [Case(source, asked.pool, name, seed=asked.first_seed) for name in names]
    found = searched(cases, GOAL, asked.precision, jobs=asked.jobs)
    found.sort(key=lambda one: -one.requests_per_s[0])
    print("  one seed: " + ", ".join(f"{one.policy} {one.requests_per_s[0]:.1f}" for one in found))
    return [one.policy for one in found[: asked.finalists]]


def measured(source: Source, baselines: Sequence[str], asked: Asked) -> dict[str, Summary]:
    """Everybody under all seeds, by what the table calls them; the clairvoyant, who costs most, under the first few."""
    cases = {name: Case(source, asked.pool, name, seed=asked.first_seed) for name in (POLICY, *baselines)}
    stale = replace(asked.pool, world=World(routers=4, sync_s=0.1))
    cases[f"{POLICY}, 4 routers 100 ms old"] = Case(source, stale, POLICY, seed=asked.first_seed)
    found = searched(
        list(cases.values()), GOAL, asked.precision, seeding=Seeding(asked.seeds), beyond=OVERLOAD, jobs=asked.jobs
    )
    bound = Case(source, asked.pool, CLAIRVOYANT, seed=asked.first_seed)
    known = searched([bound], GOAL, asked.precision, seeding=Seeding(asked.bound_seeds), jobs=asked.jobs)
    alike = [one.found for one, case in zip(found, cases.values(), strict=True) if case.same_workload(bound)]
    beside = zip(*alike, strict=True)
    best = [highest_of(own, others) for own, others in zip(known[0].found, beside, strict=False)]
    return {**dict(zip(cases, found, strict=True)), CLAIRVOYANT: summary(best)}


def ratio(one: Summary, other: Summary) -> Row:
    """Mean and half width of the ratios of capacity, seed by seed, of the seeds that both ran under."""
    pairs = zip(one.found, other.found, strict=False)
    return interval([a.requests_per_s / b.requests_per_s if b.requests_per_s else float("inf") for a, b in pairs])


def beyond(one: Summary) -> str:
    """What becomes of the goodput beyond the rate found, where that was played."""
    kept = [f.goodput_per_s for f in one.found if len(f.goodput_per_s) > 1]
    if not kept:
        return ""
    above = ", ".join(f"x{interval([g[x] / g[1.0] for g in kept])[0]:.2f}" for x in OVERLOAD)
    left, half = one.goodput_left
    return f"   goodput {above}; at x1.2 {left:.1%} +- {half:.1%} of its most"


def told(name: str, found: dict[str, Summary], baselines: Sequence[str]) -> dict[str, Row]:
    """Print one workload's table; its ratios."""
    print(f"\n{name}: highest rate with {GOAL:.0%} attained, req/s; goodput at x1.1 and x1.2 of it over that at it")
    for label, one in found.items():
        print(f"  {label:36s} {one.requests_per_s[0]:6.1f} +- {one.requests_per_s[1]:4.1f}{beyond(one)}")
    best = max(baselines, key=lambda policy: found[policy].requests_per_s[0])
    ratios = {
        f"over the best baseline ({best})": ratio(found[POLICY], found[best]),
        "over the clairvoyant": ratio(found[POLICY], found[CLAIRVOYANT]),
        "four stale routers over one": ratio(found[f"{POLICY}, 4 routers 100 ms old"], found[POLICY]),
    }
    for label, (mean, half) in ratios.items():
        print(f"  {label:48s} {f'{mean:.3f} +- {half:.3f}' if isfinite(mean) else 'which keeps the goal at no rate'}")
    return {label: row for label, row in ratios.items() if isfinite(row[0])}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trace", type=Path, default=AZURE, help="an Azure conversation trace")
    parser.add_argument("--slo", help="such as ttft=2s,tpot=80ms")
    parser.add_argument("--requests", type=int, default=5_000, help="of each run")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--bound-seeds", type=int, default=0, help="of the clairvoyant; 0: as many as the others")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--finalists", type=int, default=3, help="baselines that run under all seeds")
    parser.add_argument("--precision", type=float, default=0.02)
    parser.add_argument("--jobs", type=int, default=0, help="processes; 0: as many as there are cores")
    parser.add_argument("--only", default="", help="workloads whose name has this in it")
    parser.add_argument("--json", type=Path, help="write the ratios there")
    typed = parser.parse_args()
    pool = replace(POOL, classes=(parse_slo(typed.slo),)) if typed.slo else POOL
    asked = Asked(
        pool,
        typed.seeds,
        typed.bound_seeds or typed.seeds,
        typed.first_seed,
        typed.finalists,
        typed.precision,
        typed.jobs,
    )
    began_s, ratios = monotonic(), {}
    slo = pool.classes[0].slo
    print(
        f"TTFT {slo.ttft_s:g} s, TPOT {slo.tpot_s:g} s; {typed.requests:,} requests a run, {asked.seeds} seeds, +- 95 %"
    )
    print(pool.described())
    for name, source in workloads(typed.trace, typed.requests).items():
        if typed.only in name:
            baselines = best_baselines(source, asked)
            ratios[name] = told(name, measured(source, baselines, asked), baselines)
    print(f"\n{monotonic() - began_s:.0f} s")
    if typed.json:
        typed.json.write_text(json.dumps(ratios, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
