"""How soon ``serve`` answers where none of our sources has a byte-code cache, and how steadily from then on.
``make bench`` prints it.

Measured from outside: connections until one is taken, then /healthz every 10 ms on one connection.
"""

import asyncio
import resource
import shutil
import sys
from contextlib import suppress
from pathlib import Path
from time import monotonic

import httpx
import pytest

from router.compiled import PACKAGES
from router.search_path import ROOT, environment, module_command
from tests.redis_server import free_port

pytestmark = pytest.mark.benchmark

FIRST_S_MAX, GAP_S_MAX = 3.0, 0.1
PERIOD_S, WATCHED_S = 0.01, 5.0
CONFIG = """
listen: {{port: {port}}}
backends:
  - {{name: a, url: "http://127.0.0.1:9", models: [m], card: l4, model: qwen3-4b}}
"""


async def first_answer_s(client: httpx.AsyncClient, began_s: float) -> float:
    """Seconds from *began_s* to the first answer."""
    while True:
        with suppress(httpx.TransportError):
            await client.get("/healthz")
            return monotonic() - began_s
        await asyncio.sleep(PERIOD_S)


async def longest_answer_s(client: httpx.AsyncClient) -> float:
    """The longest that an answer took, of one every period."""
    longest_s, until_s = 0.0, monotonic() + WATCHED_S
    while (now_s := monotonic()) < until_s:
        assert (await client.get("/healthz")).status_code == 200
        longest_s = max(longest_s, monotonic() - now_s)
        await asyncio.sleep(PERIOD_S)
    return longest_s


@pytest.mark.parametrize("workers", [1, 2])
async def test_serve_answers_soon_and_steadily(workers: int, tmp_path: Path) -> None:
    """Nothing that takes long is left for after the port is open."""
    port, path = free_port(), tmp_path / "r.yaml"
    path.write_text(CONFIG.format(port=port), encoding="utf-8")
    for package in PACKAGES:
        shutil.copytree(Path(ROOT, package), tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    began_s = monotonic()
    process = await asyncio.create_subprocess_exec(
        *module_command("router", "serve", "-c", str(path), "--workers", str(workers)),
        env={**environment(), "PYTHONPATH": str(tmp_path)},
    )
    try:
        async with (
            asyncio.timeout(60),
            httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client,
        ):
            first_s = await first_answer_s(client, began_s)
            longest_s = await longest_answer_s(client)
    finally:
        process.terminate()
        await process.wait()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    took = (
        f"first /healthz after {first_s:.2f} s, longest of {WATCHED_S:g} s {longest_s * 1e3:.0f} ms, {cpu_s:.2f} CPU s"
    )
    sys.stdout.write(f"\n{workers} workers: {took}\n")
    assert first_s < FIRST_S_MAX
    assert longest_s < GAP_S_MAX
