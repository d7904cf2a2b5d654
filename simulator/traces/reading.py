"""Reads a trace file, plain or gzipped. The format is recognised by its content; a bad line is named by its number.

A line holds at most one request. Must not depend on how the requests are used; the formats are in ``formats/``.
"""

from collections.abc import Iterator
from pathlib import Path

from simulator.errors import BadLine
from simulator.traces.entry import Parse, Reading
from simulator.traces.formats import format_of
from simulator.traces.opening import opened


def read_trace(path: Path, *, skip_bad: bool = False, limit: int | None = None) -> Reading:
    """Read up to *limit* requests. Raises BadLine at the first bad line; with *skip_bad* such lines are counted and
    left out.
    """
    with opened(path) as lines:
        return _read(path, enumerate(lines, 1), skip_bad, limit)


def _read(path: Path, numbered: Iterator[tuple[int, str]], skip_bad: bool, limit: int | None) -> Reading:
    number, first = next(((n, line) for n, line in numbered if line.strip()), (0, ""))
    if not number:
        raise BadLine(f"{path}: expected a trace, found an empty file")
    try:
        trace_format = format_of(first)
    except ValueError as problem:
        raise BadLine(f"{path}:{number}: {problem}") from None
    reading = Reading(trace_format.name, [], notes=[trace_format.note] if trace_format.note else [])
    parse = trace_format.parser(first)
    rest = numbered if trace_format.columns else _before((number, first), numbered)
    for number, line in rest:
        if limit is not None and len(reading.entries) >= limit:
            break
        if line.strip():
            _take(reading, parse, path, number, line, skip_bad)
    reading.entries.sort(key=lambda entry: entry.arrived_s)
    return reading


def _take(reading: Reading, parse: Parse, path: Path, number: int, line: str, skip_bad: bool) -> None:
    try:
        entry = parse(line)
    except ValueError as problem:
        if not skip_bad:
            raise BadLine(f"{path}:{number}: {problem}") from None
        reading.skipped += 1
        reading.first_skipped = reading.first_skipped or f"{path}:{number}: {problem}"
        return
    if entry is not None:
        reading.entries.append(entry)


def _before(first: tuple[int, str], rest: Iterator[tuple[int, str]]) -> Iterator[tuple[int, str]]:
    yield first
    yield from rest
