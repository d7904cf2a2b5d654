"""Whole routers whose shared state fails in every way that a Redis or Valkey fails, while requests are sent.

In each: no request is lost, decisions go on with this router's own load, the metric is true, and all heals without a
restart. Needs no engine: they are scripted.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
from redis.crc import key_slot

from router.core.types import EngineReport
from router.gateway.state.redis import RedisStore
from router.gateway.state.servers import RedisServers
from tests.fakes_router import HEALTHY, Router, backend, config, router
from tests.fakes_wire import ScriptedEngine, stream
from tests.pages import Pages
from tests.redis_server import RedisServer, SentinelServer, cluster, free_port, server_binary
from tests.tcp_proxy import Proxy
from tests.waiting import until, until_async

pytestmark = pytest.mark.skipif(server_binary() is None, reason="no Redis-compatible server binary installed")

SLOT = key_slot(b"headroom:default")
TAG = "{headroom:default}:"
PAUSE_S = 0.02
REPLACE = "redis.call('DEL', KEYS[1]) return redis.call(unpack(ARGV))"  # at once: routers write all the while


class Pool:
    """Routers that share one store, and what became of the requests that were sent to each all the while."""

    def __init__(self, routers: list[Router]) -> None:
        self.routers = routers
        self.statuses: list[list[int]] = [[] for _ in routers]

    async def sends(self, index: int) -> None:
        """One request after the other, until cancelled."""
        while True:
            answer = await self.routers[index].chat()
            ended = answer.text.endswith("data: [DONE]\n\n")
            self.statuses[index].append(answer.status_code if ended else 0)
            await asyncio.sleep(PAUSE_S)

    async def shows(self, index: int, *lines: str) -> bool:
        """Whether the metrics of a router have these lines."""
        text = (await self.routers[index].get("/metrics")).text
        return all(f"\nheadroom_{line}\n" in text for line in lines)

    async def all_show(self, *lines: str) -> bool:
        return all([await self.shows(index, *lines) for index in range(len(self.routers))])

    async def together(self) -> None:
        """Until every router sees every other."""
        await until_async(lambda: self.all_show("state_up 1.0", f"state_peers {len(self.routers) - 1}.0"))

    async def alone(self, *reasons: str) -> None:
        """Until every router goes by its own load, for one of these reasons."""
        await until_async(lambda: self.all_show("state_up 0.0", "state_peers 0.0"))
        for each in self.routers:
            assert not each.gateway.core.ledger.table.peers.any()
            assert each.gateway.sync.fault is not None
            assert each.gateway.sync.fault.fault in reasons, str(each.gateway.sync.fault)

    async def some_requests(self) -> None:
        """Until each router has served more."""
        before = [len(statuses) for statuses in self.statuses]
        await until(lambda: all(len(now) > then + 3 for now, then in zip(self.statuses, before, strict=True)))


@asynccontextmanager
async def pool(
    folder: Path, *states: str, clocks: tuple[Callable[[], float], ...] = (), source: str = "engines"
) -> AsyncIterator[Pool]:
    """Routers with these states (the inside of a YAML mapping), before one engine, with requests sent to each.

    At the end every request has had its whole reply.
    """
    async with AsyncExitStack() as stack:
        engine = await stack.enter_async_context(ScriptedEngine([stream("a", "b")]))
        pages = await stack.enter_async_context(Pages(HEALTHY))
        routers = []
        for index, state in enumerate(states):
            more = f"state: {{router_id: r{index}, {state}}}\n"
            text = config(backend("a", engine, pages), more=more).replace("scrape: {", f"scrape: {{source: {source}, ")
            clock = clocks[index] if clocks else time.monotonic
            started = await stack.enter_async_context(router(folder / f"r{index}.yaml", text, clock=clock))
            routers.append(started)
        made = Pool(routers)
        sending = [asyncio.create_task(made.sends(index)) for index in range(len(routers))]
        try:
            yield made
            await made.some_requests()
        finally:
            for task in sending:
                task.cancel()
            await asyncio.gather(*sending, return_exceptions=True)
        for statuses in made.statuses:
            assert statuses
            assert set(statuses) == {200}


def at(*servers: RedisServer | Proxy, more: str = "") -> str:
    """A state at these servers."""
    urls = ", ".join(f'"redis://127.0.0.1:{server.port}"' for server in servers)
    return f"redis: {{urls: [{urls}]{more}}}"


async def test_a_cluster_fails_over_and_moves_the_slot(tmp_path: Path) -> None:
    """Three primaries with a replica each; each router has another seed, one of them the node that dies."""
    async with cluster(tmp_path, 3, 3) as nodes:
        owner = await nodes.owner(SLOT)
        other = next(node for node in nodes.nodes if node is not owner)
        async with pool(tmp_path, at(owner), at(other)) as routers:
            await routers.together()
            owner.stop()
            await until_async(lambda: routers.all_show("state_up 0.0"))
            await routers.together()
            promoted = await nodes.owner(SLOT)
            assert promoted is not owner
            await owner.start()

            target = next(node for node in nodes.nodes[:3] if node not in {owner, promoted})
            ids = {node: await node.do("CLUSTER", "MYID") for node in (promoted, target)}
            await target.do("CLUSTER", "SETSLOT", SLOT, "IMPORTING", ids[promoted])
            await promoted.do("CLUSTER", "SETSLOT", SLOT, "MIGRATING", ids[target])
            await routers.some_requests()
            while keys := await promoted.do("CLUSTER", "GETKEYSINSLOT", SLOT, 1):
                await promoted.do("MIGRATE", "127.0.0.1", target.port, keys[0], 0, 1000)
            for node in (target, promoted):
                await node.do("CLUSTER", "SETSLOT", SLOT, "NODE", ids[target])
            await routers.together()
            found = [each.gateway.store for each in routers.routers]
            assert all(isinstance(store, RedisStore) for store in found)
            assert await target.do("CLUSTER", "COUNTKEYSINSLOT", SLOT) >= 3


async def test_sentinels_fail_over(tmp_path: Path) -> None:
    """Three of them, of which one is frozen; the old primary comes back as a replica."""
    async with AsyncExitStack() as stack:
        primary = await stack.enter_async_context(RedisServer())
        for _ in range(2):
            await stack.enter_async_context(RedisServer(None, "--replicaof", f"127.0.0.1 {primary.port}"))
        watching = [SentinelServer(tmp_path, primary, 2, 1000) for _ in range(3)]
        for sentinel in watching:
            await stack.enter_async_context(sentinel)

        async def known() -> bool:
            lists = [await each.do("SENTINEL", kind, "pool") for each in watching for kind in ("REPLICAS", "SENTINELS")]
            return all(len(each) == 2 for each in lists)

        await until_async(known)
        state = at(*watching, more=", service: pool")
        async with pool(tmp_path, state, state) as routers:
            await routers.together()
            watching[0].freeze()
            primary.stop()
            await until_async(lambda: routers.all_show("state_up 0.0"))
            await routers.together()
            await primary.start()
            watching[0].thaw()
            await routers.together()


async def test_a_server_without_memory_goes_on_being_read(tmp_path: Path) -> None:
    """Views are not taken, so that they expire; the reason is stated; with memory all is as before."""
    async with RedisServer() as server, pool(tmp_path, at(server), at(server)) as routers:
        await routers.together()
        await server.do("CONFIG", "SET", "maxmemory", "1")
        await routers.alone("full")
        await server.do("CONFIG", "SET", "maxmemory", "0")
        await routers.together()


async def test_a_replica_is_read_and_takes_no_view(tmp_path: Path) -> None:
    """The router there sees the other, which does not see it; promoted, it is a store like any."""
    async with AsyncExitStack() as stack:
        primary = await stack.enter_async_context(RedisServer())
        replica = await stack.enter_async_context(RedisServer(None, "--replicaof", f"127.0.0.1 {primary.port}"))
        routers = await stack.enter_async_context(pool(tmp_path, at(primary), at(replica)))
        await until_async(lambda: routers.shows(0, "state_up 1.0", "state_peers 0.0"))
        await until_async(lambda: routers.shows(1, "state_up 0.0", "state_peers 1.0"))
        fault = routers.routers[1].gateway.sync.fault
        assert fault is not None
        assert fault.fault == "read-only"
        await primary.do("REPLICAOF", "127.0.0.1", replica.port)
        await replica.do("REPLICAOF", "NO", "ONE")
        await until_async(lambda: routers.shows(0, "state_up 0.0", "state_peers 1.0"))
        await until_async(lambda: routers.shows(1, "state_up 1.0", "state_peers 0.0"))


async def test_a_server_is_frozen_for_ten_seconds(tmp_path: Path) -> None:
    """Connections stay open and new ones are taken; a call costs its time-out, and no request any of it."""
    async with RedisServer() as server, pool(tmp_path, at(server), at(server)) as routers:
        await routers.together()
        server.freeze()
        until_s = time.monotonic() + 10.0
        await routers.alone("timeout")
        await until(lambda: time.monotonic() > until_s)
        assert await routers.all_show("state_up 0.0", "state_peers 0.0")
        server.thaw()
        await routers.together()


async def test_a_server_is_half_a_second_away(tmp_path: Path) -> None:
    """Beyond the time-out of a call that is a store that does not answer; within it only views are older."""
    async with RedisServer() as server, Proxy(server.port) as proxy:
        async with pool(tmp_path, at(proxy), at(proxy)) as routers:
            await routers.together()
            proxy.delay_s = 0.25
            await routers.alone("timeout")
            proxy.delay_s = 0.0
            await routers.together()
        patient = at(proxy) + ", timeout_s: 5, lease_s: 3"
        async with pool(tmp_path, patient, patient) as routers:
            await routers.together()
            proxy.delay_s = 0.25
            begun = [each.gateway.sync for each in routers.routers]
            await routers.some_requests()
            await routers.together()
            assert all(each.fault is None for each in begun)
            proxy.delay_s = 0.0


async def test_clocks_that_are_an_hour_off_agree(tmp_path: Path) -> None:
    """Of a sidecar and two routers, each on a clock of its own: how old a report is goes by the server's alone."""
    ahead: tuple[Callable[[], float], ...] = (lambda: time.monotonic() + 3600.0, lambda: time.monotonic() - 3600.0)
    async with RedisServer() as server:
        state = at(server)
        async with pool(tmp_path, state, state, clocks=ahead, source="state") as routers:
            await routers.together()
            sidecar = RedisStore(RedisServers.of_urls(server.url), "default", "s", 1.0, 5.0)
            own_s = 7.0
            await sidecar.report({"a": EngineReport.by_name(own_s, running=3, waiting=4)}, own_s)
            await until_async(lambda: routers.all_show('engine_waiting{backend="a"} 4.0'))
            for each, clock in zip(routers.routers, ahead, strict=True):
                assert -1.0 < clock() - each.gateway.reports["a"].asked_s < 30.0

            await server.do("SET", TAG + "report:a", f'{{"asked_s": {time.time() + 3600}, "waiting": 9}}')
            await routers.some_requests()
            await sidecar.report({"a": EngineReport.by_name(own_s + 1.0, running=3, waiting=5)}, own_s + 1.0)
            await until_async(lambda: routers.all_show('engine_waiting{backend="a"} 5.0'))
            assert await routers.all_show("state_up 1.0", "state_peers 1.0")
            await sidecar.close()


async def test_two_routers_are_parted_from_two_others(tmp_path: Path) -> None:
    """Those that reach the store see each other, the rest nobody; mended, all see all."""
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(RedisServer())
        here, there = [await stack.enter_async_context(Proxy(server.port)) for _ in range(2)]
        routers = await stack.enter_async_context(pool(tmp_path, at(here), at(here), at(there), at(there)))
        await routers.together()
        there.cut = True
        for index in (0, 1):
            await until_async(lambda index=index: routers.shows(index, "state_up 1.0", "state_peers 1.0"))
        for index in (2, 3):
            await until_async(lambda index=index: routers.shows(index, "state_up 0.0", "state_peers 0.0"))
            assert not routers.routers[index].gateway.core.ledger.table.peers.any()
        there.cut = False
        await routers.together()


async def test_garbage_in_every_key_while_requests_are_sent(tmp_path: Path) -> None:
    """Of another type, too large, no JSON, of a later release: counted; good values are back with the next sync."""
    async with RedisServer() as server, pool(tmp_path, at(server), at(server)) as routers:
        await routers.together()
        keys = [TAG + kind for kind in ("routers", "router:r0", "router:r1", "report:a", "belief:3:a", "beliefs")]
        for key in keys:
            for command in (("RPUSH", key, "x"), ("SET", key, "\xff" * 9), ("SET", key, '{"format": 99}')):
                await server.do("EVAL", REPLACE, 1, key, *command)
                await routers.some_requests()
        await server.do("SADD", TAG + "routers", "zombie")
        await server.do("SET", TAG + "router:zombie", "[" * 100)
        stores = [each.gateway.store for each in routers.routers]
        await until(lambda: all(store.skipped.counts.get(("view", "unreadable")) for store in stores))
        await routers.together()  # what was written without a lease has got one
        await server.do("FLUSHALL")
        await routers.together()


async def test_a_router_that_starts_before_its_store(tmp_path: Path) -> None:
    """It serves at once; the store is found when it is there, under an address that was refused before."""
    server = RedisServer(free_port())
    async with pool(tmp_path, at(server), at(server)) as routers:
        await routers.alone("refused")
        async with server:
            await routers.together()
