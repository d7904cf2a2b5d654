"""Reload while serving: whole or not at all, streams in flight go on, the last good config stays."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest

from tests.fakes_router import HEALTHY, Router, backend, config, router, write
from tests.fakes_wire import LAST, STREAM_HEAD, ScriptedEngine, chunked, event, stream, token
from tests.pages import Pages
from tests.waiting import until


def cut_in_two(go_on: asyncio.Event) -> list[bytes | asyncio.Event]:
    """A stream whose second half waits."""
    return [STREAM_HEAD + chunked(event(token("a"))), go_on, chunked(event(token("b")), event("[DONE]")) + LAST]


async def reloaded(it: Router, path: Path, text: str) -> dict[str, object]:
    """Write the file and request a reload; the answer, with its status."""
    write(path, text)
    answer = await it.client.post("/admin/reload")
    return {"status": answer.status_code, **answer.json()}


@asynccontextmanager
async def reloaded_in_mid_stream(
    path: Path, new_name: str
) -> AsyncIterator[tuple[Router, asyncio.Task[httpx.Response], asyncio.Event]]:
    """A router whose only backend, ``old``, is replaced by *new_name* at another address while a stream runs on it; the
    event lets the stream go on.
    """
    go_on = asyncio.Event()
    async with (
        ScriptedEngine(cut_in_two(go_on)) as first,
        ScriptedEngine([stream("second")]) as second,
        Pages(dict(HEALTHY)) as pages,
        router(path, config(backend("old", first, pages))) as it,
    ):
        running = asyncio.create_task(it.chat())
        await until(lambda: it.gateway.core.loads()["old"].decoding == 1)
        assert (await reloaded(it, path, config(backend(new_name, second, pages))))["ok"]
        yield it, running, go_on


async def test_backends_come_and_go_while_a_stream_runs_on(tmp_path: Path) -> None:
    """A removed backend gets no new request, finishes its stream, and is forgotten after that."""
    async with reloaded_in_mid_stream(tmp_path / "r.yaml", "new") as (it, running, go_on):
        await until(lambda: it.gateway.ready)
        fresh = await it.chat()
        assert fresh.headers["x-headroom-backend"] == "new"
        assert "old" in it.gateway.core.loads()  # still draining
        go_on.set()
        answer = await running
        assert answer.headers["x-headroom-backend"] == "old"
        assert answer.text.endswith("data: [DONE]\n\n")
        await until(lambda: "old" not in it.gateway.core.loads())
        assert set(it.gateway.driver.upstreams) == {"new"}


async def test_a_backend_taken_out_and_put_back_at_once_serves_on(tmp_path: Path) -> None:
    """Its drain is cancelled and its stream goes on."""
    go_on, path = asyncio.Event(), tmp_path / "r.yaml"
    async with (
        ScriptedEngine(cut_in_two(go_on), [stream("z")]) as a,
        ScriptedEngine([stream("n")]) as b,
        Pages(dict(HEALTHY)) as pages,
    ):
        one, both = config(backend("b", b, pages)), config(backend("a", a, pages), backend("b", b, pages))
        async with router(path, config(backend("a", a, pages))) as it:
            running = asyncio.create_task(it.chat())
            await until(lambda: it.gateway.core.loads()["a"].decoding == 1)
            await reloaded(it, path, one)
            await reloaded(it, path, both)
            go_on.set()
            assert (await running).text.endswith("data: [DONE]\n\n")
            it.gateway.backends.sweep(it.gateway.clock())
            assert set(it.gateway.core.loads()) == {"a", "b"}


async def test_an_engine_that_moves_keeps_its_running_streams(tmp_path: Path) -> None:
    """The stream ends at the old address; the next request goes to the new one."""
    async with reloaded_in_mid_stream(tmp_path / "r.yaml", "old") as (it, running, go_on):
        assert "second" in (await it.chat()).text
        go_on.set()
        assert (await running).text.endswith("data: [DONE]\n\n")
        assert it.gateway.core.loads()["old"].decoding == 0


async def test_a_bad_config_is_refused_whole_and_the_last_good_one_serves_on(tmp_path: Path) -> None:
    """The answer is 422 with file, line and key; no part of it takes effect; the metric counts it."""
    path = tmp_path / "r.yaml"
    async with ScriptedEngine([stream("a")]) as engine, Pages(dict(HEALTHY)) as pages:
        good = config(backend("a", engine, pages))
        async with router(path, good) as it:
            before = it.gateway.plan
            bad = good + "slo_classes: {default: {ttft_ms: 1}}\npolicy: {routing: slo_hedroom}\n"
            answer = await reloaded(it, path, bad)
            assert answer["status"] == 422
            assert answer["ok"] is False
            assert f"{path}:6: policy.routing: unknown routing policy 'slo_hedroom'" in str(answer["error"])
            assert it.gateway.plan is before
            assert (await it.chat()).status_code == 200
            assert (await it.get("/admin/config")).json()["last"]["ok"] is False
            assert 'headroom_config_reloads_total{result="failed"} 1.0' in (await it.get("/metrics")).text


async def test_what_cannot_change_while_running_is_refused_and_not_ignored(tmp_path: Path) -> None:
    """A changed key that needs a restart refuses the reload, as a port is bound and a store is open."""
    path = tmp_path / "r.yaml"
    async with ScriptedEngine([stream("a")]) as engine, Pages(dict(HEALTHY)) as pages:
        good = config(backend("a", engine, pages))
        async with router(path, good) as it:
            answer = await reloaded(it, path, good.replace("drain_s: 5", "drain_s: 6"))
            assert answer["error"] == "listen: cannot change while running; restart to change it"


async def test_policies_slos_and_keys_change_between_two_requests(tmp_path: Path) -> None:
    """The next request meets all of the new config and nothing of the old."""
    path = tmp_path / "r.yaml"
    async with ScriptedEngine([stream("a")]) as engine, Pages(dict(HEALTHY)) as pages:
        good = config(backend("a", engine, pages))
        async with router(path, good) as it:
            more = "policy: {routing: round_robin}\nslo_classes: {default: {ttft_ms: 770}}\n"
            assert (await reloaded(it, path, good + more + "api_keys: [{key: client-secret, tenant: t}]\n"))["ok"]
            assert (await it.chat()).status_code == 401
            answer = await it.chat(headers={"authorization": "Bearer client-secret", "x-request-id": "x"})
            assert answer.status_code == 200
            assert (await it.get("/explain/x")).json()["slo"]["ttft_ms"] == 770
            assert (await it.get("/admin/policy")).json()["routing"]["name"] == "round_robin"


async def test_a_change_of_the_file_is_taken_by_itself(tmp_path: Path) -> None:
    """Also when an editor puts another file in its place."""
    path = tmp_path / "r.yaml"
    async with ScriptedEngine([stream("a")]) as engine, Pages(dict(HEALTHY)) as pages:
        good = config(backend("a", engine, pages))
        async with router(path, good) as it:
            fresh = tmp_path / "r.yaml.new"
            write(fresh, good + "policy: {routing: round_robin}\n")
            fresh.replace(path)
            await until(lambda: it.gateway.plan.settings.policy.routing.name == "round_robin")
            assert it.gateway.reloader.last.origin == "file changed"


async def test_a_policy_file_that_is_not_there_does_not_end_the_watch(tmp_path: Path) -> None:
    """A misspelt name is refused; the next edit of the config is taken by itself."""
    path = tmp_path / "r.yaml"
    async with ScriptedEngine([stream("a")]) as engine, Pages(dict(HEALTHY)) as pages:
        good = config(backend("a", engine, pages))
        async with router(path, good) as it:
            write(path, good + "policy: {routing: {file: nosuch.py}}\n")
            await until(lambda: not it.gateway.reloader.last.ok)
            assert "nosuch.py" in it.gateway.reloader.last.error
            write(path, good + "policy: {routing: round_robin}\n")
            await until(lambda: it.gateway.plan.settings.policy.routing.name == "round_robin")


async def test_a_hundred_reloads_half_of_them_bad_leave_one_config_and_every_request_served(tmp_path: Path) -> None:
    """Never half applied, while requests go on."""
    path = tmp_path / "r.yaml"
    async with ScriptedEngine([stream("a")]) as engine, Pages(dict(HEALTHY)) as pages:
        lines = [backend("a", engine, pages), backend("b", engine, pages)]
        texts = [config(*lines), config(lines[0]) + "polcy: {}\n", config(lines[1]), config(*lines) + "backends: []\n"]
        async with router(path, texts[0]) as it:
            outcomes, statuses = [], []
            for number in range(100):
                answer, chat = await asyncio.gather(reloaded(it, path, texts[number % 4]), it.chat())
                outcomes.append(answer["ok"])
                statuses.append(chat.status_code)
                await until(lambda: it.gateway.ready)
            assert outcomes == [True, False] * 50
            assert set(statuses) == {200}
            assert {b.name for b in it.gateway.plan.backends} == {"b"}


async def test_what_decides_is_stated_where_a_policy_is_dropped_and_there_is_nothing_to_roll_back_to(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The config serves on, but its policy does not: in the log, and beside the last result."""
    async with (
        ScriptedEngine([stream("a")]) as engine,
        Pages(dict(HEALTHY)) as pages,
        router(tmp_path / "r.yaml", config(backend("a", engine, pages))) as it,
    ):
        reloader = it.gateway.reloader
        await reloader.judged(it.gateway.plan, "dropped", "serving", "a decision took 50 ms")
        assert (reloader.last.ok, reloader.last.version) == (False, it.gateway.plan.version)
        for word in ("the serving policy is dropped: a decision took 50 ms", "else least_request, decides until"):
            assert word in reloader.last.why
            assert word in caplog.text
