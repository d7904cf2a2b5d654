"""No backend is up by its health checks, and requests are served all the same: failing open, over real sockets."""

import asyncio
import json
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from router.core.decisions import Command, Refuse, Send
from router.core.dispatcher import Dispatcher
from router.core.errors import DOUBTFUL, DownReason, Reason
from router.core.record import Recording, replay
from router.core.types import EngineReport, Request
from router.gateway.monitoring.health import Watch, WatchedEngine
from router.gateway.monitoring.probe import ProbeClient
from tests import fakes
from tests.fakes_router import backend, config, router
from tests.fakes_wire import LAST, STREAM_HEAD, Act, Script, ScriptedEngine, chunked, event, reply, stream, token
from tests.gateway.test_health import Listener
from tests.pages import Pages
from tests.waiting import until

OK = reply(b"")


class Busy:
    """An engine whose health checks pass at first and then hang; each sends a token of the open stream before that."""

    def __init__(self) -> None:
        self.hangs = False
        self.streams = True
        self.checks = 0
        self.served = 0
        self.port = 0
        self._stream: asyncio.StreamWriter | None = None

    async def __aenter__(self) -> "Busy":
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                if head.startswith(b"GET /health"):
                    self.checks += 1
                    self._send_token()
                    if self.hangs:
                        await reader.read()
                        return
                    writer.write(OK)
                elif head.startswith(b"POST"):
                    length = head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0]
                    await reader.readexactly(int(length))
                    self._stream = writer
                    writer.write(STREAM_HEAD + chunked(event(token())))
                    self.served += 1
                else:
                    writer.write(reply(b"", 404))
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    def _send_token(self) -> None:
        if self._stream is not None and self.streams:
            self._stream.write(chunked(event(token())))

    def finish(self) -> None:
        """End the open stream in good order."""
        assert self._stream is not None
        self._stream.write(chunked(event("[DONE]")) + LAST)


def quick(*backends: str) -> str:
    """A config whose health checks time out soon."""
    return config(*backends).replace("period_s: 0.02", "period_s: 0.02, timeout_s: 1")


def line(name: str, port: int) -> str:
    """A backend at this port, with the usual paths."""
    return f'  - {{name: {name}, url: "http://127.0.0.1:{port}", models: [m], card: l4, model: qwen3-4b}}\n'


async def test_tokens_are_evidence_of_life_and_without_them_it_fails_open(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """All health checks hang: while a stream flows the backend stays up; once it is silent the backend is down, and
    requests are sent to it until it is up again. The log, the metrics, readiness and the page state it.
    """
    async with Busy() as engine, router(tmp_path / "r.yaml", quick(line("a", engine.port))) as it:
        await until(lambda: it.gateway.engines.watches["a"].up)
        caplog.clear()
        streamed = asyncio.create_task(it.chat())
        await until(lambda: engine.served == 1)
        engine.hangs = True
        checks = engine.checks
        await until(lambda: engine.checks >= checks + 4)
        assert it.gateway.engines.watches["a"].up
        assert not [record for record in caplog.records if "health check" in record.getMessage()]
        engine.streams = False
        await until(lambda: not it.gateway.engines.watches["a"].up)
        engine.finish()
        assert (await streamed).status_code == 200

        again = asyncio.create_task(it.chat())
        await until(lambda: engine.served == 2)
        engine.finish()
        assert (await again).status_code == 200
        ready = await it.get("/readyz")
        assert (ready.status_code, ready.json()["failing_open"]) == (200, ["m"])
        assert ready.json()["backends_down"] == {"a": ["timeout"]}
        lines = (await it.get("/metrics")).text.split("\n")
        assert 'headroom_fail_open{model="m"} 1.0' in lines
        assert (await it.get("/admin/fleet")).json()["failing_open"] == ["m"]
        said = [record.getMessage() for record in caplog.records if record.getMessage().startswith("model m: ")]
        assert len(said) == 1
        assert "no backend is up" in said[0]
        engine.hangs = False
        await until(lambda: it.gateway.engines.watches["a"].up)
        assert "headroom_fail_open{" not in (await it.get("/metrics")).text
        assert "failing_open" not in (await it.get("/readyz")).json()


@pytest.mark.parametrize(
    ("script", "counts"),
    [([Act.UNTIL_LEFT], False), ([reply(b"", 503)], True), ([reply(b"", 500)], True), ([Act.CLOSE], True)],
)
async def test_only_a_time_out_is_excused_by_tokens(script: Script, counts: bool) -> None:
    """A 503 or a refused connection is an answer, whatever still comes of older streams."""
    async with ScriptedEngine([OK], script) as engine:
        listener, client = Listener(), ProbeClient(0.2)
        at = WatchedEngine("e", f"http://127.0.0.1:{engine.port}/health", "", ("m",))
        one = Watch(at, client, listener, listener, 1, time.monotonic, last_read_s=lambda _: time.monotonic())
        for _ in range(3):
            await one.check()
        assert one.up is not counts
        await engine.stop()
        await one.check()
        assert one.health is not None
        assert not one.up


async def test_bytes_from_before_the_check_are_no_evidence() -> None:
    """Tokens that came until an engine hung say nothing of now."""
    async with ScriptedEngine([OK], [Act.UNTIL_LEFT]) as engine:
        listener, began_s = Listener(), time.monotonic()
        at = WatchedEngine("e", f"http://127.0.0.1:{engine.port}/health", "", ("m",))
        one = Watch(at, ProbeClient(0.2), listener, listener, 1, time.monotonic, last_read_s=lambda _: began_s)
        for _ in range(2):
            await one.check()
        assert [change.reason for change in listener.changes] == [None, DownReason.TIMEOUT]


def sent(core: Dispatcher | Recording, number: int, now_s: float) -> str:
    """The backend that a new request goes to, or the reason why to none."""
    commands: Sequence[Command] = core.arrived(Request(f"r{number}", "m", now_s, 10), now_s)
    assert isinstance(commands[0], Send | Refuse)
    return commands[0].backend if isinstance(commands[0], Send) else commands[0].reason


@pytest.mark.parametrize("reason", [*DownReason, None])
def test_only_doubtful_checks_are_overridden(reason: DownReason | None) -> None:
    """A refused connection, a 503 and a backend that no check has reached yet are not."""
    core = fakes.core(fakes.backend("a"))
    core.backend_health("a", False, 1.0, reason)
    assert sent(core, 1, 1.0) == ("a" if reason in DOUBTFUL else Reason.NO_BACKEND)
    assert bool(core.ledger.roster.failing_open()) is (reason in DOUBTFUL)
    core.backend_health("a", False, 2.0, DownReason.REFUSED)
    assert sent(core, 2, 2.0) == Reason.NO_BACKEND


def test_the_manual_has_every_reason_and_which_are_overridden() -> None:
    """In the table of its section."""
    text = (Path(__file__).parents[2] / "deploy/docs/pages/howto/errors.md").read_text(encoding="utf-8")
    rows = text.partition("## When a backend is down")[2].partition("\n## ")[0].split("\n| `")[1:]
    named = {
        name: row.rstrip().split("|")[-2].strip() for row in rows for name in row.split(" |")[0][:-1].split("`, `")
    }
    assert named == {reason.value: "yes" if reason in DOUBTFUL else "no" for reason in DownReason}


def test_a_backend_that_is_up_comes_before_all_that_are_down() -> None:
    """They are tried only where there is none: one that is up, alone, gets everything."""
    core = fakes.core(fakes.backend("a"), fakes.backend("b"), fakes.backend("c", models=("other",)))
    for name in "ab":
        core.backend_health(name, False, 1.0, DownReason.TIMEOUT)
    assert {sent(core, number, 1.0) for number in range(8)} == {"a", "b"}
    assert list(core.ledger.roster.failing_open()) == ["m"]
    core.backend_health("b", True, 2.0)
    assert {sent(core, number, 2.0) for number in range(8, 16)} == {"b"}
    assert list(core.ledger.roster.failing_open()) == []


def test_a_drain_and_a_sleep_are_not_overridden() -> None:
    """An operator took the one away, and the other would answer nobody."""
    core = fakes.core(fakes.backend("a"), fakes.backend("b"))
    for name in "ab":
        core.backend_health(name, False, 1.0, DownReason.TIMEOUT)
    core.backend_draining("a", True, 1.0)
    core.reported("b", EngineReport(1.0, asleep=True), 1.0)
    assert sent(core, 1, 1.0) == Reason.NO_BACKEND
    assert list(core.ledger.roster.failing_open()) == []
    core.backend_draining("a", False, 2.0)
    assert sent(core, 2, 2.0) == "a"
    core.backend_left("a", 3.0)
    core.backend_joined(fakes.backend("d"), 3.0)  # in the slot of a
    core.backend_health("d", False, 3.0)
    assert sent(core, 3, 3.0) == Reason.NO_BACKEND


def test_a_record_that_fails_open_replays() -> None:
    """The reason is part of the event; a record of before has none."""
    written: list[dict[str, object]] = []
    it = Recording(fakes.core(fakes.backend("z")), written.append)
    it.backend_joined(fakes.backend("a"), 0.0)
    it.backend_health("a", False, 1.0, DownReason.TIMEOUT)
    it.backend_health("z", False, 1.0)
    assert sent(it, 1, 2.0) == "a"
    events = json.loads(json.dumps(written))
    again = list(replay(events, fakes.core(fakes.backend("z"))))
    assert [answer for _, answer in again] == [noted["answer"] for noted in events]


async def test_an_engine_without_a_usable_health_page_is_served_from(tmp_path: Path) -> None:
    """Its health path answers 500 for ever: it was never used."""
    async with (
        ScriptedEngine([stream("a")]) as engine,
        Pages({"/health": (500, b"")}) as pages,
        router(tmp_path / "r.yaml", config(backend("a", engine, pages))) as it,
    ):
        assert (await it.chat()).status_code == 200
        assert it.gateway.downtimes()["a"][0].reason is DownReason.STATUS
