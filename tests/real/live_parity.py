"""A replay in front of what real engines were measured to be: `python -m tests.real.live_parity --out FOLDER`.

Two vLLM servers of unequal size behind the gateway. First load to learn from; `python -m simulator calibrate --record`
makes coefficients of the gateway's record. Then other load, live and, with those coefficients in a pool, in the
simulator, under the same policy. Printed: TTFT, TPOT and E2E of both, and their ratio. `--judge FOLDER` calibrates and
replays again what an earlier run recorded, without engines.
"""

import argparse
import asyncio
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from random import Random
from typing import Any

import orjson
import yaml

import policies
from deploy.local import catalog, processes
from router.core.types import Request, Slo
from simulator.pool_file import load_pool
from simulator.run.play import play
from simulator.workload.arrivals import Arrival
from tests.bench.parity import compared, figures, seen_figures
from tests.real.world import CONFIG, MODEL, ROOT, backend, serving
from tests.streams import Ask, Seen, Talk, open_loop

ENGINES = ("vllm-s", "vllm-l")
SLO = Slo(ttft_s=2.0, tpot_s=0.2)
STAND_IN = {"card": "cpu", "model": "qwen2.5-0.5b"}  # all that a step takes is measured; the rest does not matter here


def asks(seed: int, rate: float, seconds: float) -> list[Ask]:
    """Poisson arrivals of varied prompts and replies."""
    talk, chance, at_s, made = Talk(seed), Random(seed), 0.0, list[Ask]()
    while (at_s := at_s + chance.expovariate(rate)) < seconds:
        made.append(Ask(f"p{len(made)}", talk.prompt(), talk.reply_tokens(), True, at_s))
    return made


async def live(out: Path, name: str, made: Sequence[Ask], policy: str, backends: Sequence[dict[str, Any]]) -> None:
    """One run, its record, and what the client saw."""
    record = out / f"{name}.record.jsonl"
    promised = {"chat": {"ttft_ms": SLO.ttft_s * 1e3, "tpot_ms": SLO.tpot_s * 1e3}}
    sections = {"slo_classes": promised, "default_slo_class": "chat", "policy": {"routing": policy}}
    async with serving(out, *backends, record={"file": str(record)}, **sections) as gateway:
        seen = await open_loop(gateway.port, made)
    (out / f"{name}.seen.json").write_bytes(orjson.dumps([asdict(each) for each in seen]))


def calibrated(record: Path) -> dict[str, dict[str, float]]:
    """Coefficients by backend, as the command prints them."""
    command = [sys.executable, "-m", "simulator", "calibrate", "--record", str(record)]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    print(said.strip())
    lines = said.splitlines()
    names = [line[2:].partition(":")[0] for line in lines if line.startswith("# ") and "streams;" in line]
    found = [yaml.safe_load(line)["coefficients"] for line in lines if line.startswith("coefficients:")]
    return dict(zip(names, found, strict=True))


def pool_file(out: Path, found: dict[str, dict[str, float]]) -> Path:
    """A pool of those engines, started as the catalog starts them; the API server's time is the measured one."""
    given = {each["name"]: each for each in yaml.safe_load(CONFIG.read_text())["backends"]}
    members = []
    for name, seconds in found.items():
        block = 32 if name == "vllm-s" else 128
        limits = {"seqs_max": given[name]["seqs_max"], "block_tokens": block, "context_tokens_max": 2048}
        limits["kv_tokens_max"] = given[name]["kv_tokens_max"]
        members.append({"name": name, **STAND_IN, **limits, "models": [MODEL], "network_ms": 0})
        members[-1]["coefficients"] = seconds
    api_s = sum(seconds["first_token_s"] for seconds in found.values()) / len(found)
    truth = {"spread": 0.0, "drift": 0.0, "api_s": api_s, "api_token_s": 0.0, "api_jitter": 0.3}
    path = out / "pool.yaml"
    path.write_text(yaml.safe_dump({"backends": members, "truth": truth}), encoding="utf-8")
    return path


def judge(out: Path, policy: str, seed: int) -> None:
    """Calibrate on the first run, replay the second."""
    pool = load_pool(pool_file(out, calibrated(out / "learn.record.jsonl")))
    rows = orjson.loads((out / "judge.seen.json").read_bytes())
    seen = [Seen(**{**row, "ask": Ask(**row["ask"])}) for row in rows]
    arrivals = [_arrival(each) for each in seen if each.tokens]
    books = play(arrivals, pool, policies.find("routing", policy), policies.find("admission", "deadline"), seed).table
    said = figures(books.ttft_s(), books.tpot_s(), books.e2e_s(), books.met())
    print(f"{len(seen)} requests under {policy}, {len(seen) - len(arrivals)} not served live")
    print("to each live:", _counts([each.backend for each in seen]))
    print("to each simulated:", _counts([books.backends[int(number)] for number in books.column("backend")]))
    print(compared(said, seen_figures(seen)))


def _arrival(seen: Seen) -> Arrival:
    request = Request(
        id=seen.ask.session, model=MODEL, arrived_s=seen.ask.at_s, prompt_tokens=seen.prompt_tokens,
        output_tokens_max=seen.ask.max_tokens, slo=SLO, slo_class="chat",
    )  # fmt: skip
    return Arrival(request, seen.tokens)


def _counts(names: Sequence[str]) -> str:
    return json.dumps({name: names.count(name) for name in sorted(set(names))})


async def run(out: Path, policy: str, rate: float, seconds: float, seed: int) -> None:
    """Both runs; the second gateway starts from what the first was measured to be."""
    await live(out, "learn", asks(seed + 1000, rate, seconds / 2), policy, [backend(name) for name in ENGINES])
    found = calibrated(out / "learn.record.jsonl")
    known = [backend(name, coefficients=found[name]) if name in found else backend(name) for name in ENGINES]
    await live(out, "judge", asks(seed, rate, seconds), policy, known)


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("live-parity"))
    parser.add_argument("--policy", default="slo_headroom")
    parser.add_argument("--rate", type=float, default=3.0, help="requests a second")
    parser.add_argument(
        "--seconds", type=float, default=240.0, help="of the run that is compared; half of it to learn from"
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--judge", type=Path, help="no run: replay what an earlier one wrote there")
    given = parser.parse_args()
    if given.judge:
        judge(given.judge, given.policy, given.seed)
        return 0
    given.out.mkdir(parents=True, exist_ok=True)
    processes.pin_client()
    try:
        home = catalog.home_folder()
        with processes.there(ENGINES, home):
            asyncio.run(run(given.out, given.policy, given.rate, given.seconds, given.seed))
    except catalog.EngineError as error:
        print(error, file=sys.stderr)
        return 1
    judge(given.out, given.policy, given.seed)
    return 0


if __name__ == "__main__":
    sys.exit(main())
