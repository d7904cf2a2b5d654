"""The command ``diff``: what two policies did differently, request by request."""

from argparse import Namespace
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from simulator.commands.playing import print_notes
from simulator.commands.replay import typed
from simulator.commands.shared import plain_errors, wants_table, write_json
from simulator.experiment import Case, batched
from simulator.report.progress import progress
from simulator.report.table import print_diff
from simulator.run.result_table import ResultTable


@dataclass(frozen=True, slots=True)
class Difference:
    """One request under two policies: backend, TTFT, TPOT, and whether it met its SLO."""

    request: str
    backends: tuple[str, str]
    ttft_s: tuple[float, float]
    tpot_s: tuple[float, float]
    met: tuple[bool, bool]

    @property
    def gain(self) -> float:
        """How much better the second policy was: a met SLO counts first, then the TTFT."""
        return 1e6 * (self.met[1] - self.met[0]) + float(np.nan_to_num(self.ttft_s[0] - self.ttft_s[1]))


def run(options: Namespace) -> None:
    """Play under both, print what differs."""
    with plain_errors():
        workload = replace(typed(options), pool=options.pool, rate=options.rate)
        cases = workload.cases(options.policy or ("least_work", "slo_headroom"))
        if len(cases) != 2:  # noqa: PLR2004 - one and the other
            raise ValueError(f"diff compares two policies; give --policy twice, not {len(cases)} times")
    run_diff((cases[0], cases[1]), options.worst, options.json)


def run_diff(cases: tuple[Case, Case], worst: int, json_file: Path | None) -> None:
    """Play both, pair the requests, show the sums and the largest changes."""
    notes = Console(stderr=True)
    print_notes(notes, cases[0])
    tables = []
    for case in cases:
        with progress(notes, case.policy, len(case.source.arrivals(case.pool, case.seed))) as tell:
            tables.append(case.play(tell).table)
    differences = paired(tables[0], tables[1])
    sums = summed(differences)
    ranked = sorted(differences, key=lambda one: one.gain)
    names = (cases[0].policy, cases[1].policy)
    if wants_table(json_file):
        print_diff(Console(), names, sums, ranked[:worst], ranked[::-1][:worst])
    if json_file is not None:
        write_json(json_file, {"policies": names, **sums})


def paired(first: ResultTable, second: ResultTable) -> list[Difference]:
    """The requests that are in both tables."""
    rows = [_rows(table) for table in (first, second)]
    return [
        Difference(name, *zip(rows[0][name], rows[1][name], strict=True))  # type: ignore[arg-type]
        for name in rows[0]
        if name in rows[1]
    ]


def _rows(table: ResultTable) -> dict[str, tuple[str, float, float, bool]]:
    where, ttft_s, tpot_s, met = table.column("backend"), table.ttft_s(), table.tpot_s(), table.met()
    names = [*table.backends, "nowhere"]
    return {
        name: (names[int(where[n])], float(ttft_s[n]), float(tpot_s[n]), bool(met[n]))
        for n, name in enumerate(table.ids)
    }


def summed(differences: list[Difference]) -> dict[str, Any]:
    """Counts of what changed, and what the second policy attains more, with the half width of its 95 % interval."""
    moved = [one for one in differences if one.backends[0] != one.backends[1]]
    flows: dict[str, int] = {}
    for one in moved:
        flow = f"{one.backends[0]} -> {one.backends[1]}"
        flows[flow] = flows.get(flow, 0) + 1
    return {
        "requests": len(differences),
        "routed_differently": len(moved),
        "both_met": sum(one.met == (True, True) for one in differences),
        "only_first_met": sum(one.met == (True, False) for one in differences),
        "only_second_met": sum(one.met == (False, True) for one in differences),
        "neither_met": sum(one.met == (False, False) for one in differences),
        "attainment_gain": list(batched([float(one.met[1]) - float(one.met[0]) for one in differences])),
        "flows": dict(sorted(flows.items(), key=lambda item: -item[1])),
    }
