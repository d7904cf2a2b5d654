"""The gRPC server of the endpoint picker: one call a request, read and written in turn.

Must not depend on what a message means (stream.py), or on how a router is put together beyond its parts.
"""

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from math import isnan, nan
from typing import Any, Final

import grpc
from grpc import aio

from router.core.errors import BadMessage
from router.gateway.epp.health import Health
from router.gateway.epp.link import Links
from router.gateway.epp.messages import PROCESSOR
from router.gateway.epp.stream import AnyEndpoint, ProxyStream
from router.gateway.traffic.driver import Driver
from router.gateway.traffic.server import ConnectionLimits
from router.urls import host_port

_log = logging.getLogger("headroom")
_OPTIONS: Final = (
    ("grpc.max_receive_message_length", 16 * 2**20),  # a proxy's pieces have the size of its buffers
    ("grpc.so_reuseport", 0),  # a port that somebody else has is an error
    ("grpc.keepalive_time_ms", 30_000),  # a proxy that has vanished without a word is found
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.max_pings_without_data", 0),
)
_BROKEN: Final = "the reply was broken off"
_CLOSE_S: Final = 5.0  # from the last message until the proxy has ended the stream
_BLOCKED_S: Final = 1.0  # a write that takes longer: the proxy does not take the reply as fast as it comes


class _Call:
    """One gRPC call: its stream, and what of it is being written."""

    def __init__(self, picker: "PickerServer", context: Any) -> None:
        self.stream = ProxyStream(picker.driver, picker.links, picker.limits, picker.any_endpoint, self._wake)
        self._context = context
        self._driver = picker.driver
        self._close_s = picker.limits.keep_alive_s
        self._taking = False
        self._writing = asyncio.Lock()
        self._since_s = picker.driver.clock()  # since when it has been writing
        self._over_s = nan  # when a sweep first found that nothing follows
        self._task: asyncio.Task[Any] | None = None  # of the call
        self._flushing: asyncio.Task[None] | None = None  # kept, lest it be collected

    async def run(self) -> None:
        """Read and answer until either side has nothing more to say."""
        stream, context = self.stream, self._context
        self._task = asyncio.current_task()
        while not stream.replies.over:
            data = await context.read()
            if data is aio.EOF:
                return
            self._taking = True
            try:
                stream.take(data)
            except BadMessage as error:
                _log.warning("a stream of %s ends: %s", context.peer(), error)
                await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
            finally:
                self._taking = False
            await self._write()
        if stream.replies.aborted:
            await context.abort(grpc.StatusCode.ABORTED, _BROKEN)

    def _wake(self) -> None:
        """There is something to write. What no message of the proxy's has called for needs a task of its own."""
        if not (self._taking or self._writing.locked()) and (self._flushing is None or self._flushing.done()):
            self._since_s = self._driver.clock()
            self._flushing = asyncio.get_running_loop().create_task(self._flush())

    async def _flush(self) -> None:
        with suppress(aio.BaseError):  # the call has ended meanwhile, which its own task finds too
            await self._write()
        if self.stream.replies.aborted:  # else the proxy ends the stream
            await self._abort()

    async def _abort(self) -> None:
        """End the call from outside of its own task, which waits for a message: it finds the end instead of one."""
        with suppress(aio.AbortError, aio.BaseError):
            await self._context.abort(grpc.StatusCode.ABORTED, _BROKEN)

    async def _write(self) -> None:
        """Write what waits, behind what is being written. A proxy that takes nothing is not read on."""
        waiting = self.stream.replies.waiting
        try:
            async with self._writing:
                while waiting:
                    self._since_s = self._driver.clock()
                    await self._context.write(waiting.popleft().SerializeToString())
        finally:
            self.stream.unblocked()

    def swept(self, now_s: float) -> None:
        """Find what takes too long: a proxy that does not take a reply, or does not end a stream that is over."""
        self.stream.swept(now_s)
        replies, writing = self.stream.replies, self._writing.locked()
        if replies.over:
            self._ended(now_s, writing, replies.aborted)
        elif writing and now_s - self._since_s > _BLOCKED_S:
            self.stream.blocked()

    def _ended(self, now_s: float, writing: bool, aborted: bool) -> None:
        """Nothing follows: the proxy has its time to take what is left, and to end the stream."""
        if isnan(self._over_s):
            self._over_s = now_s
        waited_s = now_s - self._over_s
        if not writing and waited_s > _CLOSE_S:
            self._flushing = asyncio.get_running_loop().create_task(self._abort())
        elif writing and waited_s > (_CLOSE_S if aborted else self._close_s) and self._task is not None:
            self._task.cancel()  # the write under way would hold up a status, so the call ends without


class PickerServer:
    """The endpoint picker on a port of its own. ``calls``: those that are open."""

    def __init__(
        self,
        driver: Driver,
        links: Links,
        limits: ConnectionLimits,
        any_endpoint: AnyEndpoint,
        ready: Callable[[], bool],
    ) -> None:
        self.driver, self.links, self.limits, self.any_endpoint = driver, links, limits, any_endpoint
        links.on_served = driver.served_by
        self.calls: set[_Call] = set()
        self._health = Health(ready)
        self._server: aio.Server | None = None  # it belongs to the loop that it was made in

    async def start(self, host: str, port: int, credentials: grpc.ServerCredentials | None) -> int:
        """Listen; returns the port. Raises OSError. *credentials* None: no TLS."""
        process = grpc.stream_stream_rpc_method_handler(self._process)
        handler = grpc.method_handlers_generic_handler(PROCESSOR, {"Process": process})
        server = self._server = aio.server(
            handlers=(handler, self._health.handler()),
            options=_OPTIONS,
            maximum_concurrent_rpcs=self.limits.connections_max,
        )
        address = host_port(host, port)
        try:
            if credentials is None:
                bound = server.add_insecure_port(address)
            else:
                bound = server.add_secure_port(address, credentials)
        except RuntimeError as error:
            raise OSError(f"cannot listen on {address}: {error}") from None
        await server.start()
        self.driver.on_sweep.append(self._sweep)
        return int(bound)

    async def stop(self, grace_s: float) -> None:
        """Take no new calls, and let those that are open end for so long."""
        if self._server is not None:
            await self._server.stop(grace_s)

    async def _process(self, _: Any, context: Any) -> None:
        call = _Call(self, context)
        self.calls.add(call)
        try:
            await call.run()
        finally:
            self.calls.discard(call)
            call.stream.left()

    def _sweep(self, now_s: float) -> None:
        for call in tuple(self.calls):
            call.swept(now_s)
