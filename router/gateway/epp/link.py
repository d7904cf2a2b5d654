"""The connection to an engine, as an attempt sees it, where a proxy makes the real one.

A transport without a socket: what an attempt writes goes to the stream of its request, which has the proxy send it;
what the proxy reports of the answer is read back as HTTP. So attempts, meters and error dialects are those of the
gateway. Must not depend on gRPC or on the proxy's messages.
"""

import asyncio
from collections.abc import Callable, Iterable
from socket import EAI_NONAME, gaierror

from router.core.types import Request, RequestId
from router.gateway.epp.addresses import Addresses
from router.gateway.traffic.attempt import UpstreamAttempt
from router.gateway.traffic.upstream import Connection, Failed, Ready, Upstream

OnRequest = Callable[["EngineLink", bytes], None]


class EngineLink(asyncio.Transport):
    """One request to an engine. ``upstream``: of which backend.

    Its answer has neither length nor chunks: ``end`` is the end of the body, and ``cut`` one that is not.
    """

    def __init__(self, connection: Connection, on_request: OnRequest) -> None:
        super().__init__()
        self.upstream = connection.upstream
        self._connection = connection
        self._on_request = on_request
        self._closing = False

    @property
    def attempt(self) -> UpstreamAttempt | None:
        """The attempt that has it; None: none any more."""
        reader = self._connection.reader
        return reader if isinstance(reader, UpstreamAttempt) else None

    # -- the attempt's side ------------------------------------------------------------------------------------

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """The whole request: head and body."""
        self._on_request(self, bytes(data))

    def writelines(self, list_of_data: "Iterable[bytes | bytearray | memoryview]") -> None:
        """The same in pieces."""
        self.write(b"".join(list_of_data))

    def is_closing(self) -> bool:
        """Whether it takes no more."""
        return self._closing

    def can_write_eof(self) -> bool:
        """It cannot be closed one way: the proxy closes the engine's connection when its client leaves."""
        return False

    def is_reading(self) -> bool:
        """It always does: no more comes than the proxy sends, which is read on only as it takes what it is sent."""
        return True

    def pause_reading(self) -> None:
        """Nothing to do, as above."""

    def resume_reading(self) -> None:
        """Nothing to do, as above."""

    def close(self) -> None:
        """The attempt has no more use for it."""
        self._lose(None, soon=True)

    def abort(self) -> None:
        """The same."""
        self._lose(None, soon=True)

    # -- the proxy's side --------------------------------------------------------------------------------------

    def feed(self, data: bytes) -> None:
        """More of the answer."""
        if not self._closing:
            self._connection.data_received(data)

    def end(self) -> None:
        """The answer is complete."""
        self._lose(None)

    def cut(self, why: str) -> None:
        """The answer will not come, or no more of it."""
        self._lose(ConnectionError(why))

    def _lose(self, error: Exception | None, *, soon: bool = False) -> None:
        if self._closing:
            return
        self._closing = True
        if soon:  # as asyncio's transports do it: not inside of the call that closes
            asyncio.get_running_loop().call_soon(self._connection.connection_lost, error)
        else:
            self._connection.connection_lost(error)


class Links:
    """Gives attempts their links. ``owners``: who has the proxy send the request of that id.

    ``endpoints``: where a request for a model goes that is sent to a backend, and where it may go after that, in order;
    ``on_served``: the reply to an attempt comes from another backend, of that name.
    """

    def __init__(self, addresses: Addresses) -> None:
        self.addresses = addresses
        self.owners: dict[RequestId, OnRequest] = {}
        self.endpoints: Callable[[Request, str, Upstream], str] = lambda *given: addresses.endpoint(given[2].target)
        self.on_served: Callable[[RequestId, int, str], None] = lambda *_: None

    def served(self, link: EngineLink, endpoint: str) -> None:
        """The reply comes from this endpoint, by what the proxy states."""
        attempt = link.attempt
        if attempt is None or endpoint == self.addresses.endpoint(attempt.upstream.target):
            return  # as of nearly all: no other backend need be looked at
        names = self.addresses.among((endpoint,))
        if names and attempt.upstream.target.name not in names:
            self.on_served(attempt.call.request.id, attempt.number, names[0])

    def dial(self, upstream: Upstream, ready: Ready, failed: Failed) -> None:
        """What an upstream calls for a new connection."""
        upstream.dial_error = None
        if self.addresses.endpoint(upstream.target):
            self._link(upstream, ready)
        else:
            upstream.open_by(self._found(upstream, ready, failed))

    async def _found(self, upstream: Upstream, ready: Ready, failed: Failed) -> None:
        """Wait for the address of a name, for as long as a connection may take."""
        target = upstream.target
        await self.addresses.find((target.host,), upstream.limits.connect_s)
        if self.addresses.endpoint(target):
            self._link(upstream, ready)
        else:
            upstream.dial_error = gaierror(EAI_NONAME, "no address is known")
            failed(f"{target.name}: no address of {target.host} is known")

    def _link(self, upstream: Upstream, ready: Ready) -> None:
        connection = Connection(upstream)
        connection.connection_made(EngineLink(connection, self._requested))
        ready(connection)

    def _requested(self, link: EngineLink, data: bytes) -> None:
        attempt = link.attempt
        owner = self.owners.get(attempt.call.request.id) if attempt is not None else None
        if owner is None:
            link.cut("its stream is over")
        else:
            owner(link, data)
