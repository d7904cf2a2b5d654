"""The closed loop with real engines: llama.cpp servers started, drained and ended as a changing load needs them."""

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from deploy.local import catalog
from router.targets import Advice
from tests.real.world import BACKENDS, MODEL, Engines, Gateway, serving
from tests.redis_server import free_port
from tests.targets.test_local import local
from tests.waiting import until_async

TOKENS = 200
BUSY = 6  # streams at once: one engine runs four
STATED = {key: BACKENDS["llamacpp"][key] for key in ("engine", "models", "card", "model", "seqs_max", "kv_tokens_max")}


@dataclass
class Load:
    """Streams, one after the other on each of ``clients``; what became of each is noted."""

    gateway: Gateway
    ended: list[bool] = field(default_factory=list)
    clients: list[asyncio.Task[None]] = field(default_factory=list)

    async def _one_after_the_other(self, pause_s: float) -> None:
        async with self.gateway.client() as client:
            while True:
                stream = await client.chat.completions.create(
                    model=MODEL,
                    messages=[{"role": "user", "content": "count"}],
                    max_tokens=TOKENS,
                    stream=True,
                    extra_body={"ignore_eos": True},
                )
                reasons = [choice.finish_reason async for event in stream for choice in event.choices]
                self.ended.append("length" in reasons)  # all its tokens, some of them in one event
                await asyncio.sleep(pause_s)

    @asynccontextmanager
    async def running(self, clients: int, pause_s: float = 0.0) -> AsyncIterator[None]:
        """So many clients meanwhile; their last streams run to their end."""
        going = [asyncio.create_task(self._one_after_the_other(pause_s)) for _ in range(clients)]
        yield
        before = len(self.ended)
        while len(self.ended) < before + clients:
            assert not any(task.done() for task in going), [task.exception() for task in going if task.done()]
            await asyncio.sleep(0.05)
        for task in going:
            task.cancel()
        await asyncio.gather(*going, return_exceptions=True)


def sections(home: Path, folder: Path) -> dict[str, Any]:
    """A router whose engines come by discovery, and an autoscaler in it that starts and ends them."""
    first = free_port()
    command = [str(home / "llamacpp/bin/python"), str(catalog.HERE / "llamacpp_server.py")]
    variant = {"command": [*command, str(home / "models/tiny-s.gguf"), "{port}"], "ports": [first, first + 3]}
    target = {"name": "local", "folder": str(folder), "quiet_s": 1.0, "variants": {"tiny": variant}}
    stated = {"min_replicas": 1, "max_replicas": 2, "start_s": 10, "replica": STATED}
    return {
        "slo_classes": {"default": {"ttft_ms": 20_000, "tpot_ms": 2_000}},
        "discover": [{"file": str(folder / "targets.json"), "defaults": STATED}],
        "upstream": {"idle_s": 0.2},
        "autoscale": {
            "inside": True,
            "period_s": 1.0,
            "election": {"by": "none"},
            "variants": {"tiny": stated},
            "target": target,
        },
    }


async def _advice(gateway: Gateway) -> dict[str, Any]:
    async with httpx.AsyncClient() as client:
        decided = (await client.get(f"{gateway.url}/admin/scaling")).json()["decided"]
    return dict(decided["advice"][0]) if decided and decided["advice"] else {}


async def _has(gateway: Gateway, running: int) -> bool:
    return (await _advice(gateway)).get("running") == running


async def _listed(folder: Path, count: int) -> bool:
    """Whether so many engines serve."""
    file = folder / "targets.json"
    return file.exists() and len(json.loads(file.read_text())) == count


async def _within(seconds: float, condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(seconds):
        while not await condition():  # noqa: ASYNC110 - a file is read
            await asyncio.sleep(0.2)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
async def test_engines_follow_a_load_that_changes_and_no_stream_is_lost(engines: Engines, tmp_path: Path) -> None:
    """One engine, two under load, one again: every stream has all its tokens, and SLOs are met."""
    if reason := catalog.ENGINES["llamacpp"].missing(engines.home):
        pytest.skip(reason)
    folder = tmp_path / "engines"
    given = sections(engines.home, folder)
    options = {key: value for key, value in given["autoscale"]["target"].items() if key != "name"}
    async with local(options) as target:  # ends what is left
        assert (await target.apply(Advice(MODEL, "tiny", 1, 0, "the first"))).reason.startswith(
            "serving or starting tiny-"
        )
        await until_async(lambda: _listed(folder, 1))
        await target.close()
        async with serving(tmp_path, **given) as gateway:
            load = Load(gateway)
            async with load.running(1, pause_s=1.0):
                await until_async(lambda: _has(gateway, 1))
            async with load.running(BUSY):
                await until_async(lambda: _listed(folder, 2))
                await asyncio.sleep(20.0)  # of load on both
            async with load.running(1, pause_s=2.0):
                await _within(180.0, lambda: _listed(folder, 1))
            print(await _advice(gateway))  # noqa: T201 - what was decided last
            met = await gateway.metric("headroom_slo_requests_total", met="true", source="class")
            violated = await gateway.metric("headroom_slo_requests_total", met="false", source="class")
            print(f"{len(load.ended)} streams, {met:.0f} met their SLO, {violated:.0f} did not")  # noqa: T201
            assert all(load.ended)
            assert met / (met + violated) >= 0.95
