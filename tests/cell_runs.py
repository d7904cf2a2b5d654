"""Cells played: every policy's run of a cell, and how they compare."""

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, as_completed
from dataclasses import dataclass, field, replace
from math import ceil, inf, nan, sqrt
from statistics import mean
from time import process_time
from typing import Any, Final

from simulator.experiment import CLAIRVOYANT, Source, admission_of, executor_of, routing_of
from simulator.pool import Pool
from simulator.run.play import RunResult, play
from simulator.workload.arrivals import Arrival
from tests.cells import Cell, generator

POLICY: Final = "slo_headroom"
BASELINES: Final = (
    "round_robin",
    "least_request",
    "least_work",
    "least_kv",
    "power_of_two",
    "prefix_affinity",
    "session_affinity",
    "llmd_headroom",
    "polyserve",
)
NEAR_CAPACITY: Final = ("0.95", "1.3")
WORSE: Final = -0.01
"""A cell is worse that is more than this share of all requests below its best baseline."""


@dataclass(frozen=True, slots=True)
class Run:
    """One policy in one cell. ``met``: the ids of the requests that were served within their SLO."""

    attained: float
    e2e_mean_s: float
    requests: int
    span_s: float
    cpu_s: float
    met: frozenset[str] = field(default=frozenset(), repr=False)


@dataclass(frozen=True, slots=True)
class Result:
    """All runs of one cell."""

    cell: Cell
    runs: Mapping[str, Run]

    @property
    def ours(self) -> float:
        """Attained with the policy under test."""
        return self.runs[POLICY].attained

    @property
    def best(self) -> str:
        """The baseline that attained most."""
        return max(baselines(self.runs), key=lambda name: self.runs[name].attained)

    @property
    def ahead(self) -> float:
        """Ours less the best baseline's."""
        return self.ours - self.runs[self.best].attained

    @property
    def noise(self) -> float:
        """Standard error of ``ahead``: of the paired difference over requests, each met or missed."""
        ours, best = self.runs[POLICY], self.runs[self.best]
        return paired_error(ours, best)


def paired_error(one: Run, other: Run) -> float:
    """Standard error of the difference of two runs over the same requests: only those count on which they differ.

    In conversations the order of the turns is a run's own, so their ids pair at random: the error is then too large.
    """
    n = max(one.requests, 1)
    differ = len(one.met ^ other.met) / n
    return sqrt(max(differ - (one.attained - other.attained) ** 2, 0.0) / n)


def baselines(names: Iterable[str]) -> list[str]:
    """All but the policy under test and the bound."""
    return [name for name in names if name not in (POLICY, CLAIRVOYANT)]


def run_of(cell: Cell, policy: str) -> Run:
    """Play one policy in one cell: what a worker does."""
    began_s = process_time()
    return summed(cell.case(policy).play(), began_s)


def played(arrivals: Iterable[Arrival], pool: Pool, seed: int, policy: str = POLICY) -> Run:
    """The same of arrivals and a pool that belong to no cell."""
    began_s = process_time()
    return summed(play(arrivals, pool, routing_of(policy), admission_of("deadline"), seed), began_s)


def among(run: Run, ids: Collection[str]) -> Run:
    """What became of the requests *ids* in a run that had others too; times are those of all."""
    met = run.met.intersection(ids)
    return replace(run, met=met, requests=len(ids), attained=len(met) / len(ids))


def overloaded(cell: Cell, times: Sequence[float], policy: str = POLICY) -> dict[float, Run]:
    """*cell* at each multiple of its capacity: what became of those that come in the second half of the run.

    A run lasts four times the loosest bound, 60 to 150 s, so that a backlog has time to grow; at every rate the same
    lengths come in the same order.
    """
    pool = cell.case(policy).pool
    bounds = [bound for one in cell.classes for bound in (one.slo.ttft_s, one.slo.e2e_s) if bound < inf]
    span_s = min(max(60.0, 4.0 * max(bounds, default=0.0)), 150.0)
    runs = {}
    for multiple in times:
        rate = cell.capacity_per_s * multiple
        arrivals = list(Source((generator(cell.workload, rate, ceil(rate * span_s)),)).arrivals(pool, cell.seed))
        late = {arrival.request.id for arrival in arrivals[len(arrivals) // 2 :]}
        runs[multiple] = among(played(arrivals, pool, cell.seed, policy), late)
    return runs


def goodput_kept(runs: Mapping[float, Run]) -> tuple[float, float]:
    """The least that is left of goodput at a higher rate than the one with most, and that ratio's standard error.

    Goodput is attained times the rate. The error is binomial, of both.
    """
    rates = sorted(runs)
    top = max(rates, key=lambda rate: rate * runs[rate].attained)
    least = min((rate for rate in rates if rate >= top), key=lambda rate: rate * runs[rate].attained)
    ratio = least * runs[least].attained / max(top * runs[top].attained, 1e-9)
    relative = sum((1.0 - run.attained) / max(run.attained * run.requests, 1.0) for run in (runs[top], runs[least]))
    return ratio, ratio * sqrt(relative) if least != top else 0.0


def summed(run: RunResult, began_s: float) -> Run:
    """What the grid keeps of a run whose CPU time counts from *began_s*."""
    table = run.table
    met, e2e_s = table.met(), table.e2e_s()[table.served()]
    names = frozenset(name for name, kept in zip(table.ids, met.tolist(), strict=True) if kept)
    span_s = float(table.column("arrived_s").max()) if len(table) else 0.0
    mean_s = float(e2e_s.mean()) if len(e2e_s) else nan
    return Run(float(met.mean()), mean_s, len(table), span_s, process_time() - began_s, names)


def results(cells: Sequence[Cell], policies: Sequence[str], jobs: int) -> Iterator[Result]:
    """Every cell once all its policies have run; in this process for one job."""
    if jobs == 1:
        yield from (Result(cell, {name: run_of(cell, name) for name in policies}) for cell in cells)
        return
    with executor_of("processes", jobs) as executor:
        futures: dict[Future[Run], tuple[Cell, str]] = {
            executor.submit(run_of, cell, name): (cell, name) for cell in cells for name in policies
        }
        runs: dict[Cell, dict[str, Run]] = defaultdict(dict)
        for future in as_completed(futures):
            cell, name = futures.pop(future)
            runs[cell][name] = future.result()
            if len(runs[cell]) == len(policies):
                yield Result(cell, {name: runs[cell][name] for name in policies})


def figures(found: Sequence[Result]) -> dict[str, Any]:
    """The grid in numbers."""
    near = [one for one in found if one.cell.load in NEAR_CAPACITY]
    beyond = [
        str(one.cell)
        for one in found
        if CLAIRVOYANT in one.runs
        and max(run.attained for run in one.runs.values()) > one.runs[CLAIRVOYANT].attained + 0.002
    ]
    facts: dict[str, Any] = {
        "cells": len(found),
        "worse": [str(one.cell) for one in sorted(found, key=lambda one: one.ahead) if one.ahead < WORSE],
        "least": min(one.ahead for one in found),
        "mean": mean(one.ahead for one in found),
        "beyond_bound": beyond,
    }
    if near:
        means = {name: mean(one.runs[name].attained for one in near) for name in baselines(near[0].runs)}
        single = max(means, key=lambda name: means[name])
        facts["near_capacity"] = {
            "cells": len(near),
            "single": single,
            "over_single": mean(one.ours - one.runs[single].attained for one in near),
            "over_best": mean(one.ahead for one in near),
        }
    return facts
