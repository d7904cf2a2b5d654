"""kill -9 of everything in turn in the closed loop with real engines: no action that nobody wanted, and no stream lost
but those that were at what was killed.
"""

import asyncio
import contextlib
import json
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from deploy.local import catalog
from router.targets import Advice, Outcome
from tests.real.test_scaling import sections
from tests.real.world import MODEL, ROOT, Engines
from tests.redis_server import RedisServer, free_port, server_binary
from tests.targets.test_local import local
from tests.waiting import until_async

CLIENTS = 6  # streams at once: one engine runs four
TOKENS = 200
AFTER_S = 6.0  # of load after each kill: several rounds, and more than a lease
LEASE_S = 2.0
PORTS = 20  # of which some may be in use


@dataclass
class Stream:
    """What became of one. ``begun``: whether its first token came; ``router``: the port at which it was."""

    router: int
    begun: bool = False
    whole: bool = False
    refused: bool = False  # nobody listened: it was sent to no engine
    ended: bool = False
    counted: bool = False


@dataclass
class Load:
    """Clients that send one stream after the other, each to the next router that listens."""

    ports: list[int]
    streams: list[Stream] = field(default_factory=list)

    async def client(self, number: int) -> None:
        async with httpx.AsyncClient(timeout=60.0, trust_env=False) as client:
            while True:
                number += 1
                port = self.ports[number % len(self.ports)]
                stream = Stream(port)
                self.streams.append(stream)
                with contextlib.suppress(httpx.TransportError):
                    await self._one(client, stream)
                stream.ended = True
                if stream.refused:
                    await asyncio.sleep(0.1)

    async def _one(self, client: httpx.AsyncClient, stream: Stream) -> None:
        messages = [{"role": "user", "content": "count"}]
        body = {"model": MODEL, "messages": messages, "max_tokens": TOKENS, "stream": True, "ignore_eos": True}
        try:
            async with client.stream(
                "POST", f"http://127.0.0.1:{stream.router}/v1/chat/completions", json=body
            ) as answer:
                async for line in answer.aiter_lines():
                    stream.begun |= '"content":"' in line
                    stream.whole |= line == "data: [DONE]"
        except httpx.ConnectError:
            stream.refused = True

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        going = [asyncio.create_task(self.client(number)) for number in range(CLIENTS)]
        yield
        for task in going:
            task.cancel()
        await asyncio.gather(*going, return_exceptions=True)

    async def lost_while(self, what: Callable[[], Awaitable[None]]) -> list[Stream]:
        """The streams that ended early during *what* or within some time after it."""
        await what()
        await asyncio.sleep(AFTER_S)
        lost = [each for each in self.streams if each.ended and not (each.whole or each.refused or each.counted)]
        for each in lost:
            each.counted = True
        return lost


class Processes:
    """Headroom's processes by name, each with a config of its own."""

    def __init__(self, folder: Path, whole: dict[str, Any]) -> None:
        self._folder, self._whole = folder, whole
        self.running: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str, command: str, **sections: Any) -> None:
        path = self._folder / f"{name}.yaml"
        audit = {"reload": {"audit_file": str(self._folder / f"{name}.audit")}}
        path.write_text(yaml.safe_dump({**self._whole, **audit, **sections}))
        with (self._folder / f"{name}.log").open("ab") as log:
            words = [sys.executable, "-m", "router", command, "--config", str(path)]
            self.running[name] = subprocess.Popen(words, cwd=ROOT, stdout=log, stderr=log)

    def kill(self, name: str) -> None:
        self.running[name].send_signal(signal.SIGKILL)
        self.running[name].wait()

    def applied(self) -> list[tuple[str, str]]:
        """All that was applied or failed, by whom."""
        found = []
        for path in sorted(self._folder.glob("*.audit")):
            for line in path.read_text().splitlines():
                entry = json.loads(line)
                if entry["event"].startswith("scaling"):
                    found.append((path.stem, f"{entry['event']}: {entry['result']}"))
        return found

    def close(self) -> None:
        for process in self.running.values():
            process.kill()
            process.wait()
        for path in sorted(self._folder.glob("*.log")):
            print(f"== {path.name}\n{path.read_text(errors='replace')[-6000:]}")  # noqa: T201 - shown with a failure


async def _leads(port: int) -> bool:
    async with httpx.AsyncClient(trust_env=False) as client:
        with contextlib.suppress(httpx.TransportError):
            return "headroom_autoscale_leads 1.0" in (await client.get(f"http://127.0.0.1:{port}/metrics")).text
    return False


async def _ready(port: int) -> bool:
    async with httpx.AsyncClient(trust_env=False) as client:
        with contextlib.suppress(httpx.TransportError):
            return (await client.get(f"http://127.0.0.1:{port}/readyz")).is_success
    return False


def _serving(folder: Path) -> list[str]:
    file = folder / "targets.json"
    return [each["targets"][0] for each in json.loads(file.read_text())] if file.exists() else []


@pytest.mark.skipif(
    sys.platform != "linux" or server_binary() is None, reason="needs /proc and a Redis-compatible server"
)
async def test_nothing_unwanted_is_done_whatever_is_killed(  # noqa: C901, PLR0915 - one story
    engines: Engines, tmp_path: Path
) -> None:
    """Two engines under a load that needs both: a standby and a leading autoscaler, the sidecar, a router, Redis, an
    engine. Only the engine is replaced.
    """
    if reason := catalog.ENGINES["llamacpp"].missing(engines.home):
        pytest.skip(reason)
    folder = tmp_path / "engines"
    async with RedisServer() as redis, AsyncExitStack() as at_end:
        whole = sections(engines.home, folder)
        first = free_port()
        whole["autoscale"]["target"]["variants"]["tiny"]["ports"] = [first, first + PORTS - 1]
        options = {key: value for key, value in whole["autoscale"]["target"].items() if key != "name"}
        target = await at_end.enter_async_context(local(options))  # ends what is left
        started = await target.apply(Advice(MODEL, "tiny", 2, 0, "the first"))
        assert started.outcome is Outcome.APPLIED, started.reason
        await until_async(lambda: _has(folder, 2))
        await target.close()
        whole["policy"] = {"guard": {"budget_ms": 1000}}  # a busy machine is no fault of the policy
        whole["scrape"] = {"period_s": 0.2, "timeout_s": 2.0, "source": "state"}
        whole["state"] = {"redis_url": redis.url, "lease_s": 5, "timeout_s": 2}
        scaling = whole.pop("autoscale") | {"inside": False, "period_s": 0.5}
        scaling["election"] = {"by": "state", "lease_s": LEASE_S}
        ports = {name: free_port() for name in ("router-a", "router-b", "scaler-a", "scaler-b")}
        it = Processes(tmp_path, whole)
        at_end.callback(it.close)

        def router(name: str) -> None:
            it.start(name, "serve", listen={"port": ports[name]}, state={**whole["state"], "router_id": name})

        def scaler(name: str) -> None:
            it.start(name, "autoscale", autoscale={**scaling, "port": ports[name]})

        it.start("sidecar", "sidecar")
        for name in ("router-a", "router-b"):
            router(name)
        for name in ("router-a", "router-b"):
            await until_async(lambda name=name: _ready(ports[name]))
        for name in ("scaler-a", "scaler-b"):
            scaler(name)
            await until_async(lambda: _one_leads(ports))
        load = Load([ports["router-a"], ports["router-b"]])
        async with load.running():
            await asyncio.sleep(AFTER_S)
            leader = "scaler-a" if await _leads(ports["scaler-a"]) else "scaler-b"
            standby = "scaler-b" if leader == "scaler-a" else "scaler-a"

            async def kill(name: str) -> None:
                it.kill(name)

            assert await load.lost_while(lambda: kill(standby)) == []
            scaler(standby)
            assert await load.lost_while(lambda: kill(leader)) == []
            await until_async(lambda: _leads(ports[standby]))
            scaler(leader)
            assert await load.lost_while(lambda: kill("sidecar")) == []
            it.start("sidecar", "sidecar")

            lost = await load.lost_while(lambda: kill("router-b"))
            assert {each.router for each in lost} <= {ports["router-b"]}
            router("router-b")
            await until_async(lambda: _ready(ports["router-b"]))

            async def kill_redis() -> None:
                redis.stop()
                await asyncio.sleep(AFTER_S)
                await redis.start()

            assert await load.lost_while(kill_redis) == []
            await until_async(lambda: _one_leads(ports))
            assert it.applied() == []

            victim = next(iter(target._table.read().values()))

            async def kill_engine() -> None:
                with contextlib.suppress(ProcessLookupError):
                    subprocess.run(["/bin/kill", "-9", str(victim.pid)], check=False)  # noqa: ASYNC221 - at once

            lost = await load.lost_while(kill_engine)
            assert all(each.begun for each in lost)
            assert len(lost) <= CLIENTS
            await until_async(lambda: _has(folder, 2))
            await asyncio.sleep(AFTER_S)
        print(len(load.streams), "streams;", it.applied())  # noqa: T201 - what was done
        done = [text for _, text in it.applied()]
        assert any("serving or starting" in text for text in done)
        assert not any("draining" in text for text in done)


async def _has(folder: Path, count: int) -> bool:
    return len(_serving(folder)) == count


async def _one_leads(ports: dict[str, int]) -> bool:
    return sum([await _leads(ports["scaler-a"]), await _leads(ports["scaler-b"])]) == 1
