"""The stores against real servers: leases, peers, reports across clocks, and life without Redis."""

import asyncio
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import replace
from math import inf, isnan
from typing import Any

import pytest
from redis.asyncio import Redis

from router.core.errors import StateFault, StoreGone
from router.core.quota import Shares
from router.core.types import EngineReport, Load
from router.engines import RunningAdapters
from router.gateway.monitoring.publishing import Publisher
from router.gateway.state import SEEN, KindOfDemand, ModelDemand, RouterView, Shared, Store
from router.gateway.state.memory import MemoryStore
from router.gateway.state.redis import KEPT_BYTES_MOST, RedisStore
from router.gateway.state.redis_clients import Command
from router.gateway.state.redis_link import RedisLink
from router.gateway.state.seen import SeenBackend, SeenVariant, seen_json
from router.gateway.state.servers import RedisServers
from router.gateway.state.sync import Sync
from router.gateway.state.wire import UNREADABLE, view_from, view_json
from tests import fakes
from tests.redis_server import RedisServer, server_binary
from tests.waiting import until

pytestmark = pytest.mark.skipif(server_binary() is None, reason="no Redis-compatible server binary installed")

VIEW = RouterView(
    {"b1": Load(1, 200, 3, 900)},
    {"m": ModelDemand(2.5, 100, 50, 9, 8, "default")},
    "v1",
    {"tenant:t": Shares(3, 900, 1, 57, -40)},
)


@pytest.fixture
async def server() -> AsyncIterator[RedisServer]:
    """A server that is there at the start."""
    async with RedisServer() as running:
        yield running


def store(server: RedisServer, router_id: str, lease_s: float = 5.0, pool: str = "test") -> RedisStore:
    """A router's store on that server."""
    return RedisStore(RedisServers.of_urls(server.url), pool, router_id, lease_s, timeout_s=1.0)


class Heard:
    """Notes what a Sync passes on and counts."""

    def __init__(self) -> None:
        self.loads: dict[str, Mapping[str, Load]] = {}
        self.shares: dict[str, Mapping[str, Shares]] = {}
        self.lost: list[str] = []
        self.reports: list[tuple[str, EngineReport]] = []
        self.adapters: list[tuple[str, RunningAdapters]] = []
        self.good = 0
        self.bad: list[str] = []
        self.peers = 0

    def on_peer_load(self, peer: str, loads: Mapping[str, Load]) -> None:
        self.loads[peer] = loads

    def peer_quotas(self, peer: str, shares: Mapping[str, Shares]) -> None:
        self.shares[peer] = shares

    def peer_lost(self, peer: str) -> None:
        self.lost.append(peer)

    def reported(self, name: str, report: EngineReport) -> None:
        self.reports.append((name, report))

    def adapters_reported(self, name: str, running: RunningAdapters) -> None:
        self.adapters.append((name, running))

    def synced(self, took_s: float, peers: int) -> None:
        self.good += 1
        self.peers = peers

    def sync_failed(self, fault: str, peers: int) -> None:
        self.bad.append(fault)
        self.peers = peers


def syncing(store: Store, heard: Heard, lease_s: float = 5.0) -> Sync:
    """A Sync that publishes VIEW and reads the reports of b1."""
    return Sync(store, heard, lambda: VIEW, lambda: ("b1",), heard, 0.01, lease_s)


async def test_views_are_read_less_often_where_changes_come_without_them() -> None:
    """But often enough for a lease, and as often as before once one peer's changes do not come."""
    heard, pushing = Heard(), {"peer"}

    def sync(period_s: float, lease_s: float) -> Sync:
        it = Sync(
            MemoryStore("r"), heard, lambda: VIEW, tuple, heard, period_s, lease_s, lambda peers: {*peers} <= pushing
        )
        assert it.wait_s == period_s  # no peer is there
        it.peers = {"peer": VIEW}
        return it

    assert [sync(*given).wait_s for given in ((0.05, 2.0), (0.05, 0.4), (0.05, 0.15))] == [0.25, 0.1, 0.05]
    it = sync(0.05, 2.0)
    it.peers = {"peer": VIEW, "other": VIEW}
    assert it.wait_s == 0.05


async def test_a_router_sees_what_another_published(server: RedisServer) -> None:
    """Whole values come back equal; one's own view is not among the others'."""
    a, b = store(server, "a"), store(server, "b")
    await a.sync(VIEW, (), 0.0)
    await b.sync(RouterView(version="v2"), (), 0.0)
    assert (await b.sync(RouterView(version="v2"), (), 0.0)).routers == {"a": VIEW}
    assert set(await a.routers(0.0)) == {"a", "b"}
    await a.close()
    await b.close()


async def test_a_router_that_closes_is_gone_at_once(server: RedisServer) -> None:
    """Nobody counts its load for another lease."""
    a, b = store(server, "a"), store(server, "b")
    await a.sync(VIEW, (), 0.0)
    await b.sync(VIEW, (), 0.0)
    await a.close()
    assert (await b.sync(VIEW, (), 0.0)).routers == {}
    await b.close()


async def test_a_lease_ends_by_itself_and_its_name_is_swept(server: RedisServer) -> None:
    """A router that died without a word disappears, and its id leaves the set."""
    dead, alive = store(server, "dead", lease_s=0.02), store(server, "alive")
    await dead.sync(VIEW, (), 0.0)
    async with asyncio.timeout(5):
        while (await alive.sync(VIEW, (), 0.0)).routers or alive._peers:
            pass
    assert set(await alive.routers(0.0)) == {"alive"}
    await alive.close()
    await dead.link.close()


async def test_a_report_crosses_clocks_through_that_of_redis(server: RedisServer) -> None:
    """A sidecar whose clock reads 1,000 and a router whose clock reads 5 agree on how old a report is."""
    sidecar, router = store(server, "s"), store(server, "r")
    await sidecar.report({"b1": EngineReport.by_name(asked_s=998.0, running=3, waiting=2, kv_usage=0.5)}, 1000.0)
    report = (await router.sync(VIEW, ("b0", "b1"), 5.0)).reports["b1"]
    assert report.asked_s == pytest.approx(3.0, abs=1.0)
    assert (report.running, report.waiting, report.kv_usage) == (3, 2, 0.5)
    assert isnan(report.prefix_hit_rate)
    await sidecar.close()
    await router.close()


async def test_pools_on_one_server_do_not_meet(server: RedisServer) -> None:
    """The pool's name is part of every key."""
    a, b = store(server, "a", pool="one"), store(server, "b", pool="two")
    await a.sync(VIEW, (), 0.0)
    assert await b.routers(0.0) == {}
    await a.close()
    await b.close()


async def test_a_view_of_another_release_counts_as_empty(server: RedisServer) -> None:
    """An unreadable value fails no other."""
    a = store(server, "a")
    await put(server, odd='{"loads": 3}')
    assert (await a.routers(0.0))["odd"].loads == {}
    await a.close()


POOL = "{headroom:test}:"


async def put(to: RedisServer, **values: str) -> None:
    """Write views of routers and a report of b1 in forms that no router writes."""
    for name, text in values.items():
        key = "report:b1" if name == "report" else f"router:{name}"
        await do(to, "SET", POOL + key, text)
        if name != "report":
            await do(to, "SADD", POOL + "routers", name)


async def do(to: RedisServer, *command: Any) -> Any:
    """What anybody with access can do there."""
    async with Redis.from_url(to.url, protocol=2) as client:
        return await client.execute_command(*command)  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("value", ['"3"', "null", "true", "[1]", "{}", "-7", "1e308", "99999999999999999999"])
async def test_what_stands_in_place_of_a_number_is_dropped_and_counted(server: RedisServer, value: str) -> None:
    """Of the wrong type, negative or huge: the rest of the load and the report is taken, and the sync goes on."""
    a, dispatcher = store(server, "a"), fakes.core(fakes.backend("b1"))
    await put(
        server, odd=f'{{"loads": {{"b1": {{"prefilling": {value}, "decoding": 2}}}}, "demand": {{}}, "version": "v1"}}'
    )
    await put(server, report=f'{{"asked_s": 1.0, "running": {value}, "waiting": 4}}')
    await a.sync(RouterView(), ("b1",), 0.0)
    shared = await a.sync(RouterView(), ("b1",), 0.0)
    dispatcher.reported("b1", shared.reports["b1"], 1.0)
    assert dispatcher.ledger.table.unattributed[:, 0].tolist() == [4.0, 0.0, 0.0, 0.0]
    dispatcher.on_peer_load("odd", shared.routers["odd"].loads, 1.0)
    assert dispatcher.ledger.table.peers[:, 0].tolist() == [0.0, 0.0, 2.0, 0.0]
    counts = dispatcher.dropped_numbers.by_source
    assert (counts["peer"], counts["report"]) == (1, 1)
    await a.close()


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "3", "null", '{"asked_s": "now"}', '{"asked_s": 1e400}', '{"running": 1}']
)
async def test_a_report_without_a_time_is_skipped_and_counted_once(server: RedisServer, text: str) -> None:
    """One that cannot be read at all is such a one; a value that is empty is none."""
    a = store(server, "a")
    await put(server, report=text)
    for _ in range(3):
        assert (await a.sync(RouterView(), ("b1",), 0.0)).reports == {}
    assert a.skipped.counts == ({("report", "unreadable"): 1} if text else {})
    await put(server, report='{"asked_s": 1.0}')
    assert "b1" in (await a.sync(RouterView(), ("b1",), 0.0)).reports
    await put(server, report="[]")
    await a.sync(RouterView(), ("b1",), 0.0)
    assert a.skipped.counts["report", "unreadable"] == (2 if text else 1)
    await a.close()


async def test_a_peer_that_cannot_be_read_is_counted_once(server: RedisServer) -> None:
    """It has nothing in flight as far as we know; its next view is read as any other."""
    heard, a = Heard(), store(server, "a")
    sync = syncing(a, heard)
    await put(server, odd="\x00", older='{"loads": 3}')
    for _ in range(4):
        assert await sync.once(time.monotonic)
    assert a.skipped.counts == {("view", "unreadable"): 2}
    assert sync.peers["odd"] is UNREADABLE
    assert heard.loads == {"odd": {}, "older": {}}
    await put(server, odd='{"loads": {"b1": {"decoding": 2}}, "demand": {}, "version": "v3"}')
    assert await sync.once(time.monotonic)
    assert heard.loads["odd"] == {"b1": Load(decoding=2.0)}
    assert a.skipped.counts == {("view", "unreadable"): 2}
    await a.close()


@pytest.mark.parametrize("number", ["-1", '"9"', "null", "1e300"])
async def test_demand_with_a_number_that_cannot_be_is_passed_over(server: RedisServer, number: str) -> None:
    """The autoscaler gets the demand of the other models."""
    good = '{"requests_per_s": 1, "prompt_tokens": 10, "output_tokens": 5, "ended": 2, "attained": 1, "slo_class": "d"}'
    a = store(server, "a")
    await put(
        server, odd=f'{{"loads": {{}}, "demand": {{"m": {good.replace("10", number)}, "n": {good}}}, "version": "v1"}}'
    )
    assert dict((await a.routers(0.0))["odd"].demand) == {"n": ModelDemand(1, 10, 5, 2, 1, "d")}
    assert a.skipped.counts == {("demand", "implausible"): 1}
    await a.close()


def test_demand_as_it_arrives_passes_the_wire_and_what_of_it_cannot_be_is_left_out() -> None:
    """Totals stay, as of a release that measures no arrivals."""
    kind = KindOfDemand("default", 2.5, 100, 50, 9, 8)
    demand = ModelDemand(2.5, 100, 50, 9, 8, "default", (kind,), (12.0, 13.0), 5.0, 3.0)
    raw = view_json(RouterView({}, {"m": demand}, "v1"))
    assert view_from(raw).demand["m"] == demand
    plain = ModelDemand(2.5, 100, 50, 9, 8, "default")
    for text, wrong in ((b"12.0", b"-1"), (b"13.0", b"null"), (b'"bucket_s":5.0', b'"bucket_s":0'), (b"[{", b"[7,{")):
        assert view_from(raw.replace(text, wrong)).demand["m"] == plain


def test_what_a_later_release_adds_to_a_demand_may_be_absent_and_must_be_plausible() -> None:
    """A view of the release before has neither ``held`` nor ``shed_per_s``."""
    demand = ModelDemand(2.5, 100, 50, 9, 8, "default", (), (12.0,), 5.0, 3.0, 2.0, 0.25)
    raw = view_json(RouterView({}, {"m": demand}, "v1"))
    assert view_from(raw).demand["m"] == demand
    older = raw.replace(b',"held":2.0,"shed_per_s":0.25', b"")
    assert older != raw
    assert view_from(older).demand["m"] == ModelDemand(2.5, 100, 50, 9, 8, "default", (), (12.0,), 5.0, 3.0)
    assert view_from(raw.replace(b'"held":2.0', b'"held":-2')).demand["m"].arrivals == ()


def test_the_age_of_a_view_is_by_the_clock_of_the_store() -> None:
    """Whatever the clocks of its writer and its reader show; what cannot be an age is none."""
    view = RouterView(version="v1")
    assert view_from(view_json(view, 100.0), now_s=112.5).age_s == 12.5
    assert view_from(view_json(view, 100.0), now_s=99.0).age_s == 0.0
    assert view_from(view_json(view), now_s=99.0).age_s == 0.0
    assert view_from(view_json(view, 100.0)).age_s == 0.0
    assert view_from(view_json(view, 100.0).replace(b"100.0", b'"x"'), now_s=112.5).age_s == 0.0
    assert view_from(view_json(replace(view, age_s=3.0))).age_s == 3.0


async def test_a_reader_gets_the_age_of_each_view_and_the_backends_of_its_router(server: RedisServer) -> None:
    """By the server's clock; a router that states no backends is one whose backends are not known."""
    a, reader = store(server, "a", lease_s=600.0), store(server, "reader")
    for _ in range(2):
        await a.sync(VIEW, (), 1_000.0)  # its clock stands still: the second one is as old as the first
    seen = (SeenVariant("small", ("m",), {"b1": SeenBackend(True, 0.25)}, {"card": "l4"}),)
    view = (await reader.routers(5.0))["a"]
    assert (view.seen, view.age_s < 60.0) == (None, True)
    await a.keep(SEEN + "a", seen_json(seen), 600.0)
    assert (await reader.routers(5.0))["a"].seen == seen
    await do(server, "SET", POOL + "router:a", view_json(VIEW, 1.0))
    assert (await reader.routers(5.0))["a"].age_s > 1e6
    await do(server, "SET", POOL + "kept:" + SEEN + "a", b"{")
    assert (await reader.routers(5.0))["a"].seen is None
    await a.close()
    await reader.close()


async def test_a_value_that_is_kept_outlives_its_writer(server: RedisServer) -> None:
    """Until it expires; what is not ours, or too large, is none."""
    a, b = store(server, "a"), store(server, "b")
    assert await b.kept("autoscaler") == b""
    await a.keep("autoscaler", b"\x00learnt", 600.0)
    await a.close()
    assert await b.kept("autoscaler") == b"\x00learnt"
    assert 0 < await do(server, "PTTL", POOL + "kept:autoscaler") <= 600_000
    await do(server, "SET", POOL + "kept:autoscaler", b"x" * (KEPT_BYTES_MOST + 1))
    assert await b.kept("autoscaler") == b""
    await b.close()
    gone = store(RedisServer(), "a")
    for call in (gone.keep("autoscaler", b"", 1.0), gone.kept("autoscaler")):
        with pytest.raises(StoreGone):
            await call
    await gone.close()


async def test_names_that_are_no_text_end_no_call(server: RedisServer) -> None:
    """Anybody may write bytes into the pool's keys."""
    a = store(server, "a")
    await do(server, "HSET", POOL + "beliefs", b"\xff", b"x")
    await do(server, "SADD", POOL + "routers", b"\xfe", "x" * 5000, "")
    assert await a.beliefs(["\ufffd"]) == {}
    for _ in range(3):
        await a.sync(VIEW, (), 0.0)
    assert set(await a.routers(0.0)) == {"a"}
    assert await do(server, "SMEMBERS", POOL + "routers") == {b"a"}
    assert a.skipped.counts == {("routers", "unreadable"): 1}
    await a.close()


async def test_beliefs_outlive_the_router(server: RedisServer) -> None:
    """What one router learnt, the next one starts with."""
    a, b = store(server, "a"), store(server, "b")
    await a.keep_beliefs({"b1": b"\x00learnt"})
    await a.close()
    assert await b.beliefs(["b1", "b2"]) == {"b1": b"\x00learnt"}
    await b.close()


async def test_without_redis_a_call_fails_in_bounded_time() -> None:
    """StoreGone, never a hang and never another error."""
    gone = store(RedisServer(), "a")
    for call in (gone.sync(VIEW, (), 0.0), gone.routers(0.0), gone.beliefs(["b1"]), gone.report({}, 0.0)):
        with pytest.raises(StoreGone):
            await call
    await gone.close()


async def test_a_server_that_accepts_and_says_nothing_is_given_up() -> None:
    """A frozen Redis costs the timeout, no more."""
    writers: list[asyncio.StreamWriter] = []
    silent = await asyncio.start_server(lambda _, writer: writers.append(writer), "127.0.0.1", 0)
    port = silent.sockets[0].getsockname()[1]
    frozen = RedisStore(RedisServers.of_urls(f"redis://127.0.0.1:{port}/0"), "test", "a", 1.0, timeout_s=0.05)
    with pytest.raises(StoreGone):
        await frozen.sync(VIEW, (), 0.0)
    await frozen.close()
    silent.close()
    for writer in writers:
        writer.close()
    await asyncio.gather(*(writer.wait_closed() for writer in writers), return_exceptions=True)


async def test_sync_survives_a_restart_of_redis(server: RedisServer) -> None:
    """Gone: failures are counted and the peer is dropped. Back: both meet again without help."""
    heard = Heard()
    a, b = syncing(store(server, "a"), Heard()), syncing(store(server, "b"), heard, lease_s=0.05)
    tasks = [asyncio.create_task(each.run(time.monotonic)) for each in (a, b)]
    await until(lambda: heard.loads.get("a") == VIEW.loads)
    assert heard.peers == 1
    server.stop()
    await until(lambda: bool(heard.bad) and heard.lost == ["a"])
    await until(lambda: heard.peers == 0)
    assert b.peers == {}
    heard.loads.clear()
    await server.start()
    await until(lambda: heard.loads.get("a") == VIEW.loads)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    for each in (a, b):
        await each._store.close()


@pytest.mark.parametrize("fault", [ConnectionError("closed while reading"), None])
async def test_a_sync_that_is_cancelled_ends_though_the_client_hides_it(fault: Exception | None) -> None:
    """A client may answer a cancellation with an error of its own, or with its result: a loop around it would go on."""

    class Hides:
        async def run(self, commands: Sequence[Command]) -> list[Any]:
            try:
                await asyncio.sleep(60.0)
            except asyncio.CancelledError:
                if fault is not None:
                    raise fault from None
            return []

        async def close(self) -> None:
            pass

    link = RedisLink(RedisServers.of_urls("redis://127.0.0.1:1"), "key", 60.0)
    link._client = Hides()
    task = asyncio.create_task(link.run([("TIME",)]))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await link.close()


async def test_a_report_is_passed_on_once() -> None:
    """The same report read at the next sync is no news."""
    memory, heard = MemoryStore("a"), Heard()
    await memory.report({"b1": EngineReport(1.0, running=2)}, 1.0)
    sync = syncing(memory, heard)
    assert await sync.once(lambda: 2.0)
    assert await sync.once(lambda: 2.1)
    assert [name for name, _ in heard.reports] == ["b1"]


async def test_the_adapters_that_a_sidecar_saw_are_passed_on_with_the_report(server: RedisServer) -> None:
    """A report that says nothing of adapters changes nothing."""
    written, read, heard = store(server, "sidecar"), store(server, "a"), Heard()
    publisher, sync = Publisher(written), syncing(read, heard)
    for n, running in enumerate((RunningAdapters(("x", "y"), 2), None, RunningAdapters((), 2))):
        if running is not None:
            publisher.adapters_reported("b1", running)
        publisher.reported("b1", EngineReport(time.monotonic() + n))
        await publisher.publish()
        assert await sync.once(time.monotonic)
    assert heard.adapters == [("b1", RunningAdapters(("x", "y"), 2)), ("b1", RunningAdapters((), 2))]
    assert len(heard.reports) == 3
    await written.close()
    await read.close()


async def test_a_report_from_the_future_hides_no_real_one() -> None:
    """The listener gets it once, to count it, however often it is read; a real one begun before that is news."""
    memory, heard = MemoryStore("a"), Heard()
    sync = syncing(memory, heard)
    for asked_s in (1e9, 1e9, inf, inf, 1.5, 1e9, 1.6, 1.6, 2.5):
        await memory.report({"b1": EngineReport(asked_s)}, 1.0)
        assert await sync.once(lambda: 2.0)
    assert [report.asked_s for _, report in heard.reports] == [1e9, inf, 1.5, 1e9, 1.6, 2.5]


class Broken(MemoryStore):
    """A store that fails as it is set to."""

    error: Exception | None = None

    async def sync(self, own: RouterView, backends: tuple[str, ...], now_s: float) -> Shared:
        if self.error:
            raise self.error
        return Shared({"b": VIEW})


async def test_no_error_ends_the_loop_and_each_is_counted_by_reason(caplog: pytest.LogCaptureFixture) -> None:
    """One of the router's own code too. The log names a fault when it begins and once more when it is over."""
    memory, heard, now_s = Broken("a"), Heard(), 0.0
    sync = syncing(memory, heard)
    caplog.set_level("INFO", "headroom")

    async def once(error: Exception | None) -> bool:
        memory.error = error
        return await sync.once(lambda: now_s)

    assert await once(None)
    for error in (KeyError("odd"), KeyError("odd"), StoreGone("asleep", StateFault.TIMEOUT)):
        assert not await once(error)
    assert (heard.bad, heard.peers, heard.lost) == (["internal", "internal", "timeout"], 1, [])
    now_s = 10.0
    assert not await once(StoreGone("asleep", StateFault.TIMEOUT))
    assert (heard.peers, heard.lost, sync.peers) == (0, ["b"], {})
    assert str(sync.fault) == "asleep"
    assert await once(None)
    assert (heard.peers, sync.fault) == (1, None)
    lines = [record.getMessage() for record in caplog.records]
    assert sum("asleep" in line for line in lines) == 1
    assert sum("KeyError" in line for line in lines) == 1
    assert sum("answers again" in line for line in lines) == 1


async def test_a_store_that_comes_and_goes_fills_no_log(caplog: pytest.LogCaptureFixture) -> None:
    """Nor do reasons that alternate, as in a failover; an outage a while later is logged anew."""
    memory, heard, now_s = Broken("a"), Heard(), 100.0
    sync = syncing(memory, heard)
    caplog.set_level("INFO", "headroom")

    async def lines(*faults: StateFault | None) -> int:
        caplog.clear()
        for fault in faults:
            memory.error = StoreGone("gone", fault) if fault else None
            await sync.once(lambda: now_s)
        return len(caplog.records)

    refused, nowhere = StateFault.REFUSED, StateFault.NO_PRIMARY
    assert await lines(refused, nowhere, refused, nowhere, refused) == 2
    assert await lines(None, None) == 1
    for _ in range(5):
        now_s += 0.1
        assert await lines(refused, None) == 0
    now_s += 20.0
    assert await lines(refused, None) == 2


async def test_an_error_of_the_listener_ends_no_sync() -> None:
    """What a peer wrote may meet a fault of the core; the next sync goes on."""

    class Odd(Heard):
        def on_peer_load(self, peer: str, loads: Mapping[str, Load]) -> None:
            raise RuntimeError("no such slot")

    heard = Odd()
    sync = syncing(Broken("a"), heard)
    task = asyncio.create_task(sync.run(time.monotonic))
    await until(lambda: len(heard.bad) > 1)
    assert heard.bad[0] == "internal"
    assert not task.done()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_one_router_alone_has_no_peers() -> None:
    """The memory store is visible to the autoscaler of its process alone."""
    memory = MemoryStore("a")
    assert (await memory.sync(VIEW, (), 0.0)).routers == {}
    assert await memory.routers(0.0) == {"a": VIEW}
    await memory.keep_beliefs({"b": b"x"})
    assert await memory.beliefs(["b", "c"]) == {"b": b"x"}
    await memory.close()
    assert await memory.routers(0.0) == {}
