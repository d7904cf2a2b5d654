"""Reads a trace file, plain or gzipped. The format is recognised by its content; a bad line is named by its number.

A file is CSV, JSON a line, a JSON array of such objects, or one JSON document; of a document a request is named by its
place. Must not depend on how the requests are used; the formats are in ``formats/``.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from simulator.errors import BadLine
from simulator.traces.entry import LeftOut, LineParser, Parsed, Reading, TraceEntry, TraceFormat
from simulator.traces.fields import json_object
from simulator.traces.formats import format_of, format_of_keys
from simulator.traces.opening import opened

Numbered = Iterator[tuple[int, str]]


def read_trace(path: Path, *, skip_bad: bool = False, limit: int | None = None, name: str = "") -> Reading:
    """Read up to *limit* requests. Raises BadLine at the first bad line; with *skip_bad* such lines are counted and
    left out. Messages call the file *name*, by default its path.
    """
    with opened(path) as lines:
        return _Reader(name or str(path), skip_bad, limit).read(enumerate(lines, 1))


class _Reader:
    """Reads one file."""

    def __init__(self, name: str, skip_bad: bool, limit: int | None) -> None:
        self._name, self._skip_bad, self._limit = name, skip_bad, limit
        self._reading = Reading("", [])

    def read(self, numbered: Numbered) -> Reading:
        number, first = next(((n, line) for n, line in numbered if line.strip()), (0, ""))
        if not number:
            raise BadLine(f"{self._name}: expected a trace, found an empty file")
        if first.lstrip()[0] in "{[":
            self._read_json(number, first, numbered)
        else:
            found = self._recognised(number, lambda: format_of(first))
            self._read_lines(found, first, numbered)
        self._reading.entries.sort(key=lambda entry: entry.arrived_s)
        return self._reading

    def _recognised(self, number: int, recognise: Callable[[], TraceFormat]) -> TraceFormat:
        try:
            found = recognise()
        except ValueError as problem:
            raise BadLine(f"{self._name}:{number}: {problem}") from None
        reading = self._reading
        reading.format, reading.shared_hashes = found.name, found.shared_hashes
        reading.notes = [found.note] if found.note else []
        reading.caution = found.caution
        return found

    # ---- lines --------------------------------------------------------------------

    def _read_lines(self, found: TraceFormat, first: str, numbered: Numbered) -> None:
        assert found.parser is not None
        parser = found.parser(first)
        for number, line in numbered:
            if self._full():
                break
            if line.strip():
                try:
                    self._keep(parser.read(line))
                except ValueError as problem:
                    self._bad(f"{self._name}:{number}: {problem}")
        self._finish(parser)

    def _keep(self, parsed: Parsed) -> None:
        if isinstance(parsed, TraceEntry):
            self._reading.entries.append(parsed)
        elif isinstance(parsed, LeftOut):
            self._reading.left_out[parsed.why] = self._reading.left_out.get(parsed.why, 0) + 1
        elif parsed is not None:
            self._reading.entries += parsed

    def _bad(self, message: str) -> None:
        if not self._skip_bad:
            raise BadLine(message) from None
        self._reading.skipped += 1
        self._reading.first_skipped = self._reading.first_skipped or message

    def _full(self) -> bool:
        return self._limit is not None and len(self._reading.entries) >= self._limit

    def _finish(self, parser: LineParser) -> None:
        """Let the parser complete what was read. What a cut file has besides says nothing of it."""
        try:
            left_out = parser.finish(self._reading.entries)
        except ValueError as problem:
            raise BadLine(f"{self._name}: {problem}") from None
        if not self._full():
            for why, count in left_out.items():
                self._reading.left_out[why] = self._reading.left_out.get(why, 0) + count

    # ---- JSON ---------------------------------------------------------------------

    def _read_json(self, number: int, first: str, numbered: Numbered) -> None:
        """Objects a line, an array of them, or documents: the first line decides, if it is a whole value."""
        try:
            value = json.loads(first)
        except json.JSONDecodeError:
            value = self._whole(number, first + "".join(line for _, line in numbered))
        if isinstance(value, list):
            self._read_array(number, value)
            return
        found = self._recognised(number, lambda: format_of_keys(list(value)))
        if found.document is None:
            self._read_lines(found, first, _before((number, json.dumps(value)), numbered))
            return
        self._read_document(found, f"{self._name}: ", value)
        for later, line in numbered:
            if line.strip() and not self._full():
                try:
                    document = json_object(line)
                except ValueError as problem:
                    self._bad(f"{self._name}:{later}: {problem}")
                else:
                    self._read_document(found, f"{self._name}:{later}: ", document)

    def _whole(self, number: int, text: str) -> Any:
        try:
            return json.loads(text)
        except json.JSONDecodeError as problem:
            line = number + problem.lineno - 1
            raise BadLine(
                f"{self._name}:{line}: expected a JSON object, {problem.msg} at column {problem.colno}"
            ) from None

    def _read_array(self, number: int, records: list[Any]) -> None:
        first = records[0] if records else None
        if not isinstance(first, dict):
            raise BadLine(f"{self._name}:{number}: expected JSON objects in the list, found {str(first)[:40]!r}")
        found = self._recognised(number, lambda: format_of_keys(list(first)))
        if found.parser is None:
            for index, document in enumerate(records):
                self._read_document(found, f"{self._name}: [{index}]: ", document)
            return
        parser = found.parser(json.dumps(first))
        for index, record in enumerate(records):
            if self._full():
                break
            try:
                self._keep(parser.read(json.dumps(record)))
            except ValueError as problem:
                self._bad(f"{self._name}: [{index}]: {problem}")
        self._finish(parser)

    def _read_document(self, found: TraceFormat, name: str, document: object) -> None:
        assert found.document is not None
        try:
            if not isinstance(document, dict):
                raise ValueError("expected a JSON object")  # noqa: TRY004, TRY301 - a bad record
            for place, read in found.document(document):
                if self._full():
                    return
                try:
                    self._keep(read())
                except ValueError as problem:
                    self._bad(f"{name}{place}: {problem}")
        except ValueError as problem:
            self._bad(f"{name}{problem}")


def _before(first: tuple[int, str], rest: Numbered) -> Numbered:
    yield first
    yield from rest
