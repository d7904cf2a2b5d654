"""The command ``compare``: policies x pools x rates x seeds, on all cores or a cluster.

Every row is played under the same seeds, so each difference of two rows has an interval of its own.
"""

from argparse import Namespace
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from rich.console import Console

from simulator.commands.over_seeds import Key, Spread, between, intervals, plain, plain_differences, played
from simulator.commands.playing import print_missed_faults, print_notes, worlds
from simulator.commands.replay import BASELINES, Workload, typed
from simulator.commands.seeding import seeding_of
from simulator.commands.shared import plain_errors, wants_table, write_json
from simulator.experiment import Case, Seeding, pools_of
from simulator.report.differences import Differences, print_differences
from simulator.report.table import print_comparison

KEYS: Final = ("pool", "rate", "policy")


def run(options: Namespace) -> None:
    """Play every combination, print a row each."""
    policies, pools, rates = options.policy or BASELINES, options.pool or [None], options.rate or ["x1"]
    with plain_errors():
        grid = cases_of(typed(options), policies, pools, rates)
        run_compare(grid, seeding_of(options), options.executor, options.jobs, options.json)


def cases_of(
    workload: Workload, policies: Sequence[str], pools: Sequence[Path | None], rates: Sequence[str]
) -> dict[Key, Case]:
    """Every combination under its first seed; everything that was typed is checked here."""
    return {
        (case.pool.name, rate, case.policy): case
        for pool in pools_of(pools, workload.slos)
        for rate in rates
        for case in replace(workload, pool=pool, rate=rate).cases(policies)
    }


def run_compare(grid: dict[Key, Case], seeding: Seeding, executor: str, jobs: int, json_file: Path | None) -> None:
    """Play all of it, print one row a combination and one a difference."""
    notes = Console(stderr=True)
    print_notes(notes, next(iter(grid.values())))
    results = played(grid, seeding, executor, jobs, notes, "compare")
    print_missed_faults(notes, (result for of_seeds in results.values() for result in of_seeds))
    rows = {key: intervals(of_seeds) for key, of_seeds in results.items()}
    differences = between(results)
    if wants_table(json_file):
        console = Console()
        print_comparison(console, rows, len(next(iter(results.values()))))
        print_differences(console, KEYS, differences)
        console.print(worlds(grid.values()), style="dim", highlight=False)
    if json_file is not None:
        write_json(json_file, [_plain(key, grid[key], results[key], rows[key], differences) for key in grid])


def _plain(
    key: Key,
    case: Case,
    results: Sequence[dict[str, Any]],
    spread: Spread,
    differences: Differences,
) -> dict[str, Any]:
    runs = [{"seed": case.seed + n, **result} for n, result in enumerate(results)]
    return {
        **dict(zip(KEYS, key, strict=True)),
        "world": case.pool.described(),
        "intervals": plain(spread),
        "differences": plain_differences(KEYS, key, differences),
        "runs": runs,
    }
