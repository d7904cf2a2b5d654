"""Memory that connections cost: `python -m tests.bench.connections [--idle 20000 --streams 2000 --workers 2]`.

A gateway whose clients keep idle connections, fresh ones and then ones that have had a request, and read streams that
go on. Printed is what each takes of the gateway's processes (proportional set size, so that what they share counts
once). A client's process, and each worker of the gateway, has its own limit of open files: more workers hold more.
Linux alone: memory is read in /proc.
"""

import argparse
import asyncio
import re
import resource
import sys
import tempfile
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path

import yaml

from tests.bench.fault_run import children
from tests.bench.paced import END, HEAD, PAGE, TOKEN, chunk
from tests.bench.test_reload_load import process, until_up
from tests.redis_server import free_port

GAP_S = 1.0
SETTLE_S = 3.0
AT_ONCE = 50
WARM = 400  # requests until pools, tables and caches have their size


def request(tokens: int) -> bytes:
    """One streamed chat completion."""
    body = b'{"model":"m","stream":true,"max_tokens":%d,"messages":[{"role":"user","content":"hello"}]}' % tokens
    head = b"host: g\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body)
    return b"POST /v1/chat/completions HTTP/1.1\r\n" + head + body


async def engine(port: int) -> None:
    """Answers each request with the tokens that it asks for: one at once, then one a second."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                if head.startswith(b"GET"):
                    writer.write(PAGE)
                    continue
                body = await reader.readexactly(int(re.search(rb"content-length: (\d+)", head.lower())[1]))  # type: ignore[index]
                writer.write(HEAD)
                for _ in range(int(re.search(rb'"max_tokens":\s?(\d+)', body)[1]) - 1):  # type: ignore[index]
                    await asyncio.sleep(GAP_S)
                    if writer.is_closing():
                        return
                    writer.write(chunk(TOKEN))
                writer.write(END)
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    await (await asyncio.start_server(serve, "127.0.0.1", port, backlog=4096)).serve_forever()


Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Clients:
    """Those of one process. Each step is a method."""

    def __init__(self, port: int, idle: int, streams: int) -> None:
        self._port, self._idle, self._streams = port, idle, streams
        self._held: list[Connection] = []
        self._running: list[asyncio.Task[None]] = []

    async def warm(self) -> None:
        """Requests, one after another."""
        connection = await self._dial()
        for _ in range(WARM):
            await self._ask(*connection)
        connection[1].close()

    async def idle(self) -> None:
        """Connections without a request."""
        for _ in range(0, self._idle, AT_ONCE):
            self._held += await asyncio.gather(*(self._dial() for _ in range(AT_ONCE)))

    async def used(self) -> None:
        """A request on each of them."""
        for first in range(0, self._idle, AT_ONCE):
            await asyncio.gather(*(self._ask(*each) for each in self._held[first : first + AT_ONCE]))

    async def streams(self) -> None:
        """Streams that go on."""
        for _ in range(0, self._streams, AT_ONCE):
            begun = await asyncio.gather(*(self._dial() for _ in range(AT_ONCE)))
            self._running += [asyncio.create_task(self._read(*each)) for each in begun]
            await asyncio.sleep(0.1)

    async def _dial(self) -> Connection:
        return await asyncio.open_connection("127.0.0.1", self._port, limit=8192)

    async def _ask(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(request(1))
        await reader.readuntil(b"0\r\n\r\n")

    async def _read(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(request(10_000))
        while await reader.read(8192):
            pass


async def hold(port: int, idle: int, streams: int) -> None:
    """Take the step that each line on stdin names, and print its name once it is done."""
    lines = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    clients = Clients(port, idle, streams)
    while name := (await lines.readline()).decode().strip():
        await {"warm": clients.warm, "idle": clients.idle, "used": clients.used, "streams": clients.streams}[name]()
        print(name, flush=True)


def pss_kib(pids: Sequence[int]) -> int:
    """Proportional set size of these processes."""
    pages = (Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii") for pid in pids)
    return sum(int(re.search(r"^Pss:\s+(\d+)", page, re.MULTILINE)[1]) for page in pages)  # type: ignore[index]


async def step(clients: Sequence[Process], name: str) -> None:
    """All clients take it."""
    for each in clients:
        assert each.stdin is not None
        each.stdin.write(name.encode() + b"\n")
    for each in clients:
        assert each.stdout is not None
        assert (await each.stdout.readline()).decode().strip() == name, "a client's process has ended"
    await asyncio.sleep(SETTLE_S)


async def measured(idle: int, streams: int, workers: int, holders: int) -> dict[str, float]:
    """KiB for each connection of each kind."""
    async with AsyncExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="headroom-connections-"))
        engine_port, port = free_port(), free_port()
        await stack.enter_async_context(process("-m", "tests.bench.connections", "engine", str(engine_port)))
        backend = {"name": "e", "url": f"http://127.0.0.1:{engine_port}", "models": ["m"], "card": "h100-sxm"}
        config = {
            "listen": {"port": port, "keep_alive_s": 3600, "request_s": 3600},
            "backends": [backend | {"model": "llama-3-8b", "seqs_max": 100_000, "kv_tokens_max": 10**9}],
            "slo_classes": {"default": {"ttft_ms": 30_000}},
        }
        path = Path(folder) / "connections.yaml"
        path.write_text(yaml.safe_dump(config), encoding="utf-8")
        more = ("--workers", str(workers)) if workers > 1 else ()
        gateway = await stack.enter_async_context(
            process("-m", "router", "serve", "--config", str(path), *more, stdout=DEVNULL, stderr=DEVNULL)
        )
        await until_up(f"http://127.0.0.1:{port}/readyz")
        share = (str(port), str(idle // holders), str(streams // holders))
        clients = [
            await stack.enter_async_context(
                process("-m", "tests.bench.connections", "hold", *share, stdin=PIPE, stdout=PIPE)
            )
            for _ in range(holders)
        ]
        pids = (gateway.pid, *children(gateway.pid))
        await step(clients, "warm")
        before, found = pss_kib(pids), {"before_mib": pss_kib(pids) / 1024}
        await step(clients, "idle")
        found["idle_fresh_kib"] = (pss_kib(pids) - before) / idle
        await step(clients, "used")
        found["idle_used_kib"] = (pss_kib(pids) - before) / idle
        used = pss_kib(pids)
        await step(clients, "streams")
        found["stream_kib"] = (pss_kib(pids) - used) / streams
        return found


def main() -> None:
    """The command line."""
    if sys.argv[1:2] == ["engine"]:
        return asyncio.run(engine(int(sys.argv[2])))
    if sys.argv[1:2] == ["hold"]:
        return asyncio.run(hold(*map(int, sys.argv[2:5])))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--idle", type=int, default=20_000)
    parser.add_argument("--streams", type=int, default=2_000)
    parser.add_argument("--workers", type=int, default=2)
    given = parser.parse_args()
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    holders = max(2, -(-(given.idle + given.streams) // max(1, files - 256)))
    found = asyncio.run(measured(given.idle, given.streams, given.workers, holders))
    print("\n".join(f"{name:16s}{value:8.2f}" for name, value in found.items()))
    return None


if __name__ == "__main__":
    main()
