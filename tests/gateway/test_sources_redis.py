"""Engines that announce themselves: `headroom register` beside each, a real server between, routers that follow."""

import asyncio
import json
import os
import signal
import sys
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from router.core.errors import ConfigError, SourceFailed
from router.gateway.config.plan import plan_file
from router.gateway.registration.card import card_here, card_of_line
from router.gateway.sources.endpoint import Endpoint
from router.gateway.sources.engine_record import EngineRecord, hash_key, read, written
from router.gateway.sources.registered import RegisteredEngines
from router.gateway.state.servers import RedisServers
from tests.fakes_engine import WholeEngine
from tests.fakes_router import router
from tests.redis_server import RedisServer, server_binary
from tests.waiting import until, until_async

pytestmark = pytest.mark.skipif(server_binary() is None, reason="no Redis-compatible server binary installed")

KEY = hash_key("default")


class Clock:
    """Time as the test sets it; it is read twice for each reading of the state."""

    def __init__(self) -> None:
        self.now_s, self.readings = 100.0, 0

    def __call__(self) -> float:
        self.readings += 1
        return self.now_s

    async def read_again(self) -> None:
        """Wait until the state has been read as it is now."""
        before = self.readings
        await until(lambda: self.readings >= before + 4)


def record(name: str, beat: str = "1", *, terminating: bool = False, ttl_s: float = 10.0) -> EngineRecord:
    return EngineRecord(Endpoint(name, f"http://{name}:8000", {"card": "h100"}, terminating), beat, ttl_s)


async def put(server: RedisServer, given: EngineRecord) -> None:
    await server.do("HSET", KEY, given.endpoint.name, written(given))


def source(server: RedisServer, clock: Clock) -> RegisteredEngines:
    return RegisteredEngines(RedisServers.of_urls(server.url), "default", 0.01, 1.0, clock)


def names(endpoints: tuple[Endpoint, ...]) -> list[str]:
    return [each.name for each in endpoints]


class Follower:
    """Reads a source in the background; ``names``: of the last set, ``failed``: what ended it."""

    def __init__(self, found: RegisteredEngines) -> None:
        self.names: list[str] | None = None
        self.failed: Exception | None = None
        self._task = asyncio.create_task(self._read(found))

    async def _read(self, found: RegisteredEngines) -> None:
        try:
            async with aclosing(found.sets()) as sets:
                async for endpoints in sets:
                    self.names = names(endpoints)
        except SourceFailed as failed:
            self.failed = failed

    async def has(self, *wanted: str) -> None:
        await until(lambda: self.names == list(wanted))

    async def close(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


async def test_a_lease_that_is_renewed_stays_and_one_that_is_not_goes() -> None:
    """By the reader's own clock; a record that is left behind is removed in the end, and does not come back before."""
    clock = Clock()
    async with RedisServer() as server:
        await put(server, record("a"))
        await put(server, record("b"))
        reader = Follower(source(server, clock))
        await reader.has("a", "b")
        clock.now_s += 6.0
        await put(server, record("b", "2"))
        await clock.read_again()
        clock.now_s += 6.0
        await reader.has("b")
        await put(server, record("b", "3"))
        await clock.read_again()
        clock.now_s += 9.0
        await clock.read_again()
        assert reader.names == ["b"]
        assert await server.do("HLEN", KEY) == 2
        clock.now_s += 100.0
        await until_async(lambda: _is(server.do("HKEYS", KEY), []))
        await reader.has()
        await reader.close()


async def _is(found: Any, expected: Any) -> bool:
    return bool(await found == expected)


async def test_a_state_that_was_away_and_comes_back_empty_ends_nobody_at_once() -> None:
    """Each has a whole lease to announce itself again, however long the state was away."""
    clock = Clock()
    async with RedisServer() as server:
        await put(server, record("a"))
        await put(server, record("b"))
        found = source(server, clock)
        before = Follower(found)
        await before.has("a", "b")
        server.stop()
        await until(lambda: before.failed)
        clock.now_s += 1000.0
        await server.start()
        reader = Follower(found)
        await reader.has("a", "b")
        clock.now_s += 9.0
        await put(server, record("a", "2"))
        await clock.read_again()
        assert reader.names == ["a", "b"]
        clock.now_s += 2.0
        await reader.has("a")
        await before.close()
        await reader.close()


@pytest.mark.parametrize(
    "value",
    [
        b"", b"{}", b"[]", b"7", b"\xff", b'{"v":2}', b"x" * 20_000,
        written(record("a")).replace(b"10.0", b"0"), written(record("a")).replace(b"10.0", b"1e99"),
        written(record("a")).replace(b"10.0", b"NaN"), written(record("a")).replace(b"false", b"0"),
        written(record("a")).replace(b'{"card": "h100"}', b"[]"), written(record("a")).replace(b'"1"', b"1"),
    ],
)  # fmt: skip
def test_what_is_no_record_is_none(value: bytes) -> None:
    """Whatever another program wrote there."""
    assert read(b"a", value) is None
    assert read(b"a", written(record("a"))) == record("a")
    assert read(b"\xff", written(record("a"))) is None


async def test_an_engine_announces_itself_is_served_and_ends(tmp_path: Path) -> None:
    """The command beside it, from its first answer to SIGTERM: drained at once, with the facts that it reported."""
    async with RedisServer() as server, WholeEngine() as engine:
        text = "listen: {port: 0, drain_s: 5}\nscrape: {period_s: 0.02, models_s: null}\n"
        text += f"state: {{redis_url: '{server.url}'}}\ndiscover: [{{redis: {{period_s: 0.02}}}}]\n"
        command = [sys.executable, "-m", "router", "register", "--url", f"http://{engine.at}", "--name", "pod-0"]
        process = await asyncio.create_subprocess_exec(
            *command, "--redis", server.url, "--label", "card=l4", "--label", "zone=a",
            env=os.environ | {"PATH": str(tmp_path)},
        )  # fmt: skip
        try:
            async with router(tmp_path / "r.yaml", text) as it:
                (backend,) = it.gateway.plan.backends
                assert (backend.name, backend.models, backend.context_tokens_max) == ("pod-0", ("m",), 4096)
                assert (backend.labels["card"], backend.labels["zone"], backend.labels["engine_version"]) == (
                    "l4", "a", "0.10.0",
                )  # fmt: skip
                assert (await it.chat()).status_code == 200
                process.send_signal(signal.SIGTERM)
                await until(lambda: not it.gateway.plan.backends)
                assert await process.wait() == 0
                (shown,) = (await it.get("/admin/discovery")).json()["sources"]
                assert [(each["name"], each["state"]) for each in shown["endpoints"]] == [("pod-0", "draining")]
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("NVIDIA H100 80GB HBM3, 81559", "h100-sxm"),
        ("NVIDIA H100 PCIe, 81559", "h100-pcie"),
        ("NVIDIA A100-SXM4-40GB, 40960", "a100-40g-sxm"),
        ("NVIDIA A100-SXM4-80GB, 81920", "a100-80g-sxm"),
        ("NVIDIA A100 80GB PCIe, 81920", "a100-80g-pcie"),
        ("NVIDIA H200, 143771", "h200"),
        ("NVIDIA L4, 23034", "l4"),
        ("NVIDIA L40S, 46068", "l40s"),
        ("Tesla T4, 15360", "t4"),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb, 9856", ""),
        ("NVIDIA H100 80GB HBM3, [N/A]", ""),
        ("Some New Card, 81559", ""),
        ("", ""),
    ],
)
def test_a_product_is_a_row_of_the_table_or_no_card(line: str, expected: str) -> None:
    """With the memory that the row has: a part of a card, or another build of it, is not that card."""
    assert card_of_line(line) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("echo 'NVIDIA L4, 23034'; echo 'NVIDIA L4, 23034'", "l4"),
        ("echo 'NVIDIA L4, 23034'; echo 'NVIDIA H200, 143771'", ""),
        ("echo 'NVIDIA L4, 23034'; exit 9", ""),
        ("exit 0", ""),
    ],
)
async def test_the_card_of_this_machine(text: str, expected: str) -> None:
    """All of one kind, from a tool that ended well."""
    assert await card_here(("sh", "-c", text)) == expected
    assert await card_here(("/no/such/tool",)) == ""


def test_a_source_of_announced_engines_needs_a_shared_state(tmp_path: Path) -> None:
    """It is where they announce themselves."""
    (tmp_path / "r.yaml").write_text("discover: [{redis: {}}]")
    with pytest.raises(ConfigError, match=r"discover\[0\]\.redis: needs state\.redis_url"):
        plan_file(tmp_path / "r.yaml")


def test_a_record_is_json_that_others_can_write() -> None:
    """For tools that announce engines without the command."""
    assert json.loads(written(record("a"))) == {
        "v": 1, "url": "http://a:8000", "labels": {"card": "h100"}, "terminating": False, "beat": "1", "ttl_s": 10.0,
    }  # fmt: skip
