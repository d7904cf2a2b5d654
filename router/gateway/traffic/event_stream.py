"""An engine's event stream on its way to the client: its first token, its usage, its errors and its end.

Works on whole events: what is left of a read after its last whole event waits for the next read, since no client can
use a part of one, and so that an error is found before any byte of it has been passed. Reads of plain tokens need none
of this once the first token has come: see ``Meter.passes``. Must not depend on sockets.
"""

import re
from typing import Final

from router.gateway.traffic.chunk_view import AT_SIZE, UNKNOWN, ChunkView, Removal, without
from router.gateway.traffic.frames import (
    DONE,
    ERROR,
    LAST,
    TOKEN,
    Event,
    failed_finish,
    has_token,
    is_json,
    plain_error,
    read_events,
    with_line_feeds,
)
from router.gateway.traffic.meter import Meter, ends_reply, ends_with_done, is_suspect

_EVENT_BYTES_MAX: Final = 1 << 16  # of an event that waits for its end; a longer one is passed as it comes
_UNENDED_BYTES_MAX: Final = 1 << 24  # without the end of an event: chunk extensions and trailers count too
_CHOICES_MAX: Final = 4096  # whose ends are tracked
_ENDLESS: Final = b'{"error": {"message": "over 16 MiB without the end of an event", "code": 502}}'
_BLANK_LINE: Final = re.compile(rb"\n\r?\n")
_LINE_ENDS: Final = b"\r\n"
_LINE_END_BYTES: Final = 2
_IDLE: Final = re.compile(rb"(?:(?::[^\n]*)?\r?\n)*+")  # comments and blank lines
_LAST: Final = re.compile(LAST)
_DONE: Final = b"data: " + DONE + b"\n\n"


class EventStream:
    """``error``: the payload of the engine's error, once one came: nothing after it is passed. ``cut_short``: the body
    has ended, and the reply has not. ``structured``: an event without a token has come; ``pinged``: a sign of life.
    """

    __slots__ = (
        "_exact", "_framed", "_held", "_inside", "_kept", "_left", "_must_end", "_open", "_passed_bytes", "_several",
        "_sized", "_strips_usage", "_token", "_unended", "cut_short", "ended", "error", "meter", "pinged", "structured",
    )  # fmt: skip

    def __init__(
        self, meter: Meter, *, framed: bool, sized: bool, must_end: bool, strips_usage: bool, several: bool
    ) -> None:
        """*framed*: the bytes are chunk-framed, and so are those that are passed; *sized*: the size of what is passed
        has been stated. *must_end*: a whole reply says that it is. *strips_usage*: an event of usage alone is not
        passed, because the client did not ask for it. *several*: the reply may have more choices than one.
        """
        self.meter = meter
        self.error: bytes | None = None
        self.pinged = self.structured = self.ended = self.cut_short = False
        self._framed = framed
        self._sized = sized
        self._must_end = must_end
        self._strips_usage = strips_usage
        self._several = several and must_end
        self._open: set[int] | None = set() if self._several else None  # choices that have begun and not finished
        self._held = b""
        self._left = AT_SIZE  # of a chunk's data at its begin
        self._exact = True  # that was counted from the begin of the body, and not guessed
        self._kept = b""  # the meter's newest bytes when that was so
        self._passed_bytes = 0  # and how many had been passed
        self._token = False  # what was examined of the current read holds one
        self._unended = 0  # bytes since the last read in which an event ended
        self._inside = False  # the begin of the current event has been passed

    @property
    def examines(self) -> bool:
        """Whether the next read has to be looked at event by event: the begin of an event waits for its end, or each
        choice's own end has to be seen.
        """
        return self._several or bool(self._held)

    @property
    def at_chunk(self) -> bool:
        """Whether it is certain that a chunk begins with the next read."""
        return self._framed and self._exact and self._left == AT_SIZE and not self._held

    def chunks_passed(self) -> None:
        """Whole chunks of plain tokens have passed since a chunk began: only the meter has seen them."""
        self._left, self._exact = AT_SIZE, True
        self._kept, self._passed_bytes = self.meter.newest, self.meter.passed_bytes

    @property
    def held_bytes(self) -> int:
        """How many bytes of it have come."""
        return len(self._held)

    def feed(self, data: bytes, now_s: float, *, done: bool) -> bytes:
        """More of the body; what of it goes to the client. *done*: the body has ended with it."""
        meter = self.meter
        meter.heard_s = now_s
        if self._framed and meter.newest is not self._kept:
            self._left = self._left_since()
        view = ChunkView(self._held + data, framed=self._framed, left=self._left)
        text = view.data = with_line_feeds(view.data)
        counts = meter.started
        self._token = False
        whole = len(text) if done else _whole_in(view)
        removals: list[Removal] = []
        examines = not counts or self._inside or self._several or is_suspect(text) or text.find(b"{") < 0
        if examines:
            whole = self._examine(view, whole, now_s, removals)
            if self.error is not None:
                self._held, out = b"", view.until(whole, removals)
                meter.passed(text[:whole], out, now_s, removed=len(removals), counts=counts, token=self._token)
                return out
        self._inside = len(text) - whole > _EVENT_BYTES_MAX or (self._inside and not whole)
        self._unended = 0 if whole else self._unended + len(data)
        if self._unended > _UNENDED_BYTES_MAX:
            self.error = _ENDLESS
        end = whole
        if self._inside:
            self._skim(text[whole:])
            self._token = self._token or (examines and has_token(text[whole:]))
            end = len(text)
        cut = self._end(view) if done else view.cut(end)
        self._held, out = view.raw[cut:] if not done else b"", without(view.raw[:cut], removals)
        self._left = view.left
        sent = text[:end]
        if not examines:
            self._token = (not ends_with_done(sent) and meter.resembles(sent)) or has_token(sent)
        meter.passed(sent, out, now_s, removed=len(removals), counts=counts, token=self._token)
        self._kept, self._passed_bytes = meter.newest, meter.passed_bytes
        return out

    def _left_since(self) -> int:
        """What is to come of a chunk's data after the reads of plain tokens that only the meter has seen."""
        passed = self.meter.passed_bytes - self._passed_bytes
        if 0 <= passed <= self._left:
            return self._left - passed
        self._exact = False
        view = ChunkView(self.meter.newest_read, framed=True, left=UNKNOWN)
        return view.left if view.cut(len(view.data)) == len(view.raw) else UNKNOWN

    def _end(self, view: ChunkView) -> int:
        """Where in the last bytes of the body to stop: of one that was cut short, before its end."""
        reason = self.meter.gave_up(view.data) if self._must_end else ""
        if reason:
            self.error = failed_finish(reason)
            return view.last_chunk
        self.cut_short = self._must_end and not self._has_ended(view.data)
        return view.last_chunk if self.cut_short else len(view.raw)

    def _has_ended(self, text: bytes) -> bool:
        """Whether the reply is complete by now; *text*: what of it has come and was not passed yet."""
        return self.ended or (not self._several and (ends_reply(text) or self.meter.saw_end))

    def _examine(self, view: ChunkView, end: int, now_s: float, removals: list[Removal]) -> int:
        """Read the events up to *end*; returns how far they may pass: to that of an error, if there is one."""
        begin = 0
        for stop in _ends(view.data, end):
            span = view.data[begin:stop]
            event = span.lstrip(_LINE_ENDS)
            begin = stop - len(event)
            if self._inside:  # the end of one that was too long to wait for it
                self._inside = False
                self._skim(span)
            elif event and (not self.meter.started or self._several or is_suspect(event) or event.find(b"{") < 0):
                instead = self._read(event, now_s, view.data[:begin])
                if self.error is not None:
                    return begin
                if instead is not None and self._strips_usage:
                    if view.lacks_end(begin, stop):  # with that the chunk can be taken out as a whole
                        return begin
                    removals.append(view.removal(begin, stop, sized=self._sized, instead=instead))
            elif event:
                self._pass_over(event)
            begin = stop
        return end

    def _pass_over(self, event: bytes) -> None:
        """An event after the first token that is no error and states no usage."""
        if event == _DONE:
            self.ended = True
        elif not self._token:
            self._token = has_token(event)

    def _read(self, text: bytes, now_s: float, before: bytes) -> bytes | None:
        """Take note of one event, which *before* precedes in this read. Of one of usage alone: the line that takes its
        place if it is not passed, empty: none.
        """
        instead: bytes | None = None
        for event in read_events(text):
            if event.kind == ERROR:
                self.error = event.error
                return None
            if event.kind == TOKEN and not event.document and self._is_foreign(event, before):
                self.error = plain_error(event.payload)
                return None
            self.ended = self._ends_with(event)
            usage = event.usage
            if usage is not None:
                self.meter.states(usage)
                instead = event.without_usage if event.usage_alone else None
            if self.meter.started:
                self._token = self._token or (event.kind == TOKEN and not event.repeats)
                continue
            if event.kind == TOKEN:
                self.meter.begins(now_s, before, text, event.text_bytes, framed=self._framed)
            elif event.ping:
                self.pinged = True
            else:
                self.structured = True
        self.pinged = self.pinged or text[:1] == b":" or text.find(b"\n:") >= 0
        return instead

    def _is_foreign(self, event: Event, before: bytes) -> bool:
        """Whether an event that is not read as an object breaks the reply: it is no JSON, and the reply is not complete
        without it.
        """
        return self._must_end and not is_json(event.payload) and not self._has_ended(before)

    def _ends_with(self, event: Event) -> bool:
        """Whether the reply is complete with this event: one of several choices that has finished is not all of it."""
        choices = event.choices() if self._several else []
        if not choices or self._open is None:
            return self.ended or event.last
        for index, finished in choices:
            if finished:
                self._open.discard(index)
            elif len(self._open) < _CHOICES_MAX:
                self._open.add(index)
        return not self._open

    def _skim(self, text: bytes) -> None:
        """A part of an event that is too long to be read: with it the ends of the choices are no longer tracked."""
        self._several = False
        self.meter.searches(text)
        self.ended = self.ended or _LAST.search(text) is not None


def _whole_in(view: ChunkView) -> int:
    """How far the data has whole events and comments. The line end of a chunk that ends after a line of an event is not
    the blank line that ends the event.
    """
    after = view.after_chunk
    if not after:
        return _whole_events(view.data)
    end = len(view.data) - after
    whole = _whole_events(view.data[:end])
    return end + _LINE_END_BYTES if whole == end and after >= _LINE_END_BYTES else whole


def _whole_events(text: bytes) -> int:
    """How far *text* has whole events and comments."""
    if text.endswith(b"\n\n"):
        return len(text)
    lf, crlf = text.rfind(b"\n\n"), text.rfind(b"\n\r\n")
    end = max(lf + 2 if lf >= 0 else 0, crlf + 3 if crlf >= 0 else 0)
    lines = text[end : text.rfind(b"\n") + 1]
    return end + len(lines) if lines and _is_whole(lines) else end


def _is_whole(lines: bytes) -> bool:
    """Whether nothing more of these lines' event can come, though no blank line has: line ends and comments, an error,
    the end of a stream, several events that only line ends separate.
    """
    if _IDLE.fullmatch(lines) is not None:
        return True
    if lines.count(b"data:") < 2 and not is_suspect(lines) and lines.find(DONE) < 0:  # noqa: PLR2004 - several
        return False
    events = read_events(lines)
    last = events[-1] if events else None
    return last is not None and (
        len(events) > 1 or last.payload == DONE or (last.kind == ERROR and bool(last.document))
    )


def _ends(text: bytes, end: int) -> list[int]:
    """The end of each event in *text* up to *end*."""
    if text.find(b"\r") >= 0:
        found = [blank.end() for blank in _BLANK_LINE.finditer(text, 0, end)]
    else:  # the same, for a tenth of its time
        found, at = [], text.find(b"\n\n", 0, end)
        while at >= 0:
            found.append(at + 2)
            at = text.find(b"\n\n", at + 2, end)
    if end and (not found or found[-1] < end):
        found.append(end)
    return found
