"""The toy signal from engine to policy, live and simulated, in a process of its own; prints what policies read.

Signals are found once in a process, so this one adds the folder of the toy before anything else uses them.
"""

import asyncio
import json
import sys
from pathlib import Path
from time import monotonic
from typing import Any, cast

import policies
from router.core import Choice, Fleet, Forecast, Request, Rng, signals
from router.core.columns import LEDGER
from router.engines import read_metrics
from router.gateway.monitoring.publishing import Publisher
from router.gateway.state.redis import RedisStore
from router.gateway.state.servers import RedisServers
from router.gateway.state.wire import report_from, report_json
from router.gateway.telemetry.recorder import differences
from simulator.emulator.engine import EmulatedEngine, prompt_of
from simulator.emulator.serving import Serving
from simulator.emulator.wire.vllm import Vllm, metrics
from simulator.pool import Member, Pool
from simulator.replica.truth import EXACT
from simulator.run.play import play
from simulator.traces import TraceEntry
from simulator.workload.arrivals import Shaping, shape
from tests.fakes_router import HEALTHY, backend, config, router
from tests.fakes_wire import ScriptedEngine, stream
from tests.pages import Pages
from tests.redis_server import RedisServer, server_binary
from tests.virtual_loop import Silent, VirtualLoop
from tests.waiting import until

TOY = Path(__file__).parent / "toy"
PAGE = HEALTHY["/metrics"][1] + b"vllm:slots_busy_perc 0.75\n"
MEMBER = Member("a", "l4", "qwen3-4b", seqs_max=4)


class Reader:
    """The toy policy, with a list of the reasons it gave."""

    def __init__(self) -> None:
        self._policy: Any = policies.find("routing", "most_idle")
        self.reasons: list[str] = []

    def choose(self, request: Request, fleet: Fleet, forecast: Forecast, rng: Rng) -> Choice:
        choice: Choice = self._policy.choose(request, fleet, forecast, rng)
        self.reasons.append(choice.why)
        return choice


async def gateway(folder: Path, redis_url: str = "") -> dict[str, Any]:
    """The reason of a decision at a real gateway with a real page; through Redis and a sidecar where there is a URL."""
    record = folder / "record.jsonl"
    record.unlink(missing_ok=True)
    async with ScriptedEngine([stream("a")]) as engine, Pages({**HEALTHY, "/metrics": (200, PAGE)}) as pages:
        text = config(
            backend("a", engine, pages),
            more=f"policy: {{routing: most_idle, guard: {{budget_ms: 60000}}}}\nrecord: {{file: {record}}}\n",
        )
        if redis_url:
            text += f"state: {{redis_url: '{redis_url}', timeout_s: 20}}\n"
            text = text.replace("period_s: 0.02}", "period_s: 0.02, source: state}")
        async with router(folder / "r.yaml", text) as it:
            if redis_url:
                await publish(redis_url)
            await until(lambda: "a" in it.gateway.reports)
            assert (await it.chat()).status_code == 200
            shown = (await it.get("/metrics")).text
    events = [json.loads(line) for line in record.read_text().splitlines()[1:]]
    commands = [command for event in events for command in event.get("answer", ())]
    return {
        "reasons": [command["why"] for command in commands if "why" in command],
        "reported": sorted({event["report"].get("slots_busy") for event in events if event["event"] == "reported"}),
        "differences": len(list(differences(record))),
        "shown": 'headroom_engine_slots_busy_ratio{backend="a"} 0.75' in shown,
    }


async def publish(redis_url: str) -> None:
    """A page's report as a sidecar publishes it."""
    store = RedisStore(RedisServers.of_urls(redis_url), "default", "sidecar", 60.0, 20.0)
    publisher, found = Publisher(store), read_metrics(PAGE)
    assert found is not None
    publisher.reported("a", found.report(monotonic(), None))
    await publisher.publish()
    await store.close()


def wire() -> float:
    """What a page gives after the JSON that routers and sidecars exchange."""
    found = read_metrics(PAGE)
    assert found is not None
    return report_from(report_json(found.report(1.0, None), 5.0), 5.0).signal("slots_busy")


def emulated() -> list[tuple[float, float]]:
    """The emulated engine's page as the gateway reads it, and the simulator's report, under growing load."""
    loop, pairs = VirtualLoop(), []
    engine = EmulatedEngine(Serving(MEMBER, "m", EXACT), cast("asyncio.AbstractEventLoop", loop))
    server = Vllm(engine)
    for _ in range(3):
        engine.generate(prompt_of(b"say"), 400, 0, Silent())
        loop.kernel.run_until(loop.kernel.now_s + 0.5)
        page = read_metrics(metrics(server).encode())
        assert page is not None
        simulated = engine.replica.report(1.0, engine.replica.signals(), None)
        pairs.append((page.report(1.0, None).signal("slots_busy"), simulated.signal("slots_busy")))
    return pairs


def simulated() -> list[str]:
    """The reasons that the policy gives in a simulated run."""
    arrivals = shape([TraceEntry(n * 1.5, 300, 30 + n) for n in range(60)], Shaping("qwen3-4b", ()), 1)
    reader = Reader()
    play(arrivals, Pool((MEMBER,)), reader, policies.find("admission", "deadline"), 1)
    play(arrivals, Pool((MEMBER,)), policies.find("routing", "slo_headroom"), policies.find("admission", "deadline"), 1)
    return reader.reasons


async def through_redis(folder: Path) -> dict[str, Any] | None:
    """The gateway's part again, with the report published by a sidecar; None without a Redis-compatible server."""
    if server_binary() is None:
        return None
    async with RedisServer() as server:
        return await gateway(folder, server.url)


def main(folder: Path) -> None:
    """All of it."""
    signals.__path__.append(str(TOY / "signals"))
    policies.routing.__path__.append(str(TOY / "routing"))
    results = {
        "names": signals.names(),
        "new_row": signals.row_of("slots_busy") == LEDGER,
        "gateway": asyncio.run(gateway(folder)),
        "redis": asyncio.run(through_redis(folder)),
        "wire": wire(),
        "emulated": emulated(),
        "simulated": simulated(),
    }
    sys.stdout.write(json.dumps(results))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
