"""A router before engines whose numbers cannot be: it serves, learns nothing from them, counts them and says so."""

import logging
from pathlib import Path

import orjson
import pytest

from tests.fakes_router import HEALTHY, backend, config, router
from tests.fakes_wire import ScriptedEngine, stream
from tests.pages import Pages
from tests.waiting import until

POLICY = "policy: {routing: {name: slo_headroom}}\nslo_classes: {default: {ttft_ms: 5000, tpot_ms: 100}}\n"
CACHED_BESIDE = {"prompt_tokens": 10, "completion_tokens": 3, "cached_tokens": 480}


async def test_usage_with_more_cached_than_prompt_tokens_harms_nobody(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The configured policy serves every request, and the state shared with other routers is sound."""
    caplog.set_level(logging.WARNING, "headroom")
    async with (
        ScriptedEngine([stream("a", "b", "c", usage=CACHED_BESIDE)]) as engine,
        Pages(dict(HEALTHY)) as pages,
        router(tmp_path / "r.yaml", config(backend("a", engine, pages), more=POLICY)) as it,
    ):
        for _ in range(40):
            assert (await it.chat()).status_code == 200
        metrics = (await it.get("/metrics")).text
        assert 'headroom_dropped_numbers_total{source="usage"} 40.0' in metrics
        assert 'headroom_policy_faults_total{kind="raised",role="serving"} 0.0' in metrics
        assert await it.gateway.beliefs.keep()
        assert orjson.loads((await it.gateway.store.beliefs(["a"]))["a"])["hit"] == 0.0
        assert it.gateway.core.belief.seen(0) == 40
        await until(lambda: "480 cached tokens of 10 prompt tokens" in caplog.text)
        assert caplog.text.count("usage of a: dropped") == 1


async def test_a_page_of_metrics_whose_numbers_cannot_be_harms_nobody(tmp_path: Path) -> None:
    """Negative, infinite or beyond all measure: the engine is believed in what is left."""
    page = b"vllm:num_requests_running -5\nvllm:num_requests_waiting +Inf\nvllm:kv_cache_usage_perc 48\n"
    async with (
        ScriptedEngine([stream("a")]) as engine,
        Pages({**HEALTHY, "/metrics": (200, page)}) as pages,
        router(tmp_path / "r.yaml", config(backend("a", engine, pages), more=POLICY)) as it,
    ):
        dropped = it.gateway.core.dropped_numbers.by_source
        await until(lambda: dropped["report"] >= 3)
        assert not it.gateway.core.ledger.table.unattributed.any()
        assert (await it.chat()).status_code == 200
        assert (await it.get("/admin/fleet")).status_code == 200
