"""One candidate played: the pool of a mix, the shares within each bound under one seed. Runs in a worker process."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from router.core.slo_metrics import SLO_METRICS
from simulator.experiment import Case, Source
from simulator.planning.goals import Goals
from simulator.planning.variants import Mix
from simulator.pool import Pool
from simulator.run.result_table import ResultTable
from simulator.run.summary import span, spread

_ROUNDING: Final = 1e-6  # 1.0 - 0.9 is less than 0.1


@dataclass(frozen=True, slots=True)
class Load:
    """What every candidate is played against. ``models``: the names that requests ask for."""

    source: Source
    goals: Goals
    policy: str
    admission: str
    models: tuple[str, ...]

    def pool(self, mix: Mix) -> Pool:
        """The pool of a mix.

        Hidden factors are drawn by the name of a replica. So names do not depend on the make: every candidate has the
        same luck, and of two cards that are alike the cheaper one attains whenever the dearer one does.
        """
        named = enumerate(mix.parts, 1)
        members = tuple(variant.member(f"part{n}", count, self.models) for n, (variant, count) in named)
        return Pool(members, self.goals.classes, name="plan")

    def case(self, mix: Mix, seed: int) -> Case:
        """The run of a mix."""
        return Case(self.source, self.pool(mix), self.policy, self.admission, seed)


@dataclass(frozen=True, slots=True)
class Trial:
    """``attained``: the share within each bound, by label. ``requests``: how many ended, fewer where it was broken off
    because too many had missed. ``span_s``: first arrival to last end.
    """

    seed: int
    attained: dict[str, float]
    margin: float
    requests: int
    broken_off: bool
    p99_s: dict[str, float | None]
    output_tokens: float
    span_s: float = 0.0

    @property
    def met(self) -> bool:
        """Whether every goal is."""
        return self.margin >= 0.0 and not self.broken_off


def trial(case: Case, goals: Goals) -> Trial:
    """Play it, until it is over or too many requests have missed."""
    requests = len(case.source.arrivals(case.pool, case.seed))
    missable = goals.allowed_misses * requests + _ROUNDING

    def missed(table: ResultTable) -> bool:
        return len(table) - int(table.met().sum()) > missable

    run = case.play(stop=missed)
    table = run.table
    attained = goals.attained(table)
    latencies = table.latencies_s()
    return Trial(
        case.seed,
        attained,
        goals.margin(attained),
        len(table),
        len(table) < requests,
        {metric.name: spread(latencies[metric.name])["p99"] for metric in SLO_METRICS},
        float(table.column("output_tokens").sum()),
        span(run),
    )


def seeded(case: Case, seeds: Sequence[int]) -> list[Case]:
    """The same case under other seeds."""
    return [replace(case, seed=seed) for seed in seeds]


def plain(one: Trial) -> dict[str, Any]:
    """For ``--json``."""
    return {
        "seed": one.seed,
        "attained": one.attained,
        "requests": one.requests,
        "broken_off": one.broken_off,
        "requests_per_s": one.requests / one.span_s if one.span_s else None,
        "p99_s": one.p99_s,
    }
