"""Mixed load with clients who leave at random, and what is left of it: `python -m tests.bench.soak --seconds 600`.

Two emulated engines (vLLM's protocol and Triton's), more with `--engine NAME=URL=MODEL`, and a gateway, all processes
of its own that end with it. Printed at the end: how the visits ended, requests in flight, open files before and after,
memory over time. A leak is a number that does not come back. Memory rises at first and then stands: the gateway keeps
the last 1,000 outcomes, 512 choices, for 512 different seconds (their ``date``) the heads of engines' answers, and so
much garbage in cycles as ``server.py`` lets gather.
"""

import argparse
import asyncio
import json
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from random import Random
from time import monotonic
from typing import Any

import httpx
import yaml

from tests.bench.test_reload_load import process, until_up
from tests.redis_server import free_port

CLIENTS = 32
WARM_S = 8.0  # until tables, pools and caches have their size
SETTLE_S = 8.0  # twice what an idle connection to an engine is kept
END = b"0\r\n\r\n"
QUIET = {"stdout": asyncio.subprocess.DEVNULL, "stderr": asyncio.subprocess.DEVNULL}


@dataclass
class World:
    """What a visit needs: where the gateway is, models to ask for, chance, and where endings are counted."""

    port: int
    models: Sequence[str]
    chance: Random
    seen: Counter[str]

    def request(self, *, stream: bool = True, **changed: Any) -> bytes:
        """One chat completion of random size."""
        content = "word " * self.chance.randrange(1, 400)
        body = {"model": self.chance.choice(self.models), "messages": [{"role": "user", "content": content}]}
        return _post({**body, "stream": stream, "max_tokens": self.chance.randrange(1, 40), **changed})


def _post(document: dict[str, Any]) -> bytes:
    body = json.dumps(document).encode()
    head = f"host: g\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    return f"POST /v1/chat/completions HTTP/1.1\r\n{head}".encode() + body


async def _answer(reader: asyncio.StreamReader) -> str:
    """Reads one answer to its end; how it ended."""
    head = await reader.readuntil(b"\r\n\r\n")
    status = head[9:12].decode()
    if b"transfer-encoding: chunked" not in head:
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        await reader.readexactly(length)
        return status
    tail = b""
    while not tail.endswith(END):
        data = await reader.read(65536)
        if not data:
            return f"{status} cut"
        tail = (tail + data)[-64:]
    return status if b"[DONE]" in tail else f"{status} without [DONE]"


async def whole(world: World, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> str:
    """Some requests on one connection, streamed or not, one after another."""
    for _ in range(world.chance.randrange(1, 5)):
        writer.write(world.request(stream=world.chance.random() < 0.7))
        ended = await _answer(reader)
    return ended


async def pipelined(world: World, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> str:
    """Three requests at once."""
    writer.write(world.request() + world.request(stream=False) + world.request())
    return ", ".join([await _answer(reader) for _ in range(3)])


async def leaves_at_once(world: World, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> str:
    """Gone before the first byte, mostly."""
    writer.write(world.request(max_tokens=1_000))
    await asyncio.sleep(world.chance.random() * 0.05)
    return "left"


async def leaves_in_the_middle(world: World, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> str:
    """Gone after some tokens, often by reset."""
    writer.write(world.request(max_tokens=1_000))
    for _ in range(world.chance.randrange(1, 12)):
        await reader.read(65536)
    if world.chance.random() < 0.5:
        writer.transport.abort()
    return "left"


async def reads_late(world: World, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> str:
    """Does not read for a while."""
    writer.write(world.request(max_tokens=200))
    await asyncio.sleep(world.chance.random())
    return await _answer(reader)


async def half_a_request(world: World, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> str:
    """Stops in the middle of what it wants to say."""
    request = world.request()
    writer.write(request[: world.chance.randrange(1, len(request))])
    return "left"


async def nonsense(world: World, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> str:
    """An unknown model, no JSON, or no HTTP."""
    wrong = (world.request(model="nobody"), _post({})[:-2] + b"][", b"\x16\x03\x01 nonsense\r\n\r\n")
    writer.write(world.chance.choice(wrong))
    return await _answer(reader)


VISITS = (whole, whole, whole, pipelined, leaves_at_once, leaves_in_the_middle, reads_late, half_a_request, nonsense)


async def visitor(world: World, until_s: float) -> None:
    """One visit after another, each on a connection of its own."""
    while monotonic() < until_s:
        visit = world.chance.choice(VISITS)
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", world.port)
        except ConnectionError as problem:  # the worker that would have accepted it has died
            world.seen[f"connect: {type(problem).__name__}"] += 1
            continue
        try:
            async with asyncio.timeout(60):
                world.seen[f"{visit.__name__}: {await visit(world, reader, writer)}"] += 1
        except (ConnectionError, asyncio.IncompleteReadError, TimeoutError) as problem:
            world.seen[f"{visit.__name__}: {type(problem).__name__}"] += 1
        finally:
            with suppress(ConnectionError):
                writer.close()
                await writer.wait_closed()


def open_files(pid: int) -> int:
    """How many files, sockets among them, that process has open."""
    return len(os.listdir(f"/proc/{pid}/fd"))


def memory_mib(pid: int) -> float:
    """Its resident memory."""
    pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


async def in_flight(port: int) -> float:
    """What the gateway says on its own page."""
    async with httpx.AsyncClient(trust_env=False) as asking:
        page = (await asking.get(f"http://127.0.0.1:{port}/metrics")).text
    return float(page.partition("\nheadroom_requests_in_flight ")[2].partition("\n")[0])


async def fewest_files(pid: int) -> int:
    """How many are open once idle connections to engines have gone: the fewest seen, as health checks come and go."""
    seen = []
    for _ in range(200):
        await asyncio.sleep(SETTLE_S / 200)
        seen.append(open_files(pid))
    return min(seen)


@asynccontextmanager
async def gateway(folder: Path, more: Sequence[str]) -> Any:
    """Engines and a gateway in front of them: its process, its port, the models it serves."""
    async with AsyncExitStack() as stack:
        ports = {"vllm": free_port(), "triton": free_port()}
        for protocol, port in ports.items():
            named = ("--model", "qwen2.5-7b", "--card", "l20", "--model-name", "demo", "--protocol", protocol)
            await stack.enter_async_context(
                process("-m", "simulator", "serve", *named, "--port", str(port), "--speedup", "2", **QUIET)
            )
        facts = {"card": "l20", "model": "qwen2.5-7b", "models": ["demo"]}
        backends = [
            {"name": n, "url": f"http://127.0.0.1:{p}", "protocol": "openai", **facts} for n, p in ports.items()
        ]
        backends[1] |= {"protocol": "triton", "metrics_url": f"{backends[1]['url']}/metrics"}
        for name, url, model in (each.split("=") for each in more):
            backends.append({**facts, "name": name, "url": url, "protocol": "openai", "models": [model]})
        port = free_port()
        config = {"listen": {"port": port}, "backends": backends, "slo_classes": {"default": {"ttft_ms": 5000}}}
        path = folder / "soak.yaml"
        path.write_text(yaml.safe_dump(config), encoding="utf-8")
        serving = await stack.enter_async_context(process("-m", "router", "serve", "--config", str(path), **QUIET))
        await until_up(f"http://127.0.0.1:{port}/readyz")
        yield serving, port, sorted({model for each in backends for model in each["models"]})


async def soak(seconds: float, seed: int = 1, more: Sequence[str] = (), clients: int = CLIENTS) -> dict[str, Any]:
    """Visit for so long, wait for quiet; what was seen."""
    with tempfile.TemporaryDirectory(prefix="headroom-soak-") as folder:
        async with gateway(Path(folder), more) as (serving, port, models):
            pid = serving.pid
            world = World(port, models, Random(seed), Counter())
            await visited(world, WARM_S, clients)
            files, world.seen = await fewest_files(pid), Counter()
            memory = []
            for _ in range(5):
                memory.append(round(memory_mib(pid), 1))
                await visited(world, seconds / 5, clients)
            after = {"files_before": files, "files_after": await fewest_files(pid), "in_flight": await in_flight(port)}
            return after | {"memory_mib": [*memory, round(memory_mib(pid), 1)], "visits": world.seen}


async def visited(world: World, seconds: float, clients: int) -> None:
    """So many clients come for so long, and the last of them has gone."""
    await asyncio.gather(*(visitor(world, monotonic() + seconds) for _ in range(clients)))


def report(found: dict[str, Any]) -> str:
    """The figures as lines."""
    facts = [f"{name}: {value}" for name, value in found.items() if name != "visits"]
    total = sum(found["visits"].values())
    visits = [f"  {count:7d} {what}" for what, count in sorted(found["visits"].items())]
    return "\n".join([*facts, f"visits: {total}", *visits])


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--clients", type=int, default=CLIENTS, help="visitors at once")
    parser.add_argument("--engine", action="append", default=[], metavar="NAME=URL=MODEL")
    given = parser.parse_args()
    found = asyncio.run(soak(given.seconds, given.seed, given.engine, given.clients))
    print(report(found))
    sys.exit(found["in_flight"] != 0 or found["files_after"] > found["files_before"])


if __name__ == "__main__":
    main()
