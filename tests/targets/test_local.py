"""Engines as processes of this machine: started, listed when they answer, drained without a lost stream, taken over."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest
from pydantic import ValidationError

from router.targets import Advice, Outcome, Replicas, spec_of
from router.targets.engine_process import began, group_lives
from router.targets.engine_table import Engine, State
from router.targets.local import Local
from tests.redis_server import free_port
from tests.waiting import until, until_async

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

ENGINE = """
import http.server, os, signal, sys, time
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()
if "stubborn" in sys.argv: signal.signal(signal.SIGTERM, signal.SIG_IGN)
if "broken" in sys.argv: raise SystemExit("no such model")
if "worker" in sys.argv and os.fork() == 0:
    time.sleep(600)
if "orphaning" in sys.argv and os.fork() == 0:
    time.sleep(600)
if "orphaning" in sys.argv: raise SystemExit("out of memory")
if "script" in sys.argv and os.fork():
    raise SystemExit(0)
http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


def options(folder: Path, *words: str, ports: int = 3, **more: object) -> dict[str, object]:
    """Of a target with one variant, whose engine is a small program."""
    command = [sys.executable, "-S", "-c", ENGINE, "{port}", *words]
    first = free_port()
    variant = {"command": command, "ports": [first, first + ports - 1], "labels": {"card": "l4", "models": "m"}}
    return {"folder": folder, "variants": {"small": variant}, "quiet_s": 0.2, "stop_s": 0.2} | more


@asynccontextmanager
async def local(given: dict[str, object]) -> AsyncIterator[Local]:
    """The target; at the end no engine of its folder is left."""
    target = spec_of("local").model_validate(given).make({})
    assert isinstance(target, Local)
    try:
        yield target
    finally:
        await target.close()
        for engine in target._table.read().values():
            with suppress(ProcessLookupError):
                os.killpg(engine.pid, signal.SIGKILL)


def advice(replicas: int) -> Advice:
    return Advice("m", "small", replicas, 1, "because")


def listed(folder: Path) -> list[str]:
    """The targets that a router would read."""
    return [address for group in json.loads((folder / "targets.json").read_text()) for address in group["targets"]]


def pids(target: Local) -> list[int]:
    return [engine.pid for engine in target._table.read().values()]


async def test_engines_are_started_listed_when_they_answer_and_ended(tmp_path: Path) -> None:
    """The wanted number, once; with their facts; nothing of them is left."""
    async with local(options(tmp_path)) as it:
        assert await it.observe("m", "small") == Replicas(0)
        assert await it.observe("m", "other") is None
        assert (await it.apply(advice(2))).outcome is Outcome.APPLIED
        assert (await it.apply(advice(2))).outcome is Outcome.UNCHANGED
        await until_async(lambda: _is(it, Replicas(2)))
        await until(lambda: len(listed(tmp_path)) == 2)
        (first, _) = json.loads((tmp_path / "targets.json").read_text())
        name = first["labels"].pop("name")
        assert first["labels"] == {"card": "l4", "models": "m", "variant": "small"}
        assert name.startswith("small-")
        ended = pids(it)
        assert (await it.apply(advice(0))).reason.startswith("draining small-")
        assert listed(tmp_path) == []
        await until(lambda: not any(map(began, ended)))
        await until(lambda: it._table.read() == {})


async def _is(it: Local, wanted: Replicas) -> bool:
    return await it.observe("m", "small") == wanted


async def test_one_that_drains_lives_while_a_connection_is_open_and_may_serve_again(tmp_path: Path) -> None:
    """A stream on it goes on for as long as it takes; more demand puts it back into the list."""
    async with local(options(tmp_path)) as it:
        await it.apply(advice(1))
        await until_async(lambda: _is(it, Replicas(1)))
        ((address,), (pid,)) = listed(tmp_path), pids(it)
        _, stream = await asyncio.open_connection("127.0.0.1", int(address.rpartition(":")[2]))
        await it.apply(advice(0))
        now_s = [it._clock()]
        it._clock = lambda: now_s[0]
        for _ in range(3):
            now_s[0] += 10.0
            await asyncio.sleep(0.15)  # a look at least, which would end it if it were quiet
        assert began(pid)
        assert listed(tmp_path) == []
        assert (await it.apply(advice(1))).reason == f"serving or starting small-{address.rpartition(':')[2]}"
        assert listed(tmp_path) == [address]
        await it.apply(advice(0))
        stream.close()
        await stream.wait_closed()
        await until(lambda: _later(now_s) and not began(pid))


def _later(now_s: list[float]) -> bool:
    now_s[0] += 0.01
    return True


async def test_one_that_never_gets_quiet_or_does_not_listen_ends_all_the_same(tmp_path: Path) -> None:
    """After ``drain_s``, by SIGKILL."""
    async with local(options(tmp_path, "stubborn", drain_s=0.3)) as it:
        await it.apply(advice(1))
        await until_async(lambda: _is(it, Replicas(1)))
        ((address,), (pid,)) = listed(tmp_path), pids(it)
        _, stream = await asyncio.open_connection("127.0.0.1", int(address.rpartition(":")[2]))
        await it.apply(advice(0))
        await until(lambda: not began(pid))
        stream.close()


async def test_the_one_that_the_policy_names_is_drained_first(tmp_path: Path) -> None:
    """Not the newest, which may be the busiest; a name that is none changes nothing."""
    async with local(options(tmp_path)) as it:
        await it.apply(advice(2))
        await until_async(lambda: _is(it, Replicas(2)))
        first, second = it._table.read()
        applied = await it.apply(replace(advice(1), drain=("other", first)))
        assert applied.reason == f"draining {first}"
        assert [each["labels"]["name"] for each in json.loads((tmp_path / "targets.json").read_text())] == [second]


async def test_the_next_autoscaler_takes_the_engines_over(tmp_path: Path) -> None:
    """They outlive the one that started them; what has ended meanwhile is replaced; another's process is left alone."""
    given = options(tmp_path)
    async with local(given) as first:
        await first.apply(advice(2))
        await until_async(lambda: _is(first, Replicas(2)))
        await first.close()
        async with local(given) as second:
            assert await second.observe("m", "small") == Replicas(2)
            assert (await second.apply(advice(2))).outcome is Outcome.UNCHANGED
            lost, kept = pids(second)
            os.kill(lost, signal.SIGKILL)
            await until(lambda: not began(lost))
            assert await second.observe("m", "small") == Replicas(1)
            failed = await second.apply(advice(2))
            assert (failed.outcome, "ended while serving" in failed.reason) == (Outcome.FAILED, True)
            assert (await second.apply(advice(2))).outcome is Outcome.APPLIED
            await until_async(lambda: _is(second, Replicas(2)))
            assert kept in pids(second)
            file = tmp_path / "engines.json"
            table = json.loads(file.read_text())
            for each in table:
                each["began"] += 1  # its id is another process's by now
            await until(lambda: not second._table.held)
            file.write_text(json.dumps(table))
            assert await second.observe("m", "small") == Replicas(0)
            for pid in (kept, *pids(second)):
                os.killpg(pid, signal.SIGKILL)


async def test_a_drain_that_an_autoscaler_began_is_ended_by_the_next_without_any_advice(tmp_path: Path) -> None:
    """Nothing may be advised any more: there is no demand."""
    given = options(tmp_path)
    async with local(given) as first:
        await first.apply(advice(1))
        await until_async(lambda: _is(first, Replicas(1)))
        (pid,) = pids(first)
        await first.apply(advice(0))
        await first.close()
        assert began(pid)
        async with local(given) as second:
            await second.tend()
            await until(lambda: not began(pid) and not second._table.held)
            assert second._table.read() == {}


async def test_two_autoscalers_do_not_change_one_table_at_once(tmp_path: Path) -> None:
    """The second fails and tries again when the first is done."""
    given = options(tmp_path)
    async with local(given) as first, local(given) as second:
        await first.apply(advice(1))
        failed = await second.apply(advice(3))
        assert (failed.outcome, "another process" in failed.reason) == (Outcome.FAILED, True)
        await until(lambda: not first._table.held)
        assert (await second.apply(advice(1))).outcome is Outcome.UNCHANGED


async def test_processes_that_outlive_the_first_one_of_their_engine_are_ended(tmp_path: Path) -> None:
    """A server that crashed leaves a worker with its memory and its port: the engine is not forgotten before that."""
    async with local(options(tmp_path, "worker")) as it:
        await it.apply(advice(1))
        await until_async(lambda: _is(it, Replicas(1)))
        (engine,) = it._table.read().values()
        await until(lambda: not it._table.held)
        os.kill(engine.pid, signal.SIGKILL)
        await until(lambda: not began(engine.pid))
        assert group_lives(engine.pid, engine.began)
        await it.tend()
        assert listed(tmp_path) == []
        assert await it.observe("m", "small") == Replicas(0)
        await until(lambda: not group_lives(engine.pid, engine.began) and it._table.read() == {})
        failed = await it.apply(advice(1))
        assert (failed.outcome, "left processes behind" in failed.reason) == (Outcome.FAILED, True)


async def test_an_engine_whose_start_script_has_ended_is_one_all_the_same(tmp_path: Path) -> None:
    """It answers: it is counted, taken over, drained and ended with the processes of its group."""
    given = options(tmp_path, "script")
    async with local(given) as first:
        await first.apply(advice(1))
        await until_async(lambda: _is(first, Replicas(1)))
        (engine,) = first._table.read().values()
        await until(lambda: not first._table.held)
        await until(lambda: not began(engine.pid))
        await first.close()
        async with local(given) as second:
            await second.tend()
            assert await second.observe("m", "small") == Replicas(1)
            assert (await second.apply(advice(1))).outcome is Outcome.UNCHANGED
            await second.apply(advice(0))
            await until(lambda: not group_lives(engine.pid, engine.began) and second._table.read() == {})


async def test_an_engine_that_fails_at_its_start_and_leaves_processes_is_ended_at_once(tmp_path: Path) -> None:
    """Not after ``start_s``: they hold the memory that the next one needs."""
    async with local(options(tmp_path, "orphaning")) as it:
        await it.apply(advice(1))
        (engine,) = it._table.read().values()
        await until(lambda: not group_lives(engine.pid, engine.began) and it._table.read() == {})
        assert "out of memory" in (await it.apply(advice(1))).reason


async def test_engines_that_serve_over_tls_are_listed_so(tmp_path: Path) -> None:
    """A router calls them by what the list states."""
    given = options(tmp_path)
    given["variants"]["small"]["scheme"] = "https"  # type: ignore[index]
    async with local(given) as it:
        it._table.engines["e"] = Engine("e", "small", 8001, 1, 1, State.SERVING, 0.0)
        it._table._folder.mkdir(exist_ok=True)
        it._write()
        assert listed(tmp_path) == ["https://127.0.0.1:8001"]
        it._table.engines.clear()
        it._write()


@pytest.mark.parametrize(
    ("words", "more", "why"),
    [
        (["broken"], {}, "ended while starting: no such model"),
        ([], {"start_s": 0.001}, "did not answer within"),
    ],
)
async def test_an_engine_that_does_not_come_up_is_a_failure_with_its_reason(
    tmp_path: Path, words: list[str], more: dict[str, float], why: str
) -> None:
    async with local(options(tmp_path, *words, **more)) as it:
        await it.apply(advice(1))
        await until(lambda: it._faults and not it._table.held)
        failed = await it.apply(advice(1))
        assert failed.outcome is Outcome.FAILED
        assert why in failed.reason


async def test_no_more_engines_than_ports_and_no_command_that_is_none(tmp_path: Path) -> None:
    async with local(options(tmp_path, ports=1)) as it:
        failed = await it.apply(advice(2))
        assert (failed.outcome, "no free port for small" in failed.reason) == (Outcome.FAILED, True)
        await until_async(lambda: _is(it, Replicas(1)))
    given = options(tmp_path / "other")
    given["variants"]["small"]["command"] = ["no-such-program", "{port}"]  # type: ignore[index]
    async with local(given) as it:
        assert "no-such-program" in (await it.apply(advice(1))).reason


@pytest.mark.parametrize(
    ("variants", "why"),
    [
        ({"v": {"command": ["engine"], "ports": [8001, 8002]}}, "expected {port}"),
        ({"v": {"command": ["e", "{port}"], "ports": [8002, 8001]}}, "the first and the last"),
        ({n: {"command": ["e", "{port}"], "ports": [8001, 8002]} for n in "ab"}, "have port 8001 in common"),
        ({"../v": {"command": ["e", "{port}"], "ports": [8001, 8002]}}, "pattern"),
    ],
)
def test_options_that_cannot_be_are_refused(variants: dict[str, object], why: str) -> None:
    with pytest.raises(ValidationError, match=why):
        spec_of("local").model_validate({"folder": "/x", "variants": variants})
