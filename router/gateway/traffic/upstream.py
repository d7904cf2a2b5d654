"""Connections to engines: one pool a backend, and a connection that finds heads and ends of answers.

llhttp decides on framing. Must not depend on what a reply means or on who sent the request: bytes go to a reader.
No task and no future per request; a task exists only while a new connection is being opened.
"""

import asyncio
import ssl
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from errno import ECONNREFUSED
from functools import lru_cache, partial
from math import inf
from typing import Any, Final, cast

import httptools

from router.gateway.descriptors import exhausted
from router.gateway.pauses import paused_s
from router.gateway.protocols.target import Target
from router.gateway.tls import trusted_by_machine
from router.gateway.traffic.fast_path import NO_SOCKET, FastPath
from router.gateway.traffic.http import HEAD_END, NO_BODY
from router.gateway.traffic.keepalive import keep_alive
from router.gateway.traffic.meter import Gaps
from router.gateway.traffic.usage import TextDensity

_HEAD_BYTES_MAX: Final = 64 * 1024
_KEPT_BYTES_MAX: Final = 256
_OWN: Final = " from this router"  # whatever the backend does
_INTERIM: Final = range(100, 200)
_NOT_TLS: Final = ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "PACKET_LENGTH_TOO_LONG")  # what OpenSSL makes of plain HTTP


@dataclass(frozen=True, slots=True)
class PoolLimits:
    """``idle_s`` is below vLLM's and uvicorn's 5 s, so that an idle connection is rarely one the engine has closed."""

    connect_s: float = 2.0
    idle_s: float = 4.0
    idle_max: int = 256


class Reader(ABC):
    """Receives the bytes of one answer: an attempt (attempt.py) or a probe (monitoring/probe.py).

    A base class and no protocol: compiled, its methods are called without a look-up, once for every token.
    """

    __slots__ = ()

    @abstractmethod
    def take(self, data: bytes) -> None:
        """More bytes as they came; ``done`` of the connection says whether the answer is complete with them."""

    @abstractmethod
    def finished(self) -> None:
        """The answer is complete and the connection has been given back."""

    @abstractmethod
    def connection_failed(self, why: str, *, unanswered: bool) -> None:
        """The connection failed; ``unanswered``: not one byte had come."""

    @abstractmethod
    def closed(self) -> None:
        """The engine closed the connection in good order, which ends a body that has no other end."""


class Connection(asyncio.Protocol):
    """One connection to an engine: idle in its pool, or busy with one reader.

    ``head``: the bytes of the answer until its head was complete, then None. ``done``: the answer has ended.
    ``socket``: its descriptor, where bytes of an answer may be read from it as they are, else -1.
    """

    __slots__ = (
        "_begun", "_bodiless", "_decoder", "_feed", "_half_closed", "_interim", "_keep", "_parser", "_plain", "done",
        "head", "head_only", "idle_since_s", "reader", "reused", "socket", "touched", "transport", "upstream",
    )  # fmt: skip

    def __init__(self, upstream: "Upstream") -> None:
        self.upstream = upstream
        self.transport: asyncio.Transport = cast("asyncio.Transport", None)
        self.reader: Reader | None = None
        self._plain: httptools.HttpResponseParser | None = httptools.HttpResponseParser(self)
        self._decoder: Decoder | None = None
        self._parser: httptools.HttpResponseParser | None = self._plain
        self._feed: Callable[[bytes], None] = self._plain.feed_data
        self.head: bytes | None = b""
        self.head_only = False
        self.done = self._begun = self._keep = self.reused = self.touched = self._interim = self._bodiless = False
        self._half_closed = False
        self.idle_since_s = 0.0
        self.socket = NO_SOCKET

    # -- asyncio's side ----------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        keep_alive(transport)
        opened = transport.get_extra_info("socket")
        if opened is not None and self.upstream.target.tls is False:
            self.socket = opened.fileno()
        self.upstream.open.add(self)

    def data_received(self, data: bytes) -> None:
        reader, feed = self.reader, self._feed
        if reader is None:  # bytes without a request
            self.transport.abort()
            return
        try:
            feed(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            if not (self.done and self._bodiless):  # else the answer is whole, and the rest reaches nobody
                self.touched = True
                self._fail(f"{self.upstream.target.name} sent an answer that is not HTTP: {error}")
                return
        reader.take(data)
        if self.done and self.reader is reader:
            if self.head is not None:  # llhttp has found the end of a head that has none by the letter
                self._fail(f"{self.upstream.target.name} sent an answer that is not HTTP: its head has no end")
            else:
                self._release(reader)

    def connection_lost(self, error: Exception | None) -> None:
        self.socket = NO_SOCKET
        self.upstream.lost(self)
        reader, self.reader = self.reader, None
        self._parser = self._plain = self._decoder = None
        self._feed = _nothing
        if reader is None:
            return
        if error is None and self.head is None:
            reader.closed()
        else:
            why = f"{self.upstream.target.name} closed the connection" + (f": {error}" if error else "")
            reader.connection_failed(why, unanswered=not self.touched)

    def pause_writing(self) -> None:
        """The request's body is bounded and held whole, so nothing needs to slow down."""

    def resume_writing(self) -> None:
        """As above."""

    # -- llhttp's side -----------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        if self.done or (self._begun and not self._interim):  # a second answer to one request
            raise ValueError("bytes after the end of the answer")
        self._begun = True
        self._interim = False

    def on_headers_complete(self) -> None:
        assert self._parser is not None
        status = self._parser.get_status_code()
        self._interim = status in _INTERIM
        self._bodiless = status in NO_BODY or (self.head_only and not self._interim)
        # A body that must not be there may still come, and would be read as the next answer
        self._keep = status not in NO_BODY and self._parser.should_keep_alive()

    def on_message_complete(self) -> None:
        self.done = not self._interim

    # -- the reader's side -------------------------------------------------------------------------------------

    def send(self, reader: Reader, request: bytes, body: bytes, *, decode: bool, head_only: bool) -> None:
        """Send one request; the answer goes to *reader*. *decode*: ``decoded`` gives the body without its framing."""
        self.reader = reader
        self.head = b""
        self.done = self._begun = self.touched = self._interim = self._bodiless = False
        self.head_only = head_only
        if decode and self._decoder is None:
            self._decoder = Decoder(self)
        parser = self._decoder.parser if decode and self._decoder else self._plain
        assert parser is not None
        self._parser, self._feed = parser, parser.feed_data
        if len(body) <= _HEAD_BYTES_MAX:
            self.transport.write(request + body)
        else:
            self.transport.writelines((request, body))

    def decoded(self) -> bytes:
        """What of the body has come since the last call, without its framing (only where ``send`` had *decode*)."""
        return self._decoder.take() if self._decoder else b""

    def split_head(self, data: bytes) -> tuple[bytes, bytes] | None:
        """More of the answer while its head is incomplete: head and what follows it, or None until then."""
        assert self.head is not None
        self.touched = True
        held = (self.head + data).lstrip(b"\r\n")  # llhttp lets empty lines pass before an answer
        while (end := held.find(HEAD_END)) >= 0:
            end += len(HEAD_END)
            if held[9:10] != b"1":
                self.head = None
                if self.head_only:
                    self._end_with_head()
                return held[:end], b"" if self._bodiless else held[end:]
            held = held[end:]
        self.head = held
        if len(held) > _HEAD_BYTES_MAX:
            self._fail(f"{self.upstream.target.name} sent a head over {_HEAD_BYTES_MAX} bytes")
        return None

    def _end_with_head(self) -> None:
        """A HEAD request's answer ends with its head; llhttp waits for a body, so its parsers are replaced."""
        self.done = True
        self._plain = httptools.HttpResponseParser(self)
        if self._decoder is not None:
            self._decoder = Decoder(self)

    def belongs_to(self, upstream: "Upstream") -> None:
        """It is one to another backend."""
        self.upstream.open.discard(self)
        upstream.open.add(self)
        self.upstream = upstream

    def abort(self) -> None:
        """Close at once; the reader gets no further call."""
        self.reader = None
        self.transport.abort()

    def half_close(self) -> bool:
        """Send no more, which engines take for a client that has left, and read on until they close. False: this
        transport cannot.
        """
        transport = self.transport
        if transport.is_closing() or not transport.can_write_eof():
            return False
        self._half_closed = True
        transport.write_eof()
        if not transport.is_reading():  # its client was behind
            transport.resume_reading()
        return True

    def _release(self, reader: Reader) -> None:
        self.reader = None
        if self._keep and not self._half_closed:
            if not self.transport.is_reading():  # the reply ended while its client was behind
                self.transport.resume_reading()
            self.upstream.idle(self)
        else:
            self.transport.close()
        reader.finished()

    def _fail(self, why: str) -> None:
        reader, self.reader = self.reader, None
        self.transport.abort()
        if reader is not None:
            reader.connection_failed(why, unanswered=False)


class Decoder:
    """llhttp with its body callback: for the replies that cannot pass as they came."""

    __slots__ = ("_pieces", "on_headers_complete", "on_message_begin", "on_message_complete", "parser")

    def __init__(self, connection: Connection) -> None:
        self._pieces: list[bytes] = []
        self.on_message_begin = connection.on_message_begin
        self.on_headers_complete = connection.on_headers_complete
        self.on_message_complete = connection.on_message_complete
        self.parser = httptools.HttpResponseParser(self)

    def on_body(self, data: bytes) -> None:
        self._pieces.append(data)

    def take(self) -> bytes:
        """All that came since the last call."""
        data = b"".join(self._pieces)
        self._pieces.clear()
        return data


def _opening(target: Target, method: bytes, path: bytes) -> bytes:
    """The beginning of every head for that engine: request line, ``Host``, its key; *path* with the client's query."""
    key = f"authorization: Bearer {target.api_key}\r\n" if target.api_key else ""
    where = f"{target.path_prefix}{path.decode('latin-1')}"
    return f"{method.decode()} {where} HTTP/1.1\r\nhost: {target.authority}\r\n{key}".encode("latin-1")


def _nothing(_: bytes) -> None:
    """The feed of a closed connection."""


def _why(error: OSError) -> str:
    """The reason of a connection that did not come about, in words."""
    if isinstance(error, ssl.SSLError) and error.reason in _NOT_TLS:
        return "it does not speak TLS, which https:// stands for; is its url http://?"
    if error.errno == ECONNREFUSED:  # event loops have words of their own for it
        return "connection refused, nothing listens there"
    return str(error.strerror or error)


Ready = Callable[[Connection], None]
Failed = Callable[[str], None]
Dialler = Callable[["Upstream", Ready, Failed], None]


class Upstream:
    """The connections to one backend. The newest is used first, so that the others become idle and close.

    ``dialler``: of connections that are not this process's own (None: they are); each serves one request.
    """

    def __init__(
        self,
        target: Target,
        clock: Callable[[], float],
        limits: PoolLimits | None = None,
        before: "Upstream | None" = None,
        dialler: Dialler | None = None,
        fast_path: FastPath | None = None,
    ) -> None:
        self.fast_path = fast_path
        self._dialler: Dialler = dialler or Upstream.connect
        self.target = target
        self.limits = limits or PoolLimits()
        self.proxied = dialler is not None  # a proxy sends each request, once, and removes the framing of its reply
        self.gaps: Gaps = before.gaps if before is not None else Gaps()
        self.density: TextDensity = before.density if before is not None else TextDensity()
        self.refuses_usage = False  # it knows no ``stream_options``: requests go to it as they came
        self.wire_name = target.name.encode("latin-1", "replace")
        self._openings = lru_cache(maxsize=64)(partial(_opening, target))
        self.open: set[Connection] = set()
        self.dial_error: Exception | None = None  # of the last try to connect
        self.last_read_s = -inf  # of the replies that have ended: when bytes came, on ``clock``
        self.clock = clock
        self._idle: list[Connection] = []
        self._dials: set[asyncio.Task[None]] = set()
        own = target.certificates if target.tls else None
        self._tls = own.context if own else trusted_by_machine() if target.tls else None
        self._server_name = (own.server_name if own else "") or None  # None: the host's

    def opening(self, method: bytes, path: bytes) -> bytes:
        """The beginning of a head; that of a long path, which may be any client's query, is made anew each time."""
        return self._openings(method, path) if len(path) <= _KEPT_BYTES_MAX else _opening(self.target, method, path)

    def take(self) -> Connection | None:
        """An idle connection that is young enough, or None."""
        oldest_s = self.clock() - self.limits.idle_s
        while self._idle:
            connection = self._idle.pop()
            if connection.idle_since_s >= oldest_s and not connection.transport.is_closing():
                connection.reused = True
                return connection
            connection.transport.abort()
        return None

    def dial(self, ready: Ready, failed: Failed, *, again: bool = False) -> None:
        """Open a new connection: *ready* gets it, *failed* the reason why there is none. *again*: for a request that
        was sent before, which a proxy cannot do: it is this process's own.
        """
        if again and self.proxied:
            self.connect(ready, failed)
        else:
            self._dialler(self, ready, failed)

    def connect(self, ready: Ready, failed: Failed) -> None:
        """The default dialler: TCP, and TLS where the target has it."""
        self.open_by(self._connected(ready, failed))

    def open_by(self, dialling: Coroutine[Any, Any, None]) -> None:
        """Open a connection by that, in a task which ends with the pool."""
        task = asyncio.get_running_loop().create_task(dialling)
        self._dials.add(task)
        task.add_done_callback(self._dials.discard)

    async def _connected(self, ready: Ready, failed: Failed) -> None:
        target = self.target
        loop = asyncio.get_running_loop()
        began_s = self.clock()
        self.dial_error = None
        try:
            async with asyncio.timeout(self.limits.connect_s):
                _, connection = await loop.create_connection(
                    lambda: Connection(self),
                    target.host,
                    target.port,
                    ssl=self._tls,
                    server_hostname=self._server_name,
                )
        except TimeoutError as error:
            if paused_s(began_s + self.limits.connect_s, self.clock()):  # it may have been accepted meanwhile
                await self._connected(ready, failed)
                return
            self.dial_error = error
            failed(f"{target.name} did not accept a connection in {self.limits.connect_s:g} s")
        except OSError as error:
            self.dial_error = error
            own = _OWN if exhausted(error) else ""
            failed(f"{target.name} cannot be reached{own}: {_why(error)}")
        except UnicodeError as error:  # a host that cannot be a DNS name
            self.dial_error = error
            failed(f"{target.name} cannot be reached: {target.host!r} is no host name ({error})")
        else:
            ready(connection)

    def idle(self, connection: Connection) -> None:
        """The connection waits for its next request."""
        if self.proxied or len(self._idle) >= self.limits.idle_max:
            connection.transport.close()
            return
        connection.idle_since_s = self.clock()
        self._idle.append(connection)

    def lost(self, connection: Connection) -> None:
        """The connection is closed."""
        self.open.discard(connection)
        if connection.reader is None and connection in self._idle:
            self._idle.remove(connection)

    def sweep(self) -> None:
        """Close what has been idle for too long."""
        oldest_s = self.clock() - self.limits.idle_s
        while self._idle and self._idle[0].idle_since_s < oldest_s:
            self._idle.pop(0).transport.abort()

    def close(self) -> None:
        """Close every idle connection and stop opening; the busy ones end with their attempts."""
        for task in self._dials:
            task.cancel()
        while self._idle:
            self._idle.pop().transport.abort()
