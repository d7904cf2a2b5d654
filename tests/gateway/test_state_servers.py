"""The store on servers of every kind: clusters, sentinels, replicas, without memory, with users, with TLS."""

import asyncio
import ssl
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import trustme
from redis.crc import key_slot

from router.core.errors import StateFault, StoreGone
from router.core.types import EngineReport, Load
from router.gateway.state import RouterView
from router.gateway.state.redis import RedisStore
from router.gateway.state.redis_clients import Command
from router.gateway.state.servers import RedisServers
from router.gateway.state.sync import Sync
from tests.gateway.test_state import VIEW, Heard
from tests.redis_server import RedisServer, SentinelServer, cluster, free_port, server_binary
from tests.tcp_proxy import Proxy
from tests.waiting import until, until_async

pytestmark = pytest.mark.skipif(server_binary() is None, reason="no Redis-compatible server binary installed")

SLOT = key_slot(b"headroom:test")


def store(*urls: str, router_id: str = "a", timeout_s: float = 1.0, **more: object) -> RedisStore:
    """A router's store on these servers."""
    return RedisStore(RedisServers.of_urls(*urls, **more), "test", router_id, 5.0, timeout_s)


async def meets(reader: RedisStore, *peers: str) -> bool:
    """Whether a sync works, and shows these peers."""
    try:
        shared = await reader.sync(VIEW, ("b1",), time.monotonic())
    except StoreGone:
        return False
    return shared.fault is None and shared.routers.keys() == set(peers)


async def fault(store: RedisStore) -> StateFault | None:
    """Why a sync fails, or what it could not do; None: nothing."""
    try:
        shared = await store.sync(VIEW, (), 0.0)
    except StoreGone as gone:
        return gone.fault
    return shared.fault.fault if shared.fault else None


async def test_any_node_of_a_cluster_leads_to_the_one_with_the_pool(tmp_path: Path) -> None:
    """Also at the very first call, which reads beliefs; and when the slot moves to a node that had none before."""
    async with cluster(tmp_path, 2, 0) as nodes:
        owner = await nodes.owner(SLOT)
        other = next(node for node in nodes.nodes if node is not owner)
        a, b = store(owner.url), store(other.url, router_id="b")
        await a.keep_beliefs({"b1": b"learnt"})
        assert await b.beliefs(["b1"]) == {"b1": b"learnt"}
        await until_async(lambda: meets(a))
        await until_async(lambda: meets(b, "a"))
        await b.report({"b1": EngineReport(asked_s=1.0, running=3)}, 1.0)
        assert (await a.sync(VIEW, ("b1",), 5.0)).reports["b1"].running == 3
        assert b.link.found is not None
        assert b.link.found.kind == "a cluster of 2 nodes"
        assert b.link.found.at.endswith(str(owner.port))

        source, target = await owner.do("CLUSTER", "MYID"), await other.do("CLUSTER", "MYID")
        await other.do("CLUSTER", "SETSLOT", SLOT, "IMPORTING", source)
        await owner.do("CLUSTER", "SETSLOT", SLOT, "MIGRATING", target)
        keys = await owner.do("CLUSTER", "GETKEYSINSLOT", SLOT, 100)
        assert len(keys) > 3
        for moved in range(len(keys) + 1):  # half moved at times: what is new is created at the target (ASK)
            assert await meets(a, "b")
            assert await meets(b, "a")
            if moved < len(keys):
                await owner.do("MIGRATE", "127.0.0.1", other.port, keys[moved], 0, 1000)
        for node in (other, owner):
            await node.do("CLUSTER", "SETSLOT", SLOT, "NODE", target)
        assert await meets(a, "b")
        assert await meets(b, "a")
        assert (await a.beliefs(["b1"])) == {"b1": b"learnt"}
        await a.close()
        await b.close()


async def test_a_slot_is_followed_to_a_node_without_any(tmp_path: Path) -> None:
    """While it migrates there, that node is in no map of the cluster."""
    async with cluster(tmp_path, 1, 0) as nodes, cluster(tmp_path, 1, 0) as alone:
        owner, new = nodes.nodes[0], alone.nodes[0]
        await new.do("CLUSTER", "RESET", "HARD")
        await new.do("CLUSTER", "MEET", "127.0.0.1", owner.port, nodes._buses[0])
        a = store(owner.url)
        await until_async(lambda: meets(a))

        async def knows() -> bool:
            ids = [await each.do("CLUSTER", "MYID") for each in (owner, new)]
            return all([each in await node.do("CLUSTER", "NODES") for node in (owner, new) for each in ids])

        await until_async(knows)
        await new.do("CLUSTER", "SETSLOT", SLOT, "IMPORTING", await owner.do("CLUSTER", "MYID"))
        await owner.do("CLUSTER", "SETSLOT", SLOT, "MIGRATING", await new.do("CLUSTER", "MYID"))
        b = store(owner.url, router_id="b")  # its view is a new key, which only the target creates
        await until_async(lambda: meets(b, "a"))
        assert await new.do("CLUSTER", "COUNTKEYSINSLOT", SLOT) == 1
        await a.close()
        await b.close()


async def test_a_cluster_without_slots_is_a_reason(tmp_path: Path) -> None:
    """As before it has been made; nothing else is raised, and nothing stays."""
    options = ["--cluster-enabled", "yes", "--cluster-port", str(free_port())]
    async with RedisServer(None, *options, "--cluster-config-file", str(tmp_path / "nodes")) as node:
        a = store(node.url)
        assert await fault(a) is StateFault.NO_PRIMARY
        await node.do("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
        await until_async(lambda: meets(a))
        await a.close()
        numbered = store(f"{node.url[:-1]}3")
        with pytest.raises(StoreGone, match="no database 3"):
            await numbered.sync(VIEW, (), 0.0)
        await numbered.close()


async def test_sentinels_name_the_primary_and_the_next_one(tmp_path: Path) -> None:
    """One of the sentinels is not there; the primary dies; nobody restarts a router."""
    async with AsyncExitStack() as stack:
        primary = await stack.enter_async_context(RedisServer())
        replica = await stack.enter_async_context(RedisServer(None, "--replicaof", f"127.0.0.1 {primary.port}"))
        sentinel = await stack.enter_async_context(SentinelServer(tmp_path, primary, 1, 300))

        async def known() -> bool:
            return len(await sentinel.do("SENTINEL", "REPLICAS", "pool")) == 1

        await until_async(known)
        urls = (f"redis://127.0.0.1:{free_port()}", f"redis://127.0.0.1:{sentinel.port}")
        a, b = (store(*urls, router_id=name, service="pool") for name in "ab")
        await until_async(lambda: meets(a))
        await until_async(lambda: meets(b, "a"))
        primary.stop()
        assert await fault(a) is not None

        async def moved() -> bool:
            return not await fault(a) and await meets(b, "a")

        await until_async(moved)
        assert a.link.found is not None
        assert a.link.found.at.endswith(str(replica.port))
        for each in (a, b):
            await each.close()
        plain = store(f"redis://127.0.0.1:{sentinel.port}")
        with pytest.raises(StoreGone, match=r"name the primary in state\.redis\.service"):
            await plain.sync(VIEW, (), 0.0)
        unknown = store(*urls, service="other")
        with pytest.raises(StoreGone, match=r"no sentinel names a primary of 'other' \(.*ConnectionError"):
            await unknown.sync(VIEW, (), 0.0)
        for each in (plain, unknown):
            await each.close()


async def test_of_several_servers_the_one_that_is_no_replica_is_used() -> None:
    """A replica alone is read; the view of this router is not taken, and the reason is stated."""
    async with AsyncExitStack() as stack:
        primary = await stack.enter_async_context(RedisServer())
        replica = await stack.enter_async_context(RedisServer(None, "--replicaof", f"127.0.0.1 {primary.port}"))
        peer, both, reader = store(primary.url, router_id="p"), store(replica.url, primary.url), store(replica.url)
        await peer.sync(VIEW, (), 0.0)

        async def copied() -> bool:
            return bool(await replica.do("EXISTS", "{headroom:test}:router:p"))

        await until_async(copied)
        assert await meets(both)
        heard = Heard()
        sync = Sync(reader, heard, lambda: VIEW, tuple, heard, 0.01, 5.0)
        for _ in range(2):
            assert await sync.once(time.monotonic)
        assert heard.loads["p"] == VIEW.loads
        assert heard.bad == ["read-only"] * 2
        primary.stop()
        assert await fault(both) is not None
        await replica.do("REPLICAOF", "NO", "ONE")
        await until_async(lambda: meets(both, "p"))
        for _ in range(2):
            assert await sync.once(time.monotonic)
        assert sync.fault is None
        for each in (peer, both, reader):
            await each.close()


async def test_without_memory_what_is_there_is_read() -> None:
    """The view of this router is not taken; once there is memory, it is."""
    async with RedisServer() as server:
        a, b = store(server.url), store(server.url, router_id="b")
        for each in (a, b):
            await each.sync(VIEW, (), 0.0)
        await server.do("CONFIG", "SET", "maxmemory", "1")
        shared = await b.sync(VIEW, (), 0.0)
        assert shared.routers == {"a": VIEW}
        assert shared.fault is not None
        assert shared.fault.fault is StateFault.FULL
        with pytest.raises(StoreGone) as refused:
            await b.keep_beliefs({"b1": b"learnt"})
        assert refused.value.fault is StateFault.FULL
        await server.do("CONFIG", "SET", "maxmemory", "0")
        assert await meets(b, "a")
        await a.close()
        await b.close()


async def test_users_passwords_and_their_rights() -> None:
    """The reason tells a wrong password from a server that is not there; a right that lacks costs only its part."""
    rights = ["~{headroom:test}:*", "+@all", "-@dangerous", "-@scripting"]
    async with RedisServer(None, "--user", "router", "on", ">secret", *rights, "--user", "default", "off") as server:
        good = store(server.url, username="router", password="secret")
        assert await meets(good)
        in_url = store(server.url.replace("//", "//router:secret@"))
        assert await meets(in_url)
        assert "secret" not in repr(in_url.link.servers)
        for wrong in (store(server.url, username="router", password="other"), store(server.url)):
            assert await fault(wrong) is StateFault.DENIED
            await wrong.close()
        other = RedisStore(RedisServers.of_urls(server.url, username="router", password="secret"), "other", "a", 5, 1)
        assert await fault(other) is StateFault.DENIED
        for each in (good, in_url, other):
            await each.close()


async def test_tls_and_a_certificate_for_each_side(tmp_path: Path) -> None:
    """Every file of the section is used; without them, or with a name that does not fit, the reason is TLS."""
    authority, strange = trustme.CA(), trustme.CA()
    own, other = authority.issue_cert("127.0.0.1"), authority.issue_cert("redis.example")
    client = authority.issue_cert("router.example")
    client.private_key_and_cert_chain_pem.write_to_path(tmp_path / "client.pem")
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    strange.cert_pem.write_to_path(tmp_path / "strange.pem")
    pair = {"client_cert": f"{tmp_path}/client.pem", "client_key": f"{tmp_path}/client.pem"}
    contexts = []
    for cert in (own, other):
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.verify_mode = ssl.CERT_REQUIRED
        authority.configure_trust(context)
        cert.configure_cert(context)
        contexts.append(context)
    async with (
        RedisServer() as server,
        Proxy(server.port, contexts[0]) as named,
        Proxy(server.port, contexts[1]) as odd,
    ):
        url, ca = f"rediss://127.0.0.1:{named.port}", f"{tmp_path}/ca.pem"
        good = store(url, ca=ca, **pair)
        unnamed = store(f"rediss://127.0.0.1:{odd.port}", ca=ca, verify_hostname=False, router_id="b", **pair)
        assert await meets(good)
        await until_async(lambda: meets(unnamed, "a"))
        for bad in (
            store(url, ca=f"{tmp_path}/strange.pem", **pair),
            store(url, **pair),
            store(f"rediss://127.0.0.1:{odd.port}", ca=ca, **pair),
        ):
            assert await fault(bad) is StateFault.TLS
            await bad.close()
        bare = store(
            url, ca=ca
        )  # refused after the handshake, as of TLS 1.3, so that it may be seen as a closed connection
        assert await fault(bare) in {StateFault.TLS, StateFault.UNREACHABLE}
        for each in (good, unnamed, bare):
            await each.close()


async def test_the_reason_of_each_failure(tmp_path: Path) -> None:
    """Nothing there, no such name, no Redis there, a socket that is none."""

    async def nonsense(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    listening = await asyncio.start_server(nonsense, "127.0.0.1", 0)
    reasons = {
        f"redis://127.0.0.1:{free_port()}": {StateFault.REFUSED},
        "redis://no.such.host.invalid": {StateFault.UNREACHABLE, StateFault.TIMEOUT},
        f"redis://127.0.0.1:{listening.sockets[0].getsockname()[1]}": {StateFault.INVALID, StateFault.UNREACHABLE},
        f"unix://{tmp_path}/none.sock": {StateFault.UNREACHABLE},
    }
    for url, expected in reasons.items():
        a = store(url)
        assert await fault(a) in expected, url
        await a.close()
    listening.close()
    await listening.wait_closed()


async def test_a_frozen_seed_keeps_no_router_from_the_next() -> None:
    """Connecting takes longer than a call may; it goes on behind the calls, and begins elsewhere the next time."""
    async with RedisServer() as frozen, RedisServer() as good:
        frozen.freeze()
        a = store(frozen.url, good.url, timeout_s=0.1)
        assert await fault(a) is StateFault.TIMEOUT
        await until_async(lambda: meets(a))
        frozen.thaw()
        await a.close()


async def test_a_store_that_is_closed_while_it_connects_leaves_nothing(tmp_path: Path) -> None:
    """Tests run with every warning as an error, those of unclosed connections too."""
    async with RedisServer() as frozen:
        frozen.freeze()
        a = store(frozen.url, timeout_s=0.05)
        assert await fault(a) is StateFault.TIMEOUT
        await a.close()
        frozen.thaw()


async def test_views_of_a_release_before_and_after_this_one() -> None:
    """Neither has the version that this one writes: the older is read, the newer skipped and counted, once."""
    async with RedisServer() as server:
        a = store(server.url)
        older = '{"loads": {"b1": {"decoding": 2, "new_field": 7}}, "demand": {}, "version": "v1", "added": []}'
        await server.do("SADD", "{headroom:test}:routers", "old", "new")
        await server.do("SET", "{headroom:test}:router:old", older)
        await server.do("SET", "{headroom:test}:router:new", '{"format": 2, "loads": [], "demand": 3}')
        await server.do("SET", "{headroom:test}:report:b1", '{"format": 2, "asked": "12:00"}')
        await server.do("HSET", "{headroom:test}:beliefs", "b1", "learnt")
        for _ in range(3):
            shared = await a.sync(RouterView(), ("b1",), 0.0)
        assert shared.routers["old"].loads == {"b1": Load(decoding=2.0)}
        assert shared.routers["new"].loads == {}
        assert a.skipped.counts == {("view", "newer"): 1, ("report", "newer"): 1}
        assert await a.beliefs(["b1"]) == {"b1": b"learnt"}
        await a.keep_beliefs({"b1": b"learnt since"})
        assert await a.beliefs(["b1"]) == {"b1": b"learnt since"}
        await a.close()


async def test_every_key_expires() -> None:
    """One that somebody wrote without a lease too, once a router has seen it."""
    async with RedisServer() as server:
        a = store(server.url)
        await server.do("SADD", "{headroom:test}:routers", "zombie")
        await server.do("SET", "{headroom:test}:router:zombie", '{"loads": {}, "demand": {}, "version": "v1"}')
        for _ in range(2):
            await a.sync(VIEW, (), 0.0)
        await a.report({"b1": EngineReport(1.0)}, 1.0)
        await a.keep_beliefs({"b1": b"learnt"})
        keys = await server.do("KEYS", "*")
        assert len(keys) == 5
        assert [key for key in keys if await server.do("PTTL", key) < 0] == []
        await a.close()


async def test_a_sync_reads_a_bounded_part_of_many_reports() -> None:
    """A thousand backends take turns; each is read within some syncs."""
    async with RedisServer() as server:
        a, names = store(server.url), tuple(f"b{number}" for number in range(300))
        await a.report({name: EngineReport(1.0, running=1.0) for name in names}, 1.0)
        read = [(await a.sync(VIEW, names, 1.0)).reports.keys() for _ in range(5)]
        assert {len(each) for each in read} == {64}
        assert set().union(*read) == set(names)
        await a.close()


async def test_two_that_wait_for_one_connection_get_it() -> None:
    """Or the same reason."""
    async with RedisServer() as server:
        a = store(server.url)
        both = await asyncio.gather(a.sync(VIEW, (), 0.0), a.beliefs(["b1"]))
        assert both[1] == {}
        server.stop()
        failed = await asyncio.gather(a.sync(VIEW, (), 0.0), a.beliefs(["b1"]), return_exceptions=True)
        assert all(isinstance(each, StoreGone) for each in failed)
        await server.start()
        await until_async(lambda: meets(a))
        await until(lambda: a.link._connecting is None)
        await a.close()


async def test_a_call_that_fails_late_drops_no_connection_made_since() -> None:
    """A save of beliefs that was under way when a sync failed ends after the next connection is there."""

    class Fails:
        closed = False

        def __init__(self) -> None:
            self.go_on = asyncio.Event()

        async def run(self, commands: Sequence[Command]) -> list[Any]:
            await self.go_on.wait()
            raise ConnectionError("closed")

        async def close(self) -> None:
            self.closed = True

    async with RedisServer() as server:
        a, old = store(server.url, timeout_s=60.0), Fails()
        a.link._client = old
        saving = asyncio.create_task(a.keep_beliefs({"b1": b"learnt"}))
        await asyncio.sleep(0)
        a.link._client = None
        assert await meets(a)
        made = a.link._client
        old.go_on.set()
        with pytest.raises(StoreGone):
            await saving
        assert old.closed
        assert a.link._client is made
        assert await meets(a)
        await a.close()
