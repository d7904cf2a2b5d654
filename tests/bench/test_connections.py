"""What a connection costs in memory, on a small scale: `python -m tests.bench.connections` is the full one."""

import pytest

from tests.bench.connections import measured

pytestmark = pytest.mark.benchmark
KIB_MAX = 12.0


async def test_an_idle_connection_and_a_stream_take_little_memory() -> None:
    """Each kind, once the client's connections have had a request."""
    found = await measured(idle=4_000, streams=400, workers=1, holders=2)
    print("\n" + ", ".join(f"{name} {value:.2f}" for name, value in found.items()))
    assert max(found["idle_fresh_kib"], found["idle_used_kib"], found["stream_kib"]) <= KIB_MAX
