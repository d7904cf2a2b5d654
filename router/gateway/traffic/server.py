"""uvicorn with our protocol class: routed paths go to the driver, others to the ASGI app; SIGTERM lets streams end.

Must not depend on requests or backends.
"""

import asyncio
import gc
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import uvicorn
from uvicorn._types import ASGI3Application
from uvicorn.server import Server

from router.event_loop import on_signal
from router.gateway.traffic.client_connection import ClientConnection, ConnectionLimits, client_connection
from router.gateway.traffic.driver import Driver

__all__ = ["ConnectionLimits", "serve", "server"]


class _Server(Server):
    """uvicorn's server; at shutdown, streams may go on for ``drain_s``."""

    def __init__(self, config: uvicorn.Config, driver: Driver, limits: ConnectionLimits) -> None:
        super().__init__(config)
        self._driver = driver
        self._limits = limits

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """A first signal lets streams end, a second SIGINT does not wait for them."""
        with on_signal(lambda number: self.handle_exit(number, None)):
            yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        gc.collect()  # before clients can connect: it takes a tenth of a second
        gc.freeze()  # loaded modules stay: they are not scanned again while streams run
        gc.set_threshold(50_000, 20, 50)
        await super().startup(sockets)
        self._driver.on_sweep.append(self._sweep)
        self._driver.start()

    def _sweep(self, now_s: float) -> None:
        for connection in list(self.server_state.connections):
            if isinstance(connection, ClientConnection):
                connection.swept(now_s)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        drained = asyncio.ensure_future(self._driver.drain(self._limits.drain_s))
        await super().shutdown(sockets)
        await drained


def server(
    app: ASGI3Application,
    driver: Driver,
    *,
    host: str = "127.0.0.1",
    port: int = 8080,
    limits: ConnectionLimits | None = None,
) -> Server:
    """A server that routes token paths through *driver* and leaves others to *app*; ``serve()`` runs it."""
    limits = limits or ConnectionLimits()
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        http=client_connection(driver, limits),
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
    return _Server(config, driver, limits)


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
