"""One attempt: a call on one engine's connection, and its reply on the way to the client, timed as it passes.

Depends on the call, the upstream and a ReplySink (ports.py), and on nothing else of a request.
Until the first event has been seen nothing goes to the client, so that any failure before it can be retried elsewhere;
from then on one read is one write, and the bytes pass unchanged unless client or engine needs another framing or form.
"""

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Final

import orjson

from router.core.flight import Failure, FailureKind
from router.core.types import Usage
from router.gateway.traffic import faults
from router.gateway.traffic.call import Call
from router.gateway.traffic.faults import EngineError
from router.gateway.traffic.http import LAST_CHUNK, Head, chunk, dechunked, parse_head
from router.gateway.traffic.meter import CHUNK_SEAM, Meter, first_event
from router.gateway.traffic.ports import Frame, ReplySink
from router.gateway.traffic.upstream import Connection, Reader, Upstream

_HELD_BYTES_MAX: Final = 1 << 20  # of an error body, or before a first event
_OK: Final = range(200, 300)
_CHUNK_OPENS: Final = re.compile(rb"\r\n[0-9a-fA-F]+\r\n$")

# What an attempt does with the connection's next bytes. Numbers and no bound methods: those would be a cycle, and
# compiled code compares a number for nothing.
_BEFORE_HEAD: Final = 0
_HELD_BACK: Final = 1  # until the first event has been seen
_RELAYED: Final = 2  # an event stream, unchanged
_WHOLE: Final = 3  # another body, unchanged
_REFRAMED: Final = 4  # for a client that cannot take the engine's framing, or an engine that has none
_TRANSLATED: Final = 5  # for an engine of another protocol
_DYING: Final = 6  # the engine has sent an error: the rest of its payload
_OVER: Final = 7


class UpstreamAttempt(Reader):
    """One attempt of a call on one backend. ``number`` is the core's."""

    __slots__ = (
        "_body", "_clock", "_decodes", "_frame", "_head", "_phase", "_sink", "_translation", "_write", "call",
        "connect_s", "connection", "meter", "number", "paused", "predicted_ttft_s", "upstream",
    )  # fmt: skip

    def __init__(self, call: Call, upstream: Upstream, sink: ReplySink, number: int, predicted_ttft_s: float) -> None:
        """Raises UnsupportedFeature when the engine's protocol has no form for the call."""
        self.call = call
        self.upstream = upstream
        self._sink = sink
        self.number = number
        self.predicted_ttft_s = predicted_ttft_s
        self.connection: Connection | None = None
        self.connect_s = 0.0
        self.paused = False
        self.meter = Meter(upstream.gaps, call.endpoint.error_mark)
        self._clock = upstream.clock
        self._head: Head | None = None
        self._body = b""
        self._frame: Frame | None = None
        self._phase = _BEFORE_HEAD
        self._translation = call.for_engine(upstream.target)
        self._decodes = call.http10 or self._translation is not None
        self._write: Callable[[bytes], object] = _nowhere

    @property
    def over(self) -> bool:
        """Whether it has ended: no further byte of it counts."""
        return self._phase == _OVER

    # -- the driver's side -------------------------------------------------------------------------------------

    def start(self) -> None:
        """Send the request on an idle connection or a new one."""
        connection = self.upstream.take()
        if connection is not None:
            self._send(connection)
        else:
            self._dial()

    def _dial(self) -> None:
        self.connection = None  # one that was closed while idle is replaced: the driver finds what is connecting by it
        began_s = self._clock()

        def ready(connection: Connection) -> None:
            if self.over:
                self.upstream.idle(connection)
                return
            self.connect_s = self._clock() - began_s
            self._send(connection)

        self.upstream.dial(ready, lambda why: self._failed(Failure(why)))

    def moved(self, upstream: Upstream) -> None:
        """The backend's address changed before a connection to the old one was open: connect to the new one."""
        if upstream.target.engine.protocol != self.upstream.target.engine.protocol:
            why = f"{upstream.target.name} was configured with another protocol"
            self._failed(Failure(why, backend_fault=False, kind=FailureKind.WITHDRAWN))
            return
        self.upstream = upstream
        self._dial()

    def _send(self, connection: Connection) -> None:
        self.connection = connection
        self._phase = _BEFORE_HEAD
        upstream = self.upstream
        head, body = self.call.request_bytes(upstream.target, upstream.opening, self._translation)
        connection.send(self, head, body, decode=self._decodes, head_only=self.call.head_only)

    def abort(self) -> None:
        """Close the connection at once; the sink gets no further call."""
        if self.over:
            return  # its connection may be another attempt's by now
        self._phase = _OVER
        if self.connection is not None:
            self.connection.abort()

    def usage_so_far(self) -> Usage:
        """Token counts of what has come of the reply."""
        return self._usage()

    def pause(self) -> None:
        """Read no more from the engine: the client reads more slowly than the engine writes."""
        if self.connection is not None and not self.over:
            self.paused = True
            self.connection.transport.pause_reading()

    def resume(self) -> None:
        """The client has caught up."""
        if self.paused and self.connection is not None and not self.over:
            self.paused = False
            self.meter.last_s = self._clock()
            self.connection.transport.resume_reading()

    # -- the connection's side ---------------------------------------------------------------------------------

    def take(self, data: bytes) -> None:
        """More bytes. A token of a stream is stamped, counted and written unchanged: the hot path."""
        if self._phase != _RELAYED:
            self._take_other(data)
        elif self.meter.passes(data, self._clock()):
            self._write(data)
        else:
            self._ends_with_error(data)

    def _take_other(self, data: bytes) -> None:
        phase = self._phase
        if phase == _BEFORE_HEAD:
            self._before_head(data)
        elif phase == _HELD_BACK:
            self._held_back(data)
        elif phase == _WHOLE:
            self._relay_whole(data)
        elif phase == _REFRAMED:
            self._reframe(data)
        elif phase == _TRANSLATED:
            self._translate_body()
        elif phase == _DYING:
            self._dying(data)

    def finished(self) -> None:
        """The answer is complete."""
        if self._head is None or self._head.status not in _OK:
            self._answered_with_error()
            return
        self._end_of_body()

    def closed(self) -> None:
        """The engine closed the connection: the end of a body that has no other, else a cut."""
        head = self._head
        if head is None or not head.until_close:
            self.connection_failed(f"{self.upstream.target.name} closed the connection in the middle", unanswered=False)
        elif head.status not in _OK:
            self._answered_with_error()
        elif self._phase == _DYING:
            self._break_with_error()
        elif self.call.expects_done and head.event_stream and not self.meter.saw_done:
            self._failed(Failure(f"{self.upstream.target.name} closed the connection before [DONE]"))
        else:
            if self._phase == _HELD_BACK:
                self._judge(complete=True)
            if not self.over:
                self._end_of_body()

    def connection_failed(self, why: str, *, unanswered: bool) -> None:
        """The connection failed. One that the engine closed while it was idle is replaced by a new one."""
        if unanswered and self.connection is not None and self.connection.reused and not self.over:
            self._dial()
        else:
            self._failed(Failure(why))

    def stalled(self, silent_s: float) -> None:
        """No byte for too long in the middle of a reply."""
        if self.connection is not None:
            self.connection.abort()
        self._failed(Failure(f"{self.upstream.target.name} sent nothing for {silent_s:.1f} s"))

    def _failed(self, failure: Failure, engine_error: EngineError | None = None) -> None:
        if not self.over:
            self._phase = _OVER
            self._sink.failed(self.number, failure, engine_error)

    # -- before the first byte ---------------------------------------------------------------------------------

    def _before_head(self, data: bytes) -> None:
        assert self.connection is not None
        parts = self.connection.split_head(data)
        if parts is None:
            return
        try:
            self._head = parse_head(parts[0])
        except ValueError:  # llhttp and parse_head do not find the same head in these bytes
            self._give_up(f"{self.upstream.target.name} sent a head that cannot be read")
            return
        self._phase = _HELD_BACK
        self._held_back(parts[1])

    def _held_back(self, data: bytes) -> None:
        assert self.connection is not None
        self._body += self.connection.decoded() if self._decodes else data
        self._judge(complete=self.connection.done)

    def _judge(self, *, complete: bool) -> None:
        """Whether the bytes so far may be sent: not an error's body, not a stream that opens with an error."""
        head = self._head
        assert head is not None
        if len(self._body) > _HELD_BYTES_MAX and (head.status not in _OK or head.event_stream):
            self._give_up(f"{self.upstream.target.name} sent over {_HELD_BYTES_MAX} bytes before a first event")
        elif head.status not in _OK or (self._translation is not None and self._translation.whole and not complete):
            return
        elif not head.event_stream:
            if self._body or complete:
                self._open()
        else:
            verdict = first_event(self._body, chunked=head.chunked and not self._decodes, complete=complete)
            if verdict is True:
                self._open()
            elif verdict is not None:
                self._opens_with_error(bytes(verdict))

    def _give_up(self, why: str) -> None:
        if self.connection is not None:
            self.connection.abort()
        self._failed(Failure(why))

    def _opens_with_error(self, payload: bytes) -> None:
        error = faults.event_error(payload, self.upstream.target.engine.errors)
        if self.connection is not None:
            self.connection.abort()
        self._failed(faults.failure(self.upstream.target.name, error), error)

    def _answered_with_error(self) -> None:
        head = self._head
        assert head is not None
        body = dechunked(self._body) if head.chunked and not self._decodes else self._body
        error = faults.engine_error(head.status, body, head.fields, self.upstream.target.engine.errors)
        failure = faults.failure(self.upstream.target.name, error)
        if self._translation is not None:  # a body in the engine's form is not for this client
            error = replace(error, fields=b"", body=b"")
        self._failed(failure, error)

    def _open(self) -> None:
        """The first byte: send the status and the bytes that were held back."""
        head, body = self._head, self._body
        assert head is not None
        self._body = b""
        died = None
        if self._translation is None and head.event_stream and body.find(self.meter.mark) >= 0:
            body, died = self._cut(body)
        now_s = self._clock()
        if body:
            self.meter.begins(body, now_s)
        else:
            self.meter.first_s = self.meter.last_s = now_s
        if self._translation is not None:
            body = self._translated(body)
            died = self._translation.error
            if died is not None and not body:
                self._opens_with_error(died)
                return
        self._write = self._sink.writer()
        self._frame = self._sink.open(self.number, head, body, self._translation)
        self._sink.first_token(self.number)
        if self.over:  # aborted by the core's answer to the first byte
            return
        if self._frame is not None:
            self._phase = _TRANSLATED if self._translation is not None else _REFRAMED
        else:
            self._phase = _RELAYED if head.event_stream else _WHOLE
        if died is not None:
            self._dies(died + b"\n" if self._translation is not None else died)

    # -- after it ----------------------------------------------------------------------------------------------

    def _relay_whole(self, data: bytes) -> None:
        self.meter.continues(data, self._clock())
        self._write(data)

    def _reframe(self, data: bytes) -> None:
        assert self.connection is not None
        assert self._frame is not None
        if self._decodes:
            data = self.connection.decoded()
        if not data:
            return
        if self.meter.passes(data, self._clock()):
            self._write(self._frame(data))
        else:
            self._ends_with_error(data)

    def _translate_body(self) -> None:
        assert self.connection is not None
        assert self._translation is not None
        assert self._frame is not None
        data = self.connection.decoded()
        if not data:
            return
        self.meter.passes(data, self._clock())
        out = self._translated(data)
        if out:
            self._write(self._frame(out))
        if self._translation.error is not None:
            self._break(self._translation.error)

    def _translated(self, data: bytes) -> bytes:
        assert self._translation is not None
        try:
            return self._translation.feed(data)
        except ValueError as error:
            why = f"{self.upstream.target.name} sent what is not of its protocol: {error}"
            self._translation.error = orjson.dumps({"error": why})
            return b""

    def _ends_with_error(self, data: bytes) -> None:
        """The engine sent an error in the stream: pass the bytes before it, then end the stream as a broken one."""
        before, payload = self._cut(data)
        if before:
            self.meter.passes(before, self._clock())
            self._write(before if self._frame is None else self._frame(before))
        self._dies(payload)

    def _cut(self, data: bytes) -> tuple[bytes, bytes]:
        """What stands before the engine's error, up to the end of a chunk where there are chunks, and its payload."""
        before, _, after = data.partition(self.meter.mark)
        payload = (self.meter.mark + after).partition(b"data:")[2]
        if self._head is None or not self._head.chunked or self._decodes:
            return before, payload
        own_chunk = _CHUNK_OPENS.search(before)
        if own_chunk is not None:
            return before[: own_chunk.start() + 2], payload
        if self._phase != _RELAYED or self.meter.at_boundary:  # the read starts at a chunk
            return chunk(dechunked(data).partition(self.meter.mark)[0]), payload
        return b"", payload  # inside a chunk: no event of ours can follow

    def _dies(self, payload: bytes) -> None:
        """Collect the engine's error payload, of which *payload* is the beginning."""
        self._body = payload
        self._phase = _DYING
        self._dying(b"")

    def _dying(self, data: bytes) -> None:
        assert self.connection is not None
        self._body += self.connection.decoded() if self._decodes else data
        if b"\n" in self._body or self.connection.done or len(self._body) > _HELD_BYTES_MAX:
            self._break_with_error()

    def _break_with_error(self) -> None:
        """The engine's error payload ends with its line, or where the body ends."""
        self._break(CHUNK_SEAM.sub(b"", self._body).partition(b"\n")[0])

    def _usage(self) -> Usage:
        """Token counts of the reply."""
        return Usage(self._translation.tokens) if self._translation is not None else self.meter.usage()

    def _break(self, payload: bytes) -> None:
        error = faults.event_error(payload.strip(), self.upstream.target.engine.errors)
        if self.connection is not None:
            self.connection.abort()
        self._failed(faults.failure(self.upstream.target.name, error, "failed in mid-stream with"), error)

    def takes_event(self) -> bool:
        """Whether an event of ours may follow what was sent of this stream."""
        head = self._head
        if head is None or not head.event_stream:
            return False
        if self._frame is not None:
            return self._translation is not None or self.meter.at_event_end
        return head.chunked and self.meter.at_boundary

    def ending(self, event: bytes) -> bytes:
        """*event* and the end of the body, as framed for this client."""
        if self._frame is None or self._frame is chunk:
            return chunk(event) + LAST_CHUNK
        return event

    def _end_of_body(self) -> None:
        if self.over:
            return
        self._phase = _OVER
        self.upstream.gaps.sum_s += self.meter.last_s - self.meter.first_s
        frame = self._frame
        if frame is not None:
            rest = self._translation.finish() if self._translation is not None else b""
            end = LAST_CHUNK if frame is chunk else b""
            if rest or end:
                self._write((frame(rest) if rest else b"") + end)
        self._sink.ended(self.number, self._usage())


def _nowhere(_: bytes) -> None:
    """The write of an attempt that has not opened yet."""
