"""The command ``capacity``: the highest rate at which a policy still attains its goal, by search."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from rich.console import Console

from simulator.commands.replay import write_json
from simulator.experiment import Case, executor_of, figures
from simulator.report.progress import progress
from simulator.report.table import print_capacity

_DOUBLINGS: Final = 8
_LOWEST: Final = 1 / 64


@dataclass(frozen=True, slots=True)
class Found:
    """``rate`` x the workload's own keeps the goal, ``rate * (1 + precision)`` does not (0: no rate tried does)."""

    policy: str
    rate: float
    requests_per_s: float
    attainment: float


def highest(kept: Callable[[float], bool], precision: float) -> float:
    """The highest rate that is *kept*, within *precision* (relative), by doubling and halving from 1; 0 for none."""
    low, high = 1.0, 1.0
    if kept(1.0):
        for _ in range(_DOUBLINGS):
            high = 2 * low
            if not kept(high):
                break
            low = high
    else:
        while low > _LOWEST:
            high, low = low, low / 2
            if kept(low):
                break
        else:
            return 0.0
    while high / low > 1 + precision:
        middle = (low * high) ** 0.5
        low, high = (middle, high) if kept(middle) else (low, middle)
    return low


def run_capacity(cases: Sequence[Case], goal: float, precision: float, jobs: int, json_file: Path | None) -> None:
    """Search for every policy at once."""
    found: list[Found] = []
    with executor_of("processes", jobs) as pool, progress(Console(stderr=True), "capacity", len(cases)) as tell:
        searches = [pool.submit(search, case, goal, precision) for case in cases]
        for count, one in enumerate(searches, 1):
            found.append(one.result())
            tell(count)
    if json_file is None or str(json_file) != "-":
        print_capacity(Console(), found, goal, cases[0].pool.described())
    if json_file is not None:
        plain = [{"policy": f.policy, "rate": f.rate, "requests_per_s": f.requests_per_s} for f in found]
        write_json(json_file, {"goal": goal, "precision": precision, "found": plain})


def search(case: Case, goal: float, precision: float) -> Found:
    """One policy's highest rate."""
    seen: dict[float, tuple[float, float]] = {}

    def kept(rate: float) -> bool:
        source = replace(case.source, rate=case.source.rate * rate)
        result = figures(replace(case, source=source))
        seen[rate] = (result["attainment"] or 0.0, result["requests"] / max(result["span_s"], 1e-9))
        return seen[rate][0] >= goal

    rate = highest(kept, precision)
    attainment, per_s = seen.get(rate, (0.0, 0.0))
    return Found(case.policy, rate, per_s, attainment)


__all__ = ["Found", "highest", "run_capacity", "search"]
