"""CPU microseconds of one build: a decision, a streamed token, a short request, a replayed request.

Each figure is measured in short rounds, so that those of two builds can alternate (``beside.py``): a processor is now
and then half as fast for a while. Leans on names that are older than both builds. As a program, with PYTHONPATH at any
tree: reads names of figures, and answers each with the figure of one round.
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
WARM: Final = 600  # decisions before the first that is timed: as many as explanations are kept of, and some
CHUNK: Final = chunked(event(token(" token") | {"created": 1790000000, "model": "m", "usage": None}))
USAGE: Final = {"prompt_tokens": 330, "completion_tokens": 1, "total_tokens": 331}
END: Final = chunked(event({"choices": [], "usage": USAGE}), event("[DONE]")) + LAST
POOL: Final = """
slo: chat:ttft=2s,tpot=100ms
backends:
  - {name: a, card: a100-80g-sxm, model: llama-3-8b, count: 8}
"""
Round = Callable[[], float]


class Decisions:
    """slo_headroom over backends of which each runs some streams."""

    def __init__(self, backends: int, count: int) -> None:
        """``count`` decisions a round."""
        policy, admission = policies.find("routing", "slo_headroom", {}), policies.find("admission", "deadline", {})
        self.core = Dispatcher(policy, admission, random.Random(1))
        for n in range(backends):
            self.core.backend_joined(backend(f"b{n}", slower=1.0 + n % 3 / 10), 0.0)
        self.streams, self.between_s = STREAMS * backends, STREAM_S / (STREAMS * backends)
        self.slo = Slo(ttft_s=2.0, tpot_s=0.1, e2e_s=60.0, quantile=0.9)
        self.running: deque[tuple[str, int]] = deque()
        self.asked, self.count = 0, count
        for _ in range(self.streams + WARM):
            self.decide()

    def decide(self) -> float:
        """Microseconds of one whole decision; a stream begins, and the oldest ends."""
        self.asked += 1
        now_s = self.asked * self.between_s
        arrived = request(f"r{self.asked}", arrived_s=now_s, prompt_tokens=100 + self.asked % 900, slo=self.slo)
        began = thread_time_ns()
        commands = self.core.arrived(arrived, now_s)
        ended = thread_time_ns()
        if type(commands[0]).__name__ == "Send":
            self.core.first_token(arrived.id, 1, now_s + self.between_s / 4)
            self.running.append((arrived.id, arrived.prompt_tokens))
        if len(self.running) > self.streams:
            request_id, prompt_tokens = self.running.popleft()
            self.core.ended(request_id, 1, Usage(REPLY_TOKENS, prompt_tokens), now_s + self.between_s / 2)
        return (ended - began) / 1e3

    def __call__(self) -> float:
        """The median of a round."""
        return float(np.median([self.decide() for _ in range(self.count)]))


def wire(count: int, *, token_only: bool) -> float:
    """The gateway's own work for a token or a request, with the wire in memory: the mean of so many."""
    return asyncio.run(_on_the_wire(count, token_only))


async def _on_the_wire(count: int, token_only: bool) -> float:
    bench, prompt = Bench(), chat(messages=[{"role": "user", "content": "hello world " * 160}])

    def one() -> None:
        bench.sends(prompt)
        bench.answers(STREAM_HEAD + CHUNK)
        bench.answers(END)
        bench.client.written = b""
        for connection in bench.upstream.open:
            connection.transport.written = b""  # type: ignore[attr-defined]

    act: Callable[[], object] = one
    if token_only:
        bench.client.write = lambda _: None  # type: ignore[method-assign, assignment]
        bench.sends(prompt)
        bench.answers(STREAM_HEAD + CHUNK)
        (connection,) = bench.busy()
        act = partial(connection.data_received, CHUNK)
    for _ in range(count // 4):
        act()
    began = thread_time_ns()
    for _ in range(count):
        act()
    took_us = (thread_time_ns() - began) / count / 1e3
    if token_only:
        bench.ends()
    return took_us


def replay(policy: str, requests: int) -> float:
    """A request of a replay over eight replicas, by the simulator's own count of its CPU time."""
    with tempfile.TemporaryDirectory() as folder:
        pool = Path(folder) / "pool.yaml"
        pool.write_text(POOL, encoding="utf-8")
        workload = f"gen:poisson:rate=20,requests={requests},lengths=azure-conv"
        command = [sys.executable, "-P", "-m", "simulator", "replay", workload, "--policy", policy, "--json", "-"]
        result = subprocess.run([*command, "--pool", str(pool)], check=True, stdout=subprocess.PIPE)
    return float(json.loads(result.stdout)["runs"][policy]["cpu_s"]) / requests * 1e6


FIGURES: Final[dict[str, tuple[int, Callable[[], Round]]]] = {
    "decision over 8": (40, lambda: Decisions(8, 150)),
    "decision over 100": (40, lambda: Decisions(100, 80)),
    "decision over 1000": (40, lambda: Decisions(1000, 25)),
    "streamed token": (60, lambda: partial(wire, 3_000, token_only=True)),
    "short request": (60, lambda: partial(wire, 60, token_only=False)),
    "replay, round_robin": (3, lambda: partial(replay, "round_robin", 20_000)),
    "replay, slo_headroom": (3, lambda: partial(replay, "slo_headroom", 10_000)),
}
"""Each figure's rounds, and what measures one."""


def main() -> None:
    """Answer until the input ends."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)  # as the gateway sets it
    rounds: dict[str, Round] = {}
    for name in map(str.strip, sys.stdin):
        if name not in rounds:
            rounds[name] = FIGURES[name][1]()
            rounds[name]()
        print(rounds[name](), flush=True)


if __name__ == "__main__":
    main()
