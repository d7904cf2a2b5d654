"""Health checks over real sockets: what an engine without ``/health`` gets, and why a backend is down."""

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from router.config import settings
from router.core.errors import DownReason
from router.core.types import EngineReport
from router.gateway.monitoring.health import Engines, HealthChange, Watch, WatchedEngine, engine
from router.gateway.monitoring.probe import ProbeClient
from tests.fakes_router import backend, config, router
from tests.fakes_wire import Act, Script, ScriptedEngine, reply
from tests.pages import Pages
from tests.waiting import until

OK = reply(b"")
MODELS = b'{"object": "list", "data": [{"id": "m", "object": "model"}]}'


class Listener:
    """Notes every call."""

    def __init__(self) -> None:
        self.reports: list[EngineReport] = []
        self.changes: list[HealthChange] = []
        self.failures: list[str] = []

    def probe_started(self, name: str) -> None:
        pass

    def reported(self, name: str, report: EngineReport) -> None:
        self.reports.append(report)

    def backend_health(self, name: str, change: HealthChange) -> None:
        self.changes.append(change)

    def scraped(self, backend: str, report: EngineReport, took_s: float) -> None:
        pass

    def scrape_failed(self, backend: str, why: str) -> None:
        self.failures.append(why)


def at(url: str, **more: str) -> WatchedEngine:
    """An engine at this address as a config has it, with the usual paths."""
    facts = {"name": "e", "url": url, "models": ["m"], "card": "l4", "model": "qwen3-4b"} | more
    return engine(settings.Backend.model_validate(facts), True)


def watched(url: str, timeout_s: float = 2.0, **more: str) -> tuple[Watch, Listener]:
    """A watch of it: down at the first failed check."""
    listener = Listener()
    made = Watch(at(url, **more), ProbeClient(timeout_s), listener, listener, 1, time.monotonic)
    return made, listener


@asynccontextmanager
async def scripted(*scripts: Script, timeout_s: float = 2.0) -> AsyncIterator[tuple[Watch, Listener, ScriptedEngine]]:
    """A watch of an engine with these scripts."""
    async with ScriptedEngine(*scripts) as it:
        made, listener = watched(f"http://127.0.0.1:{it.port}", timeout_s)
        yield made, listener, it


@pytest.mark.parametrize("status", [404, 405])
async def test_an_engine_without_a_health_path_is_checked_by_its_models(status: int) -> None:
    """The address is remembered, and the log says so; one that fails there is asked for its health again."""
    async with Pages({"/health": (status, b""), "/v1/models": (200, MODELS)}) as pages:
        one, listener = watched(pages.url)
        for _ in range(3):
            await one.check()
        assert pages.asked == ["/health", "/v1/models", "/v1/models", "/v1/models"]
        assert [change.up for change in listener.changes] == [True]
        expected = f"health check passed ({pages.url}/v1/models; there is no {pages.url}/health), up since "
        assert str(listener.changes[0]).startswith(expected)
        pages.pages |= {"/health": (200, b""), "/v1/models": (500, b"")}
        for _ in range(2):
            await one.check()
        assert [(change.up, change.url[len(pages.url) :]) for change in listener.changes] == [
            (True, "/v1/models"),
            (False, "/v1/models"),
            (True, "/health"),
        ]


async def test_an_engine_that_loses_its_health_path_while_it_is_up_stays_up() -> None:
    """The change of address is reported, with the time since when it is up."""
    async with Pages({"/health": (200, b""), "/v1/models": (200, MODELS)}) as pages:
        one, listener = watched(pages.url)
        await one.check()
        del pages.pages["/health"]
        await one.check()
        first, second = listener.changes
        assert (first.missing, second.missing) == ("", f"{pages.url}/health")
        assert first.at_s == second.at_s


async def test_no_other_address_is_tried_where_the_config_gives_one_or_the_api_has_no_models() -> None:
    """A mistyped ``health_url`` must not pass as health; Triton has another API."""
    async with Pages({"/v1/models": (200, MODELS)}) as pages:
        for more in ({"health_url": f"{pages.url}/up"}, {"protocol": "triton"}):
            one, listener = watched(pages.url, **more)
            await one.check()
            assert listener.changes[-1].reason is DownReason.STATUS
        assert "/v1/models" not in pages.asked


async def test_a_changed_config_asks_for_the_health_path_again() -> None:
    """A watch that begins anew knows nothing of the one before."""
    async with Pages({"/v1/models": (200, MODELS)}) as pages:
        listener, engines = Listener(), None
        engines = Engines(listener, listener, ProbeClient, time.monotonic)
        plain = replace(at(pages.url), scraped=False)
        await engines.watch((plain,), 60.0, 2.0, 1)
        await until(lambda: listener.changes)
        await engines.watch((replace(plain, key="other"),), 60.0, 2.0, 1)
        await until(lambda: len(pages.asked) == 4)
        assert pages.asked == ["/health", "/v1/models"] * 2
        await engines.close()


async def test_a_changed_config_takes_no_backend_down() -> None:
    """It is up until a check fails as often as it must; at another address it is not checked yet."""
    async with Pages({"/health": (200, b"")}) as pages:
        listener = Listener()
        engines = Engines(listener, listener, ProbeClient, time.monotonic)
        plain = replace(at(pages.url), scraped=False)
        await engines.watch((plain,), 60.0, 2.0, 2)
        await until(lambda: listener.changes)
        pages.pages["/health"] = (503, b"")
        for timeout_s, key in ((2.0, "other"), (3.0, "other")):  # the second makes all watches anew
            asked = len(pages.asked)
            await engines.watch((replace(plain, key=key),), 60.0, timeout_s, 2)
            assert engines.watches["e"].up
            await until(lambda asked=asked: len(pages.asked) > asked)
        await engines.watches["e"].check()
        await until(lambda: not engines.watches["e"].up)
        assert [change.up for change in listener.changes] == [True, False]
        await engines.watch((replace(plain, health_url=f"{pages.url}/up"),), 60.0, 3.0, 2)
        down = engines.watches["e"].down
        assert down is not None
        assert down.reason is DownReason.UNCHECKED
        await engines.close()


async def test_a_redirect_is_no_health_and_says_where_it_points() -> None:
    """A proxy that sends to its login page would otherwise pass as an engine; the address is for the config."""
    moved = reply(b"", 307, more="Location: https://e:8000/health\r\n")
    async with scripted([moved]) as (one, listener, _):
        await one.check()
        assert "status 307, a redirect to https://e:8000/health, which is not followed" in str(listener.changes[0])
        assert listener.changes[0].reason is DownReason.STATUS


@pytest.mark.parametrize(
    ("protocol", "status", "reason"),
    [
        ("triton", 400, DownReason.UNREADY),
        ("triton", 503, DownReason.UNREADY),
        ("triton", 500, DownReason.STATUS),
        ("openai", 400, DownReason.STATUS),
    ],
)
async def test_triton_says_by_400_that_it_is_not_ready(protocol: str, status: int, reason: DownReason) -> None:
    """An answer of the engine itself, which is believed; of others 400 is a fault of the check."""
    path = {"triton": "/v2/health/ready", "openai": "/health"}[protocol]
    async with Pages({path: (status, b"")}) as pages:
        one, listener = watched(pages.url, protocol=protocol)
        await one.check()
        assert listener.changes[0].reason is reason


@pytest.mark.parametrize(
    ("script", "reason", "why"),
    [
        ([reply(b"no", 503)], DownReason.UNREADY, "status 503"),
        ([reply(b"no", 500)], DownReason.STATUS, "status 500"),
        ([Act.UNTIL_LEFT], DownReason.TIMEOUT, "no answer in 0.2 s"),
        ([OK[:-5], Act.CLOSE], DownReason.INVALID, "closed the connection"),
        ([reply(b"page")[:-2], Act.CLOSE], DownReason.INVALID, "closed in the middle"),
        ([Act.RESET], DownReason.INVALID, "closed the connection"),
        ([b"SSH-2.0-x\r\n\r\n"], DownReason.INVALID, "not HTTP"),
    ],
)
async def test_what_is_wrong_with_an_answer_is_the_reason(script: Script, reason: DownReason, why: str) -> None:
    """One of few words for metrics, and the whole for people, with the address and since when."""
    before_s = time.time()
    async with scripted(script, timeout_s=0.2) as (one, listener, it):
        assert one.down is not None
        assert one.down.reason is DownReason.UNCHECKED
        await one.check()
        assert listener.changes[0].reason is reason
        assert why in str(listener.changes[0])
        assert one.down is not None
        assert one.down.reason is reason
        assert one.down.why.endswith(f"at http://127.0.0.1:{it.port}/health")
        assert before_s <= one.down.since_s <= time.time()


async def test_a_connection_that_does_not_come_about_says_why() -> None:
    """Refused where nothing listens; a name that there is not; refused at another address than that of requests."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    one, listener = watched(f"http://127.0.0.1:{port}")
    await one.check()
    assert listener.changes[0].reason is DownReason.REFUSED
    one, listener = watched("http://127.0.0.1:9", health_url=f"http://127.0.0.1:{port}/up")
    await one.check()
    assert listener.changes[0].reason is DownReason.UNREACHABLE
    one, listener = watched("http://no-such-host.invalid:8000")
    await one.check()
    assert listener.changes[0].reason in {DownReason.UNREACHABLE, DownReason.TIMEOUT}  # a resolver may be slow


async def test_a_server_without_tls_says_so_at_an_https_address() -> None:
    """Certificates and protocols that do not fit are a fault of the config: the reason is apart from others."""

    async def plain(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(reply(b"", 400))
        writer.close()

    server = await asyncio.start_server(plain, "127.0.0.1", 0)
    async with server:
        one, listener = watched(f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        await one.check()
    assert listener.changes[0].reason is DownReason.TLS
    assert "it does not speak TLS" in str(listener.changes[0])


async def test_another_reason_is_reported_while_it_stays_down() -> None:
    """With since when it is down: that did not change."""
    async with Pages({"/health": (503, b"")}) as pages:
        one, listener = watched(pages.url)
        for _ in range(2):
            await one.check()
        await pages.stop()
        for _ in range(2):
            await one.check()
        first, second = listener.changes
        assert (first.reason, second.reason) == (DownReason.UNREADY, DownReason.REFUSED)
        assert first.at_s == second.at_s
        await pages.start()


async def test_a_slow_health_check_delays_no_scrape_and_no_other_engine() -> None:
    """One engine's check hangs until it is answered; its own metrics and the health of the other go on."""
    answer = asyncio.Event()
    async with ScriptedEngine([answer, OK]) as slow, Pages({"/health": (200, b""), "/m": (200, b"")}) as quick:
        listener = Listener()
        engines = Engines(listener, listener, ProbeClient, time.monotonic)
        a = replace(at(f"http://127.0.0.1:{slow.port}"), name="a", metrics_url=f"{quick.url}/m")
        b = replace(at(quick.url), name="b", scraped=False)
        await engines.watch((a, b), 0.01, 60.0, 2)
        await until(lambda: quick.asked.count("/m") >= 3 and quick.asked.count("/health") >= 3)
        assert [change.url for change in listener.changes] == [f"{quick.url}/health"]
        answer.set()
        await until(lambda: len(listener.changes) == 2)
        assert engines.watches["a"].up
        await engines.close()


async def test_half_a_number_at_the_end_of_a_page_is_not_read() -> None:
    """A page that ends with its connection may have been cut: 12 waiting requests are not 1."""
    page = b"HTTP/1.0 200 OK\r\n\r\nvllm:num_requests_running 3\nvllm:num_requests_waiting 1"
    cut = reply(b"vllm:num_requests_running 3\nvllm:num_requests_waiting 12\n")[:-4]
    async with scripted([page, Act.CLOSE], [page + b"2\n", Act.CLOSE], [cut, Act.CLOSE]) as (one, listener, _):
        for _ in range(3):
            await one.scrape()
        assert [(report.running, report.waiting) for report in listener.reports[1:]] == [(3.0, 12.0)]
        assert listener.reports[0].running == 3.0
        assert not listener.reports[0].waiting >= 0.0
        assert ["closed in the middle" in failure for failure in listener.failures] == [True]


def reasons(found: Sequence[str]) -> list[str]:
    """Those lines of a metrics page that say why a backend is down, without the time."""
    name = "headroom_backend_down_since_timestamp_seconds{"
    return [line.rpartition(" ")[0][len(name) :] for line in found if line.startswith(name)]


async def test_every_reason_is_in_the_metrics_the_fleet_view_and_readiness(tmp_path: Path) -> None:
    """And gone from all of them once the backend is up."""
    async with ScriptedEngine([OK]) as served, Pages({"/health": (503, b"")}) as pages:
        text = config(backend("a", served, pages))
        async with router(tmp_path / "r.yaml", text, ready=False) as it:
            await until(lambda: it.gateway.engines.watches["a"].health is not None)
            lines = (await it.get("/metrics")).text.split("\n")
            assert reasons(lines) == ['backend="a",reason="unready"}']
            assert (await it.get("/readyz")).json()["backends_down"] == {"a": ["unready"]}
            (shown,) = (await it.get("/admin/fleet")).json()["backends"]
            (down,) = shown["down"]
            assert (shown["up"], down["reason"]) == (False, "unready")
            assert down["why"] == f"status 503 at {pages.url}/health"
            assert down["since_s"] <= time.time()
            assert shown["health_url"] == f"{pages.url}/health"
            pages.pages["/health"] = (200, b"")
            await until(lambda: it.gateway.ready)
            assert reasons((await it.get("/metrics")).text.split("\n")) == []
            (shown,) = (await it.get("/admin/fleet")).json()["backends"]
            assert (shown["up"], shown["down"]) == (True, [])
            assert "backends_down" not in (await it.get("/readyz")).json()


async def test_no_connection_is_left_to_an_engine_that_is_not_watched_any_more() -> None:
    """One that ends in good order waits for its clients; each that ever was here would keep a descriptor."""
    async with Pages({"/health": (200, b"")}) as pages, Pages({"/health": (200, b"")}) as other:
        listener = Listener()
        engines = Engines(listener, listener, ProbeClient, time.monotonic)
        stays = replace(at(other.url), name="stays", scraped=False)
        await engines.watch((replace(at(pages.url), scraped=False), stays), 60.0, 2.0, 1)
        await until(lambda: len(listener.changes) == 2)
        assert (len(pages._writers), len(other._writers)) == (1, 1)
        await engines.watch((stays,), 60.0, 2.0, 1)
        await until(lambda: not pages._writers)
        assert len(other._writers) == 1
        await engines.close()
