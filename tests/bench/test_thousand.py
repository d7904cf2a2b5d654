"""A router of 1,000 backends: what a decision, a report, a page, a start and a reload cost, each beside its target.

`make bench` prints it. Figures of a machine that does other things say little; laws that hold on any machine (which
work is done once, what is kept, where the event loop has its turns) are tests.
"""

import asyncio
import gc
import json
import socket
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from contextlib import AsyncExitStack, suppress
from itertools import product
from pathlib import Path
from time import monotonic, perf_counter, thread_time_ns
from typing import Any

import httpx
import numpy as np
import pytest

from router.core.columns import BANDS, METRICS
from router.core.types import EngineReport, Load
from router.gateway.app import Gateway
from router.gateway.config.plan import plan_file
from router.gateway.serving import server_of
from router.gateway.telemetry.history import History
from router.gateway.telemetry.metrics import Metrics
from tests.bench.figures import Decisions
from tests.bench.soak import memory_mib
from tests.bench.test_reload_load import process
from tests.bench.thousand import BACKENDS, config, pauses
from tests.gateway.test_history import Wall, log
from tests.redis_server import free_port
from tests.waiting import until, until_async

pytestmark = pytest.mark.benchmark
MIB = 2**20


def shown(what: str, figure: str, target: str) -> None:
    """A line."""
    print(f"\n{what:52} {figure:>24}   target {target}", end="")


def used_us(act: Any, *arguments: Any) -> float:
    """Processor time of one call."""
    began = thread_time_ns()
    act(*arguments)
    return (thread_time_ns() - began) / 1e3


@pytest.fixture(autouse=True)
def _collector_as_in_the_gateway() -> Iterator[None]:
    """What is loaded stays; the young are looked through once in 50,000."""
    gc.collect()
    gc.freeze()
    before = gc.get_threshold()
    gc.set_threshold(50_000, 20, 50)
    yield
    gc.set_threshold(*before)
    gc.unfreeze()


def test_a_decision() -> None:
    """Forecast of all, choice, reservation: processor time of this thread."""
    for backends, target in ((8, "-"), (100, "-"), (BACKENDS, "p99 200 us (compiled)")):
        it = Decisions(backends, 1)
        p50, p99 = np.quantile([it.decide() for _ in range(3_000)], (0.5, 0.99))
        shown(f"decision over {backends}", f"p50 {p50:.0f}, p99 {p99:.0f} us", target)


def test_what_comes_for_each_backend_every_second() -> None:
    """A report of an engine, a health change with the decision after it, a peer's view: CPU a second of all."""
    it = Decisions(BACKENDS, 1).core
    now_s = it._now_s

    def report(number: int, running: float) -> None:
        it.probe_started(f"b{number}", now_s)
        it.reported(f"b{number}", EngineReport(now_s, running, 1.0), now_s)

    took = sum(used_us(report, number, 3.0 + number % 5) for number in range(BACKENDS))
    shown("1,000 reports that differ from those before", f"{took / 1e3:.1f} ms", "20 ms (2 % of a core)")
    took = used_us(lambda: [it.backend_health(f"b{n}", up, now_s) for up in (False, True) for n in range(BACKENDS)])
    shown("1,000 backends go down and come back", f"{took / 1e3:.1f} ms", "50 ms")
    loads = {f"b{n}": Load(1.0, 100.0, 2.0, 1000.0) for n in range(BACKENDS)}
    took = float(np.median([used_us(it.on_peer_load, "peer", loads, now_s + n) for n in range(5)]))
    shown("a peer's view of 1,000 backends", f"{took / 1e3:.2f} ms", "10 ms")
    took = float(np.median([used_us(it.loads) for _ in range(9)]))
    shown("own loads, for a view", f"{took / 1e3:.2f} ms", "2 ms")


def test_memory_of_the_core_by_part() -> None:
    """Of each backend, with traffic that has reached every one in every band of load."""
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    it = Decisions(BACKENDS, 1)
    joined = tracemalloc.get_traced_memory()[0] - before
    for slot, band, metric in product(range(BACKENDS), range(BANDS), range(METRICS)):
        it.core.belief.tails.scores(metric, band, slot)  # as its first outcome there does
    for _ in range(1_000):
        it.decide()
    learnt = tracemalloc.get_traced_memory()[0] - before - joined
    tracemalloc.stop()
    shown("core, joined", f"{joined / BACKENDS / 1024:.1f} KB a backend", "-")
    shown("core, learnt and explained", f"{learnt / BACKENDS / 1024:.1f} KB a backend", "30 KB all told")


def test_memory_of_telemetry_by_part() -> None:
    """Of each backend: counters of four classes, and a day of the page's history."""
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    metrics = Metrics(monotonic)
    for number in range(BACKENDS):
        for slo_class in range(4):
            metrics.recorded(log(0.1, backend=f"b{number}", slo_class=f"c{slo_class}").record)
    counted = tracemalloc.get_traced_memory()[0] - before
    wall = Wall()
    history = History(wall=wall)
    for hour, number in product(range(24), range(BACKENDS)):
        wall.now_s = 3600.0 * hour
        history.ended(log(0.1, backend=f"b{number}"))
    seen = tracemalloc.get_traced_memory()[0] - before - counted
    tracemalloc.stop()
    shown("counters, four classes", f"{counted / BACKENDS / 1024:.1f} KB a backend", "-")
    shown("a day of history", f"{seen / MIB:.1f} MiB in all", "30 MB")


def with_traffic(gateway: Gateway, classes: int = 2) -> None:
    """Each backend has served requests of so many classes."""
    for backend in gateway.plan.backends:
        for slo_class in range(classes):
            ended = log(0.1, backend=backend.name, slo_class=f"c{slo_class}")
            gateway.metrics.ended(ended)
            gateway.history.ended(ended)


async def test_start_reload_and_pages_live(tmp_path: Path) -> None:
    """A gateway in this loop, its engines in another process; pauses are those of this loop."""
    port, path = free_port(), tmp_path / "r.yaml"
    path.write_text(config(port), encoding="utf-8")
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(process("-m", "tests.bench.thousand", "engines", str(port)))
        await until(lambda: listening(port))
        began_s = perf_counter()
        gateway = Gateway(plan_file(path), path)
        made_s = perf_counter() - began_s
        async with pauses() as found:
            await gateway.start()
            await until(lambda: sum(watch.up for watch in gateway.engines.watches.values()) == BACKENDS)
            up_s = perf_counter() - began_s
        shown("start: plan and parts", f"{made_s:.2f} s", "-")
        shown("start: 1,000 backends up", f"{up_s:.2f} s", "5 s")
        shown("start: longest pause", f"{found.longest_s * 1e3:.0f} ms", "50 ms")
        server = server_of(gateway)
        serving = asyncio.create_task(server.serve())
        await until(lambda: server.started)
        url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
        client = await stack.enter_async_context(httpx.AsyncClient(base_url=url, timeout=120, trust_env=False))
        await steady(gateway)
        for what, text in (
            ("the same", config(port)),
            ("all prices", config(port, price=2.0)),
            ("500 leave", config(port, price=2.0, backends=500)),
            ("500 come back", config(port, price=2.0)),
        ):
            path.write_text(text, encoding="utf-8")
            async with pauses() as found:
                took_s = perf_counter()
                assert (await gateway.reloader.reload("bench")).ok
                took_s = perf_counter() - took_s
            pause_ms = found.longest_s * 1e3
            shown(f"reload, {what}", f"{took_s:.2f} s, pause {pause_ms:.0f} ms", "pause 50 ms")
        await until(lambda: sum(watch.up for watch in gateway.engines.watches.values()) == BACKENDS)
        await read_pages(gateway, client)
        server.should_exit = True
        await serving
        await gateway.close()


async def read_pages(gateway: Gateway, client: httpx.AsyncClient) -> None:
    """How long each page takes, and how long it stops the event loop."""
    with_traffic(gateway)
    for page in ("/metrics", "/admin/fleet", "/admin/history", "/admin/history?by=backend&name=b1", "/readyz"):
        async with pauses() as found:
            took_s = perf_counter()
            answer = await client.get(page)
            took_s = perf_counter() - took_s
        size = len(answer.content) / MIB
        figure = f"{took_s * 1e3:.0f} ms, pause {found.longest_s * 1e3:.0f}, {size:.1f} MB"
        shown(page, figure, "pause 50 ms")
    async with pauses() as found:
        await gateway.beliefs.keep()
    shown("beliefs kept", f"pause {found.longest_s * 1e3:.0f} ms", "50 ms")


def listening(port: int) -> bool:
    """Whether something does."""
    with socket.socket() as one:
        return one.connect_ex(("127.0.0.1", port)) == 0


async def steady(gateway: Gateway) -> None:
    """Checks and scrapes of ten seconds: processor time and pauses."""
    began, before_s = thread_time_ns(), perf_counter()
    async with pauses() as found:
        await asyncio.sleep(10.0)
    share = (thread_time_ns() - began) / 1e9 / (perf_counter() - before_s)
    pause_ms = found.longest_s * 1e3
    shown("checks and scrapes of 1,000 engines each second", f"{share:.0%} of a core, pause {pause_ms:.0f} ms", "-")


async def served(
    tmp_path: Path, engines: int, backends: int, rate: float, seconds: float
) -> tuple[float, dict[str, Any]]:
    """Resident memory of a router after load, and what its client saw."""
    port, path = free_port(), tmp_path / f"{backends}.yaml"
    path.write_text(config(engines, backends=backends, port=port), encoding="utf-8")
    quiet = {"stdout": asyncio.subprocess.DEVNULL, "stderr": asyncio.subprocess.DEVNULL}
    async with process("-m", "router", "serve", "--config", str(path), **quiet) as router:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=60, trust_env=False) as client:

            async def all_up() -> bool:
                with suppress(httpx.HTTPError):
                    return len((await client.get("/readyz")).json()["backends_up"]) == backends
                return False

            await until_async(all_up)
        paced = ("-m", "tests.bench.paced", "client", str(port), str(rate), str(seconds))
        async with process(*paced, stdout=asyncio.subprocess.PIPE) as asking:
            out, _ = await asking.communicate()
        return memory_mib(router.pid) * 1024, json.loads(out)


async def test_memory_and_load_of_a_process(tmp_path: Path) -> None:
    """`headroom serve` with 10 and with 1,000 backends after the same load: resident memory of each backend."""
    engines, rate, seconds = free_port(), 300.0, 20.0
    async with process("-m", "tests.bench.thousand", "engines", str(engines)):
        await until(lambda: listening(engines))
        few_kb, few = await served(tmp_path, engines, 10, rate, seconds)
        many_kb, many = await served(tmp_path, engines, BACKENDS, rate, seconds)
    for backends, run in ((10, few), (BACKENDS, many)):
        took = sorted(ms for _, ms in run["seen"])
        p50, p99 = took[len(took) // 2], took[len(took) * 99 // 100]
        shown(f"{rate:.0f} req/s over {backends}, engines' own 15 ms", f"p50 {p50:.1f}, p99 {p99:.1f} ms", "-")
    each_kb = (many_kb - few_kb) / (BACKENDS - 10)
    shown("resident memory", f"{each_kb:.1f} KB a backend", "30 KB all told")


def test_in_the_simulator(tmp_path: Path) -> None:
    """10,000 requests a second over 1,000 replicas: CPU of a request, and the attainment of two policies."""
    pool = tmp_path / "pool.yaml"
    cards = ("a100-80g-sxm", "h100-80g-sxm", "l40s", "l4")
    lines = "".join(f"  - {{name: {card}, card: {card}, model: llama-3-8b, count: 250}}\n" for card in cards)
    pool.write_text(f"slo: chat:ttft=1s,tpot=60ms\nbackends:\n{lines}", encoding="utf-8")
    for policy in ("slo_headroom", "least_request"):
        workload = "gen:poisson:rate=10000,requests=100000,lengths=azure-conv"
        command = [sys.executable, "-P", "-m", "simulator", "replay", workload, "--policy", policy, "--json", "-"]
        out = subprocess.run([*command, "--pool", str(pool)], check=True, stdout=subprocess.PIPE).stdout
        run = json.loads(out)["runs"][policy]
        shown(f"simulated 10,000 req/s, {policy}", f"{run['cpu_s'] / 100_000 * 1e6:.0f} us a request", "-")
        print(f"   { ({key: run[key] for key in run if 'attain' in key}) }", end="")
