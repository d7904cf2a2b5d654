"""The closed loop on this machine: engines as processes, a router that finds them, advice that changes under load."""

import asyncio
import json
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from router.autoscaler.loop import Autoscaler, make_target
from router.core.decisions import ScaleTo
from router.core.policy import Demand
from router.gateway.config.plan import plan_file
from router.gateway.state import ModelDemand, RouterView
from tests.fakes_router import Router, router
from tests.redis_server import free_port
from tests.targets.test_local import local
from tests.waiting import until

STREAMS = 4


def config(folder: Path) -> str:
    """A router without any backend of its own, and a target that starts emulated engines."""
    first = free_port()
    engine = [sys.executable, "-m", "simulator", "serve", "--card", "h100", "--model-name", "m", "--port", "{port}"]
    target = {
        "name": "local",
        "folder": str(folder / "engines"),
        "quiet_s": 1.0,
        "variants": {
            "small": {
                "command": engine,
                "ports": [first, first + 7],
                "labels": {"card": "h100", "model": "llama-3-8b", "models": "m"},
            }
        },
    }
    replica = "{models: [m], card: h100, model: llama-3-8b}"
    return f"""
listen: {{port: 0, drain_s: 5}}
upstream: {{idle_s: 0.2}}
scrape: {{period_s: 0.1, models_s: null}}
slo_classes: {{default: {{}}}}
policy: {{routing: round_robin}}
discover: [{{file: engines/targets.json}}]
autoscale: {{variants: {{small: {{min_replicas: 0, replica: {replica}}}}}, target: {json.dumps(target)}}}
"""


class Rate:
    """A scaling policy that advises a replica for each request a second."""

    def scale(self, demand: Demand) -> list[ScaleTo]:
        return [ScaleTo("small", round(demand.requests_per_s), f"{demand.requests_per_s:g} req/s")]


async def serving(it: Router, count: int) -> None:
    """Wait until the router has so many backends, all up."""
    await until(lambda: len(it.gateway.plan.backends) == count and len(it.gateway.engines.watches) == count)
    await until(lambda: all(watch.up for watch in it.gateway.engines.watches.values()))


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
async def test_engines_follow_the_demand_and_no_stream_is_lost(tmp_path: Path) -> None:
    """One engine, two, and one again while streams run on both: each ends with all its tokens and [DONE]."""
    path = tmp_path / "r.yaml"
    (tmp_path / "engines").mkdir()
    async with router(path, config(tmp_path), ready=False) as it:
        plan = replace(plan_file(path), scaling=Rate())
        scaler = Autoscaler(plan, make_target(plan.target), settled_s=0.0)

        async def round_at(rate: float) -> None:
            async def views() -> Mapping[str, RouterView]:
                return {"r1": RouterView(demand={"m": ModelDemand(rate, 100, 100, 10, 10, "default")})}

            (one,) = await scaler.round(views)
            assert one.replicas == rate

        async with local(plan.settings.autoscale.target.options):  # ends what is left, if the test fails
            await round_at(1)
            await serving(it, 1)
            await round_at(2)
            await serving(it, 2)
            body = {"model": "m", "stream": True, "max_tokens": 300, "ignore_eos": True}
            streams = [asyncio.create_task(it.chat(body=body)) for _ in range(STREAMS)]
            await until(lambda: sum(load.decoding > 0 for load in it.gateway.core.loads().values()) == 2)
            await round_at(1)
            answers = await asyncio.gather(*streams)
            assert [answer.status_code for answer in answers] == [200] * STREAMS
            assert all(answer.text.endswith("data: [DONE]\n\n") for answer in answers)
            assert {answer.text.count('"content"') >= 300 for answer in answers} == {True}
            await serving(it, 1)
            await until(lambda: len(json.loads((tmp_path / "engines/engines.json").read_text())) == 1)
            assert (await it.chat(body=body)).status_code == 200
            await scaler.close()
