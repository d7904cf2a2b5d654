"""uvicorn with our protocol class: routed paths go to the driver, others to the ASGI app; SIGTERM lets streams end.

Must not depend on requests or backends.
"""

import asyncio
import gc
import logging
import socket
import ssl
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Final, cast

import uvicorn
from uvicorn._types import ASGI3Application
from uvicorn.server import Server

from router.event_loop import on_signal
from router.gateway.tls import TlsContext
from router.gateway.traffic.client_connection import ClientConnection, ConnectionLimits, client_connection
from router.gateway.traffic.driver import Driver

__all__ = ["ConnectionLimits", "serve", "server"]

_HANDSHAKE_S: Final = 10.0  # a connection counts against connections_max only once its handshake is done
_SHUTDOWN_S: Final = 5.0
_log = logging.getLogger("headroom")

Tls = Callable[[], TlsContext | None]
Ends = Callable[[], Coroutine[Any, Any, None]]


class _Server(Server):
    """uvicorn's server; at shutdown, streams may go on for ``drain_s``. ``tls``: the certificate to serve with;
    ``beside``: other servers of the driver's requests, whose end is waited for too.
    """

    def __init__(
        self, config: uvicorn.Config, driver: Driver, limits: ConnectionLimits, tls: Tls, beside: Ends | None
    ) -> None:
        super().__init__(config)
        self._driver = driver
        self._beside = beside
        self._limits = limits
        self._tls = tls
        self._shown: TlsContext | None = None  # the certificate of new connections
        self._changing: asyncio.Task[None] | None = None

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """A first signal lets streams end, a second SIGINT does not wait for them."""
        with on_signal(lambda number: self.handle_exit(number, None)):
            yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        gc.collect()  # before clients can connect: it takes a tenth of a second
        gc.freeze()  # loaded modules stay: they are not scanned again while streams run
        gc.set_threshold(50_000, 20, 50)
        tls = self._shown = self._tls()
        if tls is not None:
            self.config.ssl = tls.context
        await super().startup(sockets)
        if tls is not None:
            await self._listen_anew(tls.context)  # uvicorn's own listeners have no limit for a handshake of ours
        self._driver.on_sweep.append(self._sweep)
        self._driver.start()

    async def _listen_anew(self, context: ssl.SSLContext) -> None:
        """Accept on the same sockets with this context; connections that are there keep theirs.

        A context of its own for each certificate: in a changed one, sessions that a former authority's clients began
        could be resumed.
        """
        config, state = self.config, self.server_state
        loop = asyncio.get_running_loop()
        protocol = cast("Callable[..., asyncio.Protocol]", config.http_protocol_class)
        made = partial(protocol, config=config, server_state=state, app_state=self.lifespan.state)
        before, self.servers = self.servers, []
        for listener in [each for server in before for each in server.sockets]:
            same = socket.fromfd(listener.fileno(), listener.family, listener.type, listener.proto)
            self.servers.append(
                await loop.create_server(
                    made,
                    sock=same,
                    ssl=context,
                    backlog=config.backlog,
                    ssl_handshake_timeout=_HANDSHAKE_S,
                    ssl_shutdown_timeout=_SHUTDOWN_S,
                )
            )
        for server in before:
            server.close()

    def _use_certificate(self) -> None:
        """Serve new connections with the certificate of the config that serves, if it has changed."""
        tls = self._tls()
        if tls is None or tls == self._shown or self.should_exit:
            return
        self._shown = tls
        self._changing = asyncio.ensure_future(self._listen_anew(tls.context))
        _log.info("new connections are served with the changed certificate")

    def _sweep(self, now_s: float) -> None:
        self._use_certificate()
        unsent = 0
        for connection in list(self.server_state.connections):
            if isinstance(connection, ClientConnection):
                connection.swept(now_s)
                unsent += connection.unsent_bytes
        self._driver.buffers.unsent = unsent

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        drained = asyncio.ensure_future(self._driver.drain(self._limits.drain_s))
        ended = asyncio.ensure_future(self._beside()) if self._beside is not None else None
        await super().shutdown(sockets)
        await drained
        if ended is not None:
            await ended


def server(
    app: ASGI3Application,
    driver: Driver,
    *,
    host: str = "127.0.0.1",
    port: int = 8080,
    limits: ConnectionLimits | None = None,
    tls: Tls = lambda: None,
    routes: bool = True,
    beside: Ends | None = None,
) -> Server:
    """A server that routes token paths through *driver* and leaves others to *app*; ``serve()`` runs it.

    *routes* False: it leaves token paths to *app* too, and only starts and drains the driver; *beside* is awaited at
    shutdown, where other servers of the driver's end.
    *tls* is the certificate to serve with at the moment; None for a server of HTTP, which it is from start to end.
    """
    limits = limits or ConnectionLimits()
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        http=client_connection(driver, limits) if routes else "httptools",
        lifespan="off",  # the app has none; left pending by a signal during start-up, it would log a traceback
        ws="none",
        interface="asgi3",
        loop="uvloop",
        timeout_keep_alive=round(limits.keep_alive_s),
        timeout_graceful_shutdown=round(limits.drain_s) + 5,
        server_header=False,
        date_header=False,
        access_log=False,
        log_config=None,
        backlog=4096,
    )
    return _Server(config, driver, limits, tls, beside)


async def serve(
    app: ASGI3Application,
    driver: Driver,
    *,
    host: str = "127.0.0.1",
    port: int = 8080,
    limits: ConnectionLimits | None = None,
    sockets: Sequence[socket.socket] | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT, then let streams end."""
    await server(app, driver, host=host, port=port, limits=limits).serve(list(sockets) if sockets else None)
