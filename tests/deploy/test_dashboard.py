"""The Grafana dashboard: made from its source, limited by its variables, every query answered by a real Prometheus."""

import asyncio
import json
import re
import shutil
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from deploy.grafana.__main__ import FILE
from deploy.grafana.dashboard import VARIABLES, dashboard
from tests.fakes_router import HEALTHY, backend, config, router
from tests.fakes_wire import ScriptedEngine, reply, stream
from tests.pages import Pages
from tests.redis_server import free_port
from tests.waiting import until_async

PROMETHEUS, PROMTOOL = shutil.which("prometheus"), shutil.which("promtool")
ALERTS = FILE.parents[2] / "prometheus" / "alerts.yml"
USAGE = {"prompt_tokens": 12, "completion_tokens": 3, "total_tokens": 15}
# Panels of what a single router with one healthy engine, no autoscaler and no trial has nothing of.
EMPTY = {
    "Down, by reason: since", "Shadow: agreed", "Canary: requests", "Replicas", "Advice applied, by outcome",
    "Faults", "Implausible numbers dropped", "Coverage of the predicted quantiles", "Held: for how long",
    "Changes between routers: messages a second, peers that push",
    "Recent median error", "TTFT over predicted", "TPOT over predicted", "Not served: after how long",
}  # fmt: skip


def panels() -> list[dict[str, Any]]:
    return [panel for panel in dashboard()["panels"] if panel["type"] != "row"]


def queries() -> list[tuple[str, str]]:
    """Panel and query, with the variables as Grafana fills them in when all is chosen."""
    return [
        (panel["title"], target["expr"].replace("$__rate_interval", "20s").replace("\n", " "))
        for panel in panels()
        for target in panel["targets"]
    ]


def filled(expr: str) -> str:
    return re.sub(r'"\$[a-z]+"', '".*"', expr)


def test_the_file_is_what_its_source_makes() -> None:
    """`python -m deploy.grafana` after a change."""
    assert json.loads(FILE.read_text()) == dashboard()


def test_panels_stand_beside_and_below_each_other() -> None:
    """None covers another, and each has its place in a row."""
    cells: set[tuple[int, int]] = set()
    for panel in dashboard()["panels"]:
        place = panel["gridPos"]
        own = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not own & cells
        assert max(x for x, _ in own) < 24
        cells |= own
    assert len({panel["id"] for panel in dashboard()["panels"]}) == len(dashboard()["panels"])


def test_every_query_follows_the_variables() -> None:
    """The data source by variable, windows of rates by the scrape interval, series by pool (not the autoscaler's)."""
    known = {name for name, *_ in VARIABLES} | {"__rate_interval"}
    for panel in panels():
        assert panel["datasource"]["uid"] == "${datasource}"
        for target in panel["targets"]:
            expr = target["expr"]
            assert set(re.findall(r"\$(\w+)", expr)) <= known
            assert not re.search(r"\[\d", expr)
            ours = [
                name for name in re.findall(r"\b(headroom[_:][\w:]+|process_\w+)\{", expr) if "_replicas_" not in name
            ]
            if "headroom_autoscale" not in expr:
                assert expr.count('job=~"$pool"') == len(ours)
    rows = [panel["title"] for panel in dashboard()["panels"] if panel["type"] == "row"]
    assert rows == ["SLO", "Forecast", "Engines", "Policy", "Autoscaler", "Routers"]


@pytest.mark.skipif(PROMTOOL is None, reason="promtool is not installed (Debian: apt-get install prometheus)")
def test_prometheus_can_read_every_query(tmp_path: Path) -> None:
    """As the expression of a rule each."""
    rules = [{"record": f"panel:{number}", "expr": filled(expr)} for number, (_, expr) in enumerate(queries())]
    file = tmp_path / "rules.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    done = subprocess.run([str(PROMTOOL), "check", "rules", file], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.skipif(PROMETHEUS is None, reason="prometheus is not installed (Debian: apt-get install prometheus)")
async def test_prometheus_has_an_answer_to_every_query(tmp_path: Path) -> None:
    """It scrapes a real router, with the rules of the alerts; only panels of what is not there are empty."""
    port = free_port()
    scrape = {"job_name": "headroom", "scrape_interval": "200ms"}
    async with (
        ScriptedEngine(
            [stream("a", "b", "c", usage=USAGE)], [reply(b"{}", 500)], [stream("a", "b", usage=USAGE)]
        ) as one,
        Pages(HEALTHY | {"/metrics": (200, _VLLM)}) as pages,
        router(tmp_path / "r.yaml", config(backend("a", one, pages))) as made,
    ):
        (tmp_path / "p.yml").write_text(
            yaml.safe_dump(
                {
                    "global": {"scrape_interval": "1s", "evaluation_interval": "200ms"},
                    "rule_files": [str(ALERTS)],
                    "scrape_configs": [scrape | {"static_configs": [{"targets": [f"127.0.0.1:{made.port}"]}]}],
                }
            )
        )
        await made.chat()
        process = await asyncio.create_subprocess_exec(
            str(PROMETHEUS), f"--config.file={tmp_path / 'p.yml'}", f"--storage.tsdb.path={tmp_path / 'data'}",
            f"--web.listen-address=127.0.0.1:{port}", "--log.level=error",
        )  # fmt: skip
        try:
            async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=30, trust_env=False) as client:
                empty = {title for title, _ in queries()}

                async def answered() -> bool:
                    assert process.returncode is None, "Prometheus has ended"
                    await made.chat()
                    for title, expr in queries():
                        if title in empty and await _has_answer(client, title, filled(expr)):
                            empty.discard(title)
                    return not empty - EMPTY

                try:
                    await until_async(answered)
                except TimeoutError:
                    raise AssertionError(f"no answer: {sorted(empty - EMPTY)}") from None
        finally:
            process.terminate()
            await process.wait()


async def _has_answer(client: httpx.AsyncClient, title: str, expr: str) -> bool:
    with suppress(httpx.ConnectError):  # it does not listen yet
        got = await client.get("/api/v1/query", params={"query": expr})
        if got.status_code == httpx.codes.SERVICE_UNAVAILABLE:  # nor has it read its storage
            return False
        answer = got.json()
        assert answer["status"] == "success", (title, answer)
        return bool(answer["data"]["result"])
    return False


_VLLM = b"vllm:num_requests_running 0\nvllm:num_requests_waiting 0\nvllm:kv_cache_usage_perc 0.25\n"
