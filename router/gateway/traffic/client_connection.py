"""One client's connection: heads are checked, bodies bounded, requests answered one after another.

llhttp parses requests; a few checks against request smuggling are added here. Must not depend on backends: routed
requests go to a RequestDriver (ports.py), each as one of uvicorn's cycles without a task.
"""

import asyncio
import logging
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, cast

import httptools
import uvicorn
from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from router.core.errors import Rejected
from router.gateway.protocols import answers, triton
from router.gateway.protocols.answers import Dialect, Problem
from router.gateway.protocols.cors import is_preflight
from router.gateway.protocols.openai import ENDPOINTS, Endpoint
from router.gateway.traffic.http import STATUS_LINES
from router.gateway.traffic.http_exchange import HttpExchange
from router.gateway.traffic.ports import RequestDriver

_log = logging.getLogger("headroom")

_LINGER_S: Final = 5.0
_LINGER_BYTES_MAX: Final = 64 * 2**20
_PIPELINE_MAX: Final = 16
_TOO_LARGE: Final = 413
_ONE_HOST: Final = Problem(400, "expected exactly one Host header")
_ONE_CODING: Final = Problem(400, "Transfer-Encoding: expected chunked, once, over HTTP/1.1")
_NO_UPGRADE: Final = Problem(400, "Upgrade: this server has HTTP/1.1 alone")
_CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """What a client may send and how slowly. ``request_s``: from a request's first byte to its last."""

    body_bytes_max: int = 10 * 2**20
    head_bytes_max: int = 64 * 2**10
    request_s: float = 30.0
    keep_alive_s: float = 75.0
    connections_max: int = 20_000
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
        self.driver = driver
        self.limits = limits
        self._target = b""
        self._fields: list[tuple[bytes, bytes]] = []
        self._expects_continue = False
        self.active: HttpExchange | None = None  # the routed request that is being answered
        self._reading: HttpExchange | None = None  # the request whose body is being read
        self._head_bytes = 0
        self._in_head = True
        self._since_s = self.driver.clock()  # since when the client has been sending the present message
        self._waiting = True  # for the client
        self._idle_since_s = self._since_s
        self._fault: Problem | None = None  # answered once those before it are, then the connection is closed
        self._linger_bytes = 0
        self._lingering = False

    # -- asyncio's side ----------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(cast("asyncio.Transport", transport))
        if len(self.connections) > self.limits.connections_max:
            self._fail(Problem(503, "too many connections"))

    def data_received(self, data: bytes) -> None:
        if self._fault is not None:
            self._discard(len(data))
            return
        if not self._waiting:
            self._waiting, self._since_s = True, self.driver.clock()
        if self._in_head:
            self._head_bytes += len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            pass  # not taken up: the request is answered as any other
        except httptools.HttpParserCallbackError as error:
            self._crashed(error)
        except httptools.HttpParserError as error:
            self._fail(Problem(400, f"malformed HTTP: {error}"))
        if self._in_head and self._head_bytes > self.limits.head_bytes_max:
            self._fail(Problem(431, f"the head is over {self.limits.head_bytes_max} bytes"))

    def connection_lost(self, exc: Exception | None) -> None:
        if isinstance(self.cycle, HttpExchange):
            self.cycle = cast("RequestResponseCycle", None)
        active, self.active = self.active, None
        self.pipeline.clear()
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
        self._in_head = False
        head_bytes, self._head_bytes = self._head_bytes, 0
        if self._fault is not None:
            return
        fields = dict(self._fields)
        expects = fields.get(b"expect")
        self._expects_continue = expects is not None and expects.lower() == b"100-continue"
        path = self._target.partition(b"?")[0]
        endpoint = ENDPOINTS.get(path) or (triton.endpoint_of(path) if path.startswith(triton.PREFIX) else None)
        version = self.parser.get_http_version()
        if version not in {"1.0", "1.1"}:
            self._fail(Problem(505, f"HTTP/{version} is not supported; expected HTTP/1.1"))
            return
        problem = self._unsafe(version, fields, head_bytes)
        if problem is not None:
            self._fail(problem)
        elif endpoint is None:
            self._leave_to_app()
        else:
            self._begin_exchange(endpoint, version, fields)

    def on_body(self, body: bytes) -> None:
        if self._fault is not None:
            return
        if self._reading is None:
            super().on_body(body)
        elif self._reading.take(body, self.limits.body_bytes_max) and self._reading is self.active:
            self._refuse_early(self._reading)

    def on_message_complete(self) -> None:
        self._in_head, self._waiting = True, False
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

    def _begin_exchange(self, endpoint: Endpoint, version: str, fields: dict[bytes, bytes]) -> None:
        exchange = HttpExchange(
            self.transport, self.flow, self.exchange_over, self.driver, endpoint, self._target, self._fields, fields
        )
        self._fields = []  # trailers are no part of the head
        exchange.http10 = version == "1.0"
        exchange.keep_alive = not exchange.http10 and self.parser.should_keep_alive()
        exchange.problem = self._head_problem(exchange, endpoint)
        self._reading = exchange
        before: RequestResponseCycle | None = self.cycle
        self.cycle = cast("RequestResponseCycle", exchange)
        if before is None or before.response_complete:
            self._turn(exchange)
        else:  # its turn comes when those before it are answered
            self.pipeline.appendleft((self.cycle, self.app))
            if len(self.pipeline) >= _PIPELINE_MAX:  # not before: a client's close is not seen while reading is paused
                self.flow.pause_reading()

    def _head_problem(self, exchange: HttpExchange, endpoint: Endpoint) -> Problem | None:
        """The error that the head alone shows, if any."""
        method = self.parser.get_method()
        exchange.head_only = method == b"HEAD"
        cors = self.driver.ingress.cors
        if cors is not None and is_preflight(method, exchange.fields):  # it bears no key
            exchange.preflight = cors.preflight_fields(exchange.fields, endpoint.method)
            return None
        if method != endpoint.method and not (exchange.head_only and endpoint.method == b"GET"):
            allowed = endpoint.method + (b", HEAD" if endpoint.method == b"GET" else b"")
            return Problem(405, f"{endpoint.path} takes {allowed.decode()}", fields=b"allow: %b\r\n" % allowed)
        try:
            exchange.caller = self.driver.ingress.caller(exchange.fields)
        except Rejected as error:
            return answers.rejection(error)
        if int(exchange.fields.get(b"content-length", b"0")) > self.limits.body_bytes_max:
            return Problem(413, f"the body is over {self.limits.body_bytes_max} bytes")
        return None

    def _turn(self, exchange: HttpExchange) -> None:
        """The requests before it are answered."""
        self.active = exchange
        if exchange.body_complete:
            exchange.begin()
        elif exchange.problem is not None and (exchange.problem.status == _TOO_LARGE or self._expects_continue):
            self._refuse_early(exchange)
        elif self._expects_continue and self._reading is exchange:
            self.transport.write(_CONTINUE)

    def _refuse_early(self, exchange: HttpExchange) -> None:
        """Answer before all of the request has come, and discard the rest of it."""
        assert exchange.problem is not None
        self._reading = None
        self._fault = exchange.problem
        exchange.reject(exchange.problem)

    def exchange_over(self, exchange: HttpExchange) -> None:
        """The active exchange has been answered."""
        self.active = None
        if not exchange.accepted and not exchange.preflight:
            self.driver.rejected(exchange.endpoint.path, exchange.status)
        if not exchange.keep_alive:
            self.pipeline.clear()
            if exchange.body_complete:
                self.transport.close()
            else:
                self._linger()
        self.on_response_complete()

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

    # -- the rest ----------------------------------------------------------------------------------------------

    def _leave_to_app(self) -> None:
        """Not a routed path: uvicorn handles the request, whose scope was not made until now."""
        super().on_message_begin()
        self.url, self.expect_100_continue = self._target, self._expects_continue
        self.headers.extend(self._fields)
        super().on_headers_complete()

    def _unsafe(self, version: str, fields: dict[bytes, bytes], read_bytes: int) -> Problem | None:
        """Heads that llhttp lets pass and two servers might read differently (RFC 9112 3.2, 6.1, 11.2)."""
        limit = self.limits.head_bytes_max
        hosts = 1 if len(fields) == len(self._fields) and b"host" in fields else self._count(b"host")
        if hosts > 1 or (hosts == 0 and version == "1.1"):
            return _ONE_HOST
        if b"upgrade" in fields and self.parser.should_upgrade() and self.parser.get_method() == b"POST":
            return _NO_UPGRADE  # llhttp would take its body for another protocol's
        encoding = fields.get(b"transfer-encoding")
        if encoding is not None and (
            encoding.strip().lower() != b"chunked" or version == "1.0" or self._count(b"transfer-encoding") > 1
        ):
            return _ONE_CODING
        if read_bytes > limit and sum(len(name) + len(value) for name, value in self._fields) > limit:
            return Problem(431, f"the head is over {limit} bytes")
        return None

    def _count(self, name: bytes) -> int:
        return sum(each == name for each, _ in self._fields)

    # -- ends --------------------------------------------------------------------------------------------------

    def _fail(self, problem: Problem) -> None:
        """No later byte of the client can be parsed: answer the requests before, then the error, then close."""
        if self._fault is not None:
            return
        self._fault = problem
        self._reading = None
        if self._idle:
            self._answer_fault()
        elif self.active is not None and not self.active.body_complete:  # the fault is in its own body
            exchange, self.active = self.active, None
            exchange.response_complete = True
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
        head = b"%bcontent-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n"
        self.transport.write(head % (STATUS_LINES[self._fault.status], len(body)) + body)
        self.driver.rejected("", self._fault.status)
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
        """Close a connection whose client has been idle or sending for too long."""
        if not self._waiting:
            if self._idle and now_s - self._idle_since_s > self.limits.keep_alive_s:
                self.transport.close()
            return
        waited_s = now_s - self._since_s
        if self._lingering:
            if waited_s > _LINGER_S:
                self.transport.abort()
        elif waited_s > self.limits.request_s:
            if self._in_head and not self._head_bytes:
                self.transport.close()
            else:
                self._fail(Problem(408, f"the request took over {self.limits.request_s:g} s to arrive"))


def client_connection(driver: RequestDriver, limits: ConnectionLimits) -> type[asyncio.Protocol]:
    """The protocol class for uvicorn, with our arguments bound."""
    return cast("type[asyncio.Protocol]", partial(ClientConnection, driver, limits))
