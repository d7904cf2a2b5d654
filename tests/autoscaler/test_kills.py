"""kill -9 of everything in turn, with real processes: what scales never gets a number that nobody wanted."""

import asyncio
import json
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from router.core.errors import StoreGone
from router.gateway.state import ModelDemand, RouterView
from router.gateway.state.redis import RedisStore
from router.gateway.state.servers import RedisServers
from tests.autoscaler.test_inside import running as inside
from tests.commands import command
from tests.fakes_router import router, write
from tests.redis_server import RedisServer, free_port, server_binary
from tests.targets.test_local import ENGINE
from tests.targets.test_targets import receiver
from tests.waiting import until, until_async

CONFIG = """
listen: {{port: {port}}}
scrape: {{period_s: 0.2, models_s: null}}
backends:
  - {{name: a, url: "http://127.0.0.1:{engine}", models: [m], card: l4, model: qwen3-4b, variant: small}}
slo_classes: {{default: {{ttft_ms: 2000, tpot_ms: 60}}}}
autoscale:
  inside: true
  period_s: 0.2
  variants: {{small: {{max_replicas: 5}}}}
  target: {target}
  election: {{lease_s: 2}}
state: {{redis_url: "{redis}", timeout_s: 2, lease_s: 5, router_id: r{port}}}
"""
DEMAND = RouterView(demand={"m": ModelDemand(300.0, 1000, 200, 100, 98, "default")})
ROUNDS = 3  # that go by before nothing is held to have happened


class Pool:
    """Routers as processes with an autoscaler inside each, by port."""

    def __init__(self, folder: Path, redis: str, target: str, engine: int, client: httpx.AsyncClient) -> None:
        self._folder, self._client = folder, client
        self._facts = {"redis": redis, "target": json.dumps({"name": "webhook", "url": target}), "engine": engine}

    def config(self, port: int) -> Path:
        """The config of the router at that port."""
        path = self._folder / f"{port}.yaml"
        write(path, CONFIG.format(port=port, **self._facts))
        return path

    async def decided(self, port: int) -> dict[str, Any]:
        """The last decision of a router; nothing while it does not answer."""
        await asyncio.sleep(0.05)  # a poll shall not take the cores from what starts
        try:
            answer = await self._client.get(f"http://127.0.0.1:{port}/admin/scaling")
        except httpx.TransportError:
            return {}
        return answer.json().get("decided") or {}

    async def leads(self, port: int) -> bool:
        found = await self.decided(port)
        return bool(found and found["leads"] and found["advice"])

    async def rounds(self, port: int) -> None:
        """Wait until some rounds are over there."""
        for _ in range(ROUNDS):
            before = (await self.decided(port)).get("at_s")

            async def another(before: float | None = before) -> bool:
                return (await self.decided(port)).get("at_s") != before

            await until_async(another)


@contextmanager
def engine(port: int) -> Iterator[subprocess.Popen[bytes]]:
    """An engine that answers its health checks."""
    process = subprocess.Popen([sys.executable, "-S", "-c", ENGINE, str(port)], stderr=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@asynccontextmanager
async def demand(server: RedisServer) -> AsyncIterator[RedisStore]:
    """A router's store whose view has the demand, under a long lease."""
    store = RedisStore(RedisServers.of_urls(server.url), "default", "busy", 600.0, 5.0)
    await store.sync(DEMAND, (), 0.0)
    try:
        yield store
    finally:
        await store.close()


@pytest.mark.skipif(server_binary() is None, reason="no Redis-compatible server binary installed")
async def test_nothing_is_done_that_was_not_wanted_whatever_is_killed(tmp_path: Path) -> None:
    """A router that stands by, the one that leads, Redis with all that it held, the only engine: five replicas stay."""
    ports = free_port(), free_port()
    async with (
        RedisServer() as server,
        receiver() as it,
        httpx.AsyncClient(trust_env=False, timeout=30) as client,
        demand(server) as busy,
        AsyncExitStack() as processes,
    ):
        running = processes.enter_context(engine(at := free_port()))
        pool = Pool(tmp_path, server.url, it.url, at, client)
        routers = {
            port: await processes.enter_async_context(command("serve", "-c", str(pool.config(port)))) for port in ports
        }

        leaders: list[int] = []

        async def led() -> bool:
            leaders[:] = [port for port in ports if await pool.leads(port)]
            return len(leaders) == 1 and all([await pool.decided(port) for port in ports])

        path = pool.config(0)
        last = await processes.enter_async_context(router(path, path.read_text(), ready=False))
        await until_async(led)
        await until(lambda: it.bodies)
        await processes.enter_async_context(inside(last))
        (leader,) = leaders
        standby = ports[1 - ports.index(leader)]

        routers[standby].send_signal(signal.SIGKILL)
        await pool.rounds(leader)

        routers[leader].send_signal(signal.SIGKILL)
        await until_async(lambda: pool.leads(last.port))
        await pool.rounds(last.port)

        server.stop()
        await pool.rounds(last.port)
        assert "could not be read" in (await pool.decided(last.port))["failure"]
        await server.start()
        with suppress(StoreGone):  # of the connection to the one before
            await busy.sync(DEMAND, (), 0.0)
        await busy.sync(DEMAND, (), 0.0)
        await until_async(lambda: pool.leads(last.port))

        running.kill()
        await until(last.gateway.downtimes)
        await pool.rounds(last.port)
        assert {body["replicas"] for body in it.bodies} == {5}
        (advice,) = (await pool.decided(last.port))["advice"]
        assert (advice["running"], advice["replicas"], advice["counted_by"]) == (5, 5, "routers")
