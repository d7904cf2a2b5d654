"""Counting what passes: events, gaps between them, and the usage that the last of them states.

Believes: an event stream's ``data:`` lines start after a line feed, and JSON holds no raw line feed, so text that
looks like an event is never counted as one. Must not know sockets; keeps a few KB of a stream at most.
"""

import re
from bisect import bisect_left
from collections import deque
from typing import Final

from router.core.types import Usage
from router.gateway.http import dechunked

_DATA: Final = b"\ndata:"
_LF: Final = 10
_TAIL_READS: Final = 6
_TAIL_BYTES: Final = 4096
_DONE: Final = re.compile(rb"\ndata: ?\[DONE\]")
_CHUNK_SEAM: Final = re.compile(rb"\r\n[0-9a-fA-F]+\r\n")
_COUNT: Final = re.compile(
    rb'"(prompt_tokens|completion_tokens|cached_tokens|input_tokens|output_tokens|cache_read_input_tokens)"\s*:\s*(\d+)'
)
_SEQUENCE: Final = re.compile(rb'"sequence_length"\s*:\s*(\d+)')  # Triton's, of a whole reply
_ROLE_ALONE: Final = re.compile(rb'"role"\s*:\s*"assistant"[^}]*"content"\s*:\s*(?:""|null)')
NO_USAGE: Final = Usage(0)


class Gaps:
    """Histogram of gaps between tokens of one backend: ``counts[i]`` are those up to ``EDGES_S[i]``, the last all."""

    EDGES_S: Final = (
        0.001, 0.0025, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.04, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.5,
        5.0, 10.0,
    )  # fmt: skip

    __slots__ = ("counts", "sum_s")

    def __init__(self) -> None:
        self.counts = [0] * (len(self.EDGES_S) + 1)
        self.sum_s = 0.0


class Meter:
    """What one reply has shown so far. ``events``: data lines; ``first_s`` and ``last_s``: on the caller's clock."""

    __slots__ = ("_ends_line", "_prelude", "_tail", "events", "first_s", "gap_max_s", "gaps", "last_s")

    def __init__(self, gaps: Gaps) -> None:
        self.gaps = gaps
        self.events = 0
        self.first_s = 0.0
        self.last_s = 0.0
        self.gap_max_s = 0.0
        self._tail: deque[bytes] = deque(maxlen=_TAIL_READS)
        self._ends_line = True
        self._prelude = 0

    def begins(self, data: bytes, now_s: float) -> None:
        """The first bytes of the reply, all that were held back for inspection."""
        self.first_s = self.last_s = now_s
        data = b"\n" + data  # a body starts as if after a line feed
        self.events = data.count(_DATA)
        self._prelude = 1 if _ROLE_ALONE.search(data, 0, _TAIL_BYTES) else 0
        self._keep(data)

    def passes(self, data: bytes, now_s: float) -> None:
        """More of an event stream. Called for every read, so it makes nothing that outlives it but the tail."""
        count = data.count(_DATA)
        if not self._ends_line:  # the mark may lie across the seam, even of several short reads
            count += (b"".join(self._tail)[-5:] + data[:5]).count(_DATA)
        elif data.startswith(b"data:"):
            count += 1
        if count:
            gap_s = now_s - self.last_s
            self.last_s = now_s
            self.events += count
            gaps = self.gaps
            gaps.counts[bisect_left(gaps.EDGES_S, gap_s)] += 1
            gaps.sum_s += gap_s
            if count > 1:
                gaps.counts[0] += count - 1
            if gap_s > self.gap_max_s:  # noqa: PLR1730 - a call to max() costs more than all of this
                self.gap_max_s = gap_s
        self._keep(data)

    def continues(self, data: bytes, now_s: float) -> None:
        """More of a reply that is no event stream."""
        self.last_s = now_s
        self._keep(data)

    def _keep(self, data: bytes) -> None:
        self._ends_line = data[-1] == _LF
        self._tail.append(data if len(data) <= _TAIL_BYTES else data[-_TAIL_BYTES:])

    @property
    def at_boundary(self) -> bool:
        """Whether the last read ended with an event and its chunk, so that an event of ours may follow."""
        return self._tail[-1].endswith((b"\n\n\r\n", b"\r\n\r\n\r\n"))

    @property
    def at_event_end(self) -> bool:
        """The same for a body without chunk framing."""
        return self._tail[-1].endswith((b"\n\n", b"\r\n\r\n"))

    @property
    def saw_done(self) -> bool:
        """Whether the stream has said ``[DONE]``."""
        return _DONE.search(b"\n" + b"".join(self._tail)) is not None

    def usage(self) -> Usage:
        """Token counts: the engine's own where it states them, else the events that carried text."""
        tail = b"".join(self._tail)
        at = tail.rfind(b'"usage"')
        text = _CHUNK_SEAM.sub(b"", tail[at:] if at >= 0 else tail)
        at = text.rfind(b'"usage"')
        stated = _COUNT.findall(text, at) if at >= 0 else ()
        if not stated and not self.events:
            counted = _SEQUENCE.search(tail)
            return Usage(int(counted[1])) if counted else NO_USAGE
        if not stated:
            extra = self._prelude + (1 if _DONE.search(b"\n" + tail) else 0)
            return Usage(max(self.events - extra, 0))
        counts = {name: int(number) for name, number in stated}
        output = counts.get(b"completion_tokens", counts.get(b"output_tokens", 0))
        prompt = counts.get(b"prompt_tokens", counts.get(b"input_tokens", 0))
        cached = counts.get(b"cached_tokens", counts.get(b"cache_read_input_tokens", 0))
        return Usage(output, prompt, cached)


_ERROR_PAYLOAD: Final = re.compile(rb'\{\s*"(?:error"|type"\s*:\s*"error")')
_ERROR_PAYLOAD_BYTES: Final = 24  # enough to tell ``{"type": "error"`` from a token, spaces included


def first_event(body: bytes, *, chunked: bool, complete: bool) -> bytes | bool | None:
    """What an event stream opens with: the payload of an error event, True for a good start, None for not yet known.

    Engines put a refusal into a stream that began as 200, so its first event is read before the status goes out.
    """
    text = b"\n" + (dechunked(body) if chunked else body)
    at = text.find(_DATA)
    if at < 0:
        return True if complete else None
    payload = text[at + len(_DATA) :].lstrip(b" ")
    if not _ERROR_PAYLOAD.match(payload):
        return True if complete or len(payload) >= _ERROR_PAYLOAD_BYTES or b"\n" in payload else None
    line, ended, _ = payload.partition(b"\n")
    return line.rstrip() if ended or complete else None
