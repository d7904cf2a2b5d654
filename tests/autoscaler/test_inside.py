"""The autoscaler inside routers: one decides and shows it, another takes over when it is killed."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from router.autoscaler.inside import Inside
from router.core.errors import ConfigError
from router.gateway.app import Gateway
from router.gateway.config.plan import plan_file
from tests.fakes_router import HEALTHY, Router, backend, config, router, write
from tests.fakes_wire import ScriptedEngine, stream
from tests.pages import Pages
from tests.waiting import until_async

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
                stated = whole["decisions"]["m"]
                assert stated["demand_per_s"] > 0
                assert stated["forecast_per_s"] > 0
                assert stated["error_per_s"] >= 0
                assert stated["capacity"]["small"] > 0
                assert stated["mix"] == {"small": one["replicas"]}
                assert stated["usd_per_hour"] > 0
                assert stated["runner_up"] is not None
                assert stated["seasonal_per_s"] is None  # no day has passed
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


async def test_a_request_for_a_model_that_has_no_replica_orders_the_first(tmp_path: Path) -> None:
    """Beside another model that runs: 503 with the time of the next try, and one replica is advised."""
    path = tmp_path / "r.yaml"
    replica = "{models: [big], card: l4, model: qwen3-4b}"
    variants = f", variants: {{large: {{min_replicas: 0, replica: {replica}}}}}}}\n"
    async with (
        ScriptedEngine() as engine,
        Pages(dict(HEALTHY)) as pages,
        router(path, text(engine, pages, AUTOSCALE + variants)) as it,
        running(it),
    ):
        answer = await it.chat(body={"model": "big"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "no-backend")
        assert int(answer.headers["retry-after"]) > 0
        assert (await it.chat(body={"model": "none"})).status_code == 404

        async def advised() -> bool:
            found = (await it.get("/admin/scaling")).json()["decided"] or {"advice": []}
            return [(one["variant"], one["replicas"]) for one in found["advice"]] == [("large", 1)]

        await until_async(advised)


async def test_an_election_that_cannot_be_is_refused_before_the_router_serves(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    async with ScriptedEngine() as engine, Pages(dict(HEALTHY)) as pages:
        write(path, text(engine, pages, AUTOSCALE + ", election: {by: state}}\n"))
        with pytest.raises(ConfigError, match=r"state needs state\.redis_url"):
            Inside(Gateway(plan_file(path), path))
