"""Small pages by GET over pooled connections of the data plane's own kind: health checks and metrics, many a second.

A general HTTP client takes milliseconds of CPU for each, which a router that reads every engine every second pays out
of its streams. Believes: llhttp. Must not know what is on a page. Redirects are not followed.
"""

import asyncio
import ssl
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from errno import ECONNREFUSED
from time import monotonic
from typing import Final
from urllib.parse import urlsplit

from router.core.errors import DownReason, Exhausted, Unanswered
from router.gateway.descriptors import exhausted
from router.gateway.pauses import paused_s
from router.gateway.protocols.target import Target
from router.gateway.tls import TlsContext
from router.gateway.traffic.http import parse_head
from router.gateway.traffic.upstream import Connection, PoolLimits, Reader, Upstream

_PAGE_BYTES_MAX: Final = 16 * 2**20
_IDLE_MAX: Final = 8
_OK: Final = range(200, 300)
_REDIRECT: Final = range(300, 400)
_HTTP_PORT: Final = 80
_LOCATION_CHARS_MAX: Final = 200


@dataclass(frozen=True, slots=True)
class Page:
    """What was answered.

    ``location``: where a redirect points; ``framed``: the answer states where its body ends, so that the body is whole.
    """

    status: int
    body: bytes
    location: str = ""
    framed: bool = field(default=True, compare=False)

    @property
    def is_success(self) -> bool:
        return self.status in _OK

    @property
    def lines(self) -> bytes:
        """The body up to its last whole line, where it may have been cut off: half a number is another number."""
        return self.body if self.framed else self.body[: self.body.rfind(b"\n") + 1]

    def __str__(self) -> str:
        """The status, for a message that says why a page is of no use."""
        if not self.location:
            return f"status {self.status}"
        return f"status {self.status}, a redirect to {self.location}, which is not followed"


class Probe(Reader):
    """One GET on one connection; an idle one that turns out dead is replaced by a fresh one."""

    def __init__(self, upstream: Upstream, head: bytes, answer: "asyncio.Future[Page]") -> None:
        self._in_body = False
        self._upstream, self._head, self._answer = upstream, head, answer
        self._connection: Connection | None = None
        self._status = 0
        self._location = ""
        self._until_close = False
        self._pieces: list[bytes] = []
        self._size = 0

    def start(self) -> None:
        """Send the request on an idle connection or a new one."""
        connection = self._upstream.take()
        if connection is not None:
            self._ask(connection)
        else:
            self._upstream.dial(self._ask, self._undialled)

    def _ask(self, connection: Connection) -> None:
        if self._answer.done():
            self._upstream.idle(connection)
            return
        self._connection = connection
        connection.send(self, self._head, b"", decode=True, head_only=False)

    def abort(self) -> None:
        """The caller no longer waits."""
        if self._connection is not None:
            self._connection.abort()

    def take(self, data: bytes) -> None:
        """More of the answer."""
        if self._in_body:
            self._more()
        else:
            self._before_head(data)

    def _before_head(self, data: bytes) -> None:
        assert self._connection is not None
        parts = self._connection.split_head(data)
        if parts is None:
            return
        try:
            head = parse_head(parts[0])
        except ValueError:
            self.abort()
            self._fail("a head that cannot be read")
            return
        self._status, self._until_close = head.status, head.until_close
        if head.status in _REDIRECT:
            self._location = _location(head.fields)
        self._in_body = True
        self._more()

    def _more(self) -> None:
        assert self._connection is not None
        data = self._connection.decoded()
        self._pieces.append(data)
        self._size += len(data)
        if self._size > _PAGE_BYTES_MAX:
            self.abort()
            self._fail(f"a page over {_PAGE_BYTES_MAX} bytes")

    def finished(self) -> None:
        """The page is complete."""
        if not self._answer.done():
            page = Page(self._status, b"".join(self._pieces), self._location, not self._until_close)
            self._answer.set_result(page)

    def closed(self) -> None:
        """The end of the connection, which is the end of a page that has no other."""
        if self._until_close:
            self.finished()
        else:
            self._fail("the connection was closed in the middle")

    def connection_failed(self, why: str, *, unanswered: bool) -> None:
        """The connection failed."""
        if unanswered and self._connection is not None and self._connection.reused and not self._answer.done():
            self._upstream.dial(self._ask, self._undialled)
        else:
            self._fail(why, DownReason.TLS if "[SSL" in why else DownReason.INVALID)  # a certificate refused, or a cut

    def _undialled(self, why: str) -> None:
        if exhausted(self._upstream.dial_error) and not self._answer.done():
            self._answer.set_exception(Exhausted(why))
            return
        self._fail(why, _reason(self._upstream.dial_error))

    def _fail(self, why: str, reason: DownReason = DownReason.INVALID) -> None:
        if not self._answer.done():
            self._answer.set_exception(Unanswered(why, reason))


def _reason(error: Exception | None) -> DownReason:
    """Why no connection came about."""
    if isinstance(error, TimeoutError):
        return DownReason.TIMEOUT
    if isinstance(error, ssl.SSLError):
        return DownReason.TLS
    if isinstance(error, OSError):
        text, refused = str(error), f"[Errno {ECONNREFUSED}]"
        if error.errno == ECONNREFUSED or 0 < text.count(refused) == text.count("[Errno "):  # of several addresses, all
            return DownReason.REFUSED
    return DownReason.UNREACHABLE


def _location(fields: bytes) -> str:
    """Where a redirect with these header lines points, as far as it can be printed."""
    for line in fields.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.lower() == b"location":
            text = value.strip().decode("latin-1")[:_LOCATION_CHARS_MAX]
            return text if text.isprintable() else "an address that cannot be printed"
    return ""


class ProbeClient:
    """Gets pages; every wait is bounded by ``timeout_s``."""

    def __init__(self, timeout_s: float, clock: Callable[[], float] = monotonic) -> None:
        self._timeout_s, self._clock = timeout_s, clock
        self._limits = PoolLimits(connect_s=timeout_s, idle_max=_IDLE_MAX)
        self._upstreams: dict[tuple[str, str, TlsContext | None], Upstream] = {}

    async def get(self, url: str, key: str = "", method: str = "GET", certificates: TlsContext | None = None) -> Page:
        """The page at ``http[s]://...``; *key*: a bearer token; a POST has an empty body. Raises Unanswered.

        *certificates*: for https, where it is not what this machine trusts.
        """
        parts = urlsplit(url)
        upstream = self._upstreams.get((parts.scheme, parts.netloc, certificates))
        if upstream is None:
            upstream = self._upstream(parts.scheme, parts.netloc, certificates)
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        said = f"{method} {path} HTTP/1.1\r\nhost: {upstream.target.authority}\r\naccept: */*\r\n"
        said += "content-length: 0\r\n" if method == "POST" else ""
        began_s = self._clock()
        answer: asyncio.Future[Page] = asyncio.get_running_loop().create_future()
        secret = f"authorization: Bearer {key}\r\n" if key else ""
        question = Probe(upstream, f"{said}{secret}\r\n".encode("latin-1", "replace"), answer)
        upstream.sweep()
        question.start()
        try:
            async with asyncio.timeout(self._timeout_s):
                return await answer
        except TimeoutError:
            if method == "GET" and paused_s(began_s + self._timeout_s, self._clock()):  # the answer lies there unread
                return await self.get(url, key, method, certificates)
            raise Unanswered(f"no answer in {self._timeout_s:g} s", DownReason.TIMEOUT) from None
        finally:
            if answer.cancelled() or not answer.done():
                question.abort()

    async def speaks_tls(self, url: str) -> bool:
        """Whether the server of an ``http://`` address takes TLS, whatever its certificate."""
        parts = urlsplit(url)
        if parts.scheme != "http":
            return False
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        try:
            async with asyncio.timeout(self._timeout_s):
                _, writer = await asyncio.open_connection(parts.hostname, parts.port or _HTTP_PORT, ssl=context)
        except (OSError, TimeoutError):
            return False
        writer.transport.abort()
        return True

    def _upstream(self, scheme: str, netloc: str, certificates: TlsContext | None) -> Upstream:
        try:
            target = Target.of_url(netloc, f"{scheme}://{netloc}", certificates=certificates)
        except ValueError as error:
            raise Unanswered(str(error), DownReason.UNREACHABLE) from None
        made = self._upstreams[scheme, netloc, certificates] = Upstream(target, self._clock, self._limits)
        return made

    def keep(self, urls: Iterable[str]) -> None:
        """Close the idle connections to the servers of all other URLs: an engine that ends waits for its clients."""
        kept = {urlsplit(url).netloc for url in urls}
        for place in [place for place in self._upstreams if place[1] not in kept]:
            self._upstreams.pop(place).close()

    def close(self) -> None:
        """Close what is idle."""
        for upstream in self._upstreams.values():
            upstream.close()
        self._upstreams.clear()
