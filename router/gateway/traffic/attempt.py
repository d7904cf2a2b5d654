"""One attempt: a call on one engine's connection, and its reply on the way to the client, timed as it passes.

Depends on the call, the upstream and a ReplySink (ports.py), and on nothing else of a request.
A reply is committed, status and bytes sent, at its first token. Until then nothing goes to the client, so that any
failure before it can be retried elsewhere; but for signs of life, and for events without a token that are older than
``_HELD_BACK_S``. After the first token one read is one write, and the bytes pass unchanged unless client or engine
needs another framing or form.
"""

import asyncio
import re
from collections.abc import Callable
from dataclasses import replace
from math import nan
from socket import gaierror
from typing import Final

import orjson

from router.core import border
from router.core.flight import Failure, FailureKind
from router.core.types import Usage
from router.engines import Translation
from router.gateway.descriptors import exhausted
from router.gateway.protocols.model_name import ModelName
from router.gateway.traffic import faults
from router.gateway.traffic.call import Call
from router.gateway.traffic.event_stream import EventStream
from router.gateway.traffic.fast_path import NO_SOCKET, FastStream
from router.gateway.traffic.faults import EngineError
from router.gateway.traffic.http import LAST_CHUNK, NO_BODY, Head, chunk, dechunked, parse_head
from router.gateway.traffic.meter import Meter
from router.gateway.traffic.ports import Frame, ReplySink
from router.gateway.traffic.upstream import Connection, Reader, Upstream

_HELD_BYTES_MAX: Final = 1 << 20  # of an error body, or before a reply is committed
_HELD_BACK_S: Final = 0.5  # how long events without a token wait for one: a full engine refuses within that
_NAMED_BYTES_MAX: Final = 8 << 20  # of a whole reply in which the model is renamed; a larger one passes as it is
_ERROR_BYTES_MAX: Final = 1 << 16  # of a body that may be an error although its status is one of success
_OK: Final = range(200, 300)
_INVALID: Final = (400, 422)  # of a field that an engine does not know
_PARTING_S: Final = 0.1  # a busy engine takes so long to find that its client has left
_NOT_PARTING: Final = -1

_BEGIN_BYTES: Final = 128
_BLANKS: Final = b" \t\r\n\xef\xbb\xbf"  # before a body; the last three are a byte order mark
_EVENT_BEGINS: Final = (b"data:", b"event:", b"id:", b"retry:", b":")
_ERROR_BEGIN: Final = re.compile(  # of an error, or of so much of one that more has to come
    rb'\{\s*(?:"(?:error|detail|message|(?:object|type)"\s*:\s*(?:"error|"?\w{0,4}\Z))|"?\w{0,9}\Z)|\Z'
)

# What an attempt does with the connection's next bytes. Numbers and no bound methods: those would be a cycle, and
# compiled code compares a number for nothing.
_BEFORE_HEAD: Final = 0
_ERROR_BODY: Final = 1  # held until it is whole
_EVENTS: Final = 2  # an event stream, looked at event by event
_RELAYED: Final = 3  # an event stream after its first token, unchanged
_REFRAMED: Final = 4  # the same, for a client that cannot take the engine's framing, or an engine that has none
_WHOLE: Final = 5  # another body, unchanged
_TRANSLATED: Final = 6  # from an engine of another protocol
_OVER: Final = 7
_AT_CHUNK: Final = 8  # as _RELAYED; with the next read, which begins where a chunk does, it may take the fast path


class UpstreamAttempt(Reader):
    """One attempt of a call on one backend. ``number`` is the core's; ``model``: what the backend runs for it, by the
    name that clients use; ``fallback_why``: why that is not the model that the client named (empty: it is, or one of
    its split).
    """

    __slots__ = (
        "_again", "_asks_usage", "_body", "_clock", "_committed", "_counted", "_decodes", "_fast", "_frame", "_head",
        "_name", "_phase", "_sink", "_stream", "_timer", "_token_reported", "_translation", "_usage_refused", "_write",
        "call", "connect_s", "connection", "fallback_why", "meter", "model", "number", "over", "paused",
        "predicted_ttft_s", "upstream",
    )  # fmt: skip

    def __init__(
        self,
        call: Call,
        upstream: Upstream,
        sink: ReplySink,
        number: int,
        predicted_ttft_s: float,
        model: str = "",
        fallback_why: str = "",
        again: bool = False,
    ) -> None:
        """*model*: another one than the call's; *again*: a proxy has sent the call before. Raises UnsupportedFeature
        when the engine's protocol has no form for the call.
        """
        self.call = call
        self.upstream = upstream
        self._sink = sink
        self.number = number
        self.predicted_ttft_s = predicted_ttft_s
        self.model = model or call.request.model
        self.fallback_why = fallback_why
        self.connection: Connection | None = None
        self.connect_s = 0.0
        self.over = False  # whether it has ended: no further byte of it counts for its request
        self.paused = False
        self.meter = Meter(upstream.gaps)
        self._clock = upstream.clock
        self._head: Head | None = None
        self._body = b""  # held back
        self._committed = self._token_reported = False
        self._counted = _NOT_PARTING  # output tokens that its request has, while the rest is read
        self._asks_usage = False  # on the client's behalf
        self._usage_refused = False
        self._again = again
        self._frame: Frame | None = None
        self._stream: EventStream | None = None
        self._fast: FastStream | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._phase = _BEFORE_HEAD
        self._translation = call.for_engine(upstream.target, self.model, self._shown)
        self._name: ModelName | None = None
        self._decodes = call.http10 or self._translation is not None
        self._write: Callable[[bytes], object] = _nowhere

    @property
    def _shown(self) -> str:
        """The model that the reply names: the client's own name for it, or the one that it fell back on."""
        return self.model if self.fallback_why else self.call.body.model

    @property
    def held_bytes(self) -> int:
        """Bytes of the reply that may not go to the client yet."""
        named = self._name.held_bytes if self._name is not None else 0
        return len(self._body) + named + (self._stream.held_bytes if self._stream is not None else 0)

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

        self.upstream.dial(ready, self._undialled, again=self._again)

    def _undialled(self, why: str) -> None:
        if exhausted(self.upstream.dial_error):  # any other backend needs a connection too, but may have an idle one
            self._failed(Failure(why, backend_fault=False, kind=FailureKind.EXHAUSTED))
        elif isinstance(self.upstream.dial_error, (gaierror, UnicodeError)):  # no engine has seen the request
            self._failed(Failure(why, kind=FailureKind.UNRESOLVED))
        else:
            self._failed(Failure(why))

    def moved(self, upstream: Upstream) -> None:
        """The backend's address changed before a connection to the old one was open: connect to the new one."""
        if upstream.target.engine.protocol != self.upstream.target.engine.protocol:
            why = f"{upstream.target.name} was configured with another protocol"
            self._failed(Failure(why, backend_fault=False, kind=FailureKind.WITHDRAWN))
            return
        self.upstream = upstream
        self._dial()

    def served_by(self, upstream: Upstream) -> None:
        """A proxy has the reply from another backend, of which nothing has been read yet."""
        if self.connection is not None:
            self.connection.belongs_to(upstream)
        self.upstream = upstream
        self.predicted_ttft_s = nan
        self.meter.gaps = upstream.gaps

    def _send(self, connection: Connection) -> None:
        self.connection = connection
        self._phase = _BEFORE_HEAD
        upstream = self.upstream
        if self._translation is None:
            self._name = self.call.reply_name(upstream.target, self.model, self._shown)
            framed = self._again and upstream.proxied  # the engine's own framing, where a proxy has none
            self._decodes = self.call.http10 or self._name is not None or framed
        self._asks_usage = (
            upstream.target.engine.states_usage
            and not (upstream.refuses_usage or self._usage_refused)
            and self._translation is None
            and self.call.leaves_usage_out
        )
        head, body = self.call.request_bytes(
            upstream.target, upstream.opening, self._translation, self._asks_usage, self.number, self.model
        )
        connection.send(self, head, body, decode=self._decodes, head_only=self.call.head_only)

    def abort(self) -> None:
        """Give the reply up; the sink gets no further call but ``late_tokens``. The engine sees at once that nobody
        sends any more. What it has generated by the time that it notices is read, and counted, for a moment.
        """
        if self.over:
            return  # its connection may be another attempt's by now
        self._leave_fast_path()
        phase, counted = self._phase, self.usage_so_far().output_tokens if self._committed else 0
        self._end()
        connection = self.connection
        if connection is None:
            return
        if self.call.body.stream and phase not in (_ERROR_BODY, _WHOLE) and connection.half_close():
            self._part(_EVENTS if phase in (_REFRAMED, _AT_CHUNK) else phase, counted)
        else:
            connection.abort()

    def _end(self) -> None:
        self._leave_fast_path()
        self._fast = None  # which refers to this
        self.over = True
        self._phase = _OVER
        self._cancel_timer()

    def _part(self, phase: int, counted: int) -> None:
        """Read on as before, and pass nothing on."""
        self._phase, self._counted = phase, counted
        self._committed, self._write, self._frame, self._name, self._body = True, _nowhere, None, None, b""
        self._timer = asyncio.get_running_loop().call_later(_PARTING_S, self._parted)

    def _parted(self) -> None:
        assert self.connection is not None
        self.connection.abort()
        self._settle()

    def _settle(self) -> None:
        """The engine sends no more, or has had time to notice: report the tokens that came since the end. Nothing of an
        attempt that ended by itself: its tokens are its request's.
        """
        if self._counted == _NOT_PARTING:
            return
        self._end()
        counted, self._counted = self._counted, _NOT_PARTING
        if self._stream is not None or self._translation is not None:
            usage = self.usage_so_far()
            if usage.output_tokens > counted:
                more = usage.output_tokens - counted
                self._sink.late_tokens(self.upstream.target.name, more, estimated=usage.estimated)

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def pause(self) -> None:
        """Read no more from the engine: the client reads more slowly than the engine writes."""
        if self.connection is not None and not self.over:
            self._leave_fast_path()
            self.paused = True
            self.connection.transport.pause_reading()

    def resume(self) -> None:
        """The client has caught up."""
        if self.paused and self.connection is not None and not self.over:
            self.paused = False
            self.meter.last_s = self.meter.heard_s = self._clock()
            self.connection.transport.resume_reading()

    # -- the connection's side ---------------------------------------------------------------------------------

    def take(self, data: bytes) -> None:
        """More bytes. A token of a stream is stamped, counted and written unchanged: the hot path."""
        connection = self.connection
        if self._phase != _RELAYED or connection is None:
            self._take_other(data)
        elif not connection.done and self.meter.passes(data, self._clock()):
            self._write(data)
        else:
            self._relay_events(data)

    def _take_other(self, data: bytes) -> None:
        phase = self._phase
        if phase == _AT_CHUNK:
            self._enter_fast_path(data)
        elif phase == _BEFORE_HEAD:
            self._before_head(data)
        elif phase == _ERROR_BODY:
            self._hold(data)
        elif phase in (_EVENTS, _REFRAMED):
            self._relay_events(data)
        elif phase == _WHOLE:
            self._relay_whole(data)
        elif phase == _TRANSLATED:
            self._translate_body()

    def finished(self) -> None:
        """The answer is complete."""
        if self.over:
            self._settle()
            return
        if self._head is None or self._head.status not in _OK:
            self._answered_with_error()
            return
        if self._phase == _WHOLE and not self._committed:
            self._commit_whole()
        if self._head is not None:  # else the request is on its way once more
            self._end_of_body()

    def closed(self) -> None:
        """The engine closed the connection: the end of a body that has no other, else a cut."""
        if self.over:
            self._settle()
            return
        head = self._head
        if head is None or not head.until_close:
            self.connection_failed(f"{self.upstream.target.name} closed the connection in the middle", unanswered=False)
        elif head.status not in _OK:
            self._answered_with_error()
        else:
            if self._stream is not None:
                self._pass_events(b"", done=True)
            elif not self._committed:
                self._commit_whole()
            if self._head is not None:  # else the request is on its way once more
                self._end_of_body()

    def connection_failed(self, why: str, *, unanswered: bool) -> None:
        """The connection failed. One that the engine closed while it was idle is replaced by a new one."""
        if self.over:
            self._settle()
        elif unanswered and self.connection is not None and self.connection.reused:
            self._dial()
        else:
            self._failed(Failure(why))

    def stalled(self, silent_s: float) -> None:
        """No byte for too long in the middle of a reply."""
        if self.connection is not None:
            self.connection.abort()
        why = f"{self.upstream.target.name} sent nothing for {silent_s:.1f} s"
        self._failed(Failure(why, kind=FailureKind.LATE))

    def _failed(self, failure: Failure, engine_error: EngineError | None = None) -> None:
        if not self.over:
            self._end()
            self._sink.failed(self.number, failure, engine_error)

    def _give_up(self, why: str) -> None:
        if self.connection is not None:
            self.connection.abort()
        self._failed(Failure(why))

    # -- the reply ---------------------------------------------------------------------------------------------

    def _before_head(self, data: bytes) -> None:
        assert self.connection is not None
        parts = self.connection.split_head(data)
        if parts is None:
            return
        try:
            head = self._head = parse_head(parts[0])
        except ValueError:  # llhttp and parse_head do not find the same head in these bytes
            self._give_up(f"{self.upstream.target.name} sent a head that cannot be read")
            return
        self.upstream.refuses_usage |= self._usage_refused and head.status in _OK  # it was that, and not the rest
        if head.status not in _OK:
            self._phase = _ERROR_BODY
        elif self._translation is not None:
            self._phase = _TRANSLATED
        elif head.event_stream:
            self._expect_events(head)
        else:
            self._phase = _WHOLE
        self._take_other(parts[1])

    def _expect_events(self, head: Head) -> None:
        self._phase = _EVENTS
        self._stream = EventStream(
            self.meter,
            framed=head.chunked and not self._decodes,
            sized=head.length >= 0,
            must_end=self.call.must_end and not self.call.head_only,
            strips_usage=self._asks_usage,
            several=self.call.request.sequences > 1,
        )

    def _hold(self, data: bytes) -> None:
        """Keep what may not go to the client yet."""
        assert self.connection is not None
        self._body += self.connection.decoded() if self._decodes and self._stream is None else data
        self._bound_held()

    def _bound_held(self) -> None:
        if len(self._body) > _HELD_BYTES_MAX:
            self._give_up(f"{self.upstream.target.name} sent over {_HELD_BYTES_MAX} bytes before a first token")

    def _answered_with_error(self) -> None:
        head = self._head
        assert head is not None
        body = self._plain_body()
        if head.status in _INVALID and self._again_without_usage(body):
            return
        error = faults.engine_error(head.status, body, head.fields, self.upstream.target.engine.errors)
        failure = faults.failure(self.upstream.target.name, error)
        if self._translation is not None:  # a body in the engine's form is not for this client
            error = replace(error, fields=b"", body=b"")
        self._failed(failure, error)

    def _again_without_usage(self, error: bytes) -> bool:
        """Whether the engine refuses the field that asks for usage; then the request goes to it as it came."""
        if (
            self.over
            or not self._asks_usage
            or (error.find(b"stream_options") < 0 and error.find(b"include_usage") < 0)
        ):
            return False
        self._usage_refused = self._again = True
        self._body = b""
        self._head = self._stream = None
        self._phase = _BEFORE_HEAD
        self._cancel_timer()
        self.start()
        return True

    def _commit(self) -> None:
        """Send the status and the bytes that were held back: from here on the client gets this reply."""
        head, body = self._head, self._body
        assert head is not None
        self._cancel_timer()
        self._committed = True
        self._body = b""
        self.meter.heard_s = self._clock()
        self._write = self._sink.writer()
        if self._name is not None:
            head, body = self._named(self._name, head, body)
        self._frame = self._sink.open(self.number, head, body, self._translation)
        if self._translation is not None:
            self._translation.body = b""  # it is sent no more, as the call's own

    def _named(self, name: ModelName, head: Head, body: bytes) -> tuple[Head, bytes]:
        """Head and first bytes of a reply in which the model is renamed: its length and framing are others then."""
        if head.event_stream:
            return replace(head, chunked=False, length=-1), name.feed(body)
        if len(body) > _NAMED_BYTES_MAX:
            return replace(head, chunked=False), body
        named = name.whole(body)
        return replace(head, chunked=False, length=len(named)), named

    def _report_token(self) -> None:
        """Report the first token, once it has been sent."""
        if self.meter.started and not self._token_reported and not self.over:
            self._token_reported = True
            self._sink.first_token(self.number)

    def _relay_whole(self, data: bytes) -> None:
        assert self.connection is not None
        if self._decodes:
            data = self.connection.decoded()
        if data:
            self.meter.continues(data, self._clock())
        if self._committed:
            if data:
                self._write(data if self._frame is None else self._frame(data))
        else:
            self._body += data
            if self._begins_as_no_reply():
                return
            named = self._name is not None and len(self._body) <= _NAMED_BYTES_MAX
            if self._body and not (named or self.connection.done or self._may_be_error()):
                self._commit()
            elif not (named or self.connection.done) and self._timer is None and self._is_blank():
                self._timer = asyncio.get_running_loop().call_later(_HELD_BACK_S, self._blank_long_enough)

    def _begins_as_no_reply(self) -> bool:
        """Whether the body is not what its head states: events, whose type the engine has left out, or nothing that an
        API gives, such as a page of a proxy (a log-in, an error without its status); or that is not certain yet.
        """
        head, begin = self._head, self._begin()
        assert head is not None
        assert self.connection is not None
        if not (self.call.endpoint.states_end and head.plain and begin) or begin.startswith(b"{"):
            return False
        streamed, more = self.call.body.stream, not self.connection.done
        if streamed and more and any(each.startswith(begin) for each in _EVENT_BEGINS):
            return True
        if not (streamed and begin.startswith(_EVENT_BEGINS)):
            self._give_up(f"{self.upstream.target.name} answered {head.status} with what is no JSON")
            return True
        self._cancel_timer()  # of blanks
        self._head = replace(head, event_stream=True)
        self.meter = Meter(self.upstream.gaps)  # which has taken it for a body that is none
        self._expect_events(head)
        data, self._body = self._body, b""
        self._pass_events(data, done=not more)
        return True

    def _begin(self) -> bytes:
        """The begin of what has come of a body, without its framing and blanks."""
        assert self._head is not None
        begin = self._body[:_BEGIN_BYTES]
        return (dechunked(begin) if self._head.chunked and not self._decodes else begin).lstrip(_BLANKS)

    def _is_blank(self) -> bool:
        """Whether what has come of a body are line ends and blanks, by which some servers show that they work on it. A
        head alone does not: many send it first, and a reply of which nothing has come can be tried elsewhere.
        """
        body = self._plain_body()
        return bool(body) and not body.strip()

    def _blank_long_enough(self) -> None:
        """Nothing else for a while: the client gets those, since it may wait for no longer without them."""
        self._timer = None
        if not self.over and not self._committed and self._is_blank():
            self._commit()

    def _may_be_error(self) -> bool:
        """Whether what has come of a body may be an error's: what answers for a stream is looked at whole."""
        if len(self._body) > _ERROR_BYTES_MAX:
            return False
        begin = self._begin()
        return (begin[:1] == b"{" and self.call.body.stream) or _ERROR_BEGIN.match(begin) is not None

    def _plain_body(self) -> bytes:
        """What is held of the body, without its framing."""
        assert self._head is not None
        return dechunked(self._body) if self._head.chunked and not self._decodes else self._body

    def _commit_whole(self) -> None:
        """A whole reply has come and not been sent: unless it is an error, or nothing at all, it is now."""
        head = self._head
        assert head is not None
        target, body = self.upstream.target, self._plain_body()
        if not body:
            if self.call.endpoint.generates and not self.call.head_only and head.status not in NO_BODY:
                self._failed(Failure(f"{target.name} answered {head.status} with an empty body"))
                return
        elif len(body) <= _ERROR_BYTES_MAX:
            error = faults.whole_error(body, head.fields, target.engine.errors)
            if error is not None:
                if error.status not in _INVALID or not self._again_without_usage(body):
                    self._failed(faults.failure(target.name, error), error)
                return
        self._commit()

    # -- an event stream ---------------------------------------------------------------------------------------

    def _relay_events(self, data: bytes) -> None:
        assert self.connection is not None
        if self._decodes:
            data = self.connection.decoded()
        done = self.connection.done
        if self._phase == _REFRAMED and data and not done and self.meter.passes(data, self._clock()):
            assert self._frame is not None
            self._write(self._frame(data if self._name is None else self._name.feed(data)))
        elif data or done:
            self._pass_events(data, done=done)

    def _pass_events(self, data: bytes, *, done: bool) -> None:
        stream = self._stream
        assert stream is not None
        out = stream.feed(data, self._clock(), done=done)
        if not self._committed:
            self._hold(out)
            if self.over or not self._may_commit(stream, done=done):
                return
            self._commit()
        elif out:
            out = out if self._name is None else self._name.feed(out)
            self._write(out if self._frame is None else self._frame(out))
        self._report_token()
        if stream.error is not None:
            self._breaks(stream.error)
        elif stream.cut_short:
            self._failed(self._cut_short())
        elif not self.over:
            self._phase = self._phase_after(stream)

    def _phase_after(self, stream: EventStream) -> int:
        """How the read after one that was looked at is passed on."""
        if not self.meter.started or stream.examines:
            return _EVENTS
        if self._frame is not None:
            return _REFRAMED
        fits = stream.at_chunk and self.upstream.fast_path is not None and (self._fast is None or self._fast.pays)
        return _AT_CHUNK if fits else _RELAYED

    # -- the fast path -----------------------------------------------------------------------------------------

    def _enter_fast_path(self, data: bytes) -> None:
        """A read after the first token that begins where a chunk does."""
        connection, path, stream = self.connection, self.upstream.fast_path, self._stream
        assert connection is not None
        assert path is not None
        assert stream is not None
        fast = self._fast
        if fast is None:
            fast = self._fast = FastStream(path, self, stream, connection.transport, connection.socket)
        now = connection.socket != NO_SOCKET and not connection.done and not self.paused
        sent = fast.enter(data, self._sink.socket() if now else NO_SOCKET, self._clock())
        if sent < 0:
            self._phase = _RELAYED
            self.take(data)
            if self._phase == _RELAYED and fast.pays and fast.passed_whole():
                self._phase = _AT_CHUNK
        elif sent < len(data):
            self._write(data[sent:])

    def _leave_fast_path(self) -> None:
        if self._fast is not None:
            self._fast.leave()

    def returned(self, data: bytes, *, counted: bool) -> None:
        """What the fast path did not pass on."""
        connection, fast = self.connection, self._fast
        if fast is not None:
            fast.leave()
            fast.returns()
        if counted:
            if not self.over:
                self._write(data)
        elif data and connection is not None and connection.reader is self:
            connection.data_received(data)

    def crashed(self) -> None:
        """An exception of the gateway while that was read."""
        if self.connection is not None:
            self.connection.transport.abort()

    @property
    def heard_s(self) -> float:
        """When the last byte of the reply came."""
        fast = self._fast
        return fast.heard_s if fast is not None and fast.here else self.meter.heard_s

    def current_meter(self) -> Meter:
        """Its counts, which are not here while the fast path has them: it leaves that until its next token."""
        self._leave_fast_path()
        return self.meter

    def last_token_s(self) -> float:
        """When the last token came (nan: none has)."""
        return self.current_meter().last_token_s()

    def _cut_short(self) -> Failure:
        return Failure(f"{self.upstream.target.name} ended the stream before the reply was complete")

    def _may_commit(self, stream: EventStream, *, done: bool) -> bool:
        """Whether the client may get what was held back; a failure that shows before that is retried elsewhere."""
        if self.meter.started:
            return True
        if stream.error is not None:
            self._opens_with_error(stream.error)
        elif stream.cut_short:
            self._failed(self._cut_short())
        elif stream.pinged or done:
            return True
        elif stream.structured and self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_HELD_BACK_S, self._held_long_enough)
        return False

    def _held_long_enough(self) -> None:
        """No token for a while after events that hold none: the client gets those."""
        self._timer = None
        if not self.over and not self._committed:
            self._commit()

    def _opens_with_error(self, payload: bytes) -> None:
        error = faults.event_error(payload.strip(), self.upstream.target.engine.errors)
        if self.connection is not None:
            self.connection.abort()
        if error.status not in _INVALID or not self._again_without_usage(payload):
            self._failed(faults.failure(self.upstream.target.name, error), error)

    def _breaks(self, payload: bytes) -> None:
        """The engine sent an error in a reply that the client gets: end it as a broken one."""
        error = faults.event_error(payload.strip(), self.upstream.target.engine.errors)
        if self.connection is not None:
            self.connection.abort()
        self._failed(faults.failure(self.upstream.target.name, error, "failed in mid-stream with"), error)

    # -- a translated reply ------------------------------------------------------------------------------------

    def _translate_body(self) -> None:
        assert self.connection is not None
        translation = self._translation
        assert translation is not None
        data, done = self.connection.decoded(), self.connection.done
        self.meter.heard_s = self._clock()
        if translation.whole:
            self._body += data
            if not done:
                self._hold(b"")
                return
            data, self._body = self._body, b""
        out = self._translated(data) if data else b""
        if done and translation.cut_short and translation.error is None:
            translation.error = orjson.dumps({"error": "the stream ended before the reply was complete"})
        self.meter.beside_bytes += len(out)
        if self._committed:
            if out and self._frame is not None:
                self._write(self._frame(out))
        elif not self._commits(out, translation, done=done):
            return
        self._report_token()
        if translation.error is not None:
            self._breaks(translation.error)

    def _commits(self, out: bytes, translation: Translation, *, done: bool) -> bool:
        """Commit a translated reply with its first token."""
        self._body += out
        if translation.error is not None and not self.meter.started:
            self._opens_with_error(translation.error)
        elif self.meter.started or done:
            self._commit()
        else:
            self._bound_held()
        return self._committed

    def _translated(self, data: bytes) -> bytes:
        translation = self._translation
        assert translation is not None
        before = translation.tokens
        try:
            return translation.feed(data)
        except ValueError as error:
            why = f"{self.upstream.target.name} sent what is not of its protocol: {error}"
            translation.error = orjson.dumps({"error": why})
            return b""
        finally:
            if translation.tokens > before and not translation.whole:
                self.meter.tokens(translation.tokens - before, self.meter.heard_s)

    # -- the end -----------------------------------------------------------------------------------------------

    def usage_so_far(self) -> Usage:
        """Token counts of what has come of the reply."""
        self._leave_fast_path()
        if self._translation is not None:
            tokens, estimated = self._translation.tokens, self._translation.estimated
            return Usage(
                tokens,
                estimated=estimated,
                output_tokens_least=tokens if estimated and not self._translation.whole else 0,
            )
        request = self.call.request
        return self.meter.usage(
            self.upstream.density.bytes_per_token(self.model),
            whole=self._stream is None,
            generates=self.call.endpoint.generates,
            most=border.output_tokens_most(request),
            cap=request.output_tokens_max * request.sequences,
            sequences=request.sequences,
        )

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
        if self._stream is None and (reason := self.meter.gave_up(b"")):
            self._failed(Failure(f"{self.upstream.target.name} gave the reply up: {reason}"))
            return
        self._end()
        if self.meter.started:
            self.upstream.gaps.sum_s += self.meter.last_s - self.meter.first_s
        frame = self._frame
        if frame is not None:
            ends = self._translation or self._name
            rest = ends.finish() if ends is not None else b""
            end = LAST_CHUNK if frame is chunk else b""
            if rest or end:
                self._write((frame(rest) if rest else b"") + end)
        usage = self.usage_so_far()
        if self._stream is not None and not usage.estimated and self.upstream.density.due():
            self.upstream.density.learn(self.model, self.meter.text_bytes, usage.output_tokens)
        self._sink.ended(self.number, usage, self.meter.last_token_s())


def _nowhere(_: bytes) -> None:
    """The write of an attempt that has not opened yet."""
