"""A replay against an emulated engine in real time behind HTTP: the same requests, the same truth, the same latencies.

What is left between them is the API server's own work, the event loop and the machine. Run with ``make bench``.
"""

import asyncio
import json
import sys
from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

import policies
from simulator.pool import Member, Pool
from simulator.run.play import play
from simulator.workload.arrivals import Arrival, Shaping
from simulator.workload.generators import generate, parse_recipe
from simulator.world import World

WORKLOAD = "gen:poisson:rate=4,requests=200"
QUANTILES = (50, 90, 99)
Floats = NDArray[np.float64]


def replayed(arrivals: Sequence[Arrival]) -> tuple[Floats, Floats]:
    """TTFT and TPOT of the replay, in order of arrival."""
    pool = Pool((Member("live", "a100", network_s=0.0003),), world=World(scrape_s=0.0))
    run = play(arrivals, pool, policies.find("routing", "round_robin"), policies.find("admission", "deadline"), 0)
    order = np.argsort(run.table.column("arrived_s"))
    return run.table.ttft_s()[order], run.table.tpot_s()[order]


async def asked(port: int, number: int, arrival: Arrival, zero_s: float) -> tuple[float, float]:
    """TTFT and TPOT of one request, sent in its time; every prompt begins differently, so nothing is cached."""
    loop = asyncio.get_running_loop()
    await asyncio.sleep(max(0.0, zero_s + arrival.request.arrived_s - loop.time()))
    prompt = f"{number:04d}" * arrival.request.prompt_tokens
    body = {"prompt": prompt, "max_tokens": arrival.output_tokens, "ignore_eos": True, "stream": True}
    data = json.dumps(body).encode()
    began_s = loop.time()
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 24)
    writer.write(b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%b" % (len(data), data))
    await reader.readuntil(b"data: ")
    first_s = loop.time()
    await reader.readuntil(b"[DONE]")
    writer.close()
    after = arrival.output_tokens - 1
    return first_s - began_s, (loop.time() - first_s) / after if after else float("nan")


async def live(arrivals: Sequence[Arrival]) -> tuple[Floats, Floats]:
    """The same over a socket, from an engine in a process of its own."""
    command = (sys.executable, "-m", "simulator", "serve", "--card", "a100", "--name", "live", "--port", "0")
    engine = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    try:
        assert engine.stdout is not None
        port = int((await engine.stdout.readline()).decode().rsplit(":", 1)[1])
        zero_s = asyncio.get_running_loop().time() + 0.2
        times = await asyncio.gather(*(asked(port, n, arrival, zero_s) for n, arrival in enumerate(arrivals)))
    finally:
        engine.terminate()
        await engine.wait()
    ttft_s, tpot_s = np.array(times).T
    return ttft_s, tpot_s


@pytest.mark.benchmark
async def test_an_engine_in_real_time_is_as_fast_as_its_replay() -> None:
    """TTFT and TPOT, p50 to p99, within 10 % on a machine that does other things too (5 % on a quiet one)."""
    arrivals = list(generate(parse_recipe(WORKLOAD), Shaping("llama-3-8b"), 5))
    simulated, lived = replayed(arrivals), await live(arrivals)
    for name, virtual, real in zip(("TTFT", "TPOT"), simulated, lived, strict=True):
        ratios = np.nanpercentile(real, QUANTILES) / np.nanpercentile(virtual, QUANTILES)
        print(f"\n{name} live / replayed, p50 p90 p99: {' '.join(f'{ratio:.3f}' for ratio in ratios)}")
        assert ratios == pytest.approx(1.0, abs=0.1)
