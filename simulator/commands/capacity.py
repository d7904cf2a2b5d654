"""The command ``capacity``: the highest rate at which a policy still attains its goal, by search; or, with
``--replicas``, the fewest replicas with which it does.

Every policy is searched for under every seed on its own, so that seeds give a confidence interval, of differences too.
Rates are of requests offered: requests over the time in which they came.
"""

from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, Final

from rich.console import Console

from simulator.commands.over_seeds import Key, plain_differences, spreads_between
from simulator.commands.playing import print_missed_faults, print_notes, worlds
from simulator.commands.replay import BASELINES, typed
from simulator.commands.replica_search import KEYS, Search, relative_widths, results_of, run_replicas
from simulator.commands.seeding import seeding_of
from simulator.commands.shared import plain_errors, wants_table, write_json
from simulator.experiment import (
    CLAIRVOYANT,
    Attained,
    Case,
    Seeding,
    attained,
    executor_of,
    interval,
    pools_of,
    until_narrow,
)
from simulator.report.differences import Differences, print_differences
from simulator.report.table import print_capacity

PRECISION: Final = 0.02
_DOUBLINGS: Final = 8
_LOWEST: Final = 1 / 64
FIGURES: Final = (
    ("rate", "rate", lambda x: f"x{x:.3g}"),
    ("requests_per_s", "requests/s", lambda x: f"{x:.2f}"),
)
"""Of which there are differences: name, heading, form."""
ONE_SEED: Final = Seeding()


@dataclass(frozen=True, slots=True)
class Found:
    """The result of one policy under one seed. At ``rate`` times the workload's own rate it attains the goal, at ``rate
    * (1 + precision)`` it does not (0: it attains it at no rate tried).

    ``goodput_per_s``: requests per second that met their SLO at ``rate`` (key 1) and at multiples of it.
    """

    policy: str
    seed: int
    rate: float
    requests_per_s: float
    attainment: float
    goodput_per_s: dict[float, float] = field(default_factory=dict)
    strategy: str = ""
    faults_outside: tuple[str, ...] = ()  # at the rate found: they never happened in its run

    @property
    def goodput_left(self) -> float:
        """Goodput at the largest multiple, as a share of the most there was at any."""
        most = max(self.goodput_per_s.values(), default=0.0)
        return self.goodput_per_s[max(self.goodput_per_s)] / most if most else 0.0


@dataclass(frozen=True, slots=True)
class Summary:
    """One policy over its seeds: means with the half widths of their 95 % confidence intervals."""

    policy: str
    rate: tuple[float, float]
    requests_per_s: tuple[float, float]
    attainment: tuple[float, float]
    goodput_left: tuple[float, float]
    found: tuple[Found, ...]
    pool: str = ""

    def values(self, figure: str) -> list[float]:
        """One figure of ``FIGURES``, a value a seed."""
        return [getattr(one, figure) for one in self.found]


def run(options: Namespace) -> None:
    """Search, print what each policy attains."""
    with plain_errors():
        workload, policies = typed(options), options.policy or BASELINES
        _check_together(options)
        pools = pools_of(options.pool or [None], workload.slos)
        workload = replace(workload, rate=options.rate or workload.rate)
        cases = [case for pool in pools for case in replace(workload, pool=pool).cases(policies)]
        search = Search(options.goal, seeding_of(options), options.executor, options.jobs, options.json)
        if options.replicas is not None:
            run_replicas(cases, options.replicas, search)
        else:
            _check_paced(cases)
            run_capacity(cases, options.precision or PRECISION, search, options.beyond or ())


def _check_together(options: Namespace) -> None:
    """Raises ValueError for an option of the other search."""
    if options.replicas is None and options.rate is not None:
        raise ValueError("--rate goes with --replicas: without it, the rate is what is searched for")
    for name in ("precision", "beyond"):
        if options.replicas is not None and getattr(options, name) is not None:
            raise ValueError(f"--{name} is of the search for a rate, and --replicas searches for replicas")


def _check_paced(cases: Sequence[Case]) -> None:
    """Raises ValueError for a workload whose arrivals no rate changes."""
    for case in cases:
        if not getattr(case.source.arrivals(case.pool, case.seed), "paced", True):
            raise ValueError(
                "capacity searches for a rate, and here every request follows from an end or begins at once: "
                "search for the replicas that it needs instead (--replicas NAME)"
            )


def highest(attains: Callable[[float], bool], precision: float) -> float:
    """The highest rate at which *attains* is true, within *precision* (relative), by doubling and halving from 1; 0:
    none.
    """
    low, high = 1.0, 1.0
    if attains(1.0):
        for _ in range(_DOUBLINGS):
            high = 2 * low
            if not attains(high):
                break
            low = high
    else:
        while low > _LOWEST:
            high, low = low, low / 2
            if attains(low):
                break
        else:
            return 0.0
    while high / low > 1 + precision:
        middle = (low * high) ** 0.5
        low, high = (middle, high) if attains(middle) else (low, middle)
    return low


def run_capacity(cases: Sequence[Case], precision: float, search: Search, beyond: Sequence[float] = ()) -> None:
    """Search for every policy and seed at once."""
    notes = Console(stderr=True)
    print_notes(notes, cases[0])
    found = searched(
        cases,
        search.goal,
        precision,
        seeding=search.seeding,
        beyond=beyond,
        executor=search.executor,
        jobs=search.jobs,
    )
    print_missed_faults(notes, ({"faults_outside": one.faults_outside} for each in found for one in each.found))
    by_seed: dict[Key, dict[str, list[float]]] = {
        (one.pool, one.policy): {name: one.values(name) for name, _, _ in FIGURES} for one in found
    }
    between = spreads_between(by_seed)
    if wants_table(search.json_file):
        console = Console()
        print_capacity(console, found, search.goal, max(beyond, default=1.0))
        print_differences(console, KEYS, between, FIGURES)
        console.print(worlds(cases), style="dim", highlight=False)
    if search.json_file is not None:
        facts = {"goal": search.goal, "precision": precision, "world": worlds(cases)}
        write_json(search.json_file, {**facts, "found": [_plain(one, between) for one in found]})


def searched(
    cases: Sequence[Case],
    goal: float,
    precision: float,
    *,
    seeding: Seeding = ONE_SEED,
    beyond: Sequence[float] = (),
    executor: str = "processes",
    jobs: int = 0,
) -> list[Summary]:
    """One summary a case, in their order."""
    each: list[list[Found]] = [[] for _ in cases]

    def summaries() -> list[Summary]:
        return [
            replace(summary(_bounded(case, of_case, cases, each)), pool=case.pool.name)
            for case, of_case in zip(cases, each, strict=True)
        ]

    with executor_of(executor, jobs) as pool:

        def play(seeds: range) -> None:
            every = [replace(case, seed=case.seed + n) for case in cases for n in seeds]
            searches = [pool.submit(_search, one, goal, precision, tuple(beyond)) for one in every]
            found = iter(results_of(searches, "capacity"))
            for of_case in each:
                of_case += [next(found) for _ in seeds]

        until_narrow(seeding, play, lambda: _widths(summaries()))
    return summaries()


def _widths(found: Sequence[Summary]) -> Iterator[float]:
    """Half widths of every rate, and of every difference of two, as shares of the rates."""
    rates: dict[Key, list[float]] = {(one.pool, one.policy): one.values("requests_per_s") for one in found}
    yield from relative_widths(rates)


def _bounded(
    bound: Case, found: Sequence[Found], cases: Sequence[Case], each: Sequence[Sequence[Found]]
) -> Sequence[Found]:
    """Of the bound, seed by seed the highest rate that anybody found for the same workload and pool; else *found*."""
    if bound.policy != CLAIRVOYANT:
        return found
    beside = [of_case for case, of_case in zip(cases, each, strict=True) if case.same_workload(bound)]
    return [highest_of(own, seeded) for own, seeded in zip(found, zip(*beside, strict=True), strict=True)]


def highest_of(bound: Found, beside: Iterable[Found]) -> Found:
    """The bound under one seed, where a policy that was searched beside it found a higher rate: that one."""
    best = bound
    for other in beside:
        if other.rate > best.rate:
            best = replace(other, policy=bound.policy, strategy=other.policy)
    return best


def summary(found: Sequence[Found]) -> Summary:
    """One policy's findings under its seeds, as means with intervals."""
    return Summary(
        found[0].policy,
        interval([one.rate for one in found]),
        interval([one.requests_per_s for one in found]),
        interval([one.attainment for one in found]),
        interval([one.goodput_left for one in found]),
        tuple(found),
    )


def _plain(one: Summary, between: Differences) -> dict[str, Any]:
    runs = [
        {
            "seed": f.seed,
            "rate": f.rate,
            "requests_per_s": f.requests_per_s,
            "goodput_per_s": f.goodput_per_s,
            **({"strategy": f.strategy} if f.strategy else {}),
        }
        for f in one.found
    ]
    rate, half = one.rate
    per_s, per_s_half = one.requests_per_s
    intervals = {"rate": half, "requests_per_s": per_s_half}
    return {
        "pool": one.pool,
        "policy": one.policy,
        "rate": rate,
        "requests_per_s": per_s,
        "half_widths": intervals,
        "differences": plain_differences(KEYS, (one.pool, one.policy), between),
        "runs": runs,
    }


def _search(case: Case, goal: float, precision: float, beyond: tuple[float, ...]) -> Found:
    """One policy's highest rate under one seed."""

    @cache
    def played(rate: float) -> Attained:
        return attained(_at(case, rate), goal)

    rate = highest(lambda rate: played(rate).attainment >= goal, precision)
    if not rate:
        return Found(case.policy, case.seed, 0.0, 0.0, 0.0)
    there = played(rate)
    goodput = {factor: attained(_at(case, rate * factor), 0.0).goodput_per_s for factor in beyond}
    return Found(
        case.policy,
        case.seed,
        rate,
        there.requests_per_s,
        there.attainment,
        {1.0: there.goodput_per_s, **goodput},
        there.strategy,
        tuple(f"{fault.described()}, at x{rate:.3g}" for fault in there.faults_outside),
    )


def _at(case: Case, rate: float) -> Case:
    return replace(case, source=replace(case.source, rate=case.source.rate * rate))


__all__ = ["Found", "Summary", "highest", "highest_of", "run_capacity", "searched", "summary"]
