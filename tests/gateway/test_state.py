"""The stores against real servers: leases, peers, reports across clocks, and life without Redis."""

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from math import isnan
from pathlib import Path

import pytest

from router.core.types import EngineReport, Load
from router.gateway.state import ModelDemand, RouterView, Store, StoreGone
from router.gateway.state.memory import MemoryStore
from router.gateway.state.redis import RedisStore
from router.gateway.state.sync import Sync
from tests.redis_server import RedisServer, free_port, server_binary
from tests.waiting import until, until_async

pytestmark = pytest.mark.skipif(server_binary() is None, reason="no Redis-compatible server binary installed")

VIEW = RouterView({"b1": Load(1, 200, 3, 900)}, {"m": ModelDemand(2.5, 100, 50, 9, 8, "default")}, "v1")


@pytest.fixture
async def server() -> AsyncIterator[RedisServer]:
    """A server that is there at the start."""
    async with RedisServer() as running:
        yield running


def store(server: RedisServer, router_id: str, lease_s: float = 5.0, pool: str = "test") -> RedisStore:
    """A router's store on that server."""
    return RedisStore(server.url, pool, router_id, lease_s, timeout_s=1.0)


class Heard:
    """Notes what a Sync passes on and counts."""

    def __init__(self) -> None:
        self.loads: dict[str, Mapping[str, Load]] = {}
        self.lost: list[str] = []
        self.reports: list[tuple[str, EngineReport]] = []
        self.good = 0
        self.bad: list[str] = []

    def heard(self, peer: str, loads: Mapping[str, Load]) -> None:
        self.loads[peer] = loads

    def peer_lost(self, peer: str) -> None:
        self.lost.append(peer)

    def reported(self, name: str, report: EngineReport) -> None:
        self.reports.append((name, report))

    def synced(self, took_s: float, peers: int) -> None:
        self.good += 1

    def sync_failed(self, why: str) -> None:
        self.bad.append(why)


def syncing(store: Store, heard: Heard, lease_s: float = 5.0) -> Sync:
    """A Sync that publishes VIEW and reads the reports of b1."""
    return Sync(store, heard, lambda: VIEW, lambda: ("b1",), heard, 0.01, lease_s)


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
    await dead._redis.aclose()


async def test_a_report_crosses_clocks_through_that_of_redis(server: RedisServer) -> None:
    """A sidecar whose clock reads 1,000 and a router whose clock reads 5 agree on how old a report is."""
    sidecar, router = store(server, "s"), store(server, "r")
    await sidecar.report({"b1": EngineReport(asked_s=998.0, running=3, waiting=2, kv_usage=0.5)}, 1000.0)
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
    """What cannot be read breaks nobody."""
    a = store(server, "a")
    await a._redis.sadd("{headroom:test}:routers", "odd")
    await a._redis.set("{headroom:test}:router:odd", b'{"loads": 3}')
    assert (await a.routers(0.0))["odd"].loads == {}
    await a.close()


async def test_beliefs_outlive_the_router(server: RedisServer) -> None:
    """What one router learnt, the next one starts with."""
    a, b = store(server, "a"), store(server, "b")
    await a.keep_beliefs({"b1": b"\x00learnt"})
    await a.close()
    assert await b.beliefs() == {"b1": b"\x00learnt"}
    await b.close()


async def test_without_redis_a_call_fails_in_bounded_time() -> None:
    """StoreGone, never a hang and never another error."""
    gone = store(RedisServer(), "a")
    for call in (gone.sync(VIEW, (), 0.0), gone.routers(0.0), gone.beliefs(), gone.report({}, 0.0)):
        with pytest.raises(StoreGone):
            await call
    await gone.close()


async def test_a_server_that_accepts_and_says_nothing_is_given_up() -> None:
    """A frozen Redis costs the timeout, no more."""
    writers: list[asyncio.StreamWriter] = []
    silent = await asyncio.start_server(lambda _, writer: writers.append(writer), "127.0.0.1", 0)
    port = silent.sockets[0].getsockname()[1]
    frozen = RedisStore(f"redis://127.0.0.1:{port}/0", "test", "a", 1.0, timeout_s=0.05)
    with pytest.raises(StoreGone):
        await frozen.sync(VIEW, (), 0.0)
    await frozen.close()
    silent.close()
    for writer in writers:
        writer.close()
    await asyncio.gather(*(writer.wait_closed() for writer in writers), return_exceptions=True)


async def test_a_cluster_is_followed_to_the_node_that_has_the_pool(tmp_path: Path) -> None:
    """All keys of a pool are in one slot: whichever node the URL names, one MOVED says whom to ask."""
    nodes = [(free_port(), free_port()) for _ in range(2)]
    options = ["--cluster-enabled", "yes", "--cluster-require-full-coverage", "no"]
    running = [
        RedisServer(port, *options, "--cluster-port", str(bus), "--cluster-config-file", str(tmp_path / str(port)))
        for port, bus in nodes
    ]
    async with running[0] as owner, running[1] as other:
        a, b = store(owner, "a"), store(other, "b")
        await a._redis.execute_command("CLUSTER ADDSLOTSRANGE", 0, 16383)  # type: ignore[no-untyped-call]
        await b._redis.execute_command("CLUSTER MEET", "127.0.0.1", *nodes[0])  # type: ignore[no-untyped-call]

        async def meet() -> bool:
            with suppress(StoreGone):
                await a.sync(VIEW, (), 0.0)
                return "a" in (await b.sync(VIEW, (), 0.0)).routers
            return False

        await until_async(meet)
        await b.report({"b1": EngineReport(asked_s=1.0, running=3)}, 1.0)
        assert (await a.sync(VIEW, ("b1",), 5.0)).reports["b1"].running == 3
        owner.stop()
        with pytest.raises(StoreGone):
            await b.sync(VIEW, (), 0.0)
        assert b._at == other.url
        await a.close()
        await b.close()


async def test_sync_survives_a_restart_of_redis(server: RedisServer) -> None:
    """Gone: failures are counted and the peer is dropped. Back: both meet again without help."""
    heard = Heard()
    a, b = syncing(store(server, "a"), Heard()), syncing(store(server, "b"), heard, lease_s=0.05)
    tasks = [asyncio.create_task(each.run(time.monotonic)) for each in (a, b)]
    await until(lambda: heard.loads.get("a") == VIEW.loads)
    server.stop()
    await until(lambda: bool(heard.bad) and heard.lost == ["a"])
    assert b.peers == {}
    heard.loads.clear()
    await server.start()
    await until(lambda: heard.loads.get("a") == VIEW.loads)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    for each in (a, b):
        await each._store.close()


async def test_a_report_is_passed_on_once() -> None:
    """The same report read at the next sync is no news."""
    memory, heard = MemoryStore("a"), Heard()
    await memory.report({"b1": EngineReport(1.0, running=2)}, 1.0)
    sync = syncing(memory, heard)
    assert await sync.once(lambda: 2.0)
    assert await sync.once(lambda: 2.1)
    assert [name for name, _ in heard.reports] == ["b1"]


async def test_one_router_alone_has_no_peers() -> None:
    """The memory store publishes to nobody but the autoscaler of its process."""
    memory = MemoryStore("a")
    assert (await memory.sync(VIEW, (), 0.0)).routers == {}
    assert await memory.routers(0.0) == {"a": VIEW}
    await memory.keep_beliefs({"b": b"x"})
    assert await memory.beliefs() == {"b": b"x"}
    await memory.close()
    assert await memory.routers(0.0) == {}
