"""One request at the client's side: read, judged, answered once; its attempts live in relay.py.

Believes: the driver's word on what to do next. Must not know backends beyond the facts of a target, or how bytes are
found on a connection. To uvicorn's protocol it looks like one of its cycles, but needs no task.
"""

from collections.abc import Callable, Mapping, Sequence
from math import ceil, isfinite
from typing import TYPE_CHECKING, Final

import orjson

from router.core.decisions import Refuse
from router.core.errors import Reason, Rejected
from router.core.flight import Failure
from router.core.types import NO_SLO, Request, RequestId
from router.engines import Translation
from router.gateway.protocols import openai, triton
from router.gateway.protocols.ingress import Caller
from router.gateway.protocols.openai import Call, Endpoint
from router.gateway.protocols.translate import translation
from router.gateway.traffic import answers
from router.gateway.traffic.answers import Dialect, Problem
from router.gateway.traffic.attempt import ERROR_MARK, TYPED_ERROR_MARK, UpstreamAttempt
from router.gateway.traffic.faults import EngineError
from router.gateway.traffic.http import HOP_BY_HOP, STATUS_LINES, Head, chunk, options
from router.gateway.traffic.upstream import Target, Upstream

if TYPE_CHECKING:
    from router.gateway.traffic.client_connection import ClientConnection
    from router.gateway.traffic.driver import Driver

# What of a client's head is not for the engine: what stops at a hop, what we write ourselves, our own secrets, and
# Accept-Encoding, since a compressed stream could not be counted.
_NOT_FORWARDED: Final = HOP_BY_HOP | {
    b"host",
    b"content-length",
    b"authorization",
    b"x-api-key",
    b"expect",
    b"accept-encoding",
    b"x-request-id",
}
CHARS_PER_TOKEN: Final = 4.0  # a fixed rule for English text: the core learns by how much it is off for each model
_WIRE_ID_MAX: Final = 256
_TYPED: Final = (Dialect.ANTHROPIC, Dialect.RESPONSES)  # no set: an enum's member is hashed by interpreted code
_NO_BODY: Final = {204, 304}
_CLOSE: Final = b"connection: close\r\n"


def identity(data: bytes) -> bytes:
    """No framing: the body ends with the connection, or its length was said."""
    return data


class HttpExchange:
    """One request of one client connection, from its head to the last byte of its answer.

    ``response_complete`` and ``keep_alive`` are read by uvicorn's protocol. ``wire_id``: the client's name for the
    request, or ours; ``status``: what was answered (0: nothing yet); ``class_slo``: what its SLO class promises, which
    headers may have changed for this request.
    """

    __slots__ = (
        "_bodies",
        "_body",
        "_body_bytes",
        "_clamped",
        "_forwarded",
        "_recast",
        "body_complete",
        "call",
        "caller",
        "class_slo",
        "clock",
        "driver",
        "endpoint",
        "engine_said",
        "error_mark",
        "fields",
        "front",
        "head_only",
        "headers",
        "http10",
        "keep_alive",
        "must_say_done",
        "path",
        "problem",
        "request",
        "response_complete",
        "status",
        "winner",
        "wire_id",
    )  # fmt: skip

    def __init__(
        self,
        front: "ClientConnection",
        driver: "Driver",
        endpoint: Endpoint,
        path: bytes,
        headers: Sequence[tuple[bytes, bytes]],
        fields: Mapping[bytes, bytes],
    ) -> None:
        self.front = front
        self.driver = driver
        self.clock = driver.clock
        self.endpoint = endpoint
        self.path = path
        self.headers = headers
        self.fields = fields
        self.caller: Caller | None = None
        self.http10 = self.head_only = self.body_complete = self.response_complete = self.must_say_done = False
        self.keep_alive = True
        self.problem: Problem | None = None
        self.call: Call | None = None
        self.request: Request | None = None
        self.class_slo = NO_SLO
        self.wire_id = b""
        self.status = 0
        self.winner: UpstreamAttempt | None = None
        self.engine_said: EngineError | None = None
        self.error_mark = TYPED_ERROR_MARK if endpoint.dialect in _TYPED else ERROR_MARK
        self._body = b""
        self._bodies: list[bytes] = []
        self._body_bytes = 0
        self._forwarded = self._clamped = b""
        self._recast = False

    # -- the request comes in ----------------------------------------------------------------------------------

    def take(self, data: bytes, bytes_max: int) -> bool:
        """More of the body; whether it is over the bound, so that it gets 413 and the rest is forgotten."""
        self._body_bytes += len(data)
        if self._body_bytes > bytes_max:
            self.problem = Problem(413, f"the body is over {bytes_max} bytes")
            self._bodies.clear()
            return True
        self._bodies.append(data)
        return False

    def begin(self) -> None:
        """It is this request's turn and all of it is here: read it and tell the core."""
        self._body = self._bodies[0] if len(self._bodies) == 1 else b"".join(self._bodies)
        self._bodies = []
        if self.problem is not None:
            self.reject(self.problem)
            return
        try:
            request = self._read()
        except Rejected as error:
            self.reject(answers.rejection(error))
            return
        self.driver.begin(self, request)

    def _read(self) -> Request:
        driver, ingress = self.driver, self.driver.ingress
        fields = self.fields
        caller = self.caller or ingress.caller(fields)
        applied = ingress.promised(fields, caller)
        self.class_slo = applied.given.slo
        if applied.clamped:
            self._clamped = b"x-headroom-slo-clamped: %b\r\n" % ", ".join(applied.clamped).encode()
        read = triton.read if self.endpoint.dialect is Dialect.TRITON else openai.read
        call = self.call = read(self.endpoint, self.path, self._body, ingress.prefix_blocks_max)
        self.must_say_done = call.stream and self.endpoint.ends_with_done
        request_id = driver.next_id()
        self.wire_id = fields.get(b"x-request-id", b"")[:_WIRE_ID_MAX] or request_id.encode()
        self._forwarded = _forwarded(self.headers, fields)
        return Request(
            id=request_id,
            model=call.model,
            arrived_s=self.clock(),
            prompt_tokens=max(1, call.prompt_ids + ceil(call.prompt_chars / CHARS_PER_TOKEN)),
            output_tokens_max=call.output_tokens_max,
            slo=applied.slo,
            slo_class=applied.slo_class,
            priority=applied.given.priority,
            tenant=caller.tenant or fields.get(b"x-llm-d-inference-fairness-id", b"").decode("latin-1"),
            session=fields.get(b"x-session-id", b"").decode("latin-1"),
            prefix=call.prefix,
            prefix_block_tokens=max(1, round(call.block_chars / CHARS_PER_TOKEN)) if call.prefix else 0,
            streamed=call.stream,
        )

    # -- the request goes out ----------------------------------------------------------------------------------

    def recast_for(self, target: Target) -> Translation | None:
        """How this call and its reply change for that engine; None: not at all. Raises UnsupportedFeature."""
        assert self.call is not None
        return translation(self.call, target, self.wire_id.decode("latin-1"))

    def request_bytes(self, upstream: Upstream, recast: Translation | None) -> tuple[bytes, bytes]:
        """Head and body as this engine is to get them."""
        call, endpoint = self.call, self.endpoint
        assert call is not None
        path, body = (recast.path, recast.body) if recast is not None else _addressed(call, upstream.target)
        opening = upstream.opening(b"HEAD" if self.head_only else endpoint.method, path)
        length = b"content-length: %d\r\n" % len(body) if endpoint.method == b"POST" else b""
        return b"%b%bx-request-id: %b\r\n%b\r\n" % (opening, length, self.wire_id, self._forwarded), body

    # -- the answer --------------------------------------------------------------------------------------------

    def open(
        self, attempt: UpstreamAttempt, head: Head, body: bytes, recast: Translation | None
    ) -> Callable[[bytes], bytes] | None:
        """Send status, fields and first bytes of a reply; the answer frames later bytes (None: as they come)."""
        self.winner = attempt
        self.status = head.status
        fields = recast.fields if recast is not None else head.fields
        frame, framing = self._framing(head, body, recast)
        ttft_s = attempt.predicted_ttft_s
        predicted = b"x-headroom-predicted-ttft-ms: %d\r\n" % round(ttft_s * 1e3) if isfinite(ttft_s) else b""
        self.front.transport.write(
            b"%b%bx-request-id: %b\r\nx-headroom-backend: %b\r\n%b%b%b%b\r\n%b"
            % (
                STATUS_LINES[head.status],
                fields,
                self.wire_id,
                attempt.upstream.wire_name,
                predicted,
                self._clamped,
                framing,
                b"" if self.keep_alive else _CLOSE,
                frame(body) if frame is not None else body,
            )
        )
        self.driver.first_byte(self, attempt)
        return frame

    def _framing(
        self, head: Head, body: bytes, recast: Translation | None
    ) -> tuple[Callable[[bytes], bytes] | None, bytes]:
        if recast is not None and recast.whole:
            return identity, b"content-length: %d\r\n" % len(body)
        if self.http10:
            known = head.length >= 0 and recast is None
            return identity, b"content-length: %d\r\n" % head.length if known else b""
        if head.chunked or recast is not None or (head.until_close and not self.head_only):
            return chunk if recast is not None or not head.chunked else None, b"transfer-encoding: chunked\r\n"
        return None, b"" if head.status in _NO_BODY or head.length < 0 else b"content-length: %d\r\n" % head.length

    def ended(self, attempt: UpstreamAttempt) -> None:
        """The reply is complete and so is what went to the client."""
        self.driver.ended(self, attempt, attempt.usage())
        self._complete()

    def failed(self, attempt: UpstreamAttempt, failure: Failure) -> None:
        """An attempt is dead; the core says what follows."""
        self.engine_said = attempt.engine_said
        self._recast = attempt.recasts
        self.driver.failed(self, attempt.number, failure)

    def refuse(self, command: Refuse) -> None:
        """No backend will do it: the last engine's own answer where it gave one, else the reason in our words."""
        said = self.engine_said
        if command.reason is not Reason.BACKEND_FAILED or said is None:
            self.reject(answers.refusal(command))
        elif said.body and not self._recast:
            self._answer(said.status, said.fields, said.body)
        else:
            status = 400 if said.client_fault else said.status
            self.reject(Problem(status, said.message, code=None))

    def reject(self, problem: Problem) -> None:
        """Answer with an error of our own."""
        body = answers.body(self.endpoint.dialect, problem)
        self._answer(problem.status, b"content-type: application/json\r\n" + problem.fields, body)

    def _answer(self, status: int, fields: bytes, body: bytes) -> None:
        self.status = status
        named = b"x-request-id: %b\r\n" % self.wire_id if self.wire_id else b""
        keep_alive = self.keep_alive = self.keep_alive and self.body_complete
        self.front.transport.write(
            b"%b%b%b%bcontent-length: %d\r\n%b\r\n%b"
            % (
                STATUS_LINES.get(status, STATUS_LINES[502]),
                fields,
                named,
                self._clamped,
                len(body),
                b"" if keep_alive else _CLOSE,
                b"" if self.head_only else body,
            )
        )
        self._complete()

    def break_off(self, why: str) -> None:
        """The engine failed after the first byte: say so in the stream where that can be, and never end cleanly."""
        attempt, transport = self.winner, self.front.transport
        assert attempt is not None
        if attempt.can_say_more():
            said = self.engine_said.message if self.engine_said is not None else why
            event = answers.event(self.endpoint.dialect, Problem(502, said, code=Reason.BACKEND_FAILED.value))
            transport.write(attempt.last_words(event))
        elif self.http10:
            transport.abort()  # the end of the connection would read as a clean end
        self.keep_alive = False
        self._complete()

    def _complete(self) -> None:
        self.response_complete = True
        self.winner = None
        self.front.exchange_over(self)

    # -- the client's pace -------------------------------------------------------------------------------------

    def left(self) -> None:
        """The client is gone."""
        if not self.response_complete:
            self.response_complete = True
            self.driver.left(self)
            self.winner = None

    def pause(self) -> None:
        """The client does not keep up."""
        if self.winner is not None:
            self.winner.pause()

    def resume(self) -> None:
        """The client has caught up."""
        if self.winner is not None:
            self.winner.resume()

    @property
    def id(self) -> RequestId:
        """The core's name for it."""
        assert self.request is not None
        return self.request.id


def _forwarded(headers: Sequence[tuple[bytes, bytes]], fields: Mapping[bytes, bytes]) -> bytes:
    dropped: frozenset[bytes] = _NOT_FORWARDED
    if b"connection" in fields:
        dropped |= options([value for name, value in headers if name == b"connection"])
    pieces: list[bytes] = []
    for name, value in headers:
        if name not in dropped:
            pieces += (name, b": ", value, b"\r\n")
    return b"".join(pieces)


def _addressed(call: Call, target: Target) -> tuple[bytes, bytes]:
    """Path and body with the model's name as this engine knows it."""
    model = call.model
    known_as = target.models.get(model, model)
    if known_as == model:
        return call.path, call.body
    if call.endpoint.dialect is Dialect.TRITON:
        rest = call.path[len(triton.PREFIX) :].partition(b"/")[2]
        return triton.PREFIX + known_as.encode() + b"/" + rest, call.body
    return call.path, orjson.dumps({**(call.document or {}), "model": known_as})
