"""Whatever stands in the keys of a pool: no sync raises, and a router's state stays finite and bounded."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError

from router.core.border import SEQUENCES_MOST, TOKENS_MOST
from router.core.dispatcher import Dispatcher
from router.core.errors import StoreGone
from router.core.types import EngineReport, Load
from router.gateway.state import RouterView
from router.gateway.state.files import FileStore
from router.gateway.state.redis import BELIEF_BYTES_MOST, VIEW_BYTES_MOST, RedisStore
from router.gateway.state.redis_clients import Command
from router.gateway.state.servers import RedisServers
from router.gateway.state.sync import Sync
from tests import fakes
from tests.gateway.test_state import VIEW, Heard
from tests.redis_server import RedisServer, server_binary

TAG = "{headroom:test}:"


class Core(Heard):
    """A core that gets what a Sync passes on, at 1 s on its clock."""

    def __init__(self) -> None:
        super().__init__()
        self.core: Dispatcher = fakes.core(fakes.backend("b1"))

    def on_peer_load(self, peer: str, loads: Any) -> None:
        self.core.on_peer_load(peer, loads, 1.0)

    def reported(self, name: str, report: EngineReport) -> None:
        self.core.reported(name, report, 1.0)

    def check(self) -> None:
        """Nothing in the table that is not finite, negative or without a bound."""
        table = self.core.ledger.table
        assert np.isfinite(table.peers).all()
        assert np.isfinite(table.unattributed).all()
        for part in (table.peers, table.unattributed):
            assert (part >= 0.0).all()
            assert part.max() <= TOKENS_MOST
            assert part[0].max() <= SEQUENCES_MOST


class Canned:
    """A client whose server answers each read of a value with what stands there."""

    def __init__(self, values: dict[str, Any]) -> None:
        self._values = values

    async def run(self, commands: Sequence[Command]) -> list[Any]:
        return [self._answer(*command) for command in commands]

    def _answer(self, name: str, key: str = "", *_: Any) -> Any:
        kind, _, _ = key.removeprefix(TAG).partition(":")
        fixed: dict[str, Any] = {"TIME": (1000, 0), "SET": b"OK", "SRANDMEMBER": self._values["ids"], "HSTRLEN": 0}
        return fixed[name] if name in fixed else self._values.get(kind, b"") if name == "GETRANGE" else 1

    async def close(self) -> None:
        pass


def canned(values: dict[str, Any]) -> RedisStore:
    """A store that is connected to such a server."""
    made = RedisStore(RedisServers.of_urls("redis://127.0.0.1:1"), "test", "a", 1.0, 1.0)
    made.link._client = Canned(values)
    return made


numbers = st.one_of(st.floats(), st.integers(), st.sampled_from([1e308, -1e308, 2**70, -(2**70)]))
plain = st.recursive(
    st.none() | st.booleans() | numbers | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
load = st.fixed_dictionaries({}, optional=dict.fromkeys(("prefilling", "decoding", "tpot_bound_s", "odd"), plain))
demand = st.fixed_dictionaries({}, optional=dict.fromkeys(("requests_per_s", "ended", "slo_class"), plain))
view = st.fixed_dictionaries(
    {},
    optional={
        "loads": st.dictionaries(st.sampled_from(["b1", "b2", ""]), load | plain, max_size=2) | plain,
        "demand": st.dictionaries(st.text(max_size=3), demand | plain, max_size=2) | plain,
        "quotas": st.dictionaries(st.sampled_from(["tenant:t", ""]), st.lists(plain, max_size=6) | plain) | plain,
        "version": st.text(max_size=3) | plain,
        "format": st.sampled_from([1, 2, 0, "1"]) | plain,
    },
)
report = st.fixed_dictionaries(
    {}, optional=dict.fromkeys(("asked_s", "running", "waiting", "kv_usage", "kv_tokens_max", "format"), plain)
)
errors = st.sampled_from(
    [ResponseError("WRONGTYPE of another type"), ResponseError("OOM command not allowed"), None, 7]
)


def encoded(of: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """As JSON (with NaN and Infinity), broken now and then; or any bytes; or what the client gives for no string."""
    text = of.map(lambda each: json.dumps(each).encode())
    return text | text.map(lambda each: each[: len(each) // 2]) | st.binary(max_size=30) | errors


def _is_text(value: object) -> bool:
    return isinstance(value, bytes)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(router=encoded(view), told=encoded(report), ids=st.lists(st.binary(max_size=12), max_size=4) | errors)
def test_no_bytes_in_any_key_raise_or_reach_the_state(router: Any, told: Any, ids: Any) -> None:
    """Of views, reports and the set of ids; demand, which the autoscaler reads, is finite as well."""

    async def syncs() -> None:
        heard = Core()
        members = [*ids, b"peer"] if isinstance(ids, list) else ids
        it = canned({"router": router, "report": told, "ids": members})
        sync = Sync(it, heard, lambda: VIEW, lambda: ("b1",), heard, 0.01, 5.0)
        for _ in range(3):
            assert await sync.once(lambda: 1.0) or heard.bad[-1] == "invalid"
        assert "internal" not in heard.bad
        heard.check()
        for shares in heard.shares.values():
            for each in shares.values():
                assert all(-1e15 <= getattr(each, name) <= 1e15 for name in type(each).__slots__)
        for seen in (await it.routers(1.0)).values() if isinstance(ids, list) else ():
            for each in seen.demand.values():
                assert 0.0 <= each.attained <= each.ended <= 1e9
                assert 0.0 <= each.requests_per_s <= 1e9
        await it.beliefs(["b1"])

    asyncio.run(syncs())


@pytest.fixture
async def server() -> AsyncIterator[RedisServer]:
    """A real server."""
    if server_binary() is None:
        pytest.skip("no Redis-compatible server binary installed")
    async with RedisServer() as running:
        yield running


def of_every_type(key: str) -> Iterator[tuple[Any, ...]]:
    """Commands that put something else into a key."""
    yield ("SET", key, "\x00\xff")
    yield ("SET", key, "[" * 5000)
    yield ("SET", key, b"7" * (max(VIEW_BYTES_MOST, BELIEF_BYTES_MOST) + 10))
    yield ("RPUSH", key, "a", "b")
    yield ("HSET", key, "f", "v")
    yield ("ZADD", key, "1", "a")
    yield ("XADD", key, "*", "f", "v")
    yield ("PFADD", key, "a")
    yield ("SADD", key, "a", b"\xff", "")


@pytest.mark.parametrize("kind", ["routers", "router:a", "router:peer", "report:b1", "belief:3:b1", "beliefs"])
async def test_garbage_of_every_type_in_every_key(server: RedisServer, kind: str) -> None:
    """The sync goes on, the rest is taken, and once the value is good again all is as before."""
    key = TAG + kind
    servers = RedisServers.of_urls(server.url)
    a, peer = (RedisStore(servers, "test", name, 5.0, 5.0) for name in ("a", "peer"))
    heard = Core()
    sync = Sync(a, heard, lambda: VIEW, lambda: ("b1",), heard, 0.01, 5.0)
    for command in of_every_type(key):
        await server.do("DEL", key)
        await server.do(*command)
        for _ in range(3):
            assert await sync.once(lambda: 1.0)
        heard.check()
        await a.beliefs(["b1"])
        await peer.sync(RouterView({"b1": Load(decoding=2.0)}), (), 0.0)
        await peer.report({"b1": EngineReport(0.5)}, 0.5)
        await a.keep_beliefs({"b1": b"learnt"})
        for _ in range(3):
            assert await sync.once(lambda: 1.0)
            await peer.sync(RouterView({"b1": Load(decoding=2.0)}), (), 0.0)
        assert await sync.once(lambda: 1.0)
        assert sync.fault is None
        assert heard.core.ledger.table.peers[:, 0].tolist() == [0.0, 0.0, 2.0, 0.0]
        assert await a.beliefs(["b1"]) == {"b1": b"learnt"}
    assert "internal" not in heard.bad
    if kind in {"routers", "router:peer", "report:b1"}:
        assert sum(a.skipped.counts.values()) >= 3
    await a.close()
    await peer.close()


async def test_a_set_of_a_million_ids_costs_a_bounded_part() -> None:
    """More than a pool has routers are not read, and those without a view are taken out."""
    many = [b"router-%d" % number for number in range(1000)]
    it = canned({"router": b"", "report": b"", "ids": many})
    for _ in range(2):
        assert (await it.sync(VIEW, (), 0.0)).routers == {}
    assert it._mend[0][:2] == ("SREM", TAG + "routers")
    assert len(it._mend[0]) == 1002


async def test_an_error_of_the_connection_among_the_results_is_one_of_all() -> None:
    """Half an answer is none: the next call connects anew."""

    class Half(Canned):
        async def run(self, commands: Sequence[Command]) -> list[Any]:
            return [b"OK", *(RedisConnectionError("closed") for _ in commands[1:])]

    it = canned({"ids": []})
    it.link._client = Half({})
    with pytest.raises(StoreGone, match="closed"):
        await it.sync(VIEW, (), 0.0)
    assert it.link._client is None


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(files=st.fixed_dictionaries({end: encoded(view | report).filter(_is_text) for end in ("view", "reports")}))
def test_no_bytes_in_any_file_of_another_worker_raise_or_reach_the_state(
    tmp_path: Path, files: dict[str, bytes]
) -> None:
    """The workers of one host share files in place of keys."""

    async def syncs() -> None:
        heard, it = Core(), FileStore(tmp_path, "a", 5.0)
        sync = Sync(it, heard, lambda: VIEW, lambda: ("b1",), heard, 0.01, 5.0)
        (tmp_path / "peer.view").write_bytes(b'{"at_s": 1.0, "view": %b}' % files["view"])
        (tmp_path / "peer.reports").write_bytes(b'{"b1": %b}' % files["reports"])
        (tmp_path / "beliefs.json").write_bytes(files["reports"])
        assert await sync.once(lambda: 1.0)
        (tmp_path / "peer.view").write_bytes(files["view"])
        assert await sync.once(lambda: 1.0)
        heard.check()
        await it.beliefs(["b1"])
        await it.routers(1.0)

    asyncio.run(syncs())
