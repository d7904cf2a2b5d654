"""Reloads under 500 short streams a second: what they cost the requests that are there. `make bench` prints it."""

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from time import monotonic
from typing import Any

import httpx
import pytest

from tests.redis_server import free_port
from tests.waiting import until_async

pytestmark = pytest.mark.benchmark

RATE, QUIET_S, BUSY_S = 500, 10, 20
CONFIG = """listen: {{port: {port}}}
backends:
  - {{name: a, url: "http://127.0.0.1:{engine}", models: [m], card: h20, model: qwen3-4b}}
  - {{name: b, url: "http://127.0.0.1:{engine}", models: [m], card: l20, model: qwen3-4b}}
slo_classes: {{default: {{ttft_ms: {ttft_ms}, tpot_ms: 200}}}}
policy: {{routing: {routing}, limits: {{attempts_max: {attempts}}}}}
"""


@asynccontextmanager
async def process(*arguments: str, **options: Any) -> AsyncIterator[asyncio.subprocess.Process]:
    """A Python process, ended at the end."""
    made = await asyncio.create_subprocess_exec(sys.executable, *arguments, **options)
    try:
        yield made
    finally:
        with suppress(ProcessLookupError):
            made.terminate()
        await made.wait()


async def up(url: str) -> bool:
    """Whether it answers 200."""
    with suppress(httpx.HTTPError):
        async with httpx.AsyncClient(trust_env=False) as asking:
            return (await asking.get(url)).status_code == 200
    return False


async def until_up(url: str) -> None:
    """Wait until it answers 200: seldom enough that what starts has the processor."""
    await until_async(lambda: up(url), 0.1)


def told(seen: list[list[float]], from_s: float, to_s: float) -> dict[str, float]:
    """Milliseconds of the requests sent in a stretch."""
    took = sorted(ms for at_s, ms in seen if from_s <= at_s < to_s)
    at = {name: took[min(len(took) - 1, int(share * len(took)))] for name, share in (("p50", 0.5), ("p99", 0.99))}
    return {"requests": len(took), **at, "p99.9": took[int(0.999 * len(took))], "max": took[-1]}


async def test_no_request_is_lost_or_slowed_by_reloads(tmp_path: Path) -> None:
    """Ten quiet seconds, then a reload a second (half of them bad, the good ones validated), twice as long."""
    port, engine = free_port(), free_port()
    path = tmp_path / "r.yaml"

    def text(routing: str, ttft_ms: int, attempts: int = 3) -> str:
        return CONFIG.format(port=port, engine=engine, routing=routing, ttft_ms=ttft_ms, attempts=attempts)

    path.write_text(text("least_work", 900), encoding="utf-8")
    url = f"http://127.0.0.1:{port}"
    paced = ("-m", "tests.bench.paced")
    async with (
        process(*paced, "engine", str(engine)),
        process("-m", "router", "serve", "--config", str(path), stderr=asyncio.subprocess.DEVNULL),
    ):
        await until_up(f"{url}/readyz")
        async with process(
            *paced, "client", str(port), str(RATE), str(QUIET_S + BUSY_S), stdout=asyncio.subprocess.PIPE
        ) as client:
            began_s = monotonic()
            outcomes, asked_s = [], []
            await asyncio.sleep(QUIET_S)
            async with httpx.AsyncClient(timeout=60, trust_env=False) as admin:
                while monotonic() - began_s < QUIET_S + BUSY_S - 1:
                    number = len(outcomes)
                    good = text(("least_work", "least_request")[number // 2 % 2], 900 + number)
                    path.write_text(good + ("" if number % 2 == 0 else "polcy: {}\n"), encoding="utf-8")
                    asked_s.append(monotonic() - began_s)
                    outcomes.append((await admin.post(f"{url}/admin/reload")).json())
                    await asyncio.sleep(1.0)
            out, _ = await client.communicate()
    run = json.loads(out)
    validations = [
        outcome["validation"]["took_s"] for outcome in outcomes if outcome["validation"]["result"] == "passed"
    ]
    quiet, busy = told(run["seen"], 1, QUIET_S), told(run["seen"], QUIET_S, QUIET_S + BUSY_S)
    limit = quiet["p50"] + 20
    late = {
        name: sum(ms > limit for at_s, ms in run["seen"] if low <= at_s < high)
        for name, low, high in (("quiet", 1, QUIET_S), ("reloading", QUIET_S, QUIET_S + BUSY_S))
    }
    lost = run["asked"] - sum(ms >= 0 for _, ms in run["seen"])
    print(
        f"\n{RATE} req/s; {len(outcomes)} reloads, {sum(o['ok'] for o in outcomes)} taken, {len(validations)} validated"
    )
    print(
        f"quiet:     {quiet}\nreloading: {busy}\nover quiet p50 + 20 ms: {late}; lost {lost}"
        f"; validations (s) {validations}"
    )
    for at_s, until_s, outcome in zip(asked_s, [*asked_s[1:], QUIET_S + BUSY_S], outcomes, strict=True):
        after = [
            round(sent_s - at_s, 2) for sent_s, ms in run["seen"] if at_s - 0.1 <= sent_s < until_s - 0.1 and ms > limit
        ]
        result = outcome["validation"]["result"] if outcome["ok"] else "bad"
        print(f"  reload at {at_s:5.1f} s ({result}): {len(after)} late, sent {after[:1]} to {after[-1:]} s after it")
    assert lost == 0
    assert {outcome["ok"] for outcome in outcomes} == {True, False}
