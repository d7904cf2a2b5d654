"""Engines that announce themselves: `headroom register` beside each, a real server between, routers that follow."""

import asyncio
import json
import logging
import os
import signal
import sys
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from router.config.settings import Backend, BackendDefaults
from router.core.errors import ConfigError, SourceFailed
from router.gateway.config.plan import plan_file
from router.gateway.discovery.reading import read_engine
from router.gateway.monitoring.probe import ProbeClient
from router.gateway.registration.registrar import Announced, Registrar
from router.gateway.sources.endpoint import Endpoint
from router.gateway.sources.engine_record import EngineRecord, hash_key, read, written
from router.gateway.sources.facts import backend_of
from router.gateway.sources.registered import RegisteredEngines
from router.gateway.state.servers import RedisServers
from tests.commands import router_command
from tests.fakes_engine import WholeEngine
from tests.fakes_router import router
from tests.gateway.test_discovery import LLAMACPP, OTHER, SGLANG, TRITON, TRTLLM, VLLM, served
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


@pytest.mark.parametrize("engine", [VLLM, SGLANG, LLAMACPP, TRITON, TRTLLM, OTHER])
async def test_what_each_kind_of_engine_reports_arrives_as_facts(engine: dict[str, bytes]) -> None:
    """None of it is refused by the routers that read the record."""
    async with served(engine) as at:
        it = Registrar(Announced("e", at.url, "http://pod:8000"), RedisServers.of_urls("redis://h:1"))
        client = ProbeClient(5.0)
        labels = await it._reported(client)
        kind, facts = await read_engine(Backend(name="e", url=at.url), client)
        client.close()
    found = read(b"e", written(EngineRecord(Endpoint("e", "http://pod:8000", labels), "1", 10.0)))
    assert found is not None
    backend, faults = backend_of(found.endpoint, BackendDefaults())
    assert faults == ()
    assert backend is not None
    assert (tuple(backend.models), backend.kind.name) == (facts.models, kind.name)
    assert (backend.context_tokens_max or 0, backend.kv_tokens_max or 0, backend.seqs_max or 0) == (
        facts.context_tokens_max, facts.kv_tokens_max, facts.seqs_max or (backend.seqs_max or 0),
    )  # fmt: skip
    assert backend.labels.get("engine_version", "") == facts.version


async def test_of_two_engines_by_one_name_the_later_is_announced_and_the_other_waits(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The address does not change to and fro; the first is announced again once the other's lease has ended."""
    caplog.set_level(logging.INFO, "headroom")
    clock = Clock()
    async with RedisServer() as server, WholeEngine() as engine:
        servers = RedisServers.of_urls(server.url)

        def registrar(host: str) -> Registrar:
            return Registrar(Announced("pod", f"http://{engine.at}", f"http://{host}:8000", ttl_s=10.0), servers, clock)

        async def announced() -> str:
            found = read(b"pod", await server.do("HGET", KEY, "pod"))
            assert found is not None
            return found.endpoint.url

        first, second = registrar("a"), registrar("b")
        await first._write(terminating=False)
        await first._write(terminating=False)
        assert await announced() == "http://a:8000"
        await second._write(terminating=False)
        for _ in range(3):
            clock.now_s += 3.0
            await first._write(terminating=False)
            await second._write(terminating=False)
            assert await announced() == "http://b:8000"
        assert caplog.text.count("by the same name") == 1
        await first._write(terminating=True)
        assert await announced() == "http://b:8000"
        clock.now_s += 10.1
        await first._write(terminating=False)
        assert await announced() == "http://a:8000"
        await first._link.close()
        await second._link.close()


async def test_an_engine_that_lists_no_models_is_announced_by_its_labels() -> None:
    """Once it answers its health check; without the labels there is nothing to announce."""
    async with RedisServer() as server, WholeEngine() as engine:
        engine.pages = {"/health": b""}

        async def announced(**labels: str) -> dict[str, Any]:
            name = "-".join(["e", *labels])
            it = Announced(name, f"http://{engine.at}", "http://pod:8000", ttl_s=0.5, labels=labels)
            running = asyncio.create_task(Registrar(it, RedisServers.of_urls(server.url)).run())
            asked = len(engine.asked)
            await until(lambda: len(engine.asked) > asked + 1)
            if labels:
                await until_async(lambda: server.do("HEXISTS", KEY, name))
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
            found = await server.do("HGET", KEY, name)
            return {} if found is None else dict(json.loads(found))

        assert await announced() == {}
        found = await announced(models="m", engine="openai")
        assert (found["url"], found["labels"]) == ("http://pod:8000", {"models": "m", "engine": "openai"})


async def test_a_tool_that_finds_no_card_is_run_once_before_an_engine_is_announced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that hangs holds an engine up for one time limit, not two; later it is run less and less often."""
    tool, runs = tmp_path / "nvidia-smi", tmp_path / "runs"
    tool.write_text(f"#!/bin/sh\necho run >> {runs}\nexit 9\n")
    tool.chmod(0o700)
    async with RedisServer() as server, WholeEngine() as engine:
        monkeypatch.setenv("PATH", str(tmp_path))
        it = Announced("one", f"http://{engine.at}", "http://pod:8000", ttl_s=0.5)
        running = asyncio.create_task(Registrar(it, RedisServers.of_urls(server.url)).run())
        await until_async(lambda: server.do("HEXISTS", KEY, "one"))
        assert runs.read_text() == "run\n"
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        monkeypatch.setattr("router.gateway.registration.registrar.READ_S", 0.001)
        client, before = ProbeClient(5.0), len(engine.asked)
        reading = asyncio.create_task(Registrar(it, RedisServers.of_urls(server.url))._read(client))
        await until(lambda: engine.asked[before:].count("/v1/models") > 30)
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
        client.close()
    assert len(runs.read_text().splitlines()) <= 10


@pytest.mark.parametrize(
    ("label", "fault"),
    [
        ("card=h1000", "--label: card: "),
        ("tp=two", "--label: tp: input should be a valid integer"),
        ("headroom/card=h100", "--label: headroom/card: there is no such fact; did you mean 'card'?"),
        ("card", "--label: expected NAME=VALUE"),
    ],
)
def test_a_label_with_a_wrong_value_ends_the_command(label: str, fault: str) -> None:
    """Rather than an engine that every router takes for one of an unknown card."""
    made = router_command(["register", "--url", "http://h:2", "--redis", "redis://h:1", "--label", label])
    assert made.exit_code != 0
    assert fault in made.output


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
