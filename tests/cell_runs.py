"""Cells played: every policy's run of a cell, and how they compare."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, as_completed
from dataclasses import dataclass
from math import nan, sqrt
from time import process_time
from typing import Final

from simulator.experiment import CLAIRVOYANT, executor_of
from tests.cells import Cell

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
WORSE: Final = -0.01
"""A cell is worse that is more than this share of all requests below its best baseline."""


@dataclass(frozen=True, slots=True)
class Run:
    """One policy in one cell. ``missed``: the ids of requests that were refused or missed their SLO."""

    attained: float
    e2e_mean_s: float
    requests: int
    span_s: float
    cpu_s: float
    missed: frozenset[str] = frozenset()


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
    """Standard error of the difference of two runs over the same requests: only those count on which they differ."""
    n = max(one.requests, 1)
    differ = len(one.missed ^ other.missed) / n
    return sqrt(max(differ - (one.attained - other.attained) ** 2, 0.0) / n)


def baselines(names: Iterable[str]) -> list[str]:
    """All but the policy under test and the bound."""
    return [name for name in names if name not in (POLICY, CLAIRVOYANT)]


def run_of(cell: Cell, policy: str) -> Run:
    """Play one policy in one cell: what a worker does."""
    began_s = process_time()
    books = cell.case(policy).play().books
    met, e2e_s = books.met(), books.e2e_s()[books.served()]
    missed = frozenset(name for name, kept in zip(books.ids, met.tolist(), strict=True) if not kept)
    span_s = float(books.column("arrived_s").max()) if len(books) else 0.0
    mean_s = float(e2e_s.mean()) if len(e2e_s) else nan
    return Run(float(met.mean()), mean_s, len(books), span_s, process_time() - began_s, missed)


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
