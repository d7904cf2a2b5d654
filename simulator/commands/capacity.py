"""The command ``capacity``: the highest rate at which a policy still attains its goal, by search.

Every policy is searched for under every seed on its own, so that seeds give a confidence interval. Rates are of
requests offered: requests over the time in which they came.
"""

from argparse import Namespace
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, Final

from rich.console import Console

from simulator.commands.playing import print_missed_faults, print_notes, worlds
from simulator.commands.replay import BASELINES, typed
from simulator.commands.shared import plain_errors, wants_table, write_json
from simulator.experiment import CLAIRVOYANT, Case, executor_of, interval, pools_of
from simulator.report.progress import progress
from simulator.report.table import print_capacity
from simulator.run.result_table import ResultTable
from simulator.world import Fault

_DOUBLINGS: Final = 8
_LOWEST: Final = 1 / 64


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


def run(options: Namespace) -> None:
    """Search, print what each policy attains."""
    with plain_errors():
        workload, policies = typed(options), options.policy or BASELINES
        pools = pools_of(options.pool or [None], workload.slos)
        cases = [case for pool in pools for case in replace(workload, pool=pool).cases(policies)]
        _check_paced(cases)
        run_capacity(
            cases,
            options.goal,
            options.precision,
            options.json,
            seeds=options.seeds,
            beyond=options.beyond or (),
            executor=options.executor,
            jobs=options.jobs,
        )


def _check_paced(cases: Sequence[Case]) -> None:
    """Raises ValueError for a workload whose arrivals no rate changes."""
    for case in cases:
        if not getattr(case.source.arrivals(case.pool, case.seed), "paced", True):
            raise ValueError(
                "capacity searches for a rate, and here every request follows from an end or begins at once: "
                "compare numbers of clients with replay instead (gen:closed:clients=...)"
            )


def highest(attained: Callable[[float], bool], precision: float) -> float:
    """The highest rate at which *attained* is true, within *precision* (relative), by doubling and halving from 1; 0:
    none.
    """
    low, high = 1.0, 1.0
    if attained(1.0):
        for _ in range(_DOUBLINGS):
            high = 2 * low
            if not attained(high):
                break
            low = high
    else:
        while low > _LOWEST:
            high, low = low, low / 2
            if attained(low):
                break
        else:
            return 0.0
    while high / low > 1 + precision:
        middle = (low * high) ** 0.5
        low, high = (middle, high) if attained(middle) else (low, middle)
    return low


def run_capacity(
    cases: Sequence[Case],
    goal: float,
    precision: float,
    json_file: Path | None,
    *,
    seeds: int = 1,
    beyond: Sequence[float] = (),
    executor: str = "processes",
    jobs: int = 0,
) -> None:
    """Search for every policy and seed at once."""
    notes = Console(stderr=True)
    print_notes(notes, cases[0])
    found = searched(cases, goal, precision, seeds=seeds, beyond=beyond, executor=executor, jobs=jobs)
    print_missed_faults(notes, ({"faults_outside": one.faults_outside} for each in found for one in each.found))
    if wants_table(json_file):
        print_capacity(Console(), found, goal, max(beyond, default=1.0), worlds(cases))
    if json_file is not None:
        facts = {"goal": goal, "precision": precision, "world": worlds(cases)}
        write_json(json_file, {**facts, "found": [_plain(one) for one in found]})


def searched(
    cases: Sequence[Case],
    goal: float,
    precision: float,
    *,
    seeds: int = 1,
    beyond: Sequence[float] = (),
    executor: str = "processes",
    jobs: int = 0,
) -> list[Summary]:
    """One summary a case, in their order."""
    every = [replace(case, seed=case.seed + n) for case in cases for n in range(seeds)]
    found: list[Found] = []
    with executor_of(executor, jobs) as pool, progress(Console(stderr=True), "capacity", len(every)) as tell:
        for count, search in enumerate([pool.submit(_search, one, goal, precision, tuple(beyond)) for one in every], 1):
            found.append(search.result())
            tell(count)
    each = [found[n * seeds : (n + 1) * seeds] for n in range(len(cases))]
    return [
        replace(summary(_bounded(case, of_case, cases, each)), pool=case.pool.name)
        for case, of_case in zip(cases, each, strict=True)
    ]


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


def _plain(one: Summary) -> dict[str, Any]:
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
        "runs": runs,
    }


def _search(case: Case, goal: float, precision: float, beyond: tuple[float, ...]) -> Found:
    """One policy's highest rate under one seed."""

    @cache
    def played(rate: float) -> "_Played":
        return _played(_at(case, rate), goal)

    rate = highest(lambda rate: played(rate).attainment >= goal, precision)
    if not rate:
        return Found(case.policy, case.seed, 0.0, 0.0, 0.0)
    there = played(rate)
    goodput = {factor: _played(_at(case, rate * factor), 0.0).goodput_per_s for factor in beyond}
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


@dataclass(frozen=True, slots=True)
class _Played:
    """One run: its attainment, the requests that came per second, the bound's strategy, faults that never happened."""

    attainment: float
    requests_per_s: float
    strategy: str
    faults_outside: tuple[Fault, ...]

    @property
    def goodput_per_s(self) -> float:
        return self.attainment * self.requests_per_s


def _played(case: Case, goal: float) -> _Played:
    """One run; once too many have missed for the goal, it ends there with what it has."""
    requests = len(case.source.arrivals(case.pool, case.seed))

    def missed(table: ResultTable) -> int:
        return len(table) - int(table.met().sum())

    run = case.play(stop=lambda table: missed(table) > (1.0 - goal) * requests, enough=goal or 1.0)
    table = run.table
    arrived_s = table.column("arrived_s")
    span_s = float(arrived_s.max() - arrived_s.min()) if len(table) else 0.0
    per_s = len(table) / span_s if span_s > 0.0 else 0.0
    return _Played(1.0 - missed(table) / requests, per_s, run.strategy, run.faults_outside)


__all__ = ["Found", "Summary", "highest", "highest_of", "run_capacity", "searched", "summary"]
