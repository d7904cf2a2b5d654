"""The command ``replay``: from what was typed to runs, tables and a file."""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import inf
from pathlib import Path
from time import process_time
from typing import Any, Final

from rich.console import Console

import policies
from router.core import Admission, Routing
from simulator.pool import BUILT_IN, Pool, load_pool
from simulator.report.progress import progress
from simulator.report.summary import summarise
from simulator.report.table import print_runs
from simulator.run import play
from simulator.traces import read_trace
from simulator.workload import Arrival, Shaping, distinct, parse_seconds, parse_slo, shape

BASELINES: Final = ("round_robin", "least_work", "slo_headroom")


@dataclass(frozen=True, slots=True)
class Replay:
    """What was typed."""

    traces: Sequence[str]
    policies: Sequence[str]
    admission: str
    pool: Path | None
    slos: Sequence[str]
    rate: str
    window: str
    limit: int | None
    seed: int
    skip_bad: bool
    json_file: Path | None


@dataclass(frozen=True, slots=True)
class Prepared:
    """What was typed, understood: nothing the user wrote can be wrong from here on."""

    typed: Replay
    pool: Pool
    routings: dict[str, Routing]
    admission: Admission
    arrivals: list[Arrival]


def prepare(typed: Replay) -> Prepared:
    """Read and check everything. ValueError and OSError say what was wrong with what was typed."""
    pool = resolve_pool(typed.pool, typed.slos)
    routings: dict[str, Routing] = {text: policy("routing", text) for text in typed.policies}
    admission: Admission = policy("admission", typed.admission)
    return Prepared(typed, pool, routings, admission, read_arrivals(typed, pool, Console(stderr=True)))


def run_replay(ready: Prepared) -> None:
    """Play each policy, report."""
    typed, pool, arrivals, admission = ready.typed, ready.pool, ready.arrivals, ready.admission
    notes = Console(stderr=True)
    results: dict[str, dict[str, Any]] = {}
    for text, chosen in ready.routings.items():
        with progress(notes, text, len(arrivals)) as told:
            began_s = process_time()
            played = play(arrivals, pool, chosen, admission, typed.seed, told)
            results[text] = {**summarise(played), "cpu_s": process_time() - began_s}
    heading = f"{len(arrivals):,} requests on pool {pool.name!r}, seed {typed.seed}\n{pool.described()}"
    if typed.json_file is None or str(typed.json_file) != "-":
        print_runs(Console(), results, heading)
    if typed.json_file is not None:
        facts = {"seed": typed.seed, "pool": pool.name, "world": pool.described(), "runs": results}
        write_json(typed.json_file, facts)


def write_json(path: Path, facts: object) -> None:
    """To a file, or to stdout for ``-``."""
    text = json.dumps(facts, indent=2, allow_nan=False) + "\n"
    if str(path) == "-":
        sys.stdout.write(text)
    else:
        path.write_text(text, encoding="utf-8")


def resolve_pool(path: Path | None, slos: Sequence[str]) -> Pool:
    """The pool of the file, or the built-in one; SLOs that were typed take the place of its own."""
    pool = BUILT_IN if path is None else load_pool(path)
    return replace(pool, classes=tuple(parse_slo(text) for text in slos)) if slos else pool


def policy(kind: str, text: str) -> Any:
    """``NAME:key=value,...`` as the policy of that name; ValueError names the choices."""
    name, _, rest = text.partition(":")
    return policies.find(kind, name, dict(_parameter(part, text) for part in rest.split(",") if part))


def _parameter(part: str, text: str) -> tuple[str, Any]:
    key, equals, value = part.partition("=")
    if not equals:
        raise ValueError(f"policy {text!r}: expected key=value, got {part!r}")
    return key.strip(), _value(value.strip())


def _value(text: str) -> Any:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return {"true": True, "false": False}.get(text.lower(), text)


def read_arrivals(typed: Replay, pool: Pool, notes: Console) -> list[Arrival]:
    """All traces, one after another in time order, shaped as asked."""
    entries = []
    for name in typed.traces:
        reading = read_trace(Path(name), skip_bad=typed.skip_bad)
        entries += reading.entries
        if reading.skipped:
            told = f"{name}: skipped {reading.skipped} bad lines, the first: {reading.first_skipped}"
            notes.print(told, style="dim", soft_wrap=True, markup=False)
        if not reading.entries:
            raise ValueError(f"{name}: no requests in this {reading.form} trace")
    entries.sort(key=lambda entry: entry.arrived_s)
    from_s, to_s = parse_window(typed.window)
    how = Shaping(pool.default_model, pool.classes, parse_rate(typed.rate), from_s, to_s, typed.limit)
    arrivals = shape(entries, how, typed.seed)
    if not arrivals:
        raise ValueError(f"--window {typed.window}: no requests in it")
    return distinct(arrivals)


def parse_rate(text: str) -> float:
    """``x2`` or ``2`` to 2.0."""
    try:
        rate = float(text.removeprefix("x"))
    except ValueError:
        rate = -1.0
    if not 0 < rate < inf:
        raise ValueError(f"--rate: expected a factor such as x2, got {text!r}")
    return rate


def parse_window(text: str) -> tuple[float, float]:
    """``5m-10m``, ``5m-`` or ``-10m`` to seconds."""
    if not text:
        return 0.0, inf
    start, dash, end = text.partition("-")
    if not dash:
        raise ValueError(f"--window: expected FROM-TO such as 5m-10m, got {text!r}")
    from_s = parse_seconds(start) if start else 0.0
    to_s = parse_seconds(end) if end else inf
    if to_s <= from_s:
        raise ValueError(f"--window: {text!r} ends before it begins")
    return from_s, to_s
