"""One client's connection: heads are checked, bodies bounded, requests answered one after another.

llhttp parses requests; a few checks against request smuggling are added here. Must not depend on backends: routed
requests go to a RequestDriver (ports.py), each as one of uvicorn's cycles without a task.
"""

import asyncio
import logging
import socket
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, cast

import httptools
import uvicorn
from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from router.gateway.protocols import answers, triton
from router.gateway.protocols.answers import Dialect, Problem
from router.gateway.protocols.openai import ENDPOINTS, Endpoint
from router.gateway.traffic import request_head
from router.gateway.traffic.flow import Flow
from router.gateway.traffic.http import STATUS_LINES
from router.gateway.traffic.http_exchange import HttpExchange
from router.gateway.traffic.ports import RequestDriver

_log = logging.getLogger("headroom")

_LINGER_S: Final = 5.0
_LINGER_BYTES_MAX: Final = 64 * 2**20
_PIPELINE_MAX: Final = 16
_DISCARD_BYTES_MAX: Final = 64 * 2**10  # of the body of a request that its head alone refuses
_FRAMING_RATIO: Final = 8  # bytes of a body's framing for one of the body: a chunk of one byte has five
_PROBE_S: Final = 0.02  # from the first byte of an early status line to the second; then four times as long each
_FRAMING_TOO_LARGE: Final = Problem(400, "chunk extensions and trailers: too many bytes of them")
_TOO_MANY: Final = Problem(503, "too many connections", fields=b"retry-after: 1\r\n")
_NO_PIPELINE: Final[deque[tuple[RequestResponseCycle, ASGI3Application]]] = deque(maxlen=0)
_ESTABLISHED: Final = 1  # TCP_ESTABLISHED of linux/tcp.h
_CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """What a client may send and how slowly. ``request_s``: from a request's first byte to its last;
    ``descriptor_max``: the first file descriptor that is not for clients.
    """

    body_bytes_max: int = 10 * 2**20
    head_bytes_max: int = 64 * 2**10
    request_s: float = 30.0
    keep_alive_s: float = 75.0
    connections_max: int = 20_000
    descriptor_max: int = 2**31
    drain_s: float = 30.0


class ClientConnection(HttpToolsProtocol):
    """One client connection.

    The head has fields of its own: uvicorn's are set only for a request that is left to the app.
    """

    def __init__(
        self,
        driver: RequestDriver,
        limits: ConnectionLimits,
        *,
        config: uvicorn.Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self.pipeline = _NO_PIPELINE  # one for all until a request has to wait: a deque takes 0.7 KiB
        self.driver = driver
        self.limits = limits
        self._target = b""
        self._fields: list[tuple[bytes, bytes]] = []
        self._expects_continue = False
        self._upgrading = False  # the head offers an upgrade: it is read again without
        self.active: HttpExchange | None = None  # the routed request that is being answered
        self._reading: HttpExchange | None = None  # the request whose body is being read
        self._head_bytes = 0  # of the message so far: its head's, then those of its body's framing
        self._in_head = True
        self._since_s = self.driver.clock()  # since when the client has been sending the present message
        self._waiting = True  # for the client
        self._idle_since_s = self._since_s
        self._fault: Problem | None = None  # answered once those before it are, then the connection is closed
        self._linger_bytes = 0
        self._lingering = False
        self._half_closed = False  # the client sends no more
        self._closing = False  # the same, though what it sent before has not been read
        self._socket = -1  # on which answers may be sent as they are

    # -- asyncio's side ----------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(cast("asyncio.Transport", transport))
        self.flow = Flow(self.transport)
        descriptor = self._descriptor()
        if self.scheme != "https":
            self._socket = descriptor
        if len(self.connections) > self.limits.connections_max or descriptor >= self.limits.descriptor_max:
            self._fail(_TOO_MANY)

    def _descriptor(self) -> int:
        opened = self.transport.get_extra_info("socket")
        return opened.fileno() if opened is not None else -1

    def data_received(self, data: bytes) -> None:
        if self._fault is not None:
            self._discard(len(data))
            return
        if not self._waiting:
            self._waiting, self._since_s = True, self.driver.clock()
        in_head = self._in_head
        if in_head:
            self._head_bytes += len(data)
        try:
            self._feed(data)
        except httptools.HttpParserCallbackError as error:
            self._crashed(error)
        except httptools.HttpParserError as error:
            self._fail(Problem(400, f"malformed HTTP: {error}"))
        if not self._in_head:
            self._head_bytes = 0 if in_head else self._head_bytes + len(data)
        if self._head_bytes > self.limits.head_bytes_max:
            self._fail(request_head.too_large(self.limits.head_bytes_max) if self._in_head else _FRAMING_TOO_LARGE)

    def _feed(self, data: bytes) -> None:
        while True:
            try:
                self.parser.feed_data(data)
            except httptools.HttpParserUpgrade as upgrade:
                if self._fault is not None:
                    return
                data = self._without_upgrade() + data[upgrade.args[0] :]
            else:
                return

    def _without_upgrade(self) -> bytes:
        """Begin anew with the head that a parser has just stopped at."""
        method, version = self.parser.get_method(), self.parser.get_http_version()
        self._upgrading = False
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn's own
        return request_head.without_upgrade(method, self._target, version, self._fields)

    def eof_received(self) -> bool:  # type: ignore[override]
        """The client sends no more. It has left, or waits for its answers with its half of the connection closed."""
        exchange = self.active
        if self._idle or not self._in_head or self._head_bytes or self.scheme == "https":
            return False
        if exchange is not None:
            if exchange.status:  # who closes its half does so behind its request
                return False
            exchange.keep_alive = exchange.keep_alive and bool(self.pipeline)
            self._probe(exchange, _PROBE_S)
        self._half_closed = True
        return True

    def _probe(self, exchange: HttpExchange, wait_s: float) -> None:
        """Send an answer's first byte: a client that has left resets the connection, and the next write fails."""
        if self.active is exchange and not self.transport.is_closing() and exchange.send_early():
            self.loop.call_later(wait_s, self._probe, exchange, 4 * wait_s)

    def connection_lost(self, exc: Exception | None) -> None:
        if isinstance(self.cycle, HttpExchange):
            self.cycle = cast("RequestResponseCycle", None)
        active, self.active = self.active, None
        self._drop_pipeline()
        self._reading = None
        super().connection_lost(exc)
        if active is not None:
            active.left()

    def pause_writing(self) -> None:
        if self.active is not None:
            self.active.pause()
        super().pause_writing()

    def resume_writing(self) -> None:
        super().resume_writing()
        if self.active is not None:
            self.active.resume()

    # -- llhttp's side -----------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        self._target = b""
        self._fields = []

    def on_url(self, url: bytes) -> None:
        self._target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self._fields.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        fields = dict(self._fields)
        method = self.parser.get_method()
        if b"upgrade" in fields and method != b"CONNECT" and self.parser.should_upgrade():
            self._upgrading = True
            return
        self._in_head = False
        head_bytes, self._head_bytes = self._head_bytes, 0
        if self._fault is not None:
            return
        version = self.parser.get_http_version()
        target = request_head.origin_form(self._target)
        problem = request_head.problem(
            method, target, version, fields, self._fields, head_bytes, self.limits.head_bytes_max
        )
        if target is None or problem is not None:
            self._fail(problem or request_head.NO_PATH)
            return
        self._target = target
        expects = fields.get(b"expect")
        self._expects_continue = expects is not None and expects.lower() == b"100-continue" and version == "1.1"
        path = self._target.partition(b"?")[0]
        endpoint = ENDPOINTS.get(path) or (triton.endpoint_of(path) if path.startswith(triton.PREFIX) else None)
        if endpoint is None:
            self._leave_to_app()
        else:
            self._begin_exchange(endpoint, method, version, fields)

    def on_body(self, body: bytes) -> None:
        if self._fault is not None:
            return
        self._head_bytes -= (1 + _FRAMING_RATIO) * len(body)
        if self._reading is None:
            super().on_body(body)
        elif self._reading.take(body, self.limits.body_bytes_max) and self._reading is self.active:
            self._refuse_early(self._reading)

    def on_message_complete(self) -> None:
        if self._upgrading:
            return
        self._in_head, self._waiting, self._head_bytes = True, False, 0
        if self._fault is not None:
            return
        exchange, self._reading = self._reading, None
        if exchange is None:
            super().on_message_complete()
            return
        exchange.body_complete = True
        if exchange is self.active:
            exchange.begin()

    # -- a request that is routed ------------------------------------------------------------------------------

    def _begin_exchange(self, endpoint: Endpoint, method: bytes, version: str, fields: dict[bytes, bytes]) -> None:
        exchange = HttpExchange(
            self.transport,
            self.flow,
            self.exchange_over,
            self.driver,
            endpoint,
            self._target,
            self._fields,
            fields,
            self._socket,
        )
        self._fields = []  # trailers are no part of the head
        exchange.peer = self.client
        exchange.http10 = version == "1.0"
        exchange.keep_alive = not exchange.http10 and self.parser.should_keep_alive()
        exchange.read_head(method, self.limits.body_bytes_max)
        self._reading = exchange
        before: RequestResponseCycle | None = self.cycle
        self.cycle = cast("RequestResponseCycle", exchange)
        if before is None or before.response_complete:
            self._turn(exchange)
        else:  # its turn comes when those before it are answered
            self._open_pipeline()
            self.pipeline.appendleft((self.cycle, self.app))
            if (
                len(self.pipeline) >= _PIPELINE_MAX and not self._closing
            ):  # not before: then the sweep alone sees a close
                self.flow.pause_reading()

    def _turn(self, exchange: HttpExchange) -> None:
        """The requests before it are answered."""
        self.active = exchange
        if exchange.problem is not None:
            self._refuse_early(exchange)
        elif exchange.body_complete:
            exchange.begin()
        elif self._fault is not None:  # in its own body, which will never be whole
            self.active = None
            exchange.response_complete = True
            exchange.release()
            self._answer_fault()
        elif self._expects_continue and self._reading is exchange:
            self.transport.write(_CONTINUE)

    def _refuse_early(self, exchange: HttpExchange) -> None:
        """Answer what the head, or too long a body, has decided. The rest of the body is discarded: of a short one,
        which comes unasked, the connection is used again.
        """
        assert exchange.problem is not None
        length = int(exchange.fields.get(b"content-length", b"0"))
        short = length <= _DISCARD_BYTES_MAX and b"transfer-encoding" not in exchange.fields
        if not exchange.body_complete and (self._expects_continue or not short):
            self._reading = None
            self._fault = exchange.problem
            exchange.keep_alive = False
        exchange.reject(exchange.problem)

    def exchange_over(self, exchange: HttpExchange) -> None:
        """The active exchange has been answered."""
        self.active = None
        if not exchange.accepted and not exchange.preflight:
            self.driver.rejected(exchange.endpoint.path, exchange.status, self.client)
        if not exchange.keep_alive:
            self._drop_pipeline()
            if exchange.body_complete:
                self.transport.close()
            else:
                self._linger()
        self.on_response_complete()

    def _open_pipeline(self) -> None:
        if self.pipeline is _NO_PIPELINE:
            self.pipeline = deque()

    def _drop_pipeline(self) -> None:
        """The requests behind the active one are not answered."""
        for cycle, _ in self.pipeline:
            if isinstance(cycle, HttpExchange):
                cycle.release()
        self.pipeline.clear()

    @property
    def unsent_bytes(self) -> int:
        """Bytes of replies that the client has not taken yet."""
        return self.transport.get_write_buffer_size()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        """A cycle's turn has come; a routed request needs no task."""
        if isinstance(cycle, HttpExchange):
            self._turn(cycle)
        else:
            super()._start_asgi_task(cycle, app)

    def on_response_complete(self) -> None:
        """Start the next request; uvicorn's own method sets a timer for each answer, which the sweep does for all."""
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        self._idle_since_s = self.driver.clock()
        self.flow.resume_reading()
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
        elif self._fault is not None and not self._lingering:
            self._answer_fault()
        elif self._half_closed:
            self.transport.close()

    def _has_closed(self) -> bool:
        """Whether the client has closed its side, by the kernel's account: also where bytes before that wait."""
        opened = self.transport.get_extra_info("socket")
        if opened is None or not hasattr(socket, "TCP_INFO"):
            return False
        try:
            state: bytes = opened.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)
        except (OSError, ValueError):  # it is closed
            return False
        return state[0] != _ESTABLISHED

    # -- the rest ----------------------------------------------------------------------------------------------

    def _leave_to_app(self) -> None:
        """Not a routed path: uvicorn handles the request, whose scope was not made until now."""
        super().on_message_begin()
        self.url, self.expect_100_continue = self._target, self._expects_continue
        self.headers.extend(self._fields)
        self._open_pipeline()
        super().on_headers_complete()
        cycle = self.cycle
        cycle.transport = cast("asyncio.Transport", _AppTransport(self.transport, partial(self._app_closes, cycle)))

    def _app_closes(self, cycle: RequestResponseCycle) -> None:
        """A request of the app's is answered, and its connection is to end: not before the rest of its body has come,
        else the client gets a reset in place of the answer.
        """
        if cycle is self.cycle and cycle.more_body:
            self._linger()
        else:
            self.transport.close()

    # -- ends --------------------------------------------------------------------------------------------------

    def _fail(self, problem: Problem) -> None:
        """No later byte of the client can be parsed: answer the requests before, then the error, then close."""
        if self._fault is not None:
            return
        self._fault = problem
        reading, self._reading = self._reading, None
        if reading is not None and reading.response_complete:  # answered by its head, and its body is discarded
            self._linger()
        elif self._idle:
            self._answer_fault()
        elif self.active is not None and not self.active.body_complete:  # the fault is in its own body
            exchange, self.active = self.active, None
            exchange.response_complete = True
            exchange.release()
            self._answer_fault()

    @property
    def _idle(self) -> bool:
        """Whether every request so far has been answered."""
        cycle: RequestResponseCycle | None = self.cycle
        return self.active is None and (cycle is None or cycle.response_complete)

    def _crashed(self, error: Exception) -> None:
        """An exception of the gateway while a request was read: the client gets 500, and the core drops the request."""
        _log.error(
            "a request failed with an exception in the gateway; its client gets status 500",
            exc_info=error.__context__ or error,
        )
        exchange = self.active
        if exchange is None or exchange.response_complete:
            self._fail(Problem(500, "internal error in the gateway; see its log"))
            return
        exchange.withdraw()
        exchange.keep_alive = False
        if exchange.status:
            self.transport.abort()
        else:
            exchange.reject(Problem(500, "internal error in the gateway; see its log"))

    def _answer_fault(self) -> None:
        assert self._fault is not None
        if self.transport.is_closing():
            return
        body = answers.body(Dialect.OPENAI, self._fault)
        head = b"%b%bcontent-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n"
        self.transport.write(head % (STATUS_LINES[self._fault.status], self._fault.fields, len(body)) + body)
        self.driver.rejected("", self._fault.status, self.client)
        self._linger()

    def _linger(self) -> None:
        """Close for writing only: closing both ways resets the connection before the client has read the answer."""
        self._lingering, self._waiting = True, True
        self._since_s = self.driver.clock()
        if self._fault is None:
            self._fault = Problem(400, "")
        if not self.transport.can_write_eof():  # TLS closes one way by itself, and reads on until the client does
            self.transport.close()
            return
        with suppress(OSError, RuntimeError):
            self.transport.write_eof()

    def _discard(self, count: int) -> None:
        self._linger_bytes += count
        if self._linger_bytes > _LINGER_BYTES_MAX:
            self.transport.abort()

    def shutdown(self) -> None:
        if self.active is not None:
            self.active.keep_alive = False
        else:
            super().shutdown()

    def swept(self, now_s: float) -> None:
        """Close a connection whose client has been idle or sending for too long. After a pause of ours it has its time
        anew: what it sent meanwhile had not been read.
        """
        awake_s = self.driver.awake_s
        if self.active is not None and not self._closing and len(self.pipeline) >= _PIPELINE_MAX and self._has_closed():
            self._closing = True
            self.flow.resume_reading()  # of no more than the kernel holds: then its close comes
        if not self._waiting:
            if self._idle and now_s - max(self._idle_since_s, awake_s) > self.limits.keep_alive_s:
                self.transport.close()
            return
        waited_s = now_s - max(self._since_s, awake_s)
        if self._lingering:
            if waited_s > _LINGER_S:
                self.transport.abort()
        elif waited_s > self.limits.request_s:
            if self._in_head and not self._head_bytes:
                self.transport.close()
            else:
                self._fail(Problem(408, f"the request took over {self.limits.request_s:g} s to arrive"))


class _AppTransport:
    """What uvicorn's cycle of an app's request writes to and closes."""

    def __init__(self, transport: asyncio.Transport, close: Callable[[], None]) -> None:
        self.write, self.is_closing, self.close = transport.write, transport.is_closing, close


def client_connection(driver: RequestDriver, limits: ConnectionLimits) -> type[asyncio.Protocol]:
    """The protocol class for uvicorn, with our arguments bound."""
    return cast("type[asyncio.Protocol]", partial(ClientConnection, driver, limits))
