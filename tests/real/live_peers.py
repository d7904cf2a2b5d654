"""Attainment beside the peers' gateways, as vLLM's own load client counts it: `python -m tests.real.live_peers`.

Two vLLM servers of unequal size; before them one gateway after the other: Headroom, vllm-router and sglang-router
(`pip install vllm-router sglang-router` somewhere; `--peers` names that environment). The client is `vllm bench serve`,
Poisson arrivals, with `--goodput`. Capacity is what the two engines serve a second when they are never without work
(measured first, through Headroom, or given by `--capacity`); the rate is 80 % of it. A request that failed, was refused
or missed either bound counts as missed. With `--pilot S` each peer's policies are tried so long, the best goes on.
"""

import argparse
import asyncio
import json
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploy.local import catalog, processes
from tests.real.world import MODEL, backend, serving

ENGINES = ("vllm-s", "vllm-l")
PEERS: dict[str, tuple[str, ...]] = {
    "vllm-router": ("power_of_two", "cache_aware", "round_robin"),
    "sglang-router": ("power_of_two", "cache_aware", "round_robin"),
}
URLS = tuple(catalog.ENGINES[name].url for name in ENGINES)


@dataclass(frozen=True, slots=True)
class Load:
    """What the client asks for: lengths in tokens (give or take a half), the SLO in milliseconds, arrivals a second
    (0: as many as ``at_once`` allow), and for how long.
    """

    prompt: int
    reply: int
    ttft_ms: float
    tpot_ms: float
    rate: float
    seconds: float
    seed: int
    at_once: int = 0

    def options(self) -> list[str]:
        """For `vllm bench serve`."""
        count = int(self.rate * self.seconds) if self.rate else int(self.seconds)
        pace = ["--request-rate", f"{self.rate:g}"] if self.rate else ["--max-concurrency", str(self.at_once)]
        lengths = ["--random-input-len", str(self.prompt), "--random-output-len", str(self.reply)]
        goodput = ["--goodput", f"ttft:{self.ttft_ms:g}", f"tpot:{self.tpot_ms:g}"]
        return [*pace, *lengths, *goodput, "--num-prompts", str(count), "--seed", str(self.seed)]


@dataclass(frozen=True, slots=True)
class Result:
    """``attained``: the share of all requests that kept both bounds; ``per_s``: requests that ended a second, the first
    and the last fifth left out; latencies in milliseconds.
    """

    who: str
    asked: int
    completed: int
    attained: float
    per_s: float
    ttft_p50: float
    ttft_p99: float
    tpot_p50: float
    tpot_p99: float

    def line(self) -> str:
        """One row."""
        times = f"{self.ttft_p50:9.0f} {self.ttft_p99:9.0f} {self.tpot_p50:9.1f} {self.tpot_p99:9.1f}"
        return f"{self.who:32} {self.asked:6d} {self.completed:9d} {self.attained:8.2%} {times}"


HEADER = f"{'gateway':32} {'asked':>6} {'completed':>9} {'attained':>8} " + " ".join(
    f"{name:>9}" for name in ("TTFT p50", "p99 ms", "TPOT p50", "p99 ms")
)


def bench(who: str, url: str, home: Path, load: Load, out: Path) -> Result:
    """One run of the client against the gateway at *url*."""
    name = f"{who.replace(' ', '-')}-{int(time.time())}.json"
    where = ["--base-url", url, "--endpoint", "/v1/chat/completions", "--backend", "openai-chat", "--model", MODEL]
    what = ["--tokenizer", str(home / "models/tiny-s"), "--dataset-name", "random", "--random-range-ratio", "0.5"]
    saved = [
        "--save-result",
        "--save-detailed",
        "--result-dir",
        str(out),
        "--result-filename",
        name,
        "--disable-tqdm",
        "--ignore-eos",
    ]
    command = [str(home / "vllm/bin/vllm"), "bench", "serve", *where, *what, *saved, *load.options()]
    env = {**catalog.ENGINES["vllm-s"].env(home), "PATH": "/usr/bin:/bin", "HOME": str(out)}
    pinned = ["taskset", "-c", ",".join(map(str, processes.RIM_CPUS))]
    done = subprocess.run([*pinned, *command], env=env, capture_output=True, text=True, check=False)
    (out / name).with_suffix(".log").write_text(done.stdout + done.stderr)
    if done.returncode:
        raise RuntimeError(f"vllm bench serve: {done.stderr[-2000:]}")
    found = json.loads((out / name).read_text())
    return _result(who, found)


def _result(who: str, found: dict[str, Any]) -> Result:
    seconds, asked = float(found["duration"]), int(found["num_prompts"])
    kept = float(found.get("request_goodput") or 0.0) * seconds
    times = [float(found[f"{p}_{name}_ms"]) for name in ("ttft", "tpot") for p in ("median", "p99")]
    return Result(who, asked, int(found["completed"]), kept / asked, _per_s(found), *times)


def _per_s(found: dict[str, Any]) -> float:
    spent = [first + sum(gaps) for first, gaps in zip(found["ttfts"], found["itls"], strict=True)]
    ends = sorted(began + each for began, each in zip(found["start_times"], spent, strict=True))
    low, high = len(ends) // 5, len(ends) * 4 // 5
    return (high - low) / (ends[high] - ends[low])


@asynccontextmanager
async def headroom(out: Path, load: Load, policy: str) -> AsyncIterator[str]:
    """Our gateway, told the same SLO; it knows of these engines what it learns."""
    promised = {"default": {"ttft_ms": load.ttft_ms, "tpot_ms": load.tpot_ms}}
    sections = {"slo_classes": promised, "policy": {"routing": policy}, "record": {"file": str(out / "record.jsonl")}}
    async with serving(out, *map(backend, ENGINES), **sections) as gateway:
        yield gateway.url


PROGRAMS = {"vllm-router": ("bin/vllm-router",), "sglang-router": ("bin/smg", "launch")}


def _missing(peers: Path, only: str) -> str:
    """Which peers are not installed, as a sentence; empty: none."""
    absent = [who for who, (path, *_) in PROGRAMS.items() if only in ("", who) and not (peers / path).exists()]
    return f"not installed in {peers}: {', '.join(absent)}; pip install them there" if absent else ""


def _command(peers: Path, who: str, policy: str, port: int) -> list[str]:
    path, *verb = PROGRAMS[who]
    program = [str(peers / path), *verb]
    where = ["--host", "127.0.0.1", "--port", str(port), "--prometheus-port", str(port + 1)]
    return [*program, "--worker-urls", *URLS, "--policy", policy, *where]


@contextmanager
def peer(peers: Path, who: str, policy: str, port: int, out: Path) -> Iterator[str]:
    """A peer's gateway, on the cores of whatever serves, ready."""
    log = out / f"{who}-{policy}.log"
    with log.open("wb") as file:
        process = subprocess.Popen(_command(peers, who, policy, port), stdout=file, stderr=file)
    processes.set_affinity(process.pid, processes.RIM_CPUS)
    try:
        for _ in range(300):
            if processes.http_ok(f"http://127.0.0.1:{port}/health"):
                break
            time.sleep(0.2)
        else:
            raise RuntimeError(f"{who} did not answer; its log: {log}")
        time.sleep(2.0)  # its own checks of the engines
        yield f"http://127.0.0.1:{port}"
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@dataclass(frozen=True, slots=True)
class Match:
    """One comparison: who, where, and what is said of each run as soon as it is over."""

    home: Path
    peers: Path
    out: Path
    say: Callable[[str], None] = print

    async def ours(self, load: Load, policy: str = "slo_headroom", warm: int = 60) -> Result:
        """Headroom; ``warm`` requests before that are not counted, for it starts from a guess."""
        async with headroom(self.out, load, policy) as url:
            if warm:
                first = Load(load.prompt, load.reply, load.ttft_ms, load.tpot_ms, 0.0, warm, load.seed + 1000, 8)
                await asyncio.to_thread(bench, "warm-up", url, self.home, first, self.out)
            return await self._run(f"headroom {policy}", url, load)

    async def theirs(self, who: str, policy: str, load: Load) -> Result:
        """A peer's."""
        with peer(self.peers, who, policy, 8290, self.out) as url:
            return await self._run(f"{who} {policy}", url, load)

    async def _run(self, who: str, url: str, load: Load) -> Result:
        found = await asyncio.to_thread(bench, who, url, self.home, load, self.out)
        self.say(found.line())
        return found


async def compare(match: Match, load: Load, pilot_s: float, capacity: float, only: str) -> None:
    """Capacity, the peers' best policies, then everybody at the rate."""
    if not capacity:
        everything = Load(load.prompt, load.reply, 1e9, 1e9, 0.0, 300, load.seed, 24)
        full = await match.ours(everything)
        capacity = full.per_s
    rate = round(0.8 * capacity, 2)
    match.say(f"capacity {capacity:.2f} requests/s; rate {rate} for {load.seconds:g} s\n{HEADER}")
    at = Load(load.prompt, load.reply, load.ttft_ms, load.tpot_ms, rate, load.seconds, load.seed)
    if only in ("", "headroom"):
        await match.ours(at)
    for who, policies in PEERS.items():
        if only in ("", who):
            await match.theirs(who, await _best(match, who, policies, at, pilot_s), at)


async def _best(match: Match, who: str, policies: tuple[str, ...], load: Load, pilot_s: float) -> str:
    if not pilot_s:
        return policies[0]
    short = Load(load.prompt, load.reply, load.ttft_ms, load.tpot_ms, load.rate, pilot_s, load.seed + 500)
    found = {policy: await match.theirs(who, policy, short) for policy in policies}
    return max(found, key=lambda policy: found[policy].attained)


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", type=Path, required=True, help="the environment with vllm-router and sglang-router")
    parser.add_argument("--out", type=Path, default=Path("live-peers"))
    parser.add_argument("--seconds", type=float, default=600.0, help="of each run")
    parser.add_argument("--pilot", type=float, default=60.0, help="seconds for each policy of a peer; 0: power_of_two")
    parser.add_argument("--prompt", type=int, default=256, help="tokens, mean")
    parser.add_argument("--reply", type=int, default=64, help="tokens, mean")
    parser.add_argument("--ttft", type=float, default=1000.0, help="SLO, ms")
    parser.add_argument("--tpot", type=float, default=100.0, help="SLO, ms")
    parser.add_argument("--capacity", type=float, default=0.0, help="requests a second; 0: measure it")
    parser.add_argument("--only", default="", choices=["", "headroom", *PEERS])
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    load = Load(given.prompt, given.reply, given.ttft, given.tpot, 0.0, given.seconds, given.seed)
    if absent := _missing(given.peers, given.only):
        print(absent, file=sys.stderr)
        return 1
    processes.pin_client()
    try:
        home = catalog.home_folder()
        with processes.there(ENGINES, home):
            match = Match(home, given.peers, given.out.resolve())
            asyncio.run(compare(match, load, given.pilot, given.capacity, given.only))
    except (catalog.EngineError, RuntimeError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
