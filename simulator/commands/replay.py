"""The command ``replay``: one workload, one pool, some policies; tables, files, a report."""

from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import nan
from pathlib import Path
from time import process_time
from typing import Any, Final

from rich.console import Console

from simulator.commands.over_seeds import Key, Results, between, intervals, plain, plain_differences, played
from simulator.commands.playing import print_missed_faults, print_notes
from simulator.commands.seeding import seeding_of
from simulator.commands.shared import plain_errors, wants_table, write_json
from simulator.experiment import (
    Case,
    Seeding,
    Source,
    admission_of,
    batched,
    bounded,
    check_faults,
    figures_of,
    pairs,
    pool_of,
    rate_of,
    routing_of,
    strategies_of,
    window_of,
)
from simulator.pool import Pool
from simulator.report.differences import Differences, print_differences
from simulator.report.files import write_chrome_trace, write_requests
from simulator.report.progress import progress
from simulator.report.table import FIGURES, print_intervals, print_runs
from simulator.run.play import RunResult
from simulator.traces.opening import lasting
from simulator.workload.recipe import PREFIX

BASELINES: Final = ("round_robin", "least_work", "slo_headroom")
POLICY: Final = ("policy",)  # what rows differ in
_SAMPLES: Final = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """What was typed of a workload and a pool; every command that plays takes these."""

    traces: Sequence[str]
    names: Sequence[str] = ()  # what messages call them
    pool: Pool | Path | None = None
    admission: str = "deadline"
    slos: Sequence[str] = ()
    rate: str = "x1"
    window: str = ""
    limit: int | None = None
    seed: int = 0
    skip_bad: bool = False

    def source(self) -> Source:
        """The source of the requests. Raises ValueError."""
        from_s, to_s = window_of(self.window)
        traces = tuple(self.traces)
        return Source(traces, rate_of(self.rate), from_s, to_s, self.limit, self.skip_bad, tuple(self.names))

    def cases(self, texts: Sequence[str]) -> list[Case]:
        """One case a policy; everything that was typed is checked here."""
        pool = self.pool if isinstance(self.pool, Pool) else pool_of(self.pool, self.slos)
        source = self.source()
        admission_of(self.admission)
        for text in texts:
            if not strategies_of(text):
                routing_of(text)
        check_faults(pool, source.arrivals(pool, self.seed))
        return [Case(source, pool, text, self.admission, self.seed) for text in dict.fromkeys(texts)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outputs:
    """Where results go beside the terminal."""

    json_file: Path | None = None
    html: Path | None = None
    requests: Path | None = None
    chrome_trace: Path | None = None


def typed(options: Namespace) -> Workload:
    """The workload that a command line describes; without the pool and the rate where a command takes several."""
    return Workload(
        traces=[trace if trace.startswith(PREFIX) else str(lasting(trace)) for trace in options.traces],
        names=options.traces,
        admission=options.admission,
        slos=options.slo or (),
        window=options.window,
        limit=options.limit,
        seed=options.seed,
        skip_bad=options.skip_bad,
    )


def run(options: Namespace) -> None:
    """Play, print tables, write files."""
    with plain_errors():
        workload = replace(typed(options), pool=options.pool, rate=options.rate)
        cases = workload.cases(options.policy or BASELINES)
    outputs = Outputs(
        json_file=options.json, html=options.html, requests=options.requests, chrome_trace=options.chrome_trace
    )
    run_replay(cases, seeding_of(options), options.jobs, outputs)


def run_replay(cases: Sequence[Case], seeding: Seeding, jobs: int, outputs: Outputs) -> None:
    """Play every case, show and write what came of it."""
    notes = Console(stderr=True)
    print_notes(notes, cases[0])
    results: dict[str, dict[str, Any]] = {}
    runs: dict[str, RunResult] = {}
    for case in cases:
        results[case.policy], runs[case.policy] = _played(case, notes, bool(outputs.html))
    for case, result in zip(cases, bounded(cases, list(results.values())), strict=True):
        results[case.policy] = result
        runs[case.policy] = runs.get(result.get("strategy", ""), runs[case.policy])
    print_missed_faults(notes, results.values())
    seeded: Results = {}
    if seeding.first > 1:
        by_policy: dict[Key, Case] = {(case.policy,): case for case in cases}
        seeded = played(by_policy, seeding, "processes", jobs, notes, "seeds")
    differences = between(seeded) if seeded else over_requests({name: _met(run) for name, run in runs.items()})
    _show(cases[0].pool, cases[0].seed, results, seeded, differences, outputs)
    _write(cases, results, runs, seeded, differences, outputs)


def over_requests(met: Mapping[str, Mapping[str, bool]]) -> Differences:
    """Of every two policies, the attainment of the second minus that of the first, over the requests of one run that
    both have, pair by pair. *met*: by policy and request.
    """
    found: dict[tuple[Key, Key], dict[str, tuple[float, float]]] = {}
    for (first,), (second,) in pairs([(name,) for name in met]):
        there, here = met[first], met[second]
        both = [float(here[request]) - float(of_first) for request, of_first in there.items() if request in here]
        if both:
            mean, half = batched(both)
            found[(first,), (second,)] = {"attainment": (mean, nan if half is None else half)}
    return found


def _met(run: RunResult) -> dict[str, bool]:
    return dict(zip(run.table.ids, run.table.met().tolist(), strict=True))


def _played(case: Case, notes: Console, sampled: bool) -> tuple[dict[str, Any], RunResult]:
    arrivals = case.source.arrivals(case.pool, case.seed)
    span_s = 0.0 if not sampled else _span_s(arrivals)
    with progress(notes, case.policy, len(arrivals)) as tell:
        began_s = process_time()
        run = case.play(tell, max(1.0, span_s / _SAMPLES) if sampled else 0.0)
        return figures_of(run, began_s), run


def _span_s(arrivals: Any) -> float:
    return float(arrivals[-1].request.arrived_s) if isinstance(arrivals, list) else 600.0


def _show(
    pool: Pool,
    seed: int,
    results: dict[str, dict[str, Any]],
    seeded: Results,
    differences: Differences,
    outputs: Outputs,
) -> None:
    if not wants_table(outputs.json_file):
        return
    count = max(result["requests"] for result in results.values())
    console = Console()
    print_runs(console, results, f"{count:,} requests on pool {pool.name!r}, seed {seed}\n{pool.described()}")
    if seeded:
        print_intervals(console, {policy: intervals(of_policy) for (policy,), of_policy in seeded.items()})
        print_differences(console, POLICY, differences)
    else:
        print_differences(console, POLICY, differences, FIGURES[:1], "over the same requests, ")


def _write(
    cases: Sequence[Case],
    results: dict[str, dict[str, Any]],
    runs: dict[str, RunResult],
    seeded: Results,
    differences: Differences,
    outputs: Outputs,
) -> None:
    pool = cases[0].pool
    facts: dict[str, Any] = {"seed": cases[0].seed, "pool": pool.name, "world": pool.described(), "runs": results}
    facts["left_out"] = cases[0].source.left_out()
    if seeded:
        facts["intervals"] = {policy: plain(intervals(of_policy)) for (policy,), of_policy in seeded.items()}
    facts["differences"] = {name: plain_differences(POLICY, (name,), differences) for name in results}
    if outputs.json_file is not None:
        write_json(outputs.json_file, facts)
    if outputs.html is not None:
        from simulator.report.page import write_page  # noqa: PLC0415 - slow to import, and only --html needs it

        write_page(outputs.html, cases, results, runs)
    if outputs.requests is not None:
        write_requests(outputs.requests, runs)
    if outputs.chrome_trace is not None:
        write_chrome_trace(outputs.chrome_trace, runs)
