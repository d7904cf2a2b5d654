"""A TCP relay between gateway and engine that changes nothing and writes down what passed, and when.

It sees the very stream that the gateway measures. Exchanges on a connection are told apart by who speaks: no request is
sent before the reply to the one before it has ended.
"""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from time import monotonic
from typing import Self

from tests.real.matrix.frames import Dialect, Piece, Reply, frames, pieces_of_body

READ_BYTES = 1 << 16


@dataclass(slots=True)
class Exchange:
    """A request, its reply piece by piece, and when its connection ended, if it did."""

    sent_s: float
    request: bytes = b""
    reply: list[Piece] = field(default_factory=list)
    closed_s: float | None = None

    @property
    def target(self) -> str:
        """The path of the request."""
        words = self.request.split(b" ", 2)
        return words[1].decode("latin-1") if len(words) == 3 else ""

    def read(self, dialect: Dialect) -> Reply:
        """The reply so far, read in a dialect."""
        status, body = pieces_of_body(self.reply)
        return Reply(dialect, status, frames(body))


Cut = Callable[[Exchange], bool]
"""Whether the relay closes the connection now, in the middle of a reply, as when an engine's process dies."""


class Relay:
    """Listens on a port of its own and passes on to one engine."""

    def __init__(self, port: int) -> None:
        """*port*: the engine's, on this machine."""
        self.exchanges: list[Exchange] = []
        self.cut: Cut | None = None
        self.port = 0
        self._to = port
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        """Its own address."""
        return f"http://127.0.0.1:{self.port}"

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def since(self, mark: int, path: str) -> list[Exchange]:
        """Exchanges on *path* from the *mark*-th exchange on."""
        return [each for each in self.exchanges[mark:] if each.target.partition("?")[0] == path]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            with suppress(OSError):
                await self._joined(reader, writer)
        except asyncio.CancelledError:  # the relay ends: asyncio's own callback would log it
            pass
        finally:
            await _close(writer)
            self._tasks.discard(task)

    async def _joined(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        engine_reader, engine_writer = await asyncio.open_connection("127.0.0.1", self._to)
        mine: list[Exchange] = []
        ways = [
            asyncio.create_task(self._requests(reader, engine_writer, mine)),
            asyncio.create_task(self._replies(engine_reader, writer, mine)),
        ]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            if mine:
                mine[-1].closed_s = monotonic()
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            await _close(engine_writer)

    async def _requests(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, mine: list[Exchange]) -> None:
        while data := await reader.read(READ_BYTES):
            if not mine or mine[-1].reply:
                mine.append(Exchange(monotonic()))
                self.exchanges.append(mine[-1])
            mine[-1].request += data
            writer.write(data)
            await writer.drain()

    async def _replies(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, mine: list[Exchange]) -> None:
        while data := await reader.read(READ_BYTES):
            if mine:
                mine[-1].reply.append((monotonic(), data))
            writer.write(data)
            await writer.drain()
            if mine and self.cut and self.cut(mine[-1]):
                writer.transport.abort()
                return


async def _close(writer: asyncio.StreamWriter) -> None:
    """Close once what was written is sent."""
    writer.close()
    with suppress(OSError):
        await writer.wait_closed()
