"""Cases under several seeds, all under the same ones: their figures as means and as differences, each with an interval.

Keys say what a case is: a policy, or pool, rate and policy. Must not depend on how figures are shown.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from math import isnan
from typing import Any, Final

from rich.console import Console

from router.core.slo_metrics import SLO_METRICS
from simulator.experiment import (
    Case,
    Seeding,
    difference,
    differences,
    executor_of,
    in_parallel,
    interval,
    pairs,
    until_narrow,
)
from simulator.report.progress import progress

Key = tuple[str, ...]
Spread = Mapping[str, tuple[float, float]]
"""Figures by name: the mean and the half width of its interval, nan where there is none."""

Results = dict[Key, list[dict[str, Any]]]
"""The figures of each case, one entry a seed."""

FIGURES: Final = (
    ("attainment", ("attainment",)),
    ("goodput_per_s", ("goodput_per_s",)),
    *((f"{metric.name}_p99_s", (metric.seconds, "p99")) for metric in SLO_METRICS),
    ("usd_per_million_output_tokens", ("usd_per_million_output_tokens",)),
)


def played(
    cases: Mapping[Key, Case], seeding: Seeding, executor: str, jobs: int, notes: Console, label: str
) -> Results:
    """Play every case under as many seeds as *seeding* wants, from its own on."""
    results: Results = {key: [] for key in cases}
    with executor_of(executor, jobs) as pool:

        def play(seeds: range) -> None:
            every = [replace(case, seed=case.seed + n) for case in cases.values() for n in seeds]
            with progress(notes, label, len(every)) as tell:
                flat = iter(in_parallel(every, pool, tell))
            for of_case in results.values():
                of_case += [next(flat) for _ in seeds]

        until_narrow(seeding, play, lambda: _widths(results))
    return results


def _widths(results: Results) -> Iterator[float]:
    """Half widths of every attainment, and of every difference of two."""
    attained = {key: [float(one["attainment"] or 0.0) for one in of_case] for key, of_case in results.items()}
    yield from (interval(values)[1] for values in attained.values())
    yield from (half for _, half in differences(attained).values())


def intervals(results: Sequence[dict[str, Any]]) -> dict[str, tuple[float, float]]:
    """Mean and half width of the main figures over several runs."""
    return {name: interval(values) for name, values in _by_figure(results).items()}


def between(results: Results) -> dict[tuple[Key, Key], Spread]:
    """Of every two cases that differ in one place of their keys: each figure of the second minus that of the first."""
    return spreads_between({key: _by_figure(of_case) for key, of_case in results.items()})


def spreads_between(by_seed: Mapping[Key, Mapping[str, Sequence[float]]]) -> dict[tuple[Key, Key], Spread]:
    """The same of figures that have one value a seed."""
    return {
        (first, second): {name: difference(values, by_seed[second][name]) for name, values in by_seed[first].items()}
        for first, second in pairs(list(by_seed))
    }


def plain_differences(
    keys: Sequence[str], of: Key, differences: Mapping[tuple[Key, Key], Spread]
) -> list[dict[str, Any]]:
    """For JSON, those in which *of* is the second: what is subtracted, by the names of *keys*, and each figure."""
    return [
        {"minus": dict(zip(keys, first, strict=True)), **plain(spread)}
        for (first, second), spread in differences.items()
        if second == of
    ]


def plain(spread: Spread) -> dict[str, tuple[float | None, float | None]]:
    """The same for JSON, which has no nan: None where a figure is undefined, or where one seed gives no width."""
    return {
        name: (None, None) if isnan(mean) else (mean, None if isnan(half) else half)
        for name, (mean, half) in spread.items()
    }


def _by_figure(results: Sequence[dict[str, Any]]) -> dict[str, list[float]]:
    """The main figures, one value a run."""
    return {name: [_at(result, path) for result in results] for name, path in FIGURES}


def _at(result: Any, path: tuple[str, ...]) -> float:
    for key in path:
        result = result[key]
    return float("nan") if result is None else float(result)
