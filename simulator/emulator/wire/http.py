"""One HTTP/1.1 connection of an emulated engine: requests parsed by llhttp, answers written straight to the socket.

A small server of its own and not a framework, because three of these share two cores with the gateway they are
there for: a streamed token costs one ``write``. Requests on one connection are answered in order. Must not know:
what the paths mean.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from http import HTTPStatus
from typing import Final, cast

import httptools

BODY_BYTES_MAX: Final = 64 << 20


class Exchange:
    """One request and its answer: either ``respond`` once, or ``start``, ``write`` ..., ``end``."""

    __slots__ = ("_connection", "body", "gone", "headers", "method", "path", "started")

    def __init__(self, connection: "Connection", method: str, path: str, headers: dict[str, str], body: bytes) -> None:
        """Headers have lower-case names. ``gone`` is called once if the client leaves before the end."""
        self._connection = connection
        self.method, self.path, self.headers, self.body = method, path, headers, body
        self.gone: Callable[[], None] | None = None
        self.started = False

    def respond(self, status: int, body: bytes = b"", content_type: str = "application/json", extra: str = "") -> None:
        """A whole answer; *extra* is further header lines, each ended by CRLF."""
        kind = f"content-type: {content_type}\r\n" if body or content_type != "application/json" else ""
        head = f"{_line(status)}content-length: {len(body)}\r\n{kind}{extra}\r\n"
        self._connection.write(head.encode("latin-1") + body)
        self._done()

    def start(self, status: int = 200, content_type: str = "text/event-stream; charset=utf-8", extra: str = "") -> None:
        """The head of a streamed answer; nothing goes out before the first ``write``."""
        self.started = True
        head = f"{_line(status)}content-type: {content_type}\r\n{extra}transfer-encoding: chunked\r\n\r\n"
        self._connection.hold(head.encode("latin-1"))

    def write(self, data: bytes) -> None:
        """One chunk."""
        self._connection.write(b"%x\r\n%b\r\n" % (len(data), data))

    def end(self) -> None:
        """The end of a streamed answer."""
        self._connection.write(b"0\r\n\r\n")
        self._done()

    def _done(self) -> None:
        self.gone = None
        self._connection.answered()


def _line(status: int) -> str:
    return f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\nserver: headroom-simulator\r\n"


Handler = Callable[[Exchange], None]


class Connection(asyncio.Protocol):
    """One client's connection."""

    def __init__(self, handle: Handler, open_ones: set["Connection"]) -> None:
        """*handle* is given each request; *open_ones* holds every connection that lives."""
        self._handle, self._open_ones = handle, open_ones
        self._parser = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport | None = None
        self._current: Exchange | None = None
        self._queue: deque[tuple[Exchange, bool]] = deque()
        self._keep_alive = True
        self._head = b""
        self._url = b""
        self._headers: dict[str, str] = {}
        self._body: list[bytes] = []
        self._body_bytes = 0

    # ---- asyncio -------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client is there."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is one without saying so
        self._open_ones.add(self)

    def connection_lost(self, problem: Exception | None) -> None:
        """The client has disconnected: notify the handler of its request."""
        self._transport = None
        self._open_ones.discard(self)
        self._queue.clear()
        current, self._current = self._current, None
        if current is not None and current.gone is not None:
            current.gone()

    def data_received(self, data: bytes) -> None:
        """Bytes of a request."""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self.close()
        except httptools.HttpParserError:
            self.write(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
            self.close()

    # ---- llhttp --------------------------------------------------------------

    def on_message_begin(self) -> None:
        """A request begins."""
        self._url, self._headers, self._body, self._body_bytes = b"", {}, [], 0

    def on_url(self, url: bytes) -> None:
        """Its target, perhaps in pieces."""
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header."""
        self._headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        """Answer a request for permission to send the body (Expect: 100-continue)."""
        if self._headers.get("expect", "").lower() == "100-continue":
            self.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, data: bytes) -> None:
        """Part of the body."""
        self._body_bytes += len(data)
        if self._body_bytes > BODY_BYTES_MAX:
            self.write(b"HTTP/1.1 413 Payload Too Large\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
            self.close()
            return
        self._body.append(data)

    def on_message_complete(self) -> None:
        """A whole request: answered at once, or after those before it."""
        method = self._parser.get_method().decode("latin-1")
        path = self._url.decode("latin-1").partition("?")[0]
        exchange = Exchange(self, method, path, self._headers, b"".join(self._body))
        entry = (exchange, self._parser.should_keep_alive())
        if self._current is not None:
            self._queue.append(entry)
        else:
            self._begin(*entry)

    def _begin(self, exchange: Exchange, keep_alive: bool) -> None:
        self._current, self._keep_alive = exchange, keep_alive
        self._handle(exchange)

    # ---- answers ---------------------------------------------------------------

    def hold(self, head: bytes) -> None:
        """Keep *head* for the next write."""
        self._head = head

    def write(self, data: bytes) -> None:
        """To the client, if it is still there."""
        if self._transport is not None and not self._transport.is_closing():
            if self._head:
                data, self._head = self._head + data, b""
            self._transport.write(data)

    def answered(self) -> None:
        """The current request has its answer: on to the next, or close."""
        self._current = None
        if not self._keep_alive:
            self.close()
        elif self._queue:
            self._begin(*self._queue.popleft())

    def close(self) -> None:
        """Hang up, once what was written is out."""
        if self._transport is not None:
            self._transport.close()
