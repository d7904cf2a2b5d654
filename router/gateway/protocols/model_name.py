"""The model that a reply names: the client's name for it in place of the engine's, and every other byte as it came.

Must not depend on sockets or on how a reply is framed: it is given bodies and event streams without their framing.
"""

from typing import Final

import orjson

from router.gateway.protocols.answers import Dialect
from router.gateway.protocols.json_members import member_span

_DATA: Final = b"data:"
_MEMBER: Final = b'"model'  # the beginning of both names below
_LINE_BYTES_MAX: Final = 1 << 20  # a longer line of a stream passes as it is


class ModelName:
    """Renames the model in one reply: ``whole``, or ``feed`` as a stream comes, and ``finish``."""

    __slots__ = ("_around", "_held", "_member", "_passes", "_value")

    def __init__(self, name: str, dialect: Dialect) -> None:
        """*name*: what the client calls the model; *dialect*: of the reply."""
        self._value = orjson.dumps(name)
        self._member = "model_name" if dialect is Dialect.TRITON else "model"
        # events of these hold the reply so far, which names the model, in a member
        self._around = "response" if dialect is Dialect.RESPONSES else "message" if dialect is Dialect.ANTHROPIC else ""
        self._held = b""  # the beginning of a line
        self._passes = False  # the rest of a line that was too long to hold

    @property
    def held_bytes(self) -> int:
        """Of a line that has not ended yet."""
        return len(self._held)

    def whole(self, body: bytes) -> bytes:
        """A reply that is no stream; unchanged where it names no model."""
        return self._renamed(body, 0)

    def feed(self, data: bytes) -> bytes:
        """More of an event stream; returns the lines that are complete with it."""
        if self._passes:
            end = _first_line_end(data)
            if not end:
                return data
            self._passes = False
            return data[:end] + self.feed(data[end:])
        data = self._held + data
        end = max(data.rfind(b"\n"), data.rfind(b"\r")) + 1
        lines, self._held = data[:end], data[end:]
        if lines.find(_MEMBER) >= 0:
            lines = b"".join([self._line(line) for line in lines.splitlines(keepends=True)])
        if len(self._held) > _LINE_BYTES_MAX:
            self._passes = True
            return lines + self.finish()
        return lines

    def finish(self) -> bytes:
        """What is left of the stream."""
        rest, self._held = self._held, b""
        return self._line(rest)

    def _line(self, line: bytes) -> bytes:
        return self._renamed(line, len(_DATA)) if line.startswith(_DATA) else line

    def _renamed(self, data: bytes, start: int) -> bytes:
        """*data* with another model in the object at *start*."""
        if data.find(_MEMBER) < 0:
            return data
        try:
            span = member_span(data, self._member, start)
            if span is None and self._around:
                around = member_span(data, self._around, start)
                span = member_span(data, self._member, around[0]) if around is not None else None
        except ValueError:  # no object, or none that can be read
            return data
        if span is None or data[span[0] : span[0] + 1] != b'"':
            return data
        return b"%b%b%b" % (data[: span[0]], self._value, data[span[1] :])


def _first_line_end(data: bytes) -> int:
    """Behind the first line end; 0: there is none. A carriage return alone is one too."""
    ends = [end for end in (data.find(b"\n"), data.find(b"\r")) if end >= 0]
    return min(ends) + 1 if ends else 0
