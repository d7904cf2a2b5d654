"""What commands that play do alike beside the runs: what is left out of the traces, faults that never happened."""

from collections.abc import Iterable, Mapping
from typing import Any

from rich.console import Console

from simulator.experiment import Case


def print_notes(notes: Console, case: Case) -> None:
    """What the traces of the case have that a run has not: bad lines, requests without an end, clocks far apart."""
    for message in case.source.left_out():
        _print(notes, message)


def print_missed_faults(notes: Console, results: Iterable[Mapping[str, Any]]) -> None:
    """Faults that lie outside of runs whose length was not known before."""
    for message in dict.fromkeys(fault for result in results for fault in result["faults_outside"]):
        _print(notes, f"outside of the run: {message}")


def _print(notes: Console, message: str) -> None:
    notes.print(message, style="dim", soft_wrap=True, markup=False, highlight=False)


def worlds(cases: Iterable[Case]) -> str:
    """The truth and belief of every pool, a line each where they differ."""
    by_pool = {case.pool.name: case.pool.described() for case in cases}
    if len(set(by_pool.values())) == 1:
        return next(iter(by_pool.values()))
    return "\n".join(f"{name}: {world}" for name, world in by_pool.items())
