"""Counts a reply as it passes: its first token, events, gaps between tokens, and how many tokens it had.

An event stream's ``data:`` lines start after a line feed, and JSON holds no raw line feed, so that text that looks like
an event is never counted as one. Must not depend on sockets; keeps a few KB of a stream at most.
"""

import re
from math import nan
from typing import Any, Final

from router.core.types import CHARS_PER_TOKEN, Usage
from router.gateway.traffic.chunk_view import CHUNK_SEAM
from router.gateway.traffic.frames import (
    DATA,
    DONE,
    FAILED_FINISH,
    LAST,
    TOKEN,
    has_token,
    read_events,
    with_line_feeds,
)
from router.gateway.traffic.usage import StatedUsage, UsageSearch

_LF: Final = 10
_CR: Final = 13
_LINE_END_BYTES: Final = 4  # of an event's end with its chunk's: \n\n\r\n
_SHORT_BYTES: Final = 64
_TAIL_BYTES: Final = 4096
_SEQUENCE: Final = re.compile(rb'"sequence_length"\s*:\s*(\d{1,12})(?!\d)')  # Triton's
_END: Final = re.compile(  # in text, any of these would have its quotes escaped
    rb'\ndata: ?\[DONE\]|"finish_reason"\s*:\s*"[^"]|' + LAST
)
_DONE: Final = b"data: " + DONE
_FAILED_FINISH: Final = re.compile(FAILED_FINISH)
_CAPPED: Final = re.compile(rb'"(?:finish_reason|stop_reason|reason)"\s*:\s*"(?:length|max_tokens|max_output_tokens)"')
_NEXT_DONE: Final = b"\n" + _DONE
_COUNTS: Final = b'_tokens"'
# How an event with a token opens, up to what no other event has: named, or an object with one of these keys
_NAMED: Final = re.compile(rb"event: ?[\w.]*delta\r?\ndata: ?")
_OBJECT: Final = re.compile(rb"data: ?\{")
_KEY: Final = re.compile(rb'"(?:choices"\s*:\s*\[\s*\{|type"\s*:\s*"[\w.]*delta")')
_BEFORE_KEY_MOST: Final = 512
_KEY_BYTES_MOST: Final = 1024
_SIZE_LINE_BYTES: Final = 12
_EVENT_END_BYTES: Final = 5  # from its last line end on, at most: that, a blank line and its chunk's
_DONE_END_BYTES: Final = 7  # ], two line ends, that of its chunk
_OUTPUT_MOST: Final = 1 << 20  # tokens of one reply: more than any model's context
_HIDDEN_MOST: Final = 1 << 15  # tokens of one reply that nothing shows: reasoning, above all
_PER_BYTE: Final = 1  # tokens a byte of the reply, with all that stands around its text
_PER_EVENT: Final = 2  # servers that send words in pieces have more events than tokens
_WHOLE_ENVELOPE: Final = 200  # bytes of a whole reply beside its text, about
_SEVERAL: Final = 2  # tokens an event by a ratio that was not measured: below, it is rather one
_NOT_COUNTED: Final = 4  # events of the end: finish reason, usage, [DONE]
_UNKNOWN: Final = b"\n\n\n"  # begins no event
_NEVER: Final = -1
_IN_READ: Final = -2
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


def is_suspect(data: bytes) -> bool:
    """Whether an event in these bytes may be an error, the end of a reply or a statement of usage.

    Cheap, and often wrong: generated text has the words too. Names in quotes it cannot have, since JSON escapes those.
    """
    return (
        data.find(b"rror") >= 0
        or data.find(b'_tokens"') >= 0
        or data.find(b"failed") >= 0
        or data.find(b'"detail"') >= 0
        or data.find(b"omplete") >= 0
        or data.find(b'"message"') >= 0
        or data.find(b'"msg"') >= 0
    )


def opening_of(data: bytes, at: int = 0) -> bytes:
    """How the event at *at* opens, up to what only an event with a token has; empty: it is not known to have one.

    The key is searched for, and no expression is stretched to it byte by byte, which takes ten times as long.
    """
    begun = _OBJECT.match(data, at)
    if begun is None:
        named = _NAMED.match(data, at)
        return named[0] if named is not None else b""
    first = begun.end()
    key = _KEY.search(data, first, first + _BEFORE_KEY_MOST + _KEY_BYTES_MOST)
    if key is None or key.start() - first > _BEFORE_KEY_MOST or data.find(b"\n", first, key.start()) >= 0:
        return b""
    return data[at : key.end()]


def data_lines(text: bytes) -> int:
    """Events in *text*, which begins where a line does."""
    return (b"\n" + text).count(DATA)


def ends_with_done(text: bytes) -> bool:
    """Whether the last event in *text* may be ``[DONE]``."""
    at = len(text) - _DONE_END_BYTES
    return text.find(b"]\n", at) >= 0 or text.find(b"]\r", at) >= 0


def ends_reply(text: bytes) -> bool:
    """Whether *text* has an event that says that the reply is complete."""
    if text.startswith(_DONE) or text.find(_NEXT_DONE) >= 0:
        return True
    may_end = (  # each match has one of these
        text.find(b"[DONE]") >= 0
        or text.find(b"finish_reason") >= 0
        or text.find(b"message_stop") >= 0
        or text.find(b"omplete") >= 0
        or text.find(b"ancelled") >= 0
    )
    return may_end and _END.search(b"\n" + text) is not None


def _cuts_events(data: bytes) -> bool:
    """Whether a chunk ends in the middle of a line, so that a word may be cut in two."""
    if data.count(b"\r\n") <= 2 * data.count(b"\n\n\r\n"):  # most often: a chunk an event
        return False
    return any(data[seam.start() - 1] != _LF for seam in CHUNK_SEAM.finditer(data) if seam.start() > 0)


def _without_framing(data: bytes) -> bytes:
    """What was passed, as if after a line feed, without chunk framing and with line feeds for line ends."""
    return with_line_feeds(CHUNK_SEAM.sub(b"", b"\n" + data))


class Gaps:
    """Histogram of gaps between tokens of one backend: ``counts[i]`` are up to ``GAP_EDGES_S[i]``, the last of all."""

    __slots__ = ("counts", "sum_s")

    def __init__(self) -> None:
        self.counts = [0] * (len(GAP_EDGES_S) + 1)
        self.sum_s = 0.0  # of the replies that have ended


class Meter:
    """Counts of one reply so far.

    ``events``: data lines; ``started``: its first token has come; ``first_s``, ``last_s``: of the first and the last
    token, ``heard_s``: of the last byte, on the caller's clock; ``stated``: the engine's own counts; ``beside_bytes``:
    of the reply, those that ``passed_bytes`` does not count. ``last_s`` may be that of an event without a token, such
    as a finish reason, until something else follows: see ``last_token_s``.
    """

    __slots__ = (
        "_at", "_before", "_before_s", "_body_bytes", "_end", "_end_at", "_envelope", "_first", "_framing", "_joined",
        "_joined_at", "_last", "_lead", "_opening", "_reframed", "_search", "_stated_at", "beside_bytes", "events",
        "first_s", "gap_max_s", "gaps", "heard_s", "last_s", "started", "stated",
    )  # fmt: skip

    def __init__(self, gaps: Gaps) -> None:
        self.gaps = gaps
        self.events = 0
        self.started = False
        self.first_s = 0.0
        self.last_s = 0.0
        self._before_s = 0.0  # last_s before the newest read that counts as tokens
        self.heard_s = 0.0
        self.gap_max_s = 0.0
        self.stated = StatedUsage()
        self._stated_at = _NEVER  # passed_bytes up to the last read in which usage was parsed
        self._search: UsageSearch | None = None
        self._last = b""  # the newest bytes, and those before them: enough for the end and for usage
        self._before = b""
        self._joined = b""  # the newest bytes where the last read was short: it begins at _joined_at
        self._joined_at = 0
        self._opening = _UNKNOWN  # how the newest event with a token began
        self._at = 0  # and where in its read: after the size of its chunk
        self._end = _LF  # the byte before its last one, and how far that is from the end of its read
        self._end_at = 1
        self._lead = 0  # events before the first token
        self._envelope = -1  # bytes of an event beside its text; -1: unknown
        self._first = 0  # hash of the line that the first event with a token is, where it is one
        self._framing = 0
        self._body_bytes = 0  # since the first token
        self._reframed = 0  # of those, of framing beside that of one chunk an event
        self.beside_bytes = 0

    def begins(self, now_s: float, before: bytes, event: bytes, text_bytes: int, *, framed: bool) -> None:
        """The first token has come in *event*, of which *text_bytes* are text (-1: not known).

        *before*: what of the same read stands in front of it. *framed*: later bytes are chunk-framed.
        """
        self.started = True
        self.first_s = self.last_s = self._before_s = now_s
        lead = data_lines(before) if before else 0
        self._lead = self.events + lead
        self._framing = ((len(event).bit_length() + 3) >> 2) + 4 if framed else 0  # of a chunk that holds one event
        self._envelope = len(event) - text_bytes if text_bytes >= 0 else -1
        if event.startswith(DATA[1:]) and event.find(b"\n") == len(event) - 2:
            self._first = hash(event[:-2])
        self._body_bytes = -len(before) - lead * self._framing
        self.beside_bytes -= self._body_bytes
        self._opening = opening_of(event) or self._opening
        self._learn_end(event, len(b"\r\n") if framed else 0)

    def passes(self, data: bytes, now_s: float) -> bool:
        """More of an event stream that has begun and of which no begin of an event waits. False, and nothing counted:
        there may be more to it than tokens.

        Called for every read, so it is flat, and makes nothing that outlives it. (``find``, since ``in`` first takes
        its bytes for a number and formats the error.)
        """
        size = len(data)
        if size < _LINE_END_BYTES or data[-1] != _LF:
            return False
        if data[-2] != _LF and (data[-3] != _LF or (data[-4] != _LF and data[-4] != _CR)):
            return False  # it ends inside of an event, or with the size of a chunk to come
        at, opening = self._at, self._opening
        after = at + len(opening)
        count = 1
        if (
            not data.startswith(opening, at)
            or size < self._end_at
            or data[size - self._end_at] != self._end
            or data.find(b"\n", after) < size - _EVENT_END_BYTES
            or data.find(b'"error"', after) >= 0
        ):
            count = self._events_in(data)
            if count < 0:
                return False
        self.heard_s = now_s
        self._body_bytes += size
        if count:
            self._gap(count, now_s)
        else:
            self._settle()
        if _SHORT_BYTES < size < _TAIL_BYTES:
            self._before = self._last
            self._last = data
        else:
            self._keep(data)
        return True

    def resembles(self, text: bytes) -> bool:
        """Whether *text*, without its framing, begins as an event with a token does, as far as that is known."""
        return text.startswith(self._opening) or self._opening == _UNKNOWN

    def _events_in(self, data: bytes) -> int:
        """How many events a read has that is not one like the newest, and of which one may have a token: none where it
        has none. -1: there may be more to them than tokens.
        """
        if is_suspect(data) or (self._framing and _cuts_events(data)):
            return -1
        count = data_lines(data)
        at = data.find(b"event:", 0, _SIZE_LINE_BYTES + len(b"event:"))
        at = at if at >= 0 else data.find(b"data:", 0, _SIZE_LINE_BYTES + len(b"data:"))
        opening = opening_of(data, at) if at >= 0 else b""
        other = at >= 0 and not opening and self._opening != _UNKNOWN  # than events with a token are
        if other and data.find(b"{") < 0:
            return -1
        if opening:
            self._opening, self._at = opening, at
            if count == 1:
                self._learn_end(data, 0)
        if (other or ends_with_done(data)) and not has_token(_without_framing(data)):
            self.events += count
            return 0
        return count

    def _learn_end(self, data: bytes, more: int) -> None:
        """How an event with a token ends, before *more* bytes of framing: one that ends otherwise may have the same
        opening and be of usage, as LiteLLM's are.
        """
        end = len(data.rstrip(b"\r\n"))
        if end > 1:
            self._end_at, self._end = len(data) - end + more + 2, data[end - 2]

    def passed(self, text: bytes, out: bytes, now_s: float, *, removed: int, counts: bool, token: bool) -> None:
        """More of an event stream that was looked at: *text* without its framing, of which *removed* events did not go
        out, and what did. *counts*: tokens had come before, so that there is a gap between those and these; *token*: it
        has one.
        """
        count = data_lines(text) - removed
        if not counts:
            self.events += count
        elif count and token:
            self._gap(count, now_s)
        else:
            self.events += count
            self._settle()
        if self.started:
            self._body_bytes += len(out)
            if self._framing:
                self._reframed += max(len(out) - len(text) - count * self._framing, 0)
        else:
            self.beside_bytes += len(out)
        if out:
            self._keep(out)
        if self._stated_at == _IN_READ:
            self._stated_at = self._body_bytes

    def states(self, usage: dict[str, Any]) -> None:
        """The engine's own counts, in an event of the read that ``passed`` gets next."""
        self.stated.take(usage)
        self._stated_at = _IN_READ

    def _settle(self) -> None:
        """Something without a token follows: if what was taken for the last token has none either, as an event with a
        finish reason, that was the one before.
        """
        if self._before_s != self.last_s:
            newest = self.newest_read
            if len(newest) < _TAIL_BYTES and not has_token(_without_framing(newest)):
                self.last_s = self._before_s
            self._before_s = self.last_s

    def last_token_s(self) -> float:
        """When the last token came, as far as the reply has come; nan: none has, or all that were seen came at once,
        which shows nothing of those that were not.
        """
        if not self.started:
            return nan
        self._settle()
        return self.last_s if self.last_s > self.first_s else nan

    def _gap(self, count: int, now_s: float) -> None:
        gap_s = now_s - self.last_s
        self._before_s = self.last_s
        self.last_s = now_s
        self.events += count
        counts = self.gaps.counts
        counts[edge_above(GAP_EDGES_S, gap_s)] += 1
        if count > 1:
            counts[0] += count - 1
        if gap_s > self.gap_max_s:  # noqa: PLR1730 - a call to max() costs more than all of this
            self.gap_max_s = gap_s

    def needs_no_look(self, data: bytes) -> bool:
        """Whether reads of plain tokens, such as *data*, pass without a further look: from the first on that is not
        suspect, since each event may state usage.
        """
        if not self._at and self._opening != _UNKNOWN and not is_suspect(data):
            self._at = data.find(self._opening)
        return self._at > 0

    def hand_over(self, stream: Any) -> None:
        """Give a stream of ``_fast_path.c`` what it passes reads by, and the counts so far."""
        stream.expect(self._opening, self._end, self._end_at)
        stream.begin(
            self.heard_s,
            self.last_s,
            self._before_s,
            self.gap_max_s,
            self.events,
            self._body_bytes,
            self._last,
            self._before,
        )

    def take_back(self, stream: Any) -> None:
        """Its counts once it has passed some reads: those that ``passes`` would have."""
        if stream.body_bytes == self._body_bytes:
            return
        self.heard_s, self.last_s, self._before_s = stream.heard_s, stream.last_s, stream.before_s
        self.gap_max_s = stream.gap_max_s
        self.events, self._body_bytes = stream.events, stream.body_bytes
        self._last, self._before = stream.newest, stream.older

    def continues(self, data: bytes, now_s: float) -> None:
        """More of a reply that is no event stream."""
        self.heard_s = self.last_s = self._before_s = now_s
        self._body_bytes += len(data)
        self.searches(data)
        self._keep(data)

    def searches(self, text: bytes) -> None:
        """Look for usage in a part of an event that is not parsed."""
        if self._search is None:
            self._search = UsageSearch(self.stated)
        self._search.feed(text)

    def tokens(self, count: int, now_s: float) -> None:
        """So many tokens of a translated reply have come."""
        if self.started:
            self._gap(count, now_s)
        else:
            self.started = True
            self.first_s = self.last_s = now_s
            self.events += count
        self._before_s = now_s  # that is a token for certain

    def _keep(self, data: bytes) -> None:
        """Short reads, above all at the end of a stream, are joined to the read before."""
        if len(data) > _SHORT_BYTES:
            self._before = self._last
            self._last = data[-_TAIL_BYTES:]
        else:
            self._last = self._joined = (self._last + data)[-_TAIL_BYTES:]
            self._joined_at = len(self._joined) - len(data)

    @property
    def _tail(self) -> bytes:
        """The last that was passed, as if after a line feed and without chunk framing."""
        return _without_framing(self._before + self._last)

    @property
    def newest(self) -> bytes:
        """The newest bytes: the same object as long as nothing has passed."""
        return self._last

    @property
    def newest_read(self) -> bytes:
        """The last read that passed, or its end."""
        return self._joined[self._joined_at :] if self._last is self._joined else self._last

    @property
    def passed_bytes(self) -> int:
        """How many bytes have passed since the first token; what came before it counts against them."""
        return self._body_bytes

    @property
    def reply_bytes(self) -> int:
        """How many bytes of the reply have passed in all."""
        return self.beside_bytes + self._body_bytes

    @property
    def at_boundary(self) -> bool:
        """Whether what was passed ends with an event and its chunk, so that an event of ours may follow."""
        return self._last.endswith((b"\n\n\r\n", b"\r\n\r\n\r\n", b"\r\r\r\n")) or not self._last

    @property
    def at_event_end(self) -> bool:
        """The same for a body without chunk framing."""
        return self._last.endswith((b"\n\n", b"\r\n\r\n", b"\r\r")) or not self._last

    @property
    def saw_end(self) -> bool:
        """Whether the last events that passed say that the reply is complete."""
        return ends_reply(self._tail)

    def gave_up(self, text: bytes) -> str:
        """The finish reason, in the last that passed or in *text* behind it, of a reply that the engine gave up; empty:
        there is no such one.
        """
        for part in (text, self._last, self._before):
            if part.find(b'"abort') >= 0 or part.find(b'"cancelled"') >= 0 or part.find(b'"insufficient_') >= 0:
                found = _FAILED_FINISH.search(self._tail + text)
                return found[1].decode() if found is not None else ""
        return ""

    def usage(
        self,
        bytes_per_token: float,
        *,
        whole: bool = False,
        generates: bool = True,
        most: int = _OUTPUT_MOST,
        cap: int = 0,
        sequences: int = 1,
    ) -> Usage:
        """Token counts: the engine's own where it states them and they can be true, else an estimate from the text.

        *bytes_per_token*: of such text, 0: not measured. *whole*: it is no event stream; *generates*: nearly all of its
        bytes are generated text. *most*: output tokens that the request can have; *cap*: that its client asked for,
        of all *sequences* together.
        """
        stated, tail = self.stated, b""
        if stated.output < 0 or self._stated_at == _NEVER:
            tail = self._tail
            if tail.find(_COUNTS) >= 0:
                UsageSearch(stated).feed(tail)
        elif (unread := self._body_bytes - self._stated_at) > 0:  # earlier counts do not replace what was parsed
            newest = (self._before + self._last)[-unread:]
            if newest.find(_COUNTS) >= 0:
                UsageSearch(stated).feed(_without_framing(newest))
        sequence = _SEQUENCE.search(tail) if whole and stated.output < 0 else None
        output, least, estimated = stated.output, 0, False
        if sequence is not None:
            output = int(sequence[1])
        if output > min(most, max(cap, _HIDDEN_MOST) + _PER_BYTE * self._body_bytes) or not (
            sequence is not None or self._plausible(output, whole=whole)
        ):
            tail = tail or self._tail
            may_cap = tail.find(b'"length"') >= 0 or tail.find(b'"max_') >= 0  # each match has one of these
            if not may_cap or len(_CAPPED.findall(tail)) != sequences:
                cap = 0  # they did not all end because they have as many as were asked for
            output, least = self._estimate(tail, bytes_per_token, cap, whole=whole and generates)
            estimated = output > 0 and not (stated.output < 0 and self._one_each(tail, least))
            output, least = min(output if estimated else least, most), min(least, most) if estimated else 0
        prompt, cached = stated.prompt, stated.cached
        return Usage(output, prompt, max(cached, 0), cached >= 0, estimated, least)

    def _plausible(self, output: int, *, whole: bool) -> bool:
        """Nearly every event has a token or more."""
        if output <= 0:
            return output == 0 and not self.started
        if whole:
            return True
        return _PER_EVENT * output + _NOT_COUNTED >= self.events - self._lead

    def _one_each(self, tail: bytes, frames: int) -> bool:
        """Whether the newest events state, as Triton's do, that each of them is one token, or that there are as many so
        far as there were events: then events are tokens.
        """
        lengths = _SEQUENCE.findall(tail) if self.started else []
        return len(lengths) > 0 and (int(lengths[-1]) == frames or all(each == b"1" for each in lengths))

    def _estimate(self, tail: bytes, bytes_per_token: float, cap: int, *, whole: bool) -> tuple[int, int]:
        """About how many tokens there were, and how many events with any: no fewer than that. *cap*: as many as it
        should have by its finish reason (0: not known).
        """
        if not self.started:
            ratio = bytes_per_token or CHARS_PER_TOKEN
            return max(round((self._body_bytes - _WHOLE_ENVELOPE) / ratio), 0) if whole else 0, 0
        frames, text_bytes = self._text(tail)
        if frames < cap <= text_bytes:  # else it is the context's length that ended it
            return cap, frames
        if bytes_per_token:
            return max(frames, round(text_bytes / bytes_per_token)), frames
        tokens = round(text_bytes / CHARS_PER_TOKEN)
        return tokens if tokens >= _SEVERAL * frames else frames, frames  # else what is seen is one token an event

    def _text(self, tail: bytes) -> tuple[int, int]:
        """Events with tokens, and the bytes of their text (0: not known)."""
        parts = tail.split(DATA)[1:]
        frames, last_bytes, text_bytes = self.events - self._lead, 0, 0
        typical = frames  # of those, the ones that are as long as the first but for their text
        short = len(parts) >= self.events  # all of the reply is here
        for part in reversed(parts):
            line = DATA[1:] + part.partition(b"\n")[0]
            if short and self._envelope >= 0 and hash(line) == self._first:
                text_bytes += len(line) + len(b"\n\n") - self._envelope
            else:
                tokens = [each for each in read_events(line) if each.kind == TOKEN]
                if not short and not all(each.last for each in tokens):
                    break
                frames -= 0 if tokens else 1
                text_bytes += max(sum(each.text_bytes for each in tokens), 0)
            typical -= 1
            last_bytes += len(DATA) + len(part) + self._framing
        if short:
            frames += self._lead
        elif self._envelope >= 0:
            body_bytes = self._body_bytes - self._reframed
            text_bytes += max(body_bytes - last_bytes - typical * (self._envelope + self._framing), 0)
        return max(frames, 1), text_bytes if self._envelope >= 0 else 0

    @property
    def text_bytes(self) -> int:
        """Bytes of generated text, as JSON has it, that came in an event stream; 0: not known."""
        return self._text(self._tail)[1] if self.started else 0
