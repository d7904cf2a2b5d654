"""What ``capacity --replicas NAME`` does: the fewest replicas of one backend with which a policy attains its goal.

The rest of the pool and the rate stay as they are, so closed loops can be searched for too. Every policy is searched
for under every seed on its own. Assumes that more replicas do not attain less.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import cache
from math import inf, isnan, nan
from pathlib import Path
from typing import Final, TypeVar

from rich import box
from rich.console import Console
from rich.table import Table

from simulator.commands.over_seeds import plain, plain_differences, spreads_between
from simulator.commands.playing import print_missed_faults, print_notes, worlds
from simulator.commands.shared import wants_table, write_json
from simulator.experiment import (
    CLAIRVOYANT,
    Attained,
    Case,
    Seeding,
    attained,
    differences,
    executor_of,
    interval,
    until_narrow,
)
from simulator.pool import Pool
from simulator.report.differences import print_differences
from simulator.report.progress import progress
from simulator.report.table import interval_text, widen
from simulator.report.whole import print_whole

KEYS: Final = ("pool", "policy")
MOST: Final = 256
FIGURES: Final = (
    ("replicas", "replicas", lambda x: f"{x:.3g}"),
    ("usd_per_hour", "USD/h", lambda x: f"{x:.2f}"),
)
"""Of which there are differences: name, heading, form."""
Value = TypeVar("Value")


@dataclass(frozen=True, slots=True)
class Search:
    """What every search of ``capacity`` takes."""

    goal: float
    seeding: Seeding
    executor: str = "processes"
    jobs: int = 0
    json_file: Path | None = None


@dataclass(frozen=True, slots=True)
class Fewest:
    """The result of one policy under one seed. ``replicas`` nan: not even ``MOST`` attain the goal; ``usd_per_hour``:
    of the whole pool.
    """

    seed: int
    replicas: float
    usd_per_hour: float
    attainment: float
    faults_outside: tuple[str, ...] = ()


def fewest(attains: Callable[[int], bool], first: int, most: int = MOST) -> int:
    """The smallest number for which *attains* is true, by doubling from *first* and halving the gap; 0: none is."""
    low, high = 0, first
    while not attains(high):
        if high >= most:
            return 0
        low, high = high, min(2 * high, most)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if attains(middle) else (middle, high)
    return high


def grown(pool: Pool, name: str, count: int) -> Pool:
    """*pool* with *count* replicas of the backend *name*. Raises ValueError: no such backend, or names that clash."""
    known = [member.name for member in pool.members]
    if name not in known:
        raise ValueError(f"--replicas {name}: pool {pool.name!r} has the backends {', '.join(known)}")
    members = tuple(replace(each, count=count) if each.name == name else each for each in pool.members)
    names = [replica for member in members for replica in member.names]
    if len(set(names)) < len(names):
        twice = next(each for each in names if names.count(each) > 1)
        raise ValueError(f"--replicas {name}: with {count} of them two replicas are named {twice!r}")
    gone = [fault for fault in pool.world.faults if fault.backend not in names]
    if gone:
        raise ValueError(f"--replicas {name}: {gone[0].described()} is of a replica that {count} of them do not have")
    return replace(pool, members=members)


def run_replicas(cases: Sequence[Case], name: str, search: Search) -> None:
    """Search for every policy and seed at once, print one row a policy and one a difference."""
    for case in cases:
        for count in (1, MOST):
            grown(case.pool, name, count)
    notes = Console(stderr=True)
    print_notes(notes, cases[0])
    found = _searched(cases, name, search)
    print_missed_faults(notes, ({"faults_outside": one.faults_outside} for each in found.values() for one in each))
    by_seed = {key: {figure: _values(each, figure) for figure, _, _ in FIGURES} for key, each in found.items()}
    between = spreads_between(by_seed)
    spreads = {key: {figure: interval(values) for figure, values in of.items()} for key, of in by_seed.items()}
    if wants_table(search.json_file):
        console = Console()
        _print(console, found, name, search.goal)
        print_differences(console, KEYS, between, FIGURES)
        console.print(worlds(cases), style="dim", highlight=False)
    if search.json_file is not None:
        rows = [
            {
                **dict(zip(KEYS, key, strict=True)),
                **plain(spreads[key]),
                "differences": plain_differences(KEYS, key, between),
                "runs": [_plain(one) for one in each],
            }
            for key, each in found.items()
        ]
        facts = {"goal": search.goal, "backend": name, "world": worlds(cases), "found": rows}
        write_json(search.json_file, facts)


def _searched(cases: Sequence[Case], name: str, search: Search) -> dict[tuple[str, ...], list[Fewest]]:
    found: dict[tuple[str, ...], list[Fewest]] = {(case.pool.name, case.policy): [] for case in cases}
    with executor_of(search.executor, search.jobs) as pool:

        def play(seeds: range) -> None:
            every = [replace(case, seed=case.seed + n) for case in cases for n in seeds]
            results = iter(results_of([pool.submit(_search, one, name, search.goal) for one in every], "replicas"))
            for of_case in found.values():
                of_case += [next(results) for _ in seeds]

        def widths() -> Iterator[float]:
            return relative_widths({key: _values(each, "replicas") for key, each in bounded(found).items()})

        until_narrow(search.seeding, play, widths)
    return bounded(found)


def bounded(found: Mapping[tuple[str, ...], list[Fewest]]) -> dict[tuple[str, ...], list[Fewest]]:
    """*found*, with the clairvoyant bound, seed by seed, at the fewest that any policy needed on its pool."""
    return {
        (pool, policy): each
        if policy != CLAIRVOYANT
        else _fewest_of([of for key, of in found.items() if key[0] == pool])
        for (pool, policy), each in found.items()
    }


def _fewest_of(rows: Sequence[Sequence[Fewest]]) -> list[Fewest]:
    return [
        min(of_seed, key=lambda one: inf if isnan(one.replicas) else one.replicas)
        for of_seed in zip(*rows, strict=True)
    ]


def results_of(searches: Sequence["Future[Value]"], label: str) -> list[Value]:
    """What searches found, in their order, with their progress."""
    found: list[Value] = []
    with progress(Console(stderr=True), label, len(searches)) as tell:
        for count, search in enumerate(searches, 1):
            found.append(search.result())
            tell(count)
    return found


def relative_widths(values: Mapping[tuple[str, ...], Sequence[float]]) -> Iterator[float]:
    """Half widths of the mean of each row and of every difference of two, as shares of the larger mean."""
    means = {key: interval(of_row) for key, of_row in values.items()}
    yield from (half / mean for mean, half in means.values() if mean > 0.0)
    for (a, b), (_, half) in differences(values).items():
        mean = max(means[a][0], means[b][0])
        if mean > 0.0 and not isnan(half):  # of what attains under no number there is none
            yield half / mean


def _search(case: Case, name: str, goal: float) -> Fewest:
    """One policy's fewest replicas under one seed."""

    @cache
    def played(count: int) -> Attained:
        return attained(replace(case, pool=grown(case.pool, name, count)), goal)

    begun = next(member.count for member in case.pool.members if member.name == name)
    count = fewest(lambda count: played(count).attainment >= goal, begun)
    if not count:
        return Fewest(case.seed, nan, nan, played(MOST).attainment)
    usd = sum(member.price() * member.count for member in grown(case.pool, name, count).members)
    there = played(count)
    outside = tuple(f"{fault.described()}, with {count} of {name}" for fault in there.faults_outside)
    return Fewest(case.seed, float(count), usd, there.attainment, outside)


def _values(each: Sequence[Fewest], figure: str) -> list[float]:
    return [getattr(one, figure) for one in each]


def _plain(one: Fewest) -> dict[str, object]:
    count = None if one.replicas != one.replicas else int(one.replicas)
    usd = None if count is None else one.usd_per_hour
    return {"seed": one.seed, "replicas": count, "usd_per_hour": usd, "attainment": one.attainment}


def _print(console: Console, found: dict[tuple[str, ...], list[Fewest]], name: str, goal: float) -> None:
    seeds = len(next(iter(found.values())))
    over = f", means over {seeds} seeds, +- 95 % confidence" if seeds > 1 else ""
    title = f"fewest replicas of {name} with attainment >= {goal:.1%}{over}"
    widen(console, 110)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=title, title_justify="left")
    several = len({pool for pool, _ in found}) > 1
    for heading in (*["pool"] * several, "policy", "replicas", "USD/h of the pool", "attainment there"):
        table.add_column(heading, justify="left" if heading in KEYS else "right", no_wrap=True)
    for (pool, policy), each in found.items():
        count = interval_text(interval(_values(each, "replicas")), ".3g")
        usd = interval_text(interval(_values(each, "usd_per_hour")), ".2f")
        at = f"{interval(_values(each, 'attainment'))[0]:.2%}"
        table.add_row(*[pool] * several, policy, "none" if count == "-" else count, usd, at)
    print_whole(console, table)
