"""The command ``compare``: policies x pools x rates x seeds, on all cores or a cluster."""

from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from simulator.commands.playing import print_missed_faults, print_notes, worlds
from simulator.commands.replay import BASELINES, Workload, intervals, plain_intervals, typed
from simulator.commands.shared import plain_errors, wants_table, write_json
from simulator.experiment import Case, executor_of, in_parallel, interval, pools_of
from simulator.report.progress import progress
from simulator.report.table import print_comparison

Key = tuple[str, str, str]


def run(options: Namespace) -> None:
    """Play every combination, print a row each."""
    policies, pools, rates = options.policy or BASELINES, options.pool or [None], options.rate or ["x1"]
    with plain_errors():
        grid = cases_of(typed(options), policies, pools, rates, options.seeds)
        run_compare(grid, options.executor, options.jobs, options.json)


def cases_of(
    workload: Workload, policies: Sequence[str], pools: Sequence[Path | None], rates: Sequence[str], seeds: int
) -> dict[Key, list[Case]]:
    """Every combination, with one case a seed; everything that was typed is checked here."""
    grid: dict[Key, list[Case]] = {}
    for pool in pools_of(pools, workload.slos):
        for rate in rates:
            for case in replace(workload, pool=pool, rate=rate).cases(policies):
                seeded = [replace(case, seed=case.seed + n) for n in range(seeds)]
                grid[case.pool.name, rate, case.policy] = seeded
    return grid


def run_compare(grid: dict[Key, list[Case]], executor: str, jobs: int, json_file: Path | None) -> None:
    """Play all of it, print one row a combination."""
    every, notes = [case for cases in grid.values() for case in cases], Console(stderr=True)
    print_notes(notes, every[0])
    with executor_of(executor, jobs) as pool, progress(notes, "compare", len(every)) as tell:
        flat = iter(in_parallel(every, pool, tell))
    results = {key: [next(flat) for _ in cases] for key, cases in grid.items()}
    print_missed_faults(notes, (result for of_seeds in results.values() for result in of_seeds))
    rows = {key: intervals(of_seeds) | below_best(key, results) for key, of_seeds in results.items()}
    if wants_table(json_file):
        console = Console()
        print_comparison(console, rows, len(next(iter(grid.values()))))
        console.print(worlds(every), style="dim", highlight=False)
    if json_file is not None:
        write_json(json_file, [_plain(key, grid[key], results[key], rows[key]) for key in grid])


def below_best(key: Key, results: Mapping[Key, Sequence[dict[str, Any]]]) -> dict[str, tuple[float, float]]:
    """How much less attainment a combination has than the best policy of its pool and rate. The same seeds give both
    the same arrivals, so that the interval is of the differences.
    """
    beside = {
        other: [run["attainment"] or 0.0 for run in runs] for other, runs in results.items() if other[:2] == key[:2]
    }
    best = max(beside.values(), key=sum)
    return {"below_best": interval([there - here for there, here in zip(best, beside[key], strict=True)])}


def _plain(
    key: Key, cases: Sequence[Case], results: Sequence[dict[str, Any]], spread: dict[str, tuple[float, float]]
) -> dict[str, Any]:
    pool, rate, policy = key
    runs = [{"seed": case.seed, **result} for case, result in zip(cases, results, strict=True)]
    world = cases[0].pool.described()
    return {
        "pool": pool,
        "rate": rate,
        "policy": policy,
        "world": world,
        "intervals": plain_intervals(spread),
        "runs": runs,
    }
