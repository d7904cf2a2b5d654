"""The same policy on the same trace, simulated and live: `python -m tests.bench.parity --seconds 300`.

Live: a gateway (`python -m router serve`) in front of emulated engines in real time, each a process.
Simulated: the same arrivals through the same pool, with the same truth under the same seed. What is left between the
two is what a replay leaves out: the gateway's own work, sockets, event loops, and the machine. Printed: TTFT, TPOT and
attainment of both, and their ratio. Nothing needs to be installed.
"""

import argparse
import asyncio
import sys
import tempfile
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

import policies
from router.core.types import Slo
from simulator.pool import Member, Pool
from simulator.run.play import play
from simulator.workload.arrivals import Arrival, Shaping, SloClass
from simulator.workload.generators import generate, parse_recipe
from simulator.world import World
from tests.bench.test_reload_load import process, until_up
from tests.redis_server import free_port
from tests.streams import Ask, Seen, open_loop

MODEL = "llama-3-8b"
SLO = Slo(ttft_s=1.0, tpot_s=0.06)
NETWORK_S = 0.0005  # two sockets on one machine, and the gateway between them
MEMBERS = tuple(
    Member(name, card, network_s=NETWORK_S) for name, card in (("a100", "a100-80g-sxm"), ("l40s", "l40s"), ("l4", "l4"))
)
POOL = Pool(MEMBERS, world=World(scrape_s=1.0))
Floats = NDArray[np.float64]
Table = dict[str, float]


def arrivals_of(rate: float, seconds: float, seed: int) -> list[Arrival]:
    """Poisson arrivals with the lengths of Azure's conversations; caps are the lengths, live too."""
    recipe = parse_recipe(f"gen:poisson:rate={rate:g},requests={int(rate * seconds)}")
    return list(generate(recipe, Shaping(MODEL, (SloClass("chat", SLO),)), seed))


def simulated(arrivals: Sequence[Arrival], policy: str, seed: int) -> Table:
    """A replay's figures."""
    table = play(arrivals, POOL, policies.find("routing", policy), policies.find("admission", "deadline"), seed).table
    return figures(table.ttft_s(), table.tpot_s(), table.e2e_s(), table.met())


def figures(ttft_s: Floats, tpot_s: Floats, e2e_s: Floats, met: NDArray[np.bool_]) -> Table:
    """What is compared."""
    columns = {"TTFT": ttft_s, "TPOT": tpot_s, "E2E": e2e_s}
    found = {f"{name} p{q}": float(np.nanpercentile(each, q)) for name, each in columns.items() for q in (50, 90, 99)}
    return found | {"attainment": float(met.mean())}


def _met(one: Seen) -> bool:
    return SLO.met(one.ttft_s, one.tpot_s if one.tokens > 1 else 0.0, one.e2e_s, np.nan, one.tokens)


def seen_figures(seen: Sequence[Seen]) -> Table:
    """The client's."""
    ttft_s, tpot_s, e2e_s = np.array([(s.ttft_s, s.tpot_s, s.e2e_s) for s in seen]).T
    met = np.array([s.tokens > 0 and _met(s) for s in seen])
    served = np.array([s.tokens > 0 for s in seen])
    return figures(*(np.where(served, each, np.nan) for each in (ttft_s, tpot_s, e2e_s)), met)


def asks_of(arrivals: Sequence[Arrival]) -> list[Ask]:
    """Every prompt begins differently, so nothing is cached; four characters are a token to an emulated engine."""
    return [
        Ask(
            f"r{n}",
            f"{n:06d}" + "word" * (a.request.prompt_tokens - 1),
            a.output_tokens,
            True,
            a.request.arrived_s,
            MODEL,
        )
        for n, a in enumerate(arrivals)
    ]


async def live(arrivals: Sequence[Arrival], policy: str, seed: int, folder: Path) -> list[Seen]:
    """The same over sockets."""
    async with AsyncExitStack() as stack:
        backends = []
        for member in MEMBERS:
            port = free_port()
            named = ("--card", member.card, "--name", member.name, "--seed", str(seed), "--port", str(port))
            await stack.enter_async_context(
                process("-m", "simulator", "serve", *named, stdout=asyncio.subprocess.DEVNULL)
            )
            backends.append(_backend(member, port))
        port = free_port()
        promised = {"chat": {"ttft_ms": SLO.ttft_s * 1e3, "tpot_ms": SLO.tpot_s * 1e3}}
        config = {"listen": {"port": port}, "backends": backends, "policy": {"routing": policy}}
        path = folder / "parity.yaml"
        path.write_text(
            yaml.safe_dump({**config, "slo_classes": promised, "default_slo_class": "chat"}), encoding="utf-8"
        )
        quiet = {"stdout": asyncio.subprocess.DEVNULL, "stderr": asyncio.subprocess.DEVNULL}
        await stack.enter_async_context(process("-m", "router", "serve", "--config", str(path), **quiet))
        await until_up(f"http://127.0.0.1:{port}/readyz")
        return await open_loop(port, asks_of(arrivals))


def _backend(member: Member, port: int) -> dict[str, Any]:
    facts = {"card": member.card, "model": member.model, "models": [MODEL], "network_ms": NETWORK_S * 1e3}
    return {"name": member.name, "url": f"http://127.0.0.1:{port}", **facts}


def compared(said: Table, came: Table) -> str:
    """A row a figure."""
    rows = [f"{'':12} {'simulated':>10} {'live':>10} {'live / simulated':>17}"]
    for name, value in said.items():
        rows.append(f"{name:12} {value:10.4f} {came[name]:10.4f} {came[name] / value if value else np.nan:17.3f}")
    return "\n".join(rows)


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--rate", type=float, default=6.0, help="requests a second")
    parser.add_argument("--policy", default="slo_headroom")
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    arrivals = arrivals_of(given.rate, given.seconds, given.seed)
    with tempfile.TemporaryDirectory(prefix="headroom-parity-") as folder:
        seen = asyncio.run(live(arrivals, given.policy, given.seed, Path(folder)))
    refused = sum(not each.tokens for each in seen)
    print(f"{len(seen)} requests under {given.policy}, {refused} not served live")
    print(compared(simulated(arrivals, given.policy, given.seed), seen_figures(seen)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
