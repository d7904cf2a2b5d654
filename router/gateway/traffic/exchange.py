"""One call of a client: its head and body are read, its call made and routed, its refusals worded.

How an answer reaches the client is a subclass's: as HTTP of ours, or as what a proxy is to do. Must not depend on
backends, attempts, or how messages are found on a connection: it calls a RequestDriver and is a Client (ports.py).
"""

from abc import abstractmethod
from collections.abc import Sequence
from math import isfinite
from typing import Final

from router.core.decisions import Refuse
from router.core.errors import Reason, Rejected
from router.core.flight import FailureKind
from router.core.types import RequestId
from router.gateway.protocols import answers, client_text, quota_answers
from router.gateway.protocols.answers import Problem
from router.gateway.protocols.cors import is_preflight
from router.gateway.protocols.ingress import AppliedSlo
from router.gateway.protocols.openai import Endpoint
from router.gateway.traffic.call import Call, read_call
from router.gateway.traffic.faults import EngineError
from router.gateway.traffic.ports import Client, RequestDriver

_SERVER: Final = 500
_ENGINES: Final = {Reason.BACKEND_FAILED, Reason.CLIENT_ERROR}  # reasons that an engine's answer may stand for
_COMPRESSIONS: Final = frozenset(  # clients name other things too, such as a charset, which say nothing of the bytes
    {b"gzip", b"x-gzip", b"compress", b"x-compress", b"deflate", b"br", b"zstd"}
)
_COMPRESSED: Final = Problem(  # RFC 9110 15.5.16
    415, "Content-Encoding: a body that is not compressed is expected", fields=b"accept-encoding: identity\r\n"
)
_NO_FIELDS: Final[dict[bytes, bytes]] = {}
_CLIENT_ERRORS: Final = frozenset({FailureKind.CLIENT_ERROR, FailureKind.CONTEXT_EXCEEDED})


class Exchange(Client):
    """One request, from its head to the end of its answer.

    ``preflight``: the header lines that answer a browser's preflight, else empty. ``accepted``: the driver has the
    call, which ends in the core's record of it. ``keep_alive``: its connection may have a next request. ``among``:
    names of the only backends that it may be sent to (empty: any); ``routed_model``: the model that is to serve it in
    place of the one in its body (empty: that one).
    """

    __slots__ = (
        "_applied", "_bodies", "_body_bytes", "_call", "_fallback", "_headers", "_key", "_own_fields", "_path",
        "_served_fields", "_tenant",
        "accepted", "among", "body_complete", "driver", "endpoint", "fields", "head_only", "http10", "keep_alive",
        "preflight", "problem", "routed_model",
    )  # fmt: skip

    def __init__(
        self,
        driver: RequestDriver,
        endpoint: Endpoint,
        path: bytes,
        headers: Sequence[tuple[bytes, bytes]],
        fields: dict[bytes, bytes],
    ) -> None:
        self.driver = driver
        self.endpoint = endpoint
        self._path = path
        self._headers = headers
        self.fields = fields
        self._tenant = self._key = self._fallback = ""
        self._served_fields = b""  # where another model serves it
        self.http10 = self.head_only = self.body_complete = self.response_complete = self.accepted = False
        self.keep_alive = True
        self.problem: Problem | None = None
        self.status = self.answer_bytes = 0
        self.peer: tuple[str, int] | None = None
        self._call: Call | None = None
        self._bodies: list[bytes] = []
        self._body_bytes = 0
        self._applied: AppliedSlo | None = None
        cors = driver.ingress.cors
        self._own_fields = cors.reply_fields(fields) if cors is not None else b""
        self.preflight = b""
        self.among: tuple[str, ...] = ()
        self.routed_model = ""

    # -- the request -------------------------------------------------------------------------------------------

    def read_head(self, method: bytes, body_bytes_max: int) -> None:
        """Read the head; ``problem`` is then why it alone refuses the request, if so."""
        self.head_only = method == b"HEAD"
        endpoint, fields, ingress = self.endpoint, self.fields, self.driver.ingress
        if ingress.cors is not None and is_preflight(method, fields):  # it bears no key
            self.preflight = ingress.cors.preflight_fields(fields, endpoint.method)
            return
        if method != endpoint.method and not (self.head_only and endpoint.method == b"GET"):
            allowed = endpoint.method + (b", HEAD" if endpoint.method == b"GET" else b"")
            self.problem = Problem(405, f"{endpoint.path} takes {allowed.decode()}", fields=b"allow: %b\r\n" % allowed)
            return
        try:
            caller = ingress.caller(fields)
            self._tenant, self._key = caller.tenant, caller.key
            applied = self._applied = ingress.apply_slo(fields, caller)
            self._fallback = ingress.fallback(fields, caller)
        except Rejected as error:
            self.problem = answers.rejection(error)
            return
        if b"content-encoding" in fields and _is_compressed(fields[b"content-encoding"]):
            self.problem = _COMPRESSED
            return
        if applied.clamped:
            self._own_fields += b"x-headroom-slo-clamped: %b\r\n" % ", ".join(applied.clamped).encode()
        length = int(fields.get(b"content-length", b"0"))
        if length > body_bytes_max:
            self.problem = Problem(413, f"the body is over {body_bytes_max} bytes")
        else:
            self.problem = self.driver.buffers.problem(length)

    def take(self, data: bytes, bytes_max: int) -> bool:
        """More of the body. True: it is over a bound, is answered with an error, and the rest is discarded."""
        if self.problem is not None:
            return False
        count, buffers = len(data), self.driver.buffers
        if self._body_bytes + count > bytes_max:
            self.problem = Problem(413, f"the body is over {bytes_max} bytes")
        else:
            self.problem = buffers.problem(count)
        if self.problem is not None:
            self.release()
            return True
        self._body_bytes += count
        buffers.bodies += count
        self._bodies.append(data)
        return False

    def release(self) -> None:
        """Its body is held no longer."""
        self.driver.buffers.bodies -= self._body_bytes
        self._body_bytes = 0
        self._bodies = []

    def begin(self) -> None:
        """The request is complete and those before it are answered: route it."""
        body = self._bodies[0] if len(self._bodies) == 1 else b"".join(self._bodies)
        self._bodies = []
        if self.preflight:
            self._own_fields = b""
            self._answer(200, self.preflight, b"")
            return
        try:
            call = self._call = self._read(body)
        except Rejected as error:
            self.reject(answers.rejection(error))
            return
        if self.driver.draining:
            self.keep_alive = False
            self.reject(Problem(503, "this router is shutting down", code=Reason.NO_BACKEND.value))
            return
        if self.driver.quotas.active and not self._within_quota(call):
            return
        self.accepted = True
        self.driver.begin(call, self)

    def _within_quota(self, call: Call) -> bool:
        """Whether its tenant and its key may have it served; where not, it is answered."""
        driver, endpoint = self.driver, self.endpoint
        verdict = driver.quotas.admit(call.request, self._key, endpoint.has_output, driver.clock())
        self._own_fields += quota_answers.fields(verdict)
        if verdict.limit is None:
            return True
        self.reject(quota_answers.problem(verdict))
        return False

    def _read(self, body: bytes) -> Call:
        assert self._applied is not None
        traces = self.driver.traces
        return read_call(
            self.endpoint,
            self._path,
            self._headers,
            self.fields,
            body,
            self._applied,
            self._tenant,
            self.driver.ingress,
            self.driver.next_id(),
            self.driver.clock(),
            self.http10,
            self.head_only,
            traces.begin(self.fields) if traces is not None else None,
            self.among,
            self.routed_model,
            self._fallback,
        )

    @property
    def _request_id(self) -> RequestId:
        assert self._call is not None
        return self._call.request.id

    # -- the client's connection -------------------------------------------------------------------------------

    def withdraw(self) -> None:
        """The call is over for the core; an answer may still be sent."""
        if self.accepted:
            self.driver.left(self._request_id)

    def left(self) -> None:
        """The client has closed its connection."""
        if not self.response_complete:
            self.response_complete = True
            self.release()
            self.withdraw()

    def pause(self) -> None:
        """The client reads more slowly than the engine writes."""
        if self.accepted:
            self.driver.pause(self._request_id)

    def resume(self) -> None:
        """The client has caught up."""
        if self.accepted:
            self.driver.resume(self._request_id)

    # -- the answer --------------------------------------------------------------------------------------------

    def refuse(self, command: Refuse, engine_error: EngineError | None) -> None:
        """Answer with an error: the last engine's own where it answered with one, else the reason of the refusal."""
        if engine_error is None or command.reason not in _ENGINES:
            self.reject(answers.refusal(command))
        elif engine_error.body:
            self._answer(engine_error.status, engine_error.fields, engine_error.body)
        else:
            theirs = engine_error.kind in _CLIENT_ERRORS and engine_error.status >= _SERVER
            status = 400 if theirs else engine_error.status
            self.reject(Problem(status, engine_error.message, code=None))

    def reject(self, problem: Problem) -> None:
        """Answer with *problem*."""
        body = answers.body(self.endpoint.dialect, problem)
        self._answer(problem.status, b"content-type: application/json\r\n" + problem.fields, body)

    @abstractmethod
    def _answer(self, status: int, fields: bytes, body: bytes) -> None:
        """Send a whole answer that is no engine's reply, or an engine's error as it came, and finish."""

    def serves(self, model: str, fallback_why: str) -> None:
        """Another model than the client named is about to answer."""
        self._served_fields = b"x-headroom-model: %b\r\n" % client_text.field_value(model)
        if fallback_why:
            self._served_fields += b"x-headroom-fallback: %b\r\n" % client_text.field_value(fallback_why)

    def _reply_fields(self, backend: bytes, predicted_ttft_s: float) -> bytes:
        """The header lines of this router's own on an engine's reply."""
        assert self._call is not None
        predicted = b""
        if isfinite(predicted_ttft_s):
            predicted = b"x-headroom-predicted-ttft-ms: %d\r\n" % round(predicted_ttft_s * 1e3)
        own = (self._call.wire_id, backend, predicted, self._served_fields, self._own_fields)
        return b"x-request-id: %b\r\nx-headroom-backend: %b\r\n%b%b%b" % own

    def _answer_fields(self) -> bytes:
        """The same on an answer that is no engine's."""
        if self._call is None:
            return self._own_fields
        return b"x-request-id: %b\r\n%b" % (self._call.wire_id, self._own_fields)

    def _break_event(self, why: str) -> bytes:
        """The event that ends a stream that has failed."""
        return answers.event(self.endpoint.dialect, Problem(502, why, code=Reason.BACKEND_FAILED.value))

    def _forget(self) -> None:
        """The answer is complete: hold nothing of the request, for this object may be kept until the next one."""
        self.response_complete = True
        self.release()
        self._call, self._headers, self.fields = None, (), _NO_FIELDS


def _is_compressed(codings: bytes) -> bool:
    return not _COMPRESSIONS.isdisjoint([each.strip() for each in codings.lower().split(b",")])
