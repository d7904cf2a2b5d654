"""Counts a reply as it passes: events, gaps between them, and the usage that the last of them states.

An event stream's ``data:`` lines start after a line feed, and JSON holds no raw line feed, so that text that looks like
an event is never counted as one. Must not depend on sockets; keeps a few KB of a stream at most.
"""

import re
from typing import Final

from router.core.types import Usage
from router.gateway.traffic.http import dechunked

_DATA: Final = b"\ndata:"
_LF: Final = 10
_D: Final = 100
_SHORT_BYTES: Final = 64
_TAIL_BYTES: Final = 4096
_DONE: Final = (b"\ndata: [DONE]", b"\ndata:[DONE]")
CHUNK_SEAM: Final = re.compile(rb"\r\n[0-9a-fA-F]+\r\n")
_COUNT: Final = re.compile(
    rb'"(prompt_tokens|completion_tokens|cached_tokens|input_tokens|output_tokens|cache_read_input_tokens)"\s*:\s*(\d{1,18})(?!\d)'
)  # a longer number is none: Python reads no more than some thousands of digits
_SEQUENCE: Final = re.compile(rb'"sequence_length"\s*:\s*(\d{1,18})(?!\d)')  # Triton's, of a whole reply
_ROLE_ALONE: Final = re.compile(rb'"role"\s*:\s*"assistant"[^}]*"content"\s*:\s*(?:""|null)')
NO_USAGE: Final = Usage(0)


GAP_EDGES_S: Final[tuple[float, ...]] = (
    0.001, 0.0025, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.04, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.5,
    5.0, 10.0,
)  # fmt: skip


def edge_above(edges: tuple[float, ...], value: float) -> int:
    """``bisect_left(edges, value)``, which boxes its floats: compiled, this takes a tenth of its time."""
    low, high = 0, len(edges)
    while low < high:
        middle = (low + high) >> 1
        if edges[middle] < value:
            low = middle + 1
        else:
            high = middle
    return low


class Gaps:
    """Histogram of gaps between tokens of one backend: ``counts[i]`` are up to ``GAP_EDGES_S[i]``, the last of all."""

    __slots__ = ("counts", "sum_s")

    def __init__(self) -> None:
        self.counts = [0] * (len(GAP_EDGES_S) + 1)
        self.sum_s = 0.0  # of the replies that have ended


class Meter:
    """Counts of one reply so far. ``events``: data lines; ``first_s`` and ``last_s``: on the caller's clock.

    ``mark``: the beginning of an engine's error event, found by ``passes``.
    """

    __slots__ = (
        "_before", "_edge", "_last", "_prelude", "_ragged", "events", "first_s", "gap_max_s", "gaps", "last_s", "mark",
    )  # fmt: skip

    def __init__(self, gaps: Gaps, mark: bytes) -> None:
        self.gaps = gaps
        self.events = 0
        self.first_s = 0.0
        self.last_s = 0.0
        self.gap_max_s = 0.0
        self.mark = mark
        self._last = b""  # the newest bytes, and those before them: enough for usage, [DONE] and the last chunk
        self._before = b""
        self._ragged = False  # the last read ended inside a line; _edge is then its end
        self._edge = b"\n"
        self._prelude = 0

    def begins(self, data: bytes, now_s: float) -> None:
        """The first bytes of the reply, all that were held back for inspection."""
        self.first_s = self.last_s = now_s
        data = b"\n" + data  # a body starts as if after a line feed
        self.events = data.count(_DATA)
        self._prelude = 1 if data.find(b'"role"') >= 0 and _ROLE_ALONE.search(data, 0, _TAIL_BYTES) else 0
        self._keep(data)
        self._seam(data)

    def passes(self, data: bytes, now_s: float) -> bool:
        """More of an event stream; False, and nothing counted, when it holds an error event.

        Called for every read, so it is flat, and makes nothing that outlives it. (``find``, since ``in`` first takes
        its bytes for a number and formats the error.)
        """
        if data.find(self.mark) >= 0:
            return False
        count = data.count(_DATA)
        if self._ragged or data[-1] != _LF:
            if self._ragged and self.mark in self._last[1 - len(self.mark) :] + data[: len(self.mark) - 1]:
                return False
            count += self._seam(data)
        elif data[0] == _D and data.startswith(b"data:"):
            count += 1
        if count:
            gap_s = now_s - self.last_s
            self.last_s = now_s
            self.events += count
            counts = self.gaps.counts
            counts[edge_above(GAP_EDGES_S, gap_s)] += 1
            counts[0] += count - 1
            if gap_s > self.gap_max_s:  # noqa: PLR1730 - a call to max() costs more than all of this
                self.gap_max_s = gap_s
        if _SHORT_BYTES < len(data) < _TAIL_BYTES:
            self._before = self._last
            self._last = data
        else:
            self._keep(data)
        return True

    def continues(self, data: bytes, now_s: float) -> None:
        """More of a reply that is no event stream."""
        self.last_s = now_s
        self._keep(data)

    def _seam(self, data: bytes) -> int:
        """Events whose mark lies across the seam to the reads before, where those or this one end inside a line."""
        edge = self._edge + data[: len(_DATA) - 1]
        self._edge = (self._edge + data)[1 - len(_DATA) :]
        self._ragged = data[-1] != _LF
        if not self._ragged:
            self._edge = b"\n"
        return edge.count(_DATA)

    def _keep(self, data: bytes) -> None:
        """Short reads, above all at the end of a stream, are joined to the read before."""
        if len(data) > _SHORT_BYTES:
            self._before = self._last
            self._last = data[-_TAIL_BYTES:]
        else:
            self._last = (self._last + data)[-_TAIL_BYTES:]

    @property
    def _tail(self) -> bytes:
        return self._before + self._last

    @property
    def at_boundary(self) -> bool:
        """Whether the last read ended with an event and its chunk, so that an event of ours may follow."""
        return self._last.endswith((b"\n\n\r\n", b"\r\n\r\n\r\n"))

    @property
    def at_event_end(self) -> bool:
        """The same for a body without chunk framing."""
        return self._last.endswith((b"\n\n", b"\r\n\r\n"))

    @property
    def saw_done(self) -> bool:
        """Whether ``[DONE]`` has come."""
        tail = b"\n" + self._tail
        return tail.find(_DONE[0]) >= 0 or tail.find(_DONE[1]) >= 0

    def usage(self) -> Usage:
        """Token counts: the engine's own where it states them, else the events that carried text."""
        tail = self._tail
        stated = _stated(tail) if tail.find(b"_tokens") >= 0 else ()
        if not stated and not self.events:
            counted = _SEQUENCE.search(tail) if tail.find(b'"sequence_length"') >= 0 else None
            return Usage(int(counted[1])) if counted else NO_USAGE
        if not stated:
            extra = self._prelude + (1 if self.saw_done else 0)
            return Usage(max(self.events - extra, 0))
        counts = {name: int(number) for name, number in stated}
        output = counts.get(b"completion_tokens", counts.get(b"output_tokens", 0))
        prompt = counts.get(b"prompt_tokens", counts.get(b"input_tokens", 0))
        cached = counts.get(b"cached_tokens", counts.get(b"cache_read_input_tokens", -1))
        return Usage(output, prompt, max(cached, 0), cached >= 0)


def _stated(tail: bytes) -> list[tuple[bytes, bytes]]:
    """The counts in the last usage object, chunk seams taken out."""
    text = CHUNK_SEAM.sub(b"", tail)
    at = text.rfind(b'"usage"')
    return _COUNT.findall(text, at) if at >= 0 else []


_ERROR_PAYLOAD: Final = re.compile(rb'\{\s*"(?:error"|type"\s*:\s*"error")')
_OPENS: Final = b'data: {"'
_SIZE_LINE_BYTES: Final = 10
_ERROR_PAYLOAD_BYTES: Final = 24  # enough to tell ``{"type": "error"`` from a token, spaces included


def _opens_with_token(body: bytes) -> bool:
    """Whether this is what nearly every stream opens with, a chunk's size before it or not: no need to look closer.
    A name that is not whole, or cut by the seam of two chunks, is looked at closer.
    """
    at = body.find(_OPENS, 0, _SIZE_LINE_BYTES + len(_OPENS))
    if at < 0 or (at > 0 and body[at - 1] != _LF):
        return False
    named = at + len(_OPENS)
    name = body[named : max(body.find(b'"', named), named)]
    return name.isalpha() and not name.startswith((b"error", b"type"))


def first_event(body: bytes, *, chunked: bool, complete: bool) -> bytes | bool | None:
    """What an event stream opens with: the payload of an error event, True for a good start, None for not yet known.

    Engines put a refusal into a stream that began as 200, so its first event is read before the status goes out.
    """
    if _opens_with_token(body):
        return True
    text = b"\n" + (dechunked(body) if chunked else body)
    at = text.find(_DATA)
    if at < 0:
        return True if complete else None
    payload = text[at + len(_DATA) :].lstrip(b" ")
    if not _ERROR_PAYLOAD.match(payload):
        return True if complete or len(payload) >= _ERROR_PAYLOAD_BYTES or b"\n" in payload else None
    line, ended, _ = payload.partition(b"\n")
    return line.rstrip() if ended or complete else None
