"""CPU microseconds of one build as JSON: a decision, a streamed token, a short request, a replayed request.

Runs against whatever tree PYTHONPATH names, so that two builds can be measured in turn (``beside.py``): leans on names
that are older than both. ``python -P tests/bench/figures.py [FIGURE ...]``; all without arguments.
"""

import asyncio
import gc
import json
import random
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Callable
from functools import partial
from pathlib import Path
from time import thread_time_ns
from typing import Final

import numpy as np

import policies
from router.core.dispatcher import Dispatcher
from router.core.types import Slo, Usage
from tests.fakes import backend, request
from tests.fakes_wire import LAST, STREAM_HEAD, chat, chunked, event, token
from tests.gateway.test_wire_fuzz import Bench

STREAMS: Final = 3  # that run on each backend at a time
STREAM_S: Final = 0.6
REPLY_TOKENS: Final = 50
RUNS: Final = 2  # that are the same to the last decision: of each step the least counts
POOL: Final = """
slo: chat:ttft=2s,tpot=100ms
backends:
  - {name: a, card: a100-80g-sxm, model: llama-3-8b, count: 8}
"""


def decision_us(backends: int, requests: int) -> float:
    """A whole decision (``Dispatcher.arrived``) of slo_headroom where every backend runs some streams: the median."""
    return float(np.median(np.min([_decisions(backends, requests) for _ in range(RUNS)], axis=0)))


def _decisions(backends: int, requests: int) -> list[float]:
    policy, admission = policies.find("routing", "slo_headroom", {}), policies.find("admission", "deadline", {})
    core = Dispatcher(policy, admission, random.Random(1))
    for n in range(backends):
        core.backend_joined(backend(f"b{n}", slower=1.0 + n % 3 / 10), 0.0)
    slo = Slo(ttft_s=2.0, tpot_s=0.1, e2e_s=60.0, quantile=0.9)
    running: deque[tuple[str, int]] = deque()
    took = []
    warm, now_s, between_s = STREAMS * backends, 0.0, STREAM_S / (STREAMS * backends)
    for n in range(warm + requests):
        now_s += between_s
        arrived = request(f"r{n}", arrived_s=now_s, prompt_tokens=100 + n % 900, slo=slo)
        began = thread_time_ns()
        commands = core.arrived(arrived, now_s)
        ended = thread_time_ns()
        if n >= warm:
            took.append((ended - began) / 1e3)
        if type(commands[0]).__name__ == "Send":
            core.first_byte(arrived.id, 1, now_s + between_s / 4)
            running.append((arrived.id, arrived.prompt_tokens))
        if len(running) > STREAMS * backends:
            request_id, prompt_tokens = running.popleft()
            core.ended(request_id, 1, Usage(REPLY_TOKENS, prompt_tokens), now_s + between_s / 2)
    return took


def least_us(count: int, act: Callable[[], None]) -> float:
    """One *act*: the best of ten rounds."""
    rounds = []
    for _ in range(10):
        began = thread_time_ns()
        for _ in range(count):
            act()
        rounds.append((thread_time_ns() - began) / count / 1e3)
    return min(rounds)


def wire_us(token_only: bool) -> float:
    """The gateway's own work, with the wire in memory."""
    return asyncio.run(_on_the_wire(token_only))


async def _on_the_wire(token_only: bool) -> float:
    chunk = chunked(event(token(" token") | {"created": 1790000000, "model": "m", "usage": None}))
    end = chunked(event("[DONE]")) + LAST
    bench, prompt = Bench(), chat(messages=[{"role": "user", "content": "hello world " * 160}])

    def one() -> None:
        bench.sends(prompt)
        bench.answers(STREAM_HEAD + chunk)
        bench.answers(end)
        bench.client.written = b""
        for connection in bench.upstream.open:
            connection.transport.written = b""  # type: ignore[attr-defined]

    if not token_only:
        one()
        return least_us(300, one)
    bench.client.write = lambda _: None  # type: ignore[method-assign, assignment]
    bench.sends(chat())
    bench.answers(STREAM_HEAD + chunk)
    (connection,) = bench.busy()
    cost_us = least_us(5_000, lambda: connection.data_received(chunk))
    bench.ends()
    return cost_us


def replay_us(policy: str, requests: int) -> float:
    """A request of a replay over eight replicas, by the simulator's own count of its CPU time."""
    with tempfile.TemporaryDirectory() as folder:
        pool = Path(folder) / "pool.yaml"
        pool.write_text(POOL, encoding="utf-8")
        workload = f"gen:poisson:rate=20,requests={requests},lengths=azure-conv"
        command = [sys.executable, "-P", "-m", "simulator", "replay", workload, "--policy", policy, "--json", "-"]
        result = subprocess.run([*command, "--pool", str(pool)], check=True, stdout=subprocess.PIPE)
    return float(json.loads(result.stdout)["runs"][policy]["cpu_s"]) / requests * 1e6


FIGURES: Final[dict[str, Callable[[], float]]] = {
    "decision over 8": partial(decision_us, 8, 2000),
    "decision over 100": partial(decision_us, 100, 1500),
    "decision over 1000": partial(decision_us, 1000, 500),
    "streamed token": partial(wire_us, True),
    "short request": partial(wire_us, False),
    "replay, round_robin": partial(replay_us, "round_robin", 20_000),
    "replay, slo_headroom": partial(replay_us, "slo_headroom", 20_000),
}


def main() -> None:
    """Print the figures whose names hold any of the arguments."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)  # as the gateway sets it
    words = sys.argv[1:] or [""]
    wanted = [name for name in FIGURES if any(word in name for word in words)]
    print(json.dumps({name: FIGURES[name]() for name in wanted}))


if __name__ == "__main__":
    main()
