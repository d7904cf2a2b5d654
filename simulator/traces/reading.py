"""A trace file, plain or gzipped, to entries: the form is told from the content, a bad line by its number.

Believes: one request a line. Must not know: what becomes of the requests. Every form's own file-format facts are in
``formats.py``.
"""

import gzip
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from textwrap import shorten
from typing import Any, Final

from router.core.types import NO_SLO, Slo


class BadLine(ValueError):
    """A line that is not what its form promises; the message is ``file:line: what was expected``."""


@dataclass(init=False, slots=True)
class TraceEntry:
    """One line of a trace: who came when, asking what. ``arrived_s`` counts from the trace's own zero.

    ``model`` and ``slo_class`` are empty where the trace does not say; ``slo`` is None where it sets none.
    """

    arrived_s: float
    prompt_tokens: int
    output_tokens: int
    id: str
    model: str
    slo_class: str
    slo: Slo | None
    output_tokens_max: int
    priority: int
    tenant: str
    session: str
    prefix: tuple[int, ...]
    prefix_block_tokens: int
    streamed: bool

    def __init__(
        self,
        arrived_s: float,
        prompt_tokens: int,
        output_tokens: int,
        id: str = "",  # noqa: A002 - the field's word
        model: str = "",
        slo_class: str = "",
        slo: Slo | None = None,
        output_tokens_max: int = 0,
        priority: int = 0,
        tenant: str = "",
        session: str = "",
        prefix: tuple[int, ...] = (),
        prefix_block_tokens: int = 0,
        streamed: bool = True,
    ) -> None:
        self.arrived_s = arrived_s
        self.prompt_tokens = prompt_tokens
        self.output_tokens = output_tokens
        self.id = id
        self.model = model
        self.slo_class = slo_class
        self.slo = slo
        self.output_tokens_max = output_tokens_max
        self.priority = priority
        self.tenant = tenant
        self.session = session
        self.prefix = prefix
        self.prefix_block_tokens = prefix_block_tokens
        self.streamed = streamed


@dataclass(slots=True)
class Reading:
    """What came out of a file: its form, its entries in order of arrival, and what was left out and why."""

    form: str
    entries: list[TraceEntry]
    skipped: int = 0
    first_skipped: str = ""
    notes: list[str] = field(default_factory=list)


Parse = Callable[[str], TraceEntry | None]
"""A line to its entry; None for a line that holds no request; ValueError says what was expected."""


@dataclass(frozen=True, slots=True)
class Form:
    """One form of trace: ``header`` if its first line names columns; ``parser`` is given that line."""

    name: str
    header: bool
    parser: Callable[[str], Parse]
    note: str = ""


def read_trace(path: Path, *, skip_bad: bool = False, limit: int | None = None) -> Reading:
    """Read up to *limit* requests. Raises BadLine at the first bad line, unless *skip_bad* counts it and goes on."""
    with _opened(path) as lines:
        return _read(path, enumerate(lines, 1), skip_bad, limit)


def _read(path: Path, numbered: Iterator[tuple[int, str]], skip_bad: bool, limit: int | None) -> Reading:
    from simulator.traces.formats import form_of  # noqa: PLC0415 - the forms build on this file's types

    number, first = next(((n, line) for n, line in numbered if line.strip()), (0, ""))
    if not number:
        raise BadLine(f"{path}: expected a trace, found an empty file")
    try:
        form = form_of(first)
    except ValueError as problem:
        raise BadLine(f"{path}:{number}: {problem}") from None
    reading = Reading(form.name, [], notes=[form.note] if form.note else [])
    parse = form.parser(first)
    rest = numbered if form.header else _before((number, first), numbered)
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


_GZIP: Final = b"\x1f\x8b"


@contextmanager
def _opened(path: Path) -> Iterator[Iterable[str]]:
    """Its lines, unpacked."""
    with path.open("rb") as raw:
        packed = raw.read(2) == _GZIP
    with (
        gzip.open(path, "rt", encoding="utf-8", errors="replace")
        if packed
        else path.open(encoding="utf-8", errors="replace") as text
    ):
        try:
            yield text
        except (EOFError, gzip.BadGzipFile) as problem:
            raise BadLine(f"{path}: expected a whole gzip file: {problem}") from None


# ---- what a field must be ---------------------------------------------------


def count(record: Mapping[str, Any], key: str, least: int = 1) -> int:
    """A whole number of at least *least* under *key*."""
    return whole(record.get(key), key, least)


def whole(value: object, key: str, least: int = 1) -> int:
    """*value* as a whole number of at least *least*; ValueError names *key*."""
    if isinstance(value, str) and value.isdecimal():  # as nearly every cell is
        told = int(value)
        if told >= least:
            return told
    try:
        number = float("nan") if isinstance(value, bool) else float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        number = float("nan")
    if not number.is_integer():
        raise ValueError(f"{key} must be a whole number, got {_short(value)}")
    if number < least:
        raise ValueError(f"{key} must be at least {least}, got {_short(value)}")
    return int(number)


def seconds(value: object, key: str) -> float:
    """*value* as finite seconds of 0 or more; ValueError names *key*."""
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise ValueError(f"{key} must be a number of seconds, got {_short(value)}") from None
    if not 0 <= number < float("inf"):
        raise ValueError(f"{key} must be 0 or more and finite, got {_short(value)}")
    return number


INFEASIBLE: Final = ("best_effort", "refuse")
"""What becomes of a request with a bound that no backend could keep even idle, in words: not or yes
``Slo.refuse_infeasible``."""


def slo_of(
    ttft_s: float | None,
    tpot_s: float | None,
    e2e_s: float | None,
    quantile: float | None,
    refuse_infeasible: bool = False,
) -> Slo | None:
    """An Slo of what was given, None when none of the numbers was."""
    given = {"ttft_s": ttft_s, "tpot_s": tpot_s, "e2e_s": e2e_s, "quantile": quantile}
    kept = {key: value for key, value in given.items() if value is not None}
    return Slo(**kept, refuse_infeasible=refuse_infeasible) if kept else None


def _short(value: object) -> str:
    return shorten(repr(value), 40, placeholder="...")


__all__ = [
    "INFEASIBLE",
    "NO_SLO",
    "BadLine",
    "Form",
    "Parse",
    "Reading",
    "TraceEntry",
    "count",
    "read_trace",
    "seconds",
    "slo_of",
    "whole",
]
