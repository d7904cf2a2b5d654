"""Several workers as their users meet them: real processes on one port, killed, reloaded, drained."""

import asyncio
import contextlib
import json
import os
import signal
import stat
from asyncio.subprocess import Process
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.commands import command
from tests.fakes_engine import WholeEngine
from tests.fakes_router import HEALTHY, backend, config, write
from tests.fakes_wire import ScriptedEngine, Step, stream
from tests.kubernetes.watched_api import WatchedApi
from tests.pages import Pages
from tests.redis_server import RedisServer, free_port, server_binary
from tests.waiting import until, until_async

WHOLE = stream("a", "b")
BY = {"x-llm-d-inference-fairness-id": "t"}  # the tenant
ASKED = {"model": "m", "stream": True, "messages": [{"role": "user", "content": "hello"}]}


class Workers:
    """Some workers of one router, and what is to be known of them from outside."""

    def __init__(self, process: Process, url: str, path: Path, pages: Pages) -> None:
        self.process, self.url, self.path, self.pages = process, url, path, pages

    def client(self) -> httpx.AsyncClient:
        """One that opens a connection of its own for each request, and so comes to any worker."""
        limits = httpx.Limits(max_keepalive_connections=0)
        return httpx.AsyncClient(base_url=self.url, timeout=120, trust_env=False, limits=limits)

    async def get(self, path: str) -> httpx.Response:
        async with self.client() as client:
            return await client.get(path)

    async def post(self, path: str) -> httpx.Response:
        async with self.client() as client:
            return await client.post(path)

    async def chat(self, **more: str) -> httpx.Response:
        async with self.client() as client:
            return await client.post("/v1/chat/completions", json=ASKED | more, headers=BY)

    async def fleet(self) -> dict[str, Any]:
        told: dict[str, Any] = (await self.get("/admin/fleet")).json()
        return told

    async def sample(self, name: str) -> float:
        """One sample of the metrics page."""
        lines = (await self.get("/metrics")).text.splitlines()
        return next((float(line.rpartition(" ")[2]) for line in lines if line.startswith(f"{name} ")), 0.0)

    def folder(self) -> Path:
        """What the workers share, by the command line of one."""
        pid = self.process.pid
        child = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0]
        words = Path(f"/proc/{child}/cmdline").read_text().split("\0")
        return next(Path(word) for word in words if Path(word).name.startswith("headroom-"))

    async def all_up(self, count: int = 2) -> bool:
        with contextlib.suppress(httpx.HTTPError):
            workers = (await self.fleet())["workers"].values()
            return sum(worker["up"] and worker["ready"] for worker in workers) == count
        return False

    async def workers(self) -> dict[str, Any]:
        """Each in short, by router id."""
        told: dict[str, Any] = (await self.fleet())["workers"]
        return told


@contextlib.asynccontextmanager
async def workers(tmp_path: Path, *scripts: list[Step], more: str = "", count: int = 2) -> AsyncIterator[Workers]:
    """Workers in front of one engine with these scripts; all are up."""
    path, port = tmp_path / "r.yaml", free_port()
    async with ScriptedEngine(*scripts) as engine, Pages(dict(HEALTHY)) as pages:
        write(path, config(backend("a", engine, pages), more=more).replace("port: 0", f"port: {port}"))
        async with command("serve", "--config", str(path), "--workers", str(count)) as process:
            made = Workers(process, f"http://127.0.0.1:{port}", path, pages)
            await until_async(lambda: made.all_up(count))
            yield made


async def test_workers_share_a_port_and_one_answers_for_all(tmp_path: Path) -> None:
    """Requests of many connections: each counts once at every worker, and every worker explains it."""
    async with workers(tmp_path, [WHOLE]) as made:
        replies = await asyncio.gather(*(made.chat() for _ in range(24)))
        assert [reply.text for reply in replies if not reply.text.endswith("data: [DONE]\n\n")] == []
        name = 'headroom_requests_total{model="m",outcome="served",reason="",slo_class="default"}'
        for _ in range(6):  # any worker may be the one that is asked
            assert await made.sample(name) == 24
            fleet = await made.fleet()
            assert fleet["last"]["requests"] == fleet["backends"][0]["last"]["requests"] == 24
            assert len(fleet["recent"]) == 24
            assert fleet["peers"] == {}
            assert [*fleet["workers"]] == [f"{fleet['router']}.w0", f"{fleet['router']}.w1"]
            for reply in replies[:4]:
                told = (await made.get(f"/explain/{reply.headers['x-request-id']}")).json()
                assert told["request_id"] == reply.headers["x-request-id"]
        assert await made.sample('headroom_workers{state="answering"}') == 2
        assert (await made.get("/explain/nobody")).status_code == 404
        assert len((await made.get("/admin/policy")).json()["workers"]) == 2
        demand = (await made.get("/admin/routers")).json()
        assert len(demand) == 2
        folder = made.folder()
        assert (folder / "w0.sock").is_socket()
        assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700


async def test_history_and_use_of_all_workers_add_up_and_a_drain_reaches_each(tmp_path: Path) -> None:
    """Whichever worker gets the call."""
    async with workers(tmp_path, [WHOLE], more="quotas: {t: {requests_per_minute: 1000}}\n") as made:
        await asyncio.gather(*(made.chat() for _ in range(12)))
        for _ in range(4):
            (account,) = (await made.get("/admin/usage")).json()["accounts"].values()
            assert account["used"]["requests"] == 12
        for query in ("?window=hour", "?window=day&by=backend&name=a"):
            for _ in range(4):
                counters = (await made.get(f"/admin/history{query}")).json()["counters"]
                assert sum(counters["requests"]) == 12
        for action, status in (("drain", 503), ("undrain", 200)):
            assert (await made.post(f"/admin/backends/a/{action}")).status_code == 200
            assert {(await made.get("/readyz")).status_code for _ in range(6)} == {status}


async def replaced(made: Workers, gone: int) -> bool:
    """Whether another process is in that worker's place."""
    with contextlib.suppress(httpx.HTTPError):
        workers = (await made.workers()).values()
        return all(worker["up"] and worker["pid"] != gone for worker in workers)
    return False


async def test_a_worker_that_starts_again_takes_no_request_before_its_first_set_and_drains_what_was_drained(
    tmp_path: Path,
) -> None:
    """It leaves all to the other worker while it does not know where engines are; and a call undrains for all."""
    async with WatchedApi() as api, WholeEngine(model="n") as found:
        api.put("Service", {"metadata": {"name": "s"}, "spec": {}})
        labels = {"kubernetes.io/service-name": "s"}
        slices = {"metadata": {"name": "s-1", "labels": labels}, "addressType": "IPv4", "ports": [{"port": found.port}]}
        api.put("EndpointSlice", slices | {"endpoints": [{"addresses": ["127.0.0.1"]}]})
        more = f"discover: [{{kubernetes: {{service: s, url: '{api.url}', namespace: models}}}}]\n"
        async with workers(tmp_path, [WHOLE], more=more) as made:
            assert [len((await made.fleet())["backends"]) for _ in range(6)] == [2] * 6
            assert {(await made.chat(model="n")).status_code for _ in range(6)} == {200}
            assert (await made.post("/admin/backends/a/drain")).status_code == 200
            api.lists.clear()
            before = sum("watch=" not in each for each in api.log)
            first = next(iter((await made.workers()).values()))["pid"]
            os.kill(first, signal.SIGKILL)
            await until(lambda: sum("watch=" not in each for each in api.log) == before + 2)
            assert {(await made.chat(model="n")).status_code for _ in range(8)} == {200}
            shown = (await made.get("/admin/discovery")).json()["sources"][0]
            assert sorted(each["endpoints"] for each in shown["workers"].values())[-1] == 1
            api.lists.set()
            await until_async(lambda: replaced(made, first))
            assert {(await made.chat(model="n")).status_code for _ in range(16)} == {200}
            assert {(await made.chat()).status_code for _ in range(16)} == {503}
            assert (await made.post("/admin/backends/a/undrain")).status_code == 200
            assert {(await made.chat()).status_code for _ in range(16)} == {200}


async def test_a_worker_sees_what_another_has_in_flight_and_forgets_it_when_that_is_killed(tmp_path: Path) -> None:
    """By kill -9: within a lease its load is gone and it is back, counters and all."""
    never = asyncio.Event()
    async with workers(tmp_path, [WHOLE], [WHOLE[:-40], never, WHOLE[-40:]], [WHOLE]) as made:
        assert (await made.chat()).status_code == 200
        async with made.client() as client, client.stream("POST", "/v1/chat/completions", json=ASKED):

            async def other_sees() -> bool:
                views = (await made.get("/admin/routers")).json().values()
                return sorted(sum(load["decoding"] for load in view["loads"].values()) for view in views) == [0, 1]

            await until_async(other_sees)
            assert (await made.fleet())["backends"][0]["load"]["decoding"] == 1
            assert (await made.fleet())["backends"][0]["others"] == 0
            served = 'headroom_requests_total{model="m",outcome="served",reason="",slo_class="default"}'
            assert await made.sample(served) == 1
            before = await made.workers()
            (busy,) = [worker["pid"] for worker in before.values() if worker["in_flight"]]
            os.kill(busy, signal.SIGKILL)

            async def forgotten() -> bool:
                with contextlib.suppress(httpx.HTTPError):
                    fleet = await made.fleet()
                    return fleet["backends"][0]["load"]["decoding"] == fleet["backends"][0]["others"] == 0
                return False

            await until_async(forgotten)
            await until_async(made.all_up)
            after = await made.workers()
            assert busy not in {worker["pid"] for worker in after.values()}
            assert after.keys() == before.keys()
            assert await made.sample(served) == 1
            assert await made.sample("headroom_worker_restarts_total") == 1
        assert (await made.chat()).status_code == 200


async def test_a_reload_asked_of_one_reaches_all(tmp_path: Path) -> None:
    """By call, by SIGHUP to the parent, by a changed file; the answer says what each worker runs, a refusal too."""
    async with workers(tmp_path, [WHOLE], more="reload: {validation: {enabled: false}}\n") as made:
        text = made.path.read_text(encoding="utf-8")

        async def versions() -> set[str]:
            return {worker["version"] for worker in (await made.workers()).values()}

        async def all_run(version: str) -> bool:
            return await versions() == {version}

        (first,) = await versions()
        write(made.path, text + "policy: {routing: round_robin}\n")
        told = (await made.post("/admin/reload")).json()
        assert told["ok"]
        assert set(told["workers"].values()) == {told["version"]} != {first}
        assert len(told["workers"]) == 2

        write(made.path, text + "policy: {routing: nobody}\n")
        refused = await made.post("/admin/reload")
        assert refused.status_code == 422
        assert set(refused.json()["workers"].values()) == {told["version"]}

        back = (await made.post("/admin/rollback")).json()
        assert set(back["workers"].values()) == {first}

        write(made.path, text + "policy: {routing: least_work}\n")
        made.process.send_signal(signal.SIGHUP)

        async def taken() -> bool:
            return len(await versions()) == 1 and await versions() != {first}

        await until_async(taken)
        (third,) = await versions()
        write(made.path, text)  # seen by itself
        await until_async(lambda: all_run(first))
        assert third != first

        write(made.path, text + "policy: {routing: nobody}\n")  # whoever is started now takes what serves
        os.kill(next(iter((await made.workers()).values()))["pid"], signal.SIGKILL)
        await until_async(lambda: restarted(made))
        await until_async(made.all_up)
        assert await versions() == {first}


async def restarted(made: Workers) -> bool:
    """Whether a worker has been started again."""
    with contextlib.suppress(httpx.HTTPError):
        return await made.sample("headroom_worker_restarts_total") == 1
    return False


async def test_each_engine_is_read_by_one_worker_and_known_to_all(tmp_path: Path) -> None:
    """Two workers read an engine as often as one would, and both have the report."""
    async with workers(tmp_path, [WHOLE]) as made:

        async def known() -> bool:
            return await made.sample('headroom_engine_scrapes_total{backend="a",result="ok"}') > 20

        await until_async(known)
        await until_async(lambda: reported_to_all(made))
        asked = list(made.pages.asked)
        half = asked[len(asked) // 2 :]  # until they had heard of each other, both asked
        assert half.count("/health") > 1.5 * half.count("/metrics")


async def reported_to_all(made: Workers) -> bool:
    """Whether every worker has the engine's report."""
    told = [(await made.fleet())["backends"][0]["engine"] for _ in range(6)]
    return all(each is not None and each["age_s"] < 1.0 for each in told)


async def test_sigterm_lets_streams_of_every_worker_end(tmp_path: Path) -> None:
    """Each whole, and the exit status is 0; nothing is left in the shared folder."""
    go_on = asyncio.Event()
    async with workers(tmp_path, [WHOLE[:-40], go_on, WHOLE[-40:]]) as made:
        asked = [asyncio.create_task(made.chat()) for _ in range(12)]

        async def all_running() -> bool:
            return bool((await made.fleet())["in_flight"] == 12)

        await until_async(all_running)
        spread = [worker["in_flight"] for worker in (await made.workers()).values()]
        assert sum(spread) == 12
        made.process.send_signal(signal.SIGTERM)

        async def refused() -> bool:
            with contextlib.suppress(httpx.HTTPError):
                return (await made.get("/readyz")).status_code == 503
            return True

        await until_async(refused)
        go_on.set()
        for reply in await asyncio.gather(*asked):
            assert reply.text.endswith("data: [DONE]\n\n")
        async with asyncio.timeout(20):
            assert await made.process.wait() == 0


async def test_workers_end_when_their_parent_is_killed(tmp_path: Path) -> None:
    """Nobody is left to hold the port."""
    async with workers(tmp_path, [WHOLE]) as made:
        made.process.kill()

        async def gone() -> bool:
            with contextlib.suppress(httpx.ConnectError):
                with contextlib.suppress(httpx.ReadError, httpx.RemoteProtocolError):
                    await made.get("/healthz")
                return False
            return True

        await until_async(gone)


async def test_a_port_that_is_taken_is_said_once_and_nothing_starts(tmp_path: Path) -> None:
    """Also when it is another router's that shares it among workers of its own."""
    async with workers(tmp_path, [WHOLE]) as made, command("serve", "-c", str(made.path), "--workers", "2") as second:
        async with asyncio.timeout(20):
            _, said = await second.communicate()
        assert second.returncode == 1
        assert said.lower().count(b"address already in use") == 1
        assert (await made.chat()).status_code == 200


async def test_workers_that_cannot_start_end_their_parent(tmp_path: Path) -> None:
    """What is wrong is said by a worker, and the exit status is no success."""
    path, port = tmp_path / "r.yaml", free_port()
    good = '{name: a, url: "http://127.0.0.1:9", models: [m], card: l4, model: qwen3-4b}'
    folder = tmp_path / "file"
    folder.write_bytes(b"")
    record = f"record: {{file: {folder}/x.jsonl}}\n"
    write(path, f"listen: {{port: {port}, workers: 2}}\n{record}backends:\n  - {good}\n")
    async with command("serve", "-c", str(path)) as process, asyncio.timeout(30):
        _, said = await process.communicate()
    assert process.returncode == 1
    assert b" cannot serve: [Errno" in said
    assert b"before any worker was up" in said


async def test_each_worker_records_into_a_file_of_its_own(tmp_path: Path) -> None:
    """One that can be replayed by itself."""
    async with workers(tmp_path, [WHOLE], more=f"record: {{file: {tmp_path}/x.jsonl}}\n") as made:
        await asyncio.gather(*(made.chat() for _ in range(4)))
        made.process.send_signal(signal.SIGTERM)
        await made.process.wait()
    files = [tmp_path / f"x-w{slot}.jsonl" for slot in range(2)]
    events = [json.loads(line) for file in files for line in file.read_text(encoding="utf-8").splitlines()]
    assert sum(event.get("event") == "arrived" for event in events) == 4


@pytest.mark.skipif(server_binary() is None, reason="no Redis-compatible server binary installed")
async def test_workers_share_through_redis_where_there_is_one(tmp_path: Path) -> None:
    """The same, and other hosts see each worker; here with no file of views."""
    async with contextlib.AsyncExitStack() as stack:
        redis = await stack.enter_async_context(RedisServer())
        state = f"state: {{redis_url: '{redis.url}', router_id: r1}}\n"
        made = await stack.enter_async_context(workers(tmp_path, [WHOLE], more=state))
        assert set((await made.get("/admin/routers")).json()) == {"r1.w0", "r1.w1"}
        await until_async(lambda: reported_to_all(made))
        told = (await made.post("/admin/reload")).json()
        assert set(told["workers"]) == {"r1.w0", "r1.w1"}
