"""Every fault at once, and the accounts after it: `python -m tests.bench.fault_run --seconds 480`.

Clients come and go as in ``soak``; meanwhile engines are killed and started again, frozen, asleep and lying, configs
are reloaded, good and bad, and a worker of the gateway is killed. Then it is quiet, and the accounts are read: requests
in flight, open files and memory before and after, output tokens as engines and gateway counted them. The exit status is
1 where one of them is off.
"""

import argparse
import asyncio
import json
import os
import re
import signal
import sys
import tempfile
from asyncio.subprocess import DEVNULL, Process
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from math import inf
from pathlib import Path
from random import Random
from time import monotonic
from typing import Any

import httpx
import yaml

from tests.bench.soak import WARM_S, World, fewest_files, memory_mib, visited
from tests.bench.test_reload_load import process, until_up, up
from tests.redis_server import free_port
from tests.waiting import until_async

WORKERS = 2
TOKENS_OFF_MAX = 0.01
MEMORY_GROWTH_MIB_MAX = 24.0  # of all workers: journals and tables fill up
EVERY_S = 15.0  # between two faults of one kind
FROZEN_S = 6.0
RESTARTED_S = 3.0  # until a killed worker's place is taken
MODEL = "demo"
_SAMPLE = re.compile(r"^([\w:]+)(\{[^}]*\})? (\S+)$", re.MULTILINE)


def total(page: str, name: str) -> float:
    """Sum over the samples of that name."""
    return sum(float(value) for found, _, value in _SAMPLE.findall(page) if found == name)


async def page_of(url: str) -> str:
    """A metrics page; nothing where it cannot be read."""
    with suppress(httpx.HTTPError):
        async with httpx.AsyncClient(trust_env=False, timeout=5) as client:
            return (await client.get(f"{url}/metrics")).text
    return ""


@dataclass
class Engine:
    """An emulated engine that may be killed: the tokens of all its lives."""

    name: str
    protocol: str
    port: int
    running: Process | None = None
    ended_tokens: float = 0.0

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.port}"

    async def start(self) -> None:
        """Start it, and wait until it answers."""
        named = ("--model", "qwen2.5-7b", "--card", "l20", "--model-name", MODEL, "--protocol", self.protocol)
        command = ("-m", "simulator", "serve", *named, "--port", str(self.port), "--speedup", "2")
        self.running = await asyncio.create_subprocess_exec(sys.executable, *command, stdout=DEVNULL, stderr=DEVNULL)
        await until_up(f"{self.url}/{'v2/health/ready' if self.protocol == 'triton' else 'health'}")

    async def tokens(self) -> float:
        """Output tokens that it counted in this life."""
        page = await page_of(self.url)
        return total(page, "vllm:generation_tokens_total")

    async def die(self) -> None:
        """Kill it, once its count has been read."""
        assert self.running is not None
        self.ended_tokens += await self.tokens()
        self.running.kill()
        await self.running.wait()

    def send(self, number: signal.Signals) -> None:
        """Stop it or let it go on."""
        assert self.running is not None
        self.running.send_signal(number)


class Liar:
    """An engine in this process whose page is absurd, which sleeps at times, and whose streams end in several ways."""

    def __init__(self, chance: Random) -> None:
        """Awake."""
        self.asleep = False
        self.tokens = 0
        self._chance = chance

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Connections of HTTP/1.1, one request after another."""
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0] or 0)
                body = await reader.readexactly(length)
                if not await self._answer(head, body, reader, writer):
                    break
        writer.close()

    async def _answer(
        self, head: bytes, body: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        if head.startswith(b"GET /metrics"):
            whole(writer, self._page())
        elif head.startswith(b"GET"):
            whole(writer, b"{}")
        else:
            return await self._reply(json.loads(body), reader, writer)
        return True

    def _page(self) -> bytes:
        number = self._chance.choice(["nan", "-3", "1e300", "2", "+Inf"])
        asleep = "1" if self.asleep else "0"
        return (
            f"vllm:num_requests_running {number}\nvllm:num_requests_waiting {number}\n"
            f"vllm:kv_cache_usage_perc {number}\n"
            f'vllm:engine_sleep_state{{sleep_state="awake"}} {1 - int(asleep)}\n'
            f'vllm:engine_sleep_state{{sleep_state="weights_offloaded"}} {asleep}\n'
        ).encode()

    async def _reply(self, asked: dict[str, Any], reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        count = min(int(asked.get("max_tokens", 16)), 60)
        lie = self._chance.random()
        if not asked.get("stream"):
            self.tokens += count
            usage = {"prompt_tokens": 3, "completion_tokens": count, "total_tokens": count + 3}
            message = {"role": "assistant", "content": "x " * count}
            choice = {"index": 0, "message": message, "finish_reason": "length"}
            whole(writer, json.dumps({"object": "chat.completion", "choices": [choice], "usage": usage}).encode())
            return True
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
        for number in range(count):
            if lie < 0.1 and number == count // 2:
                return False
            if reader.at_eof() or writer.is_closing():  # the gateway has left: an engine stops generating then
                return False
            self.tokens += 1
            finish = "length" if number == count - 1 else None
            choice = {"index": 0, "delta": {"content": "x "}, "finish_reason": finish}
            event(writer, {"object": "chat.completion.chunk", "choices": [choice]})
            await asyncio.sleep(0.005)
            await writer.drain()
        claimed = 10**12 if lie > 0.9 else count
        event(writer, {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": claimed}})
        writer.write(b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n")
        return True


def whole(writer: asyncio.StreamWriter, body: bytes) -> None:
    """A reply of known length."""
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body) + body)


def event(writer: asyncio.StreamWriter, payload: dict[str, Any]) -> None:
    """An event in a chunk of its own."""
    data = b"data: " + json.dumps(payload).encode() + b"\n\n"
    writer.write(b"%x\r\n%b\r\n" % (len(data), data))


@dataclass
class Scene:
    """All that is struck: engines, the config file, the gateway's workers; ``counted``: tokens of workers that died."""

    engines: dict[str, Engine]
    liar: Liar
    config: Path
    document: dict[str, Any]
    gateway: Process
    url: str
    chance: Random
    struck: Counter[str] = field(default_factory=Counter)
    lost_tokens: dict[str, float] = field(default_factory=dict)
    lost_requests: float = 0.0

    async def kill_engine(self) -> None:
        """It dies in the middle of everything, and comes back."""
        await self.engines["killed"].die()
        await asyncio.sleep(2)
        await self.engines["killed"].start()

    async def freeze_engine(self) -> None:
        """It stands still with its connections open, then goes on."""
        self.engines["frozen"].send(signal.SIGSTOP)
        await asyncio.sleep(FROZEN_S)
        self.engines["frozen"].send(signal.SIGCONT)

    async def sleep_engine(self) -> None:
        """An engine that answers health checks, and says on its page that it sleeps."""
        self.liar.asleep = not self.liar.asleep

    async def reload(self) -> None:
        """Another SLO, or a config that is refused."""
        bad = self.chance.random() < 0.3
        document = self.document | {"slo_classes": {"default": {"ttft_ms": self.chance.choice([3000, 5000, 8000])}}}
        self.config.write_text(yaml.safe_dump(document | ({"backends": []} if bad else {})), encoding="utf-8")

    async def kill_worker(self) -> None:
        """One worker of the gateway dies, and its counts with it: what the page loses is remembered here."""
        before = await page_of(self.url)
        os.kill(children(self.gateway.pid)[-1], signal.SIGKILL)
        await asyncio.sleep(RESTARTED_S)
        after = await page_of(self.url)
        for name in self.lost_tokens:
            self.lost_tokens[name] += max(0.0, gateway_tokens(before, name) - gateway_tokens(after, name))
        self.lost_requests += max(0.0, gateway_requests(before) - gateway_requests(after))


def children(pid: int) -> list[int]:
    """The processes that it started."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()]


def gateway_tokens(page: str, backend: str) -> float:
    """Output tokens of that backend as the gateway counts them."""
    samples = (found for found in _SAMPLE.findall(page) if found[0] == "headroom_tokens_total")
    wanted = ('kind="output"', f'backend="{backend}"')
    return sum(float(value) for _, labels, value in samples if all(each in labels for each in wanted))


def gateway_requests(page: str) -> float:
    """Requests that have an outcome."""
    return total(page, "headroom_requests_total")


@asynccontextmanager
async def scene(folder: Path, chance: Random) -> AsyncIterator[Scene]:
    """Engines, the liar among them, and a gateway of several workers in front of them; all end with it."""
    async with AsyncExitStack() as stack:
        engines = {
            name: Engine(name, "triton" if name == "triton" else "vllm", free_port())
            for name in ("steady", "killed", "frozen", "triton")
        }
        stack.push_async_callback(end_all, engines.values())
        await asyncio.gather(*(engine.start() for engine in engines.values()))
        liar = Liar(chance)
        server = await stack.enter_async_context(await asyncio.start_server(liar.serve, "127.0.0.1", 0))
        urls = {name: engine.url for name, engine in engines.items()}
        urls["liar"] = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        facts = {"card": "l20", "model": "qwen2.5-7b", "models": [MODEL]}
        backends = [{"name": name, "url": url, "protocol": "openai", **facts} for name, url in urls.items()]
        backends[3] |= {"protocol": "triton", "metrics_url": f"{urls['triton']}/metrics"}
        port, config = free_port(), folder / "faults.yaml"
        document = {
            "listen": {"port": port},
            "upstream": {"stall_s": 4.0},
            "backends": backends,
            "slo_classes": {"default": {"ttft_ms": 5000}},
            "policy": {"limits": {"first_byte_s_max": 8.0}},
        }
        config.write_text(yaml.safe_dump(document), encoding="utf-8")
        command = ("-m", "router", "serve", "--config", str(config), "--workers", str(WORKERS))
        gateway = await stack.enter_async_context(process(*command, stdout=DEVNULL, stderr=DEVNULL))
        url = f"http://127.0.0.1:{port}"

        async def ready() -> bool:
            assert gateway.returncode is None, config.read_text(encoding="utf-8")
            return await up(f"{url}/readyz")

        await until_async(ready, 0.1)
        lost = dict.fromkeys(("steady", "killed", "frozen", "liar"), 0.0)
        yield Scene(engines, liar, config, document, gateway, url, chance, lost_tokens=lost)


async def end_all(engines: Iterable[Engine]) -> None:
    """No engine outlives the run, frozen ones included."""
    for engine in engines:
        if engine.running is not None and engine.running.returncode is None:
            engine.running.kill()
            await engine.running.wait()


async def strikes(scene: Scene, until_s: float) -> None:
    """One fault after another."""
    acts: Sequence[Callable[[], Awaitable[None]]] = (
        scene.kill_engine, scene.freeze_engine, scene.sleep_engine, scene.reload,
    )  # fmt: skip
    worker_dies_s = (monotonic() + until_s) / 2
    while monotonic() < until_s:
        for act in acts:
            scene.struck[act.__name__] += 1
            await act()
            if monotonic() >= worker_dies_s:
                worker_dies_s = inf
                scene.struck["kill_worker"] += 1
                await scene.kill_worker()
            await asyncio.sleep(EVERY_S / len(acts))
            if monotonic() >= until_s:
                break
    scene.liar.asleep = False


async def fault_run(seconds: float, seed: int, clients: int) -> dict[str, Any]:
    """Run for so long, wait for quiet; what was found."""
    with tempfile.TemporaryDirectory(prefix="headroom-faults-") as folder:
        async with scene(Path(folder), Random(seed)) as struck:
            world = World(int(struck.url.rpartition(":")[2]), [MODEL], Random(seed), Counter())
            await visited(world, WARM_S, clients)
            files, memory = await open_files_of(struck), memory_of(struck)
            until_s = monotonic() + seconds
            await asyncio.gather(strikes(struck, until_s), visited(world, seconds, clients))
            found = {"struck": dict(struck.struck), "files_before": files, "files_after": await open_files_of(struck)}
            page = await page_of(struck.url)
            found |= {"memory_mib_before": memory, "memory_mib_after": memory_of(struck)}
            found["in_flight"] = total(page, "headroom_requests_in_flight")
            found["requests_with_outcome"] = gateway_requests(page) + struck.lost_requests
            found["tokens"] = {name: await tokens(struck, page, name) for name in struck.lost_tokens}
            return found | {"visits": world.seen}


async def tokens(struck: Scene, page: str, name: str) -> tuple[float, float]:
    """Output tokens of a backend: as it counted them, and as the gateway did."""
    engine = struck.engines.get(name)
    counted = struck.liar.tokens if engine is None else engine.ended_tokens + await engine.tokens()
    return counted, gateway_tokens(page, name) + struck.lost_tokens[name]


async def open_files_of(struck: Scene) -> int:
    """Files that the gateway's processes have open, once idle connections have gone."""
    return sum(
        await asyncio.gather(*(fewest_files(pid) for pid in (struck.gateway.pid, *children(struck.gateway.pid))))
    )


def memory_of(struck: Scene) -> float:
    """Resident memory of the gateway's processes."""
    return round(sum(memory_mib(pid) for pid in (struck.gateway.pid, *children(struck.gateway.pid))), 1)


def faults_of(found: dict[str, Any]) -> list[str]:
    """What is off."""
    off = []
    if found["in_flight"]:
        off.append(f"{found['in_flight']:g} requests are still in flight")
    if found["files_after"] > found["files_before"]:
        off.append(f"{found['files_after'] - found['files_before']} more files are open")
    if found["memory_mib_after"] - found["memory_mib_before"] > MEMORY_GROWTH_MIB_MAX:
        off.append("memory has grown")
    counted, booked = (sum(pair[which] for pair in found["tokens"].values()) for which in (0, 1))
    if abs(booked / counted - 1) > TOKENS_OFF_MAX:
        off.append(f"output tokens: engines {counted:g}, gateway {booked:g}")
    return off


def report(found: dict[str, Any]) -> str:
    """The figures as lines."""
    facts = [f"{name}: {value}" for name, value in found.items() if name != "visits"]
    visits = [f"  {count:7d} {what}" for what, count in sorted(found["visits"].items())]
    return "\n".join([*facts, f"visits: {sum(found['visits'].values())}", *visits])


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=480.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--clients", type=int, default=24, help="visitors at once")
    given = parser.parse_args()
    found = asyncio.run(fault_run(given.seconds, given.seed, given.clients))
    print(report(found))
    off = faults_of(found)
    sys.exit("\n".join(off) if off else 0)


if __name__ == "__main__":
    main()
