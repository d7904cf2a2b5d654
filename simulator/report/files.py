"""Runs as files for other tools: one row a request as CSV, and Chrome's trace format for Perfetto."""

import csv
import gzip
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from math import isnan
from pathlib import Path
from typing import Any, TextIO

from router.core.slo_metrics import SLO_METRICS
from simulator.run.play import RunResult
from simulator.run.result_table import COLUMNS, OUTCOMES, ResultTable

_US = 1e6


@contextmanager
def _opened(path: Path) -> Iterator[TextIO]:
    """The file, open for writing; gzipped if its name ends in .gz."""
    if path.suffix == ".gz":
        with gzip.open(path, "wt", encoding="utf-8", newline="") as file:
            yield file
    else:
        with path.open("w", encoding="utf-8", newline="") as file:
            yield file


def write_requests(path: Path, runs: Mapping[str, RunResult]) -> None:
    """One row a request and policy: the columns of the result table, end state and backend by name, empty where
    undefined.
    """
    with _opened(path) as file:
        writer = csv.writer(file)
        writer.writerow(("policy", "request", "slo_class", *COLUMNS, *(metric.seconds for metric in SLO_METRICS)))
        for policy, played in runs.items():
            writer.writerows(_rows(policy, played.table))


def _rows(policy: str, table: ResultTable) -> Iterator[list[Any]]:
    columns = [table.column(name) for name in COLUMNS]
    more = table.latencies_s().values()
    outcome, backend = COLUMNS.index("outcome"), COLUMNS.index("backend")
    for n, name in enumerate(table.ids):
        row: list[Any] = [_cell(float(column[n])) for column in columns]
        row[outcome] = OUTCOMES[int(columns[outcome][n])].value
        row[backend] = _backend(table, n)
        yield [policy, name, table.slo_classes[n], *row, *(_cell(float(column[n])) for column in more)]


def _backend(table: ResultTable, n: int) -> str:
    number = int(table.column("backend")[n])
    return table.backends[number] if number >= 0 else ""


def _cell(value: float) -> str | int:
    if isnan(value):
        return ""
    return int(value) if value.is_integer() else f"{value:.9g}"


def write_chrome_trace(path: Path, runs: Mapping[str, RunResult]) -> None:
    """Spans of every request on its backend: waiting for the first token, then the stream. One process a policy.

    The form is Chrome's trace event format ("X" complete events, microseconds), which Perfetto opens.
    """
    with _opened(path) as file:
        file.write('{"traceEvents":[\n')
        first = True
        for number, (policy, played) in enumerate(runs.items(), 1):
            for event in _events(number, policy, played.table):
                file.write(("" if first else ",\n") + json.dumps(event, allow_nan=False))
                first = False
        file.write("\n]}\n")


def _events(process: int, policy: str, table: ResultTable) -> Iterator[dict[str, Any]]:
    yield {"ph": "M", "name": "process_name", "pid": process, "tid": 0, "args": {"name": policy}}
    lanes = _Lanes(table)
    for n in table.column("sent_s").argsort():
        yield from _spans(process, int(n), table, lanes)
    for (backend, lane), thread in lanes.threads.items():
        label = {"name": f"{backend} {lane:03d}"}
        yield {"ph": "M", "name": "thread_name", "pid": process, "tid": thread, "args": label}


class _Lanes:
    """Requests that overlap on one backend get different lanes."""

    def __init__(self, table: ResultTable) -> None:
        self.threads: dict[tuple[str, int], int] = {}
        self._free_s: dict[str, list[float]] = {name: [] for name in table.backends}

    def take(self, backend: str, from_s: float, to_s: float) -> int:
        free_s = self._free_s[backend]
        lane = next((n for n, at_s in enumerate(free_s) if at_s <= from_s), len(free_s))
        if lane == len(free_s):
            free_s.append(0.0)
        free_s[lane] = to_s
        return self.threads.setdefault((backend, lane), len(self.threads) + 1)


def _spans(process: int, n: int, table: ResultTable, lanes: _Lanes) -> Iterator[dict[str, Any]]:
    sent_s, first_s, ended_s = (float(table.column(name)[n]) for name in ("sent_s", "first_s", "ended_s"))
    backend = _backend(table, n)
    if not backend or isnan(sent_s) or isnan(ended_s):
        return
    thread = lanes.take(backend, sent_s, ended_s)
    args = {
        "prompt_tokens": int(table.column("prompt_tokens")[n]),
        "output_tokens": int(table.column("output_tokens")[n]),
        "slo": "met" if table.met()[n] else "violated",
    }
    stages = [("first token", sent_s, ended_s if isnan(first_s) else first_s)]
    if not isnan(first_s):
        stages.append(("stream", first_s, ended_s))
    for stage, from_s, to_s in stages:
        yield {
            "ph": "X",
            "name": f"{table.ids[n]} {stage}",
            "cat": stage,
            "pid": process,
            "tid": thread,
            "ts": round(from_s * _US, 1),
            "dur": round((to_s - from_s) * _US, 1),
            "args": args,
        }
