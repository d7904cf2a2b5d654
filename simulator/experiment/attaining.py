"""One run against a goal of attainment: it ends once too many requests have missed for the goal.

Must not depend on what is searched for.
"""

from dataclasses import dataclass

from simulator.experiment.case import Case
from simulator.run.result_table import ResultTable
from simulator.world import Fault


@dataclass(frozen=True, slots=True)
class Attained:
    """One run: its attainment, the requests that came per second, the bound's strategy, faults that never happened."""

    attainment: float
    requests_per_s: float
    strategy: str
    faults_outside: tuple[Fault, ...]

    @property
    def goodput_per_s(self) -> float:
        """Requests per second that met their SLO."""
        return self.attainment * self.requests_per_s


def attained(case: Case, goal: float) -> Attained:
    """Play *case*; once too many have missed for *goal*, it ends there with what it has."""
    requests = len(case.source.arrivals(case.pool, case.seed))

    def most(table: ResultTable) -> float:
        """Where all that have not ended meet theirs."""
        return (requests - len(table) + int(table.met().sum())) / requests

    run = case.play(stop=lambda table: most(table) < goal, enough=goal or 1.0)
    table = run.table
    arrived_s = table.column("arrived_s")
    span_s = float(arrived_s.max() - arrived_s.min()) if len(table) else 0.0
    per_s = len(table) / span_s if span_s > 0.0 else 0.0
    return Attained(most(table), per_s, run.strategy, run.faults_outside)
