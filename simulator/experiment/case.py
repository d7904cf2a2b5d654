"""One case of an experiment: a workload, a pool, a policy, a seed; and the figures of its run.

A case is plain data and can be sent to another process or machine. Must not depend on how results are shown.
"""

import gc
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from time import process_time
from typing import Any

from router.core import Routing
from simulator.bounds.clairvoyant import Clairvoyant, Strategy
from simulator.bounds.gpu_seconds import gpu_seconds_lower_bound
from simulator.experiment.options import CLAIRVOYANT, STRATEGY_PREFIX, admission_of, routing_of, strategies_of
from simulator.experiment.source import Source
from simulator.pool import Pool
from simulator.run.play import Progress, RunResult, Stop, play
from simulator.run.summary import summarise


@dataclass(frozen=True, slots=True)
class Case:
    """One run: a workload, a pool, a policy and a seed. ``policy`` and ``admission`` are texts such as
    ``NAME:key=value``; ``policy`` may be the clairvoyant bound.
    """

    source: Source
    pool: Pool
    policy: str
    admission: str = "deadline"
    seed: int = 0

    def same_workload(self, other: "Case") -> bool:
        """Whether both cases play the same workload on the same pool."""
        return self.source == other.source and self.pool == other.pool

    def play(
        self,
        progress: Progress | None = None,
        sample_s: float = 0.0,
        stop: Stop | None = None,
        *,
        enough: float = 1.0,
    ) -> RunResult:
        """Play the case; *sample_s* and *stop* are those of ``run.play``. The clairvoyant bound is the best of several
        runs; once one attains *enough*, the others are not played.
        """
        strategies = strategies_of(self.policy)
        if not strategies:
            return self._played(routing_of(self.policy), progress, sample_s, stop)
        best: RunResult | None = None
        for strategy in strategies:
            played = self._played(strategy, progress, sample_s, stop)
            if best is None or _met(played) > _met(best):
                best = played
            if _met(played) and _met(played) >= enough * len(played.table):
                break
        assert best is not None
        return best

    def _played(
        self, routing: Routing | Strategy, progress: Progress | None, sample_s: float, stop: Stop | None
    ) -> RunResult:
        arrivals = self.source.arrivals(self.pool, self.seed)
        strategy = routing if isinstance(routing, Strategy) else None
        gc.freeze()  # the arrivals live as long as the run: the collector need not scan them again and again
        try:
            played = play(
                arrivals,
                self.pool,
                routing_of("round_robin") if isinstance(routing, Strategy) else routing,
                admission_of(self.admission),
                self.seed,
                progress,
                sample_s=sample_s,
                clairvoyant=partial(Clairvoyant, strategy=strategy) if strategy is not None else None,
                stop=stop,
            )
        finally:
            gc.unfreeze()
        return replace(played, strategy=STRATEGY_PREFIX + strategy.name) if strategy is not None else played


def _met(played: RunResult) -> int:
    return int(played.table.met().sum())


def figures(case: Case) -> dict[str, Any]:
    """Play the case and return its figures; runs in a worker process."""
    began_s = process_time()
    return figures_of(case.play(), began_s)


def figures_of(played: RunResult, began_s: float) -> dict[str, Any]:
    """The figures of a finished run; ``cpu_s`` is the CPU time since *began_s*."""
    strategy = {"strategy": played.strategy} if played.strategy else {}
    return {
        **summarise(played),
        **strategy,
        "gpu_seconds_lower_bound": gpu_seconds_lower_bound(played),
        "cpu_s": process_time() - began_s,
    }


def bounded(cases: Sequence[Case], results: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The *results* of *cases*; a policy that attained more than the clairvoyant strategies raises the bound.

    Each result of the bound becomes that of the best run of the same workload, pool and seed; its ``strategy`` names
    the policy then.
    """
    return [
        _best_of_workload(case, result, cases, results) if case.policy == CLAIRVOYANT else result
        for case, result in zip(cases, results, strict=True)
    ]


def _best_of_workload(
    bound: Case, result: dict[str, Any], cases: Sequence[Case], results: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    best = result
    for case, other in zip(cases, results, strict=True):
        same = case.same_workload(bound) and case.seed == bound.seed
        if same and (other["attainment"] or 0.0) > (best["attainment"] or 0.0):
            best = {**other, "strategy": case.policy}
    return best
