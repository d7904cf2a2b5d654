"""What a policy can see live it can see simulated, and it sees the same.

One scenario goes three ways: through a whole router by its config, whose record is the simulator's trace; through the
simulator; and through the gateway again, over sockets, with the clock and the engines' answers at the moments at which
the simulator had them. A routing policy that writes down all it can read decides in the last two, and both must have
read the same, decision by decision.
"""

import asyncio
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from math import isclose, isfinite, isnan
from pathlib import Path
from random import Random
from typing import Any, Final, cast

import numpy as np
import pytest

import policies
from router.core import Choice, Dispatch, Fleet, Forecast, Hold, Request, Rng, signals
from router.core.dispatcher import Dispatcher
from router.core.lifecycle import State
from router.engines import read_metrics as read_page
from router.gateway.config.plan import Plan, plan_file
from router.gateway.protocols.target import Target
from simulator.emulator.engine import EmulatedEngine, Serving, prompt_of
from simulator.emulator.wire.vllm import Vllm, metrics
from simulator.pool import Member, Pool
from simulator.replica.truth import EXACT
from simulator.run.play import RunResult, play
from simulator.traces import read_trace
from simulator.workload.arrivals import Arrival, Shaping, shape
from simulator.world import World
from tests import fakes_wire as wire
from tests.fakes_router import HEALTHY, backend, config, router
from tests.fakes_wire import ScriptedEngine, chunked, event, gateway, post, reply, stream, token
from tests.pages import Pages
from tests.virtual_loop import Silent, VirtualLoop
from tests.waiting import until

# -- the scenario ----------------------------------------------------------------------------------------------------

SYSTEM: Final = "You are the assistant of a shop that sells bicycles, and you answer in one sentence. " * 40
MEMBERS: Final = (
    Member("a", "l4", "qwen3-4b", served_as=("m",), seqs_max=64, weight=2.0, price_per_hour=0.7),
    Member("b", "a10", "qwen3-4b", served_as=("m",), chunk_tokens=1024, network_s=0.003, labels={"zone": "z"}),
)
CLASSES: Final = """
slo_classes:
  default: {ttft_ms: 2000, tpot_ms: 100}
  chat: {ttft_ms: 1000, tpot_ms: 60, quantile: 0.95, priority: -1}
  batch: {e2e_ms: 120000, priority: 10}
"""
HELD: Final = "held"  # the session whose requests the policy holds while anything is in flight


@dataclass(frozen=True)
class Ask:
    """One request of the scenario: when it comes, what it is, and how long its reply will be."""

    at_s: float
    user: str
    output_tokens: int
    more: str = ""
    streamed: bool = True
    body: Mapping[str, Any] = field(default_factory=dict)

    @property
    def raw(self) -> bytes:
        """As a client sends it."""
        messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": self.user}]
        body = {"model": "m", "stream": self.streamed, "messages": messages, **self.body}
        return post("/v1/chat/completions", json.dumps(body).encode(), self.more)


ASKS: Final = (
    Ask(0.0, "Which bell is the loudest?", 300, "x-slo-class: chat\r\nx-session-id: s1\r\n", body={"max_tokens": 900}),
    Ask(0.9, "And in red?", 200, "x-session-id: s1\r\nx-llm-d-inference-fairness-id: team\r\n"),
    Ask(1.2, "Later is fine.", 50, f"x-slo-class: batch\r\nx-session-id: {HELD}\r\n"),
    Ask(1.5, "x" * 9000, 60, "x-slo-ttft-ms: 700\r\n"),
    Ask(1.7, "Whole, please.", 80, "x-slo-e2e-ms: 30000\r\n", streamed=False),
    Ask(2.1, "é" * 3000, 40, "x-slo-class: chat\r\n"),
    Ask(60.0, "Which bell is the loudest? And in red?", 120, "x-session-id: s1\r\n"),
    Ask(60.5, "Whole again.", 30, streamed=False),
    Ask(75.0, "x" * 9000, 60),
)


# -- what can be read ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Seen:
    """What a policy is given for one decision."""

    request: Request
    fleet: Fleet
    forecast: Forecast


def _of(kind: str, *names: str) -> dict[str, Callable[[Seen], Any]]:
    """Facts that are read by their names."""

    def reader(name: str) -> Callable[[Seen], Any]:
        return lambda seen: getattr(getattr(seen, kind), name)

    return {f"{kind.capitalize()}.{name}": reader(name) for name in names}


OWN_NAME: Final = "every shell gives ids of its own"

FACTS: Final[Mapping[str, Callable[[Seen], Any] | str]] = {
    # Of a request: all that its client said, and what was made of it.
    "Request.id": OWN_NAME,
    "Request.prompt_sigma": "a trace states sizes, which the gateway estimates",
    "Request.endpoint": "a trace has no paths",
    "Request.among": "only a proxy that asks the endpoint picker limits the backends",
    "Request.requested_model": lambda seen: seen.request.requested_model,
    "Request.fallback": lambda seen: seen.request.fallback,
    **_of("request", "model", "arrived_s", "prompt_tokens", "output_tokens_max", "slo", "slo_class", "priority"),
    **_of("request", "tenant", "session", "prefix", "prefix_block_tokens", "streamed", "first_token_due_s"),
    **_of("request", "sequences", "prompts", "prompt_tokens_longest"),
    # Of the fleet: who is there, what they are, what they have to do, what is cached, who waits.
    **_of(
        "fleet",
        "slots",
        "now_s",
        "held",
        "held_rank",
        "columns",
        "load",
        "unreported_peer_load",
        "prompt_tokens_per_s_each",
    ),
    **_of("fleet", "prefilling", "prefill_tokens", "decoding", "context_tokens", "requests", "last_sent", "turn"),
    **_of("fleet", "seqs_max", "kv_tokens_max", "chunk_tokens", "price_per_s", "network_s", "weight", "tpot_bound_s"),
    **_of("fleet", "kv_usage", "prefix_hit_rate", "prefill_tokens_per_s"),
    **_of("fleet", "name_hashes", "ahead", "hold_s", "e2e_tpot_bound_s"),
    "Fleet.signal": lambda seen: [seen.fleet.signal(name) for name in signals.names()],
    "Fleet.index": lambda seen: [seen.fleet.index(slot) for slot in range(4)],
    "Fleet.of": lambda seen: seen.fleet.of(seen.fleet.columns),
    "Fleet.cached_tokens": lambda seen: seen.fleet.cached_tokens(seen.request),
    "Fleet.backend": lambda seen: [seen.fleet.backend(index) for index in range(len(seen.fleet))],
    "Fleet.among": lambda seen: seen.fleet.among(seen.fleet.slots[:1]).prefilling,
    "Fleet.adapter_load_s": lambda seen: seen.fleet.adapter_load_s(seen.request) is None,
    # Of the forecast: what was expected, and what it rests on.
    **_of("forecast", "made", "answer", "prompt_tokens", "tokens", "output_tokens", "state", "cached_tokens"),
    **_of("forecast", "prefill_tokens", "slots", "rows", "means_s", "ttft_s", "tpot_s", "e2e_s"),
    **_of("forecast", "expected_tpot_violations"),
    **_of("forecast", "rest", "rest_by_sheet", "imposed_delay_s", "mean_reply_tokens", "reply_sharing"),
    "Forecast.reply_tokens": lambda seen: [seen.forecast.reply_tokens(quantile) for quantile in (0.5, 0.9, 0.99)],
    "Forecast.in_time": lambda seen: [seen.forecast.in_time(np.full(len(seen.fleet), t)) for t in (1.0, 40.0, 300.0)],
    "Forecast.with_tpot_violations": lambda seen: seen.forecast.with_tpot_violations(),
    "Forecast.tails_s": lambda seen: [seen.forecast.tails_s(quantile) for quantile in (0.5, 0.9, 0.99)],
    "Forecast.ttft_tail_s": lambda seen: seen.forecast.ttft_tail_s(0.9),
    "Forecast.tpot_tail_s": lambda seen: seen.forecast.tpot_tail_s(0.9),
    "Forecast.e2e_tail_s": lambda seen: seen.forecast.e2e_tail_s(0.9),
    "Forecast.prefill_tokens_at": lambda seen: _each(seen, seen.forecast.prefill_tokens_at),
    "Forecast.resident_share_at": lambda seen: _each(seen, seen.forecast.resident_share_at),
    "Forecast.adapter_ready": lambda seen: seen.forecast.adapter_ready(0.5) is None,
    "Forecast.at": lambda seen: _each(seen, seen.forecast.at),
}
"""How each fact that a policy can read is read here, all of them to be the same; or why one cannot be the same."""


def _each(seen: Seen, read: Callable[[int], Any]) -> list[Any]:
    return [read(index) for index in range(len(seen.fleet))]


def plain(value: Any) -> Any:
    """A fact as numbers and text, copied: arrays are views that go on changing."""
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if hasattr(value, "__dataclass_fields__"):
        return {each.name: plain(getattr(value, each.name)) for each in fields(value)}
    return value


def same(one: Any, other: Any) -> bool:
    """Whether two plain facts are the same, to rounding."""
    match one, other:
        case list(), list():
            return len(one) == len(other) and all(map(same, one, other))
        case dict(), dict():
            return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
        case float() | int(), float() | int():
            return isclose(one, other, rel_tol=1e-9, abs_tol=1e-9) or (isnan(one) and isnan(other))
        case _:
            return bool(one == other)


class Watcher:
    """A routing policy that writes down all it can read, then sends to the backend with the fewest requests."""

    def __init__(self) -> None:
        self.read: list[dict[str, Any]] = []

    def choose(self, request: Request, fleet: Fleet, forecast: Forecast, _: Rng) -> Choice:
        seen = Seen(request, fleet, forecast)
        self.read.append({name: plain(fact(seen)) for name, fact in FACTS.items() if not isinstance(fact, str)})
        if request.session == HELD and fleet.requests.sum() > 0:
            return Hold(float("inf"), "others first")
        return Dispatch(int(fleet.slots[int(fleet.requests.argmin())]), "fewest requests")


# -- three ways through it -------------------------------------------------------------------------------------------


def _line(member: Member, engine: ScriptedEngine, pages: Pages) -> str:
    """The backend of a config that is what this member of a pool is."""
    limits = member.limits()
    same: dict[str, Any] = {name: getattr(member, name) for name in ("card", "seqs_max", "chunk_tokens", "weight")}
    labels = ", ".join(f"{key}: {value}" for key, value in member.labels.items())
    return backend(
        member.name,
        engine,
        pages,
        **same,
        kv_tokens_max=limits.kv_blocks * limits.block_tokens,
        context_tokens_max=limits.prompt_tokens_max + 1,
        network_ms=member.network_s * 1e3,
        price_per_hour=member.price(),
        variant=member.name,
    ).replace("}\n", f", labels: {{{labels}}}}}\n")


async def recorded(path: Path) -> tuple[list[Arrival], Plan]:
    """The scenario through a router, one after the other: its record as the simulator's arrivals, and its plan."""
    record, file = path / "run.jsonl", path / "router.yaml"
    usage = [{"prompt_tokens": 9, "completion_tokens": ask.output_tokens} for ask in ASKS]
    scripts = [
        [stream("a", usage=count) if ask.streamed else reply(json.dumps({"usage": count}).encode())]
        for ask, count in zip(ASKS, usage, strict=True)
    ]
    async with ScriptedEngine(*scripts) as engine, Pages(dict(HEALTHY)) as pages:
        text = config(*(_line(each, engine, pages) for each in MEMBERS), more=f"{CLASSES}record: {{file: {record}}}\n")
        async with router(file, text) as it:
            port = it.port
            for ask in ASKS:
                client = wire.Client(*await asyncio.open_connection("127.0.0.1", port, limit=1 << 26))
                client.send(ask.raw)
                assert (await client.reply()).status == 200
                client.close()
        plan = plan_file(file)
    entries = read_trace(record).entries
    assert len(entries) == len(ASKS)
    for entry, ask in zip(entries, ASKS, strict=True):
        entry.arrived_s = ask.at_s
    return shape(entries, Shaping("m"), 0), plan


def simulated(arrivals: list[Arrival]) -> tuple[Watcher, RunResult]:
    """The same arrivals in the simulator."""
    watcher = Watcher()
    pool = Pool(MEMBERS, world=World(scrape_s=0.0))
    return watcher, play(arrivals, pool, watcher, policies.find("admission", "deadline"), 0)


@dataclass(frozen=True)
class Moment:
    """Something that happened to one request in the simulator."""

    at_s: float
    kind: str
    number: int


def moments(arrivals: list[Arrival], played: RunResult) -> list[Moment]:
    """All of them in order: each request comes, is sent, has its first token (if one can see it) and ends."""
    books, made = played.table, []
    assert books.served().all()
    for row, request_id in enumerate(books.ids):
        number = next(n for n, arrival in enumerate(arrivals) if arrival.request.id == request_id)
        for kind in ("arrived", "sent", "first", "ended"):
            at_s = float(books.column(f"{kind}_s")[row])
            if isfinite(at_s):
                made.append(Moment(at_s, kind, number))
    return sorted(made, key=lambda m: (m.at_s, ("ended", "first", "arrived", "sent").index(m.kind)))


class Clock:
    """What the gateway takes for the time."""

    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


class Engines:
    """The engines of one gateway: every request waits until the test lets its first token and its end come."""

    def __init__(self, arrivals: list[Arrival], played: RunResult, order: list[int]) -> None:
        self.first = [asyncio.Event() for _ in arrivals]
        self.end = [asyncio.Event() for _ in arrivals]
        cached = dict(zip(played.table.ids, played.table.column("cached_tokens"), strict=True))
        self.scripts: list[wire.Script] = []
        for number in order:
            arrival = arrivals[number]
            usage = {
                "prompt_tokens": arrival.request.prompt_tokens,
                "completion_tokens": arrival.output_tokens,
                "prompt_tokens_details": {"cached_tokens": int(cached[arrival.request.id])},
            }
            begun = wire.STREAM_HEAD + chunked(event(token("a")))
            over = chunked(event({"choices": [], "usage": usage}), event("[DONE]")) + wire.LAST
            whole = reply(json.dumps({"usage": usage}).encode())
            streamed = [self.first[number], begun, self.end[number], over]
            self.scripts.append(streamed if arrival.request.streamed else [self.end[number], whole])


class Life:
    """One gateway, to which happens what happened in the simulator."""

    def __init__(self, gate: wire.Gateway, clock: Clock, engine: ScriptedEngine, engines: Engines) -> None:
        self.gate, self.clock, self.engine, self.engines = gate, clock, engine, engines
        self.sent = 0

    def reach(self, now_s: float) -> None:
        """Let the time come, and what the core wanted to be woken for until then: a whole reply's prompt is presumed to
        be taken in.
        """
        core = self.gate.core
        while core.wake_s < now_s:
            self.clock.now_s = core.wake_s
            self.gate.driver.perform(core.ticked(self.clock.now_s))
        self.clock.now_s = now_s
        self.gate.driver.awake_s = now_s  # the time leaps, and the process never stood still

    async def arrived(self, number: int) -> None:
        """A client sends its request."""
        core, known = self.gate.core, self.gate.core.in_flight
        (await self.gate.client()).send(ASKS[number].raw)
        await until(lambda: core.in_flight > known)

    async def sent_on(self, _: int) -> None:
        """It is with an engine."""
        self.sent += 1
        await until(lambda: len(self.engine.requests) >= self.sent)

    async def first(self, number: int) -> None:
        """Its first token comes."""
        streaming = self._streaming
        self.engines.first[number].set()
        await until(lambda: self._streaming > streaming)

    async def ended(self, number: int) -> None:
        """Its reply is complete."""
        over = len(self.gate.seen.outcomes)
        self.engines.end[number].set()
        await until(lambda: len(self.gate.seen.outcomes) > over)

    @property
    def _streaming(self) -> int:
        return sum(flight.state is State.STREAMING for flight in self.gate.core._flights.values())


async def lived(arrivals: list[Arrival], played: RunResult, plan: Plan) -> Watcher:
    """The scenario through the gateway, over sockets, each event at the moment that the simulator had it."""
    watcher, clock, happened = Watcher(), Clock(), moments(arrivals, played)
    engines = Engines(arrivals, played, [moment.number for moment in happened if moment.kind == "sent"])
    core = Dispatcher(watcher, policies.find("admission", "deadline"), Random(0))
    for each in plan.backends:
        core.backend_joined(each, 0.0)
    async with ScriptedEngine(*engines.scripts) as engine:
        targets = [Target(each.name, "127.0.0.1", engine.port) for each in plan.backends]
        async with gateway(*targets, core=core, clock=clock, ingress=plan.ingress) as gate:
            life = Life(gate, clock, engine, engines)
            acts = {"arrived": life.arrived, "sent": life.sent_on, "first": life.first, "ended": life.ended}
            for moment in happened:
                life.reach(moment.at_s)
                await acts[moment.kind](moment.number)
    return watcher


# -- the law ---------------------------------------------------------------------------------------------------------


def _public(kind: type) -> Iterator[str]:
    return (f"{kind.__name__}.{name}" for name in dir(kind) if not name.startswith("_"))


def test_every_fact_that_a_policy_can_read_is_compared() -> None:
    """A new one needs a line in ``FACTS``, and so a way to be the same on both sides."""
    assert {name for kind in (Request, Fleet, Forecast) for name in _public(kind)} == set(FACTS)


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """What the policy read in the simulator and in the gateway, decision by decision."""

    async def live() -> tuple[Watcher, Watcher]:
        arrivals, plan = await recorded(tmp_path_factory.mktemp("router"))
        told, played = simulated(arrivals)
        return told, await lived(arrivals, played, plan)

    told, saw = asyncio.run(live())
    return told.read, saw.read


def test_the_scenario_shows_what_is_to_be_compared(both: tuple[list[dict[str, Any]], list[dict[str, Any]]]) -> None:
    """Facts that are nothing throughout would be alike on any two sides."""
    told, _ = both
    for fact in ("held", "held_rank", "prefilling", "prefill_tokens", "decoding", "context_tokens", "cached_tokens"):
        assert any(np.any(read[f"Fleet.{fact}"]) for read in told), fact
    for fact in ("priority", "tenant", "session", "prefix", "prefix_block_tokens", "output_tokens_max"):
        assert any(read[f"Request.{fact}"] for read in told), fact
    assert {read["Request.streamed"] for read in told} == {True, False}
    assert len({read["Request.slo_class"] for read in told}) == 3
    assert len({read["Request.prefix_block_tokens"] for read in told}) > 1
    assert len({read["Forecast.output_tokens"] for read in told}) > 1
    assert any(np.isfinite(read["Fleet.tpot_bound_s"]).any() for read in told)


@pytest.mark.parametrize("fact", [name for name, how in FACTS.items() if not isinstance(how, str)])
def test_a_policy_reads_the_same_live_and_simulated(
    fact: str, both: tuple[list[dict[str, Any]], list[dict[str, Any]]]
) -> None:
    """At every decision of the scenario, to the last digit that rounding leaves."""
    told, saw = both
    assert len(told) == len(saw)
    for number, (simulated, live) in enumerate(zip(told, saw, strict=True)):
        assert same(simulated[fact], live[fact]), (number, simulated[fact], live[fact])


# -- what engines say of themselves ----------------------------------------------------------------------------------


@pytest.mark.parametrize("caching", [True, False])
def test_an_engines_page_reads_as_the_simulator_reports_it(caching: bool) -> None:
    """vLLM's metrics of an emulated engine, read as the gateway reads them, at rest, under load and after it."""
    loop, member = VirtualLoop(), replace(MEMBERS[0], prefix_caching=caching, seqs_max=1)
    engine = EmulatedEngine(Serving(member, "m", EXACT), cast("asyncio.AbstractEventLoop", loop))
    server, before, counted, kept = Vllm(engine), None, None, []
    for prompts in (0, 1, 3, 0):
        for _ in range(prompts):
            engine.generate(prompt_of(SYSTEM.encode()), 40, 0, Silent())
        loop.kernel.run_until(loop.kernel.now_s + 0.5)
        page = read_page(metrics(server).encode(), ["m"])
        assert page is not None
        counts = engine.replica.signals()
        kept.append((page.report(1.0, before), engine.replica.report(1.0, counts, counted)))
        before, counted = page, counts
        loop.kernel.run_until(loop.kernel.now_s + 60.0)
    for live, simulated in kept:
        assert same(plain(simulated), plain(live)), (simulated, live)
    assert any(simulated.waiting > 0 for _, simulated in kept)
    assert any(simulated.kv_usage > 0 for _, simulated in kept)
    assert any(simulated.prefix_hit_rate > 0 for _, simulated in kept) == caching
    assert all(simulated.prefix_hit_rate == 0 for _, simulated in kept) != caching
    core = Dispatcher(Watcher(), policies.find("admission", "deadline"), Random(0))
    core.backend_joined(Pool(MEMBERS).sites(0)[0].backend, 0.0)
    core.reported("a", kept[1][0], 1.0)
    fleet = Fleet(core.ledger, core.ledger.roster.pool("m"), 2.0)
    assert same(plain(fleet.kv_usage), [kept[1][1].kv_usage])
