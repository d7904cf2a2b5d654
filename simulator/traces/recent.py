"""The last minutes of a trace. Of a gateway's record, which may be huge and still growing, only the end is read.

Of a trace with closed loops each request gets a time of its own.

Relies on the record being in order of time. Must not depend on how the requests are used.
"""

from pathlib import Path
from statistics import median
from typing import Final

from simulator.traces.entry import TraceEntry
from simulator.traces.formats.gateway_record import RecordParser
from simulator.traces.reading import read_trace
from simulator.traces.waiting import as_open_loop

TAIL_BYTES: Final = 64 * 2**20
_EVENTS: Final = (b'"event":"arrived"', b'"event":"ended"')


def recent(path: Path, last_s: float, requests_max: int) -> list[TraceEntry]:
    """At most *requests_max* entries of the last *last_s* seconds, in order of arrival. Raises BadLine, OSError."""
    entries = _tail(path) if _is_record(path) else as_open_loop(read_trace(path).entries)
    if not entries:
        return []
    from_s = entries[-1].arrived_s - last_s
    return [entry for entry in entries if entry.arrived_s >= from_s][-requests_max:]


def _is_record(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(10).startswith(b'{"record"')


def _tail(path: Path) -> list[TraceEntry]:
    """Requests of the end of the record. One that was refused or still runs gets the median length of the others."""
    parser, entries = RecordParser(), []
    for each in (path.with_name(path.name + ".1"), path):
        for line in _last_lines(each):
            if any(mark in line for mark in _EVENTS):
                entry = _read(parser, line)
                if entry is not None:
                    entries.append(entry)
    length = int(median(entry.output_tokens for entry in entries)) if entries else 1
    for entry in parser.open.values():
        entry.output_tokens = length
    return sorted([*entries, *parser.open.values()], key=lambda entry: entry.arrived_s)


def _last_lines(path: Path) -> list[bytes]:
    """Whole lines among the last ``TAIL_BYTES``; none where there is no file."""
    try:
        with path.open("rb") as file:
            start = max(0, file.seek(0, 2) - TAIL_BYTES)
            file.seek(start)
            lines = file.read().split(b"\n")
    except FileNotFoundError:
        return []
    return lines[1 if start else 0 : -1]  # what stands at either end may be half a line


def _read(parser: RecordParser, line: bytes) -> TraceEntry | None:
    try:
        return parser.read(line.decode())
    except ValueError:  # such as a prompt of no tokens: nothing to replay
        return None
