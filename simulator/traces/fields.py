"""Checked fields of a trace line, and parsers for lines of JSON and CSV. Every ValueError says what was expected."""

import csv
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from math import inf
from textwrap import shorten
from typing import Any, Final

from router.core.model_rules import ALLOW, DENY
from router.core.text_size import text_tokens
from router.core.types import Slo, slo_of
from simulator.traces.entry import LineParser, Parsed, TraceEntry

SEQUENCES_MAX: Final = 1_024  # of one request: few engines take so many

# ---- lines ----


def column_names(header: str) -> list[str]:
    """The column names of a CSV header, in lower case."""
    return [name.strip().lstrip("\ufeff").lower() for name in next(csv.reader([header]))]


def json_object(line: str) -> dict[str, Any]:
    """The JSON object on the line. Raises ValueError."""
    try:
        record = json.loads(line)
    except json.JSONDecodeError as problem:
        raise ValueError(f"expected a JSON object, {problem.msg} at column {problem.colno}") from None
    if not isinstance(record, dict):
        raise ValueError(f"expected a JSON object, got {type(record).__name__}")  # noqa: TRY004 - a bad line
    return record


class _Records:
    """Lines of JSON that do not depend on one another."""

    def __init__(self, read: Callable[[Mapping[str, Any]], Parsed]) -> None:
        self._read = read

    def read(self, line: str) -> Parsed:
        return self._read(json_object(line))

    def finish(self, _: list[TraceEntry]) -> dict[str, int]:
        return {}


class _Rows:
    """Rows of CSV that do not depend on one another."""

    def __init__(self, header: str, read: Callable[[Mapping[str, str]], Parsed]) -> None:
        self._columns = column_names(header)
        self._read = read

    def read(self, line: str) -> Parsed:
        cells = next(csv.reader([line])) if '"' in line else line.rstrip("\r\n").split(",")
        if len(cells) != len(self._columns):
            columns = ", ".join(self._columns)
            raise ValueError(f"expected {len(self._columns)} columns ({columns}), got {len(cells)}")
        return self._read(dict(zip(self._columns, cells, strict=True)))

    def finish(self, _: list[TraceEntry]) -> dict[str, int]:
        return {}


def by_record(read: Callable[[Mapping[str, Any]], Parsed]) -> Callable[[str], LineParser]:
    """A ``TraceFormat.parser`` for JSONL whose lines do not depend on one another."""
    return lambda _first: _Records(read)


def by_columns(read: Callable[[Mapping[str, str]], Parsed]) -> Callable[[str], LineParser]:
    """A ``TraceFormat.parser`` for CSV; *read* gets the cells by column name in lower case."""
    return lambda header: _Rows(header, read)


# ---- fields ----


def count(record: Mapping[str, Any], key: str, least: int = 1) -> int:
    """The whole number of at least *least* under *key*. Raises ValueError."""
    return whole(record.get(key), key, least)


def many(record: Mapping[str, Any], key: str) -> int:
    """A number of sequences or prompts of one request, 1 where the record has none. Raises ValueError."""
    return whole(record.get(key, 1), key, 1)


def whole(value: object, key: str, least: int = 1) -> int:
    """*value* as a whole number of at least *least*. Raises ValueError, which names *key*."""
    if isinstance(value, str) and value.isdecimal():  # the common case of a CSV cell: no detour over float
        digits = int(value)
        if digits >= least:
            return digits
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
    """*value* as finite seconds of 0 or more. Raises ValueError, which names *key*."""
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise ValueError(f"{key} must be a number of seconds, got {_short(value)}") from None
    if not 0 <= number < float("inf"):
        raise ValueError(f"{key} must be 0 or more and finite, got {_short(value)}")
    return number


def scaled_seconds(value: object, key: str, unit: str, per_second: float) -> float:
    """*value*, in so many *unit* per second, as finite seconds of 0 or more. Raises ValueError, which names *key*."""
    try:
        number = float("nan") if isinstance(value, bool) else float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        number = float("nan")
    if not 0 <= number < inf:
        raise ValueError(f"{key} must be a number of {unit}, 0 or more, got {_short(value)}")
    return number / per_second


def slo_given(bounds_s: Sequence[float | None], quantile: float | None, refuse_infeasible: bool = False) -> Slo | None:
    """An Slo of the numbers that are not None, bounds in the order of ``SLO_METRICS``; None if all of them are."""
    given_s = [inf if bound_s is None else bound_s for bound_s in bounds_s]
    if quantile is None:
        return slo_of(given_s, refuse_infeasible=refuse_infeasible) if min(given_s) < inf else None
    return slo_of(given_s, quantile, refuse_infeasible)


def estimated_tokens(value: object) -> int:
    """About how many tokens the texts of a prompt or of messages have, at least 1."""
    return max(1, round(text_tokens(" ".join(_texts(value)))))


def _texts(value: object) -> Iterator[str]:
    """Every text, wherever it stands in messages of OpenAI's or OpenTelemetry's form."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for each in value:
            yield from _texts(each)
    elif isinstance(value, dict):
        for key in ("content", "text", "parts"):
            yield from _texts(value.get(key))


def member(record: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """The JSON object under *key*, empty if absent or null. Raises ValueError."""
    value = record.get(key)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ValueError(f"{key} must be an object, got {_short(value)}")  # noqa: TRY004 - a bad line
    return value


def items(record: Mapping[str, Any], key: str) -> list[Any]:
    """The list under *key*, empty if absent or null. Raises ValueError."""
    value = record.get(key)
    if value is None:
        return []
    if not isinstance(value, list):
        raise ValueError(f"{key} must be a list, got {_short(value)}")  # noqa: TRY004 - a bad line
    return value


def _short(value: object) -> str:
    return shorten(repr(value), 40, placeholder="...")


def text_of(record: Mapping[str, Any], key: str) -> str:
    """The text (or number, as text) under *key*, empty if absent. Raises ValueError."""
    value = record.get(key, "")
    if value is None:
        return ""
    if not isinstance(value, str | int):
        raise ValueError(f"{key} must be text, got {type(value).__name__}")  # noqa: TRY004 - a bad line
    return str(value)


def fallback_of(record: Mapping[str, Any]) -> str:
    """Whether another model may serve it: ``allow`` or ``deny``, empty if ``fallback`` is absent. Raises ValueError."""
    given = text_of(record, "fallback")
    if given not in ("", ALLOW, DENY):
        raise ValueError(f"fallback must be {ALLOW} or {DENY}, got {given!r}")
    return given


def flag(record: Mapping[str, Any], key: str) -> bool:
    """The boolean under *key*, True if absent. Raises ValueError."""
    value = record.get(key, True)
    if not isinstance(value, bool):
        raise ValueError(f"{key} must be true or false, got {value!r}")  # noqa: TRY004 - a bad line
    return value


def hashes(record: Mapping[str, Any], key: str) -> tuple[int, ...]:
    """The list of prefix hashes under *key*, empty if absent. Raises ValueError."""
    value = record.get(key) or []
    if not isinstance(value, list) or not all(isinstance(item, int) for item in value):
        raise ValueError(f"{key} must be a list of whole numbers")
    return tuple(value)
