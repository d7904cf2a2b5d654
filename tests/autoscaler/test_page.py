"""The port of an autoscaler as a process of its own: metrics for all, the last decision for those with the key."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx

from router.autoscaler.loop import Autoscaler, make_target
from router.autoscaler.page import serve
from router.config.settings import Settings
from router.config.text import document
from router.gateway.config.plan import make
from tests.targets.test_targets import CONFIG, views


@asynccontextmanager
async def page(more: str = "") -> AsyncIterator[httpx.AsyncClient]:
    """A client of an autoscaler that has decided once."""
    parsed = document(CONFIG.replace("TARGET", "advise") + more, "r.yaml")
    plan = make(parsed.parse(Settings), parsed, {})
    scaler = Autoscaler(plan, make_target(plan.target), settled_s=0.0)
    server = serve(0, "127.0.0.1", scaler)
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{server.server_port}", trust_env=False) as client:
        assert (await client.get("/admin/scaling")).status_code == (401 if more else 200)
        await scaler.round(views)
        yield client
    await asyncio.to_thread(server.shutdown)
    server.server_close()
    await scaler.close()


async def test_the_last_decision_and_the_metrics_are_there() -> None:
    """Without a key for clients on this machine, as a router has it."""
    async with page() as client:
        decided = (await client.get("/admin/scaling")).json()["decided"]
        (one,) = decided["advice"]
        assert (one["model"], one["variant"], one["replicas"], one["outcome"]) == ("m", "small", 5, "applied")
        stated = decided["decisions"]["m"]
        assert stated["mix"]["small"] > 0
        assert {
            "demand_per_s",
            "forecast_per_s",
            "error_per_s",
            "capacity",
            "usd_per_hour",
            "runner_up",
        } <= stated.keys()
        assert decided["demand"]["m"]["requests_per_s"] == 300.0
        assert "headroom_replicas_wanted" in (await client.get("/metrics")).text


async def test_with_an_admin_key_it_is_for_those_who_have_it() -> None:
    """The metrics are for everybody, as on a router."""
    async with page("admin_key: {key: secret-key}\n") as client:
        assert (await client.get("/admin/scaling", headers={"authorization": "Bearer other"})).status_code == 401
        found = await client.get("/admin/scaling", headers={"authorization": "Bearer secret-key"})
        assert found.json()["decided"]["leads"]
        assert (await client.get("/metrics")).status_code == 200
