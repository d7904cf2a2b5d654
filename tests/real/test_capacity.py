"""What physics says of a KV cache, against what a real vLLM made of the memory it was given."""

import re
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from deploy.local import catalog, processes
from router.core.cards import card
from router.core.models import make_model
from router.core.physics import Shape, kv_capacity_tokens
from router.engines import read_metrics
from tests.real.world import Engines

BLOCK_TOKENS = 32
REQUESTED = re.compile(r"with ([0-9.]+) GiB requested memory")
MODELS = {
    "vllm-s": make_model("tiny-s", 7.0e6, 4, 256, 4, 2, 64, ffn=704, vocab=8192),
    "vllm-l": make_model("tiny-l", 151.0e6, 12, 1024, 16, 4, 64, ffn=2816, vocab=8192),
}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((catalog.HOST, 0))
        return int(probe.getsockname()[1])


def _unsized(engine: catalog.Engine) -> catalog.Engine:
    """The same engine on a port of its own, told a share of memory and no number of blocks."""
    port = _free_port()

    def command(home: Path) -> list[str]:
        kept = engine.command(home)[:-1]
        kept = kept[: kept.index("--max-num-seqs")]
        kept[kept.index("--port") + 1] = str(port)
        return [*kept, "--max-num-seqs", "4", "--block-size", str(BLOCK_TOKENS), "--gpu-memory-utilization", "0.25"]

    def env(home: Path) -> dict[str, str]:
        return {key: value for key, value in engine.env(home).items() if key != "VLLM_CPU_KVCACHE_SPACE"}

    name = f"{engine.name}-unsized"
    return replace(engine, name=name, ports=(port,), metrics_port=port, command=command, env=env)


@contextmanager
def _started(engine: catalog.Engine, home: Path) -> Iterator[processes.Running]:
    running = processes.start(engine, home)
    try:
        processes.wait_ready([running])
        yield running
    finally:
        running.stop()


@pytest.mark.parametrize("name", list(MODELS))
async def test_a_kv_cache_is_as_large_as_physics_says(have: Callable[..., Engines], name: str) -> None:
    """Within 10 % of `vllm:cache_config_info`, for what the engine's own log says it asked for."""
    home = have().home
    engine = _unsized(catalog.ENGINES[name])
    if reason := engine.missing(home):
        pytest.skip(reason)
    with _started(engine, home) as running:
        async with httpx.AsyncClient() as client:
            found = read_metrics((await client.get(engine.metrics_url)).content)
        asked = REQUESTED.search(running.log.read_text(errors="replace"))
    assert found is not None
    assert asked is not None
    computes = catalog.dtype()
    shape = Shape(
        replace(card("cpu"), memory_bytes=float(asked[1]) * 2**30),
        MODELS[name],
        precision=computes,
        kv_precision=computes,
    )
    assert kv_capacity_tokens(shape, 1.0, BLOCK_TOKENS) == pytest.approx(found.kv_tokens_max, rel=0.1)
