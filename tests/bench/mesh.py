"""Four gateways on one host beside one: `python -m tests.bench.mesh`. Real processes before emulated engines.

First bursts of code requests (Azure's code lengths): the share of requests that met their SLO through one gateway,
through four workers with views alone, with changes pushed over the workers' sockets, and through four routers with
changes pushed over the mesh (which needs a Redis-compatible server). Then short requests at a constant rate before an
engine that costs nothing: CPU time of all gateways per request, for one alone and each of these. The client, the
engines and the gateways share the cores: where those are busy, all rows suffer alike.
"""

import argparse
import asyncio
import json
import os
import tempfile
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import httpx
import numpy as np
import yaml

from router.core.types import Slo
from simulator.workload.arrivals import Arrival, Shaping, SloClass
from simulator.workload.generators import generate, parse_recipe
from tests.bench.parity import asks_of
from tests.bench.test_reload_load import process, until_up
from tests.redis_server import RedisServer, free_port, server_binary
from tests.streams import Seen, open_loop
from tests.waiting import until_async

MODEL: Final = "qwen3-4b"
CARD: Final = "b200"
SLO: Final = Slo(ttft_s=0.5, tpot_s=0.03)
ROUTERS: Final = 4
MODES: Final = ("one", "views", "push", "mesh")
TICKS_A_S: Final = os.sysconf("SC_CLK_TCK")
_QUIET: Final[dict[str, Any]] = {"stdout": asyncio.subprocess.DEVNULL, "stderr": asyncio.subprocess.DEVNULL}


@dataclass(frozen=True, slots=True)
class Gateways:
    """The ports where requests are taken, and every process that serves one."""

    ports: tuple[int, ...]
    pids: tuple[int, ...]

    def cpu_s(self) -> float:
        """What they have used so far."""
        return sum(map(_cpu_s, self.pids))


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_A_S


@asynccontextmanager
async def gateways(mode: str, config: Mapping[str, Any], folder: Path) -> AsyncIterator[Gateways]:
    """One gateway, or several in one of the ways in which they share what they have in flight."""
    async with AsyncExitStack() as stack:
        state: dict[str, Any] = {}
        if mode == "mesh":
            server = await stack.enter_async_context(RedisServer())
            state = {"redis_url": server.url, "mesh": {"host": "127.0.0.1", "port": 0, "key": "of this run alone"}}
        elif mode == "views":
            state = {"push_s": None}
        ports, workers = [], 1 if mode in ("one", "mesh") else ROUTERS
        for number in range(ROUTERS if mode == "mesh" else 1):
            port = free_port()
            path = folder / f"{mode}-{number}.yaml"
            own = {"listen": {"port": port}, "state": state | {"router_id": f"r{number}"}}
            path.write_text(yaml.safe_dump({**config, **own}), encoding="utf-8")
            words = ("serve", "--config", str(path), "--workers", str(workers))
            await stack.enter_async_context(process("-m", "router", *words, **_QUIET))
            ports.append(port)
        for port in ports:
            await until_up(f"http://127.0.0.1:{port}/readyz")
        yield Gateways(tuple(ports), tuple([pid for port in ports for pid in await _pids(port, workers)]))


async def _pids(port: int, workers: int) -> list[int]:
    """Of the processes that serve there, once all do."""
    found: list[int] = []

    async def all_serve() -> bool:
        async with httpx.AsyncClient(trust_env=False) as client:
            fleet = (await client.get(f"http://127.0.0.1:{port}/admin/fleet")).json()
        each = fleet["workers"].values() if workers > 1 else [fleet]
        found[:] = [one["pid"] for one in each if one.get("pid") and one["ready"]]
        return len(found) == workers

    await until_async(all_serve)
    return found


# -- bursts of code requests -------------------------------------------------------------------------------------------


def bursts(rate: float, seconds: float, seed: int) -> list[Arrival]:
    """Arrivals in bursts, with the lengths of Azure's code trace."""
    recipe = parse_recipe(f"gen:gamma:rate={rate:g},requests={int(rate * seconds)},cv=3,lengths=azure-code")
    return list(generate(recipe, Shaping(MODEL, (SloClass("code", SLO),)), seed))


async def attained(mode: str, arrivals: Sequence[Arrival], engines: int, seed: int, folder: Path) -> float:
    """The share of the requests that met their SLO."""
    async with AsyncExitStack() as stack:
        backends = []
        for number in range(engines):
            port, name = free_port(), f"e{number}"
            named = ("--card", CARD, "--model", MODEL, "--name", name, "--seed", str(seed), "--port", str(port))
            await stack.enter_async_context(process("-m", "simulator", "serve", *named, **_QUIET))
            url = f"http://127.0.0.1:{port}"
            backends.append({"name": name, "url": url, "card": CARD, "model": MODEL, "models": [MODEL]})
        bounds = {"ttft_ms": SLO.ttft_s * 1e3, "tpot_ms": SLO.tpot_s * 1e3}
        config = {"backends": backends, "slo_classes": {"code": bounds}, "default_slo_class": "code"}
        served = await stack.enter_async_context(gateways(mode, config, folder))
        asks, ports = [replace(ask, model=MODEL) for ask in asks_of(arrivals)], served.ports
        parts = [open_loop(port, asks[number :: len(ports)]) for number, port in enumerate(ports)]
        seen = [each for part in await asyncio.gather(*parts) for each in part]
    return float(np.mean([_met(each) for each in seen]))


def _met(one: Seen) -> bool:
    return one.tokens > 0 and SLO.met(one.ttft_s, one.tpot_s if one.tokens > 1 else 0.0, one.e2e_s, np.nan, one.tokens)


# -- short requests ----------------------------------------------------------------------------------------------------


async def cpu_us(mode: str, rate: float, seconds: float, folder: Path) -> float:
    """CPU microseconds of all gateways per request, at so many a second in all."""
    engine = free_port()
    url = f"http://127.0.0.1:{engine}"
    backends = [
        {"name": name, "url": url, "models": ["m"], "card": "h100", "model": MODEL} for name in ("a", "b", "c", "d")
    ]
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(process("-m", "tests.bench.paced", "engine", str(engine)))
        served = await stack.enter_async_context(gateways(mode, {"backends": backends}, folder))
        await _asked(served.ports, rate, 2.0)
        before_s = served.cpu_s()
        asked = await _asked(served.ports, rate, seconds)
        return (served.cpu_s() - before_s) / asked * 1e6


async def _asked(ports: Sequence[int], rate: float, seconds: float) -> int:
    """How many requests were sent, shared among the ports."""
    async with AsyncExitStack() as stack:
        clients = [
            await stack.enter_async_context(
                process(
                    *("-m", "tests.bench.paced", "client", str(port), str(rate / len(ports)), str(seconds)),
                    stdout=asyncio.subprocess.PIPE,
                )
            )
            for port in ports
        ]
        told = [json.loads((await client.communicate())[0]) for client in clients]
    return sum(int(each["asked"]) for each in told)


def table(rows: Iterable[tuple[str, float, float]], first: str) -> str:
    """A row a mode, beside the first."""
    lines = [f"{'gateways':<12}{first:>14}{'beside one':>12}"]
    lines += [f"{mode:<12}{value:>14.2f}{change:>+12.2f}" for mode, value, change in rows]
    return "\n".join(lines)


async def run(given: argparse.Namespace, folder: Path) -> None:
    """Print both tables."""
    modes = [mode for mode in given.mode or MODES if mode != "mesh" or server_binary()]
    if given.seconds:
        arrivals = bursts(given.rate, given.seconds, given.seed)
        shares = {mode: 100 * await attained(mode, arrivals, given.engines, given.seed, folder) for mode in modes}
        first = shares[modes[0]]
        print(f"{len(arrivals)} code requests at {given.rate:g}/s before {given.engines} engines")
        print(table(((mode, share, share - first) for mode, share in shares.items()), "SLO met, %"), flush=True)
    if given.short_seconds:
        costs = {mode: await cpu_us(mode, given.short_rate, given.short_seconds, folder) for mode in modes}
        first = costs[modes[0]]
        print(f"short requests at {given.short_rate:g}/s")
        print(table(((mode, cost, 100 * (cost / first - 1)) for mode, cost in costs.items()), "CPU us each"))


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--mode", choices=MODES, action="append", help="only these; the first is what others stand beside"
    )
    parser.add_argument("--rate", type=float, default=300.0, help="code requests a second")
    parser.add_argument("--seconds", type=float, default=60.0, help="of code requests; 0: none")
    parser.add_argument("--engines", type=int, default=8)
    parser.add_argument("--short-rate", type=float, default=2_000.0, help="short requests a second in all")
    parser.add_argument("--short-seconds", type=float, default=20.0, help="of short requests; 0: none")
    parser.add_argument("--seed", type=int, default=1)
    with tempfile.TemporaryDirectory(prefix="headroom-mesh-") as folder:
        asyncio.run(run(parser.parse_args(), Path(folder)))


if __name__ == "__main__":
    main()
