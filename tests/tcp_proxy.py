"""A TCP proxy before a server of a test: it delays, it partitions, it adds TLS."""

import asyncio
import ssl
from contextlib import suppress
from types import TracebackType
from typing import Self


class Proxy:
    """Passes bytes on. ``delay_s``: each way; ``cut``: connections are taken, and nothing passes, as in a partition."""

    def __init__(self, port: int, context: ssl.SSLContext | None = None) -> None:
        """*port*: of the server, on this host."""
        self._to, self._context = port, context
        self.delay_s = 0.0
        self.cut = False
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def port(self) -> int:
        assert self._server is not None
        return int(self._server.sockets[0].getsockname()[1])

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            their_reader, their_writer = await asyncio.open_connection("127.0.0.1", self._to)
            try:
                async with asyncio.TaskGroup() as both:
                    both.create_task(self._pass(reader, their_writer))
                    both.create_task(self._pass(their_reader, writer))
            finally:
                their_writer.close()
        except* (OSError, EOFError):
            pass
        finally:
            writer.close()
            self._tasks.discard(task)

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Until one side ends. Whole reads are late, so that the delay is one of latency and not of speed."""
        while data := await reader.read(1 << 16):
            if self.delay_s:
                await asyncio.sleep(self.delay_s)
            while self.cut:  # noqa: ASYNC110 - until the test mends it
                await asyncio.sleep(0.01)
            writer.write(data)
            await writer.drain()
        raise EOFError

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self._context)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        tasks = tuple(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        with suppress(TimeoutError):
            await asyncio.wait_for(self._server.wait_closed(), 5.0)
