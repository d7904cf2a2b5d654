"""The autoscaler inside routers: one decides and shows it, another takes over when it is killed."""

import asyncio
import json
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest

from router.autoscaler.inside import Inside
from router.core.errors import ConfigError
from router.gateway.app import Gateway
from router.gateway.config.plan import plan_file
from router.gateway.state import ModelDemand, RouterView
from router.gateway.state.redis import RedisStore
from router.gateway.state.servers import RedisServers
from tests.commands import command
from tests.fakes_router import HEALTHY, Router, backend, config, router, write
from tests.fakes_wire import ScriptedEngine, stream
from tests.pages import Pages
from tests.redis_server import RedisServer, free_port, server_binary
from tests.targets.test_targets import receiver
from tests.waiting import until, until_async

AUTOSCALE = "slo_classes: {default: {ttft_ms: 2000, tpot_ms: 60}}\nautoscale: {inside: true, period_s: 0.02"


def text(engine: ScriptedEngine, pages: Pages, more: str) -> str:
    return config(backend("a", engine, pages, variant="small"), more=more)


@asynccontextmanager
async def running(it: Router) -> AsyncIterator[None]:
    """The autoscaler in that router, as ``headroom serve`` has it there."""
    over = asyncio.Event()

    async def serving() -> None:
        await over.wait()

    task = asyncio.create_task(Inside(it.gateway).beside(serving()))
    yield
    over.set()
    await task


async def test_a_router_alone_decides_and_shows_what_and_why(tmp_path: Path) -> None:
    """Demand of its own requests, gauges on its own page, the config that it serves, also after a reload."""
    path = tmp_path / "r.yaml"
    async with ScriptedEngine([stream("a", "b")]) as engine, Pages(dict(HEALTHY)) as pages:
        plain = text(engine, pages, AUTOSCALE + "}\n")
        async with router(path, plain) as it:
            assert (await it.get("/admin/scaling")).status_code == 404
            async with running(it):
                assert (await it.chat()).status_code == 200

                async def decided() -> dict[str, object]:
                    found = (await it.get("/admin/scaling")).json()["decided"]
                    return dict(found["advice"][0]) if found and found["advice"] else {}

                await until_async(decided)
                one = await decided()
                assert (one["model"], one["variant"], one["running"]) == ("m", "small", 1)
                assert one["outcome"] in {"applied", "unchanged"}
                assert "req/s" in str(one["why"])
                whole = (await it.get("/admin/scaling")).json()["decided"]
                assert whole["leads"]
                assert whole["demand"]["m"]["requests_per_s"] > 0
                assert "was seen first less than 60 s ago" in whole["only_added"][0]
                page = (await it.get("/metrics")).text
                assert 'headroom_replicas_running{model="m",variant="small"} 1.0' in page
                assert any(entry["event"] == "scaling applied" for entry in it.gateway.audit.last)
                bounded = plain.replace(
                    "inside: true, period_s: 0.02", "inside: true, period_s: 0.03, variants: {small: {min_replicas: 3}}"
                )
                write(path, bounded)
                assert (await it.client.post("/admin/reload")).status_code == 200

                async def three() -> bool:
                    return (await decided()).get("replicas") == 3

                await until_async(three)
                write(path, plain.replace("inside: true", "inside: false"))
                refused = await it.client.post("/admin/reload")
                assert (refused.status_code, "autoscale.inside: cannot change" in refused.json()["error"]) == (
                    422,
                    True,
                )


async def test_an_election_that_cannot_be_is_refused_before_the_router_serves(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    async with ScriptedEngine() as engine, Pages(dict(HEALTHY)) as pages:
        write(path, text(engine, pages, AUTOSCALE + ", election: {by: state}}\n"))
        with pytest.raises(ConfigError, match=r"state needs state\.redis_url"):
            Inside(Gateway(plan_file(path), path))


@pytest.mark.skipif(server_binary() is None, reason="no Redis-compatible server binary installed")
async def test_when_the_leader_is_killed_another_takes_over_and_wants_the_same(tmp_path: Path) -> None:
    """Two routers in processes, kill -9 of the one that applies: the receiver never gets another number."""
    async with (
        RedisServer() as server,
        receiver() as it,
        ScriptedEngine() as engine,
        Pages(dict(HEALTHY)) as pages,
        httpx.AsyncClient(trust_env=False, timeout=30) as client,
    ):
        ports = free_port(), free_port()
        for number, port in enumerate(ports):
            target = json.dumps({"name": "webhook", "url": it.url})
            more = (
                AUTOSCALE
                + f", variants: {{small: {{max_replicas: 5}}}}, target: {target}, election: {{lease_s: 1}}}}\n"
            )
            more += f"state: {{redis_url: '{server.url}', timeout_s: 2, lease_s: 5, router_id: r{number}}}\n"
            more = more.replace("period_s: 0.02", "period_s: 0.3")  # what starts beside needs the cores
            plain = text(engine, pages, more).replace("listen: {port: 0", f"listen: {{port: {port}")
            write(tmp_path / f"{number}.yaml", plain)
        busy = RedisStore(RedisServers.of_urls(server.url), "default", "busy", 600.0, 5.0)
        await busy.sync(RouterView(demand={"m": ModelDemand(300.0, 1000, 200, 100, 98, "default")}), (), 0.0)

        async def leads(port: int) -> bool:
            try:
                answer = await client.get(f"http://127.0.0.1:{port}/admin/scaling")
            except httpx.TransportError:
                return False
            decided = answer.json().get("decided")
            return bool(decided and decided["leads"] and decided["advice"])

        async def one_leads() -> bool:
            return any([await leads(port) for port in ports])

        async with (
            command("serve", "-c", str(tmp_path / "0.yaml")) as first,
            command("serve", "-c", str(tmp_path / "1.yaml")) as second,
        ):
            await until_async(one_leads)
            await until(lambda: it.bodies)
            leader = 0 if await leads(ports[0]) else 1
            other = ports[1 - leader]
            await until_async(lambda: _answers(client, other))
            assert not await leads(other)
            (first, second)[leader].send_signal(signal.SIGKILL)
            await until_async(lambda: leads(other))
            await until(lambda: len(it.bodies) == 2)
        assert [body["replicas"] for body in it.bodies] == [5, 5]
        await busy.close()


async def _answers(client: httpx.AsyncClient, port: int) -> bool:
    try:
        answer = await client.get(f"http://127.0.0.1:{port}/admin/scaling")
    except httpx.TransportError:
        return False
    return bool(answer.json().get("decided"))
