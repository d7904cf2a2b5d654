"""An engine that sleeps or is paused passes its health checks and gets no requests."""

import json
from pathlib import Path

import pytest

from router.core.decisions import Refuse, Send
from router.core.errors import Reason
from router.core.record import Recording, replay
from router.core.types import EngineReport, Request
from router.engines import read_metrics
from router.gateway.state.wire import report_from, report_json
from tests import fakes
from tests.fakes_router import backend, config, router
from tests.fakes_wire import ScriptedEngine, stream
from tests.pages import Pages
from tests.waiting import until

AWAKE, OFFLOADED, DISCARDED = (1, 0, 0), (0, 1, 0), (0, 0, 1)


def page(*ranks: tuple[int, int, int]) -> bytes:
    """A page of vLLM 0.32 as it is while it sleeps: all counts are 0, whatever waits."""
    lines = b""
    for rank, values in enumerate(ranks):
        lines += b'vllm:num_requests_running{engine="%d",model_name="m"} 0.0\n' % rank
        lines += b'vllm:num_requests_waiting{engine="%d",model_name="m"} 0.0\n' % rank
        for state, value in zip((b"awake", b"weights_offloaded", b"discard_all"), values, strict=True):
            line = b'vllm:engine_sleep_state{engine="%d",model_name="m",sleep_state="%b"} %d.0\n'
            lines += line % (rank, state, value)
    return lines


@pytest.mark.parametrize(
    ("ranks", "asleep"),
    [
        ((AWAKE,), False),
        ((OFFLOADED,), True),
        ((DISCARDED,), True),
        ((AWAKE, AWAKE), False),
        ((OFFLOADED, OFFLOADED), True),
        ((AWAKE, DISCARDED), False),
        (((0, 0, 0),), True),
    ],
)
def test_a_page_says_whether_the_engine_sleeps(ranks: tuple[tuple[int, int, int], ...], asleep: bool) -> None:
    """At any level (0 shows in no other state than awake), and with several ranks once none of them is awake; an older
    page says nothing of it.
    """
    found = read_metrics(page(*ranks))
    assert found is not None
    assert found.asleep is asleep
    older = read_metrics(b"vllm:num_requests_running 0.0\n")
    assert older is not None
    assert not older.asleep


def test_sleep_passes_through_stores_and_records() -> None:
    """Other workers and a sidecar's readers learn of it from the report; what is no such number is no sleep."""
    report = EngineReport.by_name(5.0, 1.0, 0.0, asleep=1, kv_usage=0.5)
    assert report_from(report_json(report, 0.0), 0.0).asleep
    assert not report_from(report_json(EngineReport(5.0), 0.0), 0.0).asleep
    for odd in (2, -1, "yes", None, 1e300):
        assert not report_from(json.dumps({"asked_s": 1.0, "asleep": odd}).encode(), 0.0).asleep


def test_who_sleeps_gets_nothing_and_is_back_with_its_first_report_awake() -> None:
    """Also of several; with all asleep a new request is refused. A report read earlier wakes nobody."""
    core = fakes.core(fakes.backend("a"), fakes.backend("b"))

    def sent(number: int, now_s: float) -> str:
        (command, *_) = core.arrived(Request(f"r{number}", "m", now_s, 10), now_s)
        assert isinstance(command, Send | Refuse)
        return command.backend if isinstance(command, Send) else command.reason

    core.reported("a", EngineReport(1.0, asleep=True), 1.0)
    assert {sent(number, 1.0) for number in range(8)} == {"b"}
    core.reported("b", EngineReport(1.0, asleep=True), 1.0)
    assert sent(8, 1.0) == Reason.NO_BACKEND
    core.reported("a", EngineReport(0.5), 2.0)  # read before it went to sleep
    assert sent(9, 2.0) == Reason.NO_BACKEND
    core.reported("a", EngineReport(3.0), 3.0)
    assert {sent(number, 3.0) for number in range(10, 18)} == {"a"}


def test_a_passing_health_check_wakes_nobody_and_a_newcomer_is_awake() -> None:
    """The report is of what the check cannot see; one that takes the slot of a sleeper is another engine."""
    core = fakes.core(fakes.backend("a"))
    slot = core.ledger.roster.slot("a")
    assert slot is not None
    core.reported("a", EngineReport(1.0, asleep=True), 1.0)
    core.backend_health("a", False, 2.0)
    assert core.ledger.roster.sleeps(slot)
    core.backend_health("a", True, 3.0)
    assert core.ledger.roster.sleeps(slot)
    core.backend_left("a", 5.0)
    core.backend_joined(fakes.backend("b"), 5.0)
    assert not core.ledger.roster.sleeps(slot)


def test_a_record_with_a_sleeping_engine_replays() -> None:
    """The same commands come out."""
    written: list[dict[str, object]] = []
    it = Recording(fakes.core(fakes.backend("z")), written.append)
    it.backend_joined(fakes.backend("a"), 0.0)
    it.reported("a", EngineReport(1.0, asleep=True), 1.0)
    it.arrived(Request("r", "m", 2.0, 10), 2.0)
    it.reported("a", EngineReport(3.0), 3.0)
    events = json.loads(json.dumps(written))
    again = list(replay(events, fakes.core(fakes.backend("z"))))
    assert [answer for _, answer in again] == [event["answer"] for event in events]


async def test_a_sleeping_engine_gets_nothing_and_everyone_can_see_it(tmp_path: Path) -> None:
    """Beside one that is awake; in the log, the metrics, the fleet view and readiness; until its page says awake."""
    async with (
        ScriptedEngine([stream("a")]) as first,
        ScriptedEngine([stream("b")]) as second,
        Pages({"/health": (200, b""), "/metrics": (200, page(OFFLOADED))}) as sleepy,
        Pages({"/health": (200, b""), "/metrics": (200, page(AWAKE))}) as awake,
    ):
        text = config(backend("a", first, sleepy), backend("b", second, awake))
        async with router(tmp_path / "r.yaml", text) as it:
            await until(lambda: "a" in it.gateway.downtimes() and it.gateway.downtimes()["a"][0].reason == "asleep")
            await until(lambda: it.gateway.engines.watches["b"].up)
            for _ in range(4):
                assert (await it.chat()).status_code == 200
            assert (len(first.requests), len(second.requests)) == (0, 4)
            text = (await it.get("/metrics")).text
            assert 'headroom_backend_down_since_timestamp_seconds{backend="a",reason="asleep"}' in text
            assert 'headroom_backend_up{backend="a"} 1.0' in text
            ready = (await it.get("/readyz")).json()
            assert (ready["backends_up"], ready["backends_down"]) == (["b"], {"a": ["asleep"]})
            shown = {each["name"]: each["down"] for each in (await it.get("/admin/fleet")).json()["backends"]}
            assert [down["reason"] for down in shown["a"]] == ["asleep"]
            awake.pages["/metrics"] = (200, page(DISCARDED))
            await until(lambda: not it.gateway.ready)
            refused = await it.chat()
            assert refused.headers["x-headroom-dropped-reason"] == "no-backend"
            sleepy.pages["/metrics"] = (200, page(AWAKE))
            await until(lambda: it.gateway.ready)
            assert (await it.chat()).status_code == 200
            assert len(first.requests) == 1


async def test_a_paused_engine_gets_nothing_and_one_without_the_page_is_not_asked_again(tmp_path: Path) -> None:
    """vLLM has the page in development mode alone, and nothing on its metrics page tells of a pause."""
    pages = Pages({"/health": (200, b""), "/metrics": (200, page(AWAKE)), "/is_paused": (200, b'{"is_paused": true}')})
    async with pages, ScriptedEngine([stream("a")]) as other, Pages({}) as bare:
        bare.pages |= {"/health": (200, b""), "/metrics": (200, page(AWAKE))}
        lines = [
            f'  - {{name: {name}, url: "{url}", engine: vllm, models: [m], card: l4, model: qwen3-4b}}\n'
            for name, url in (("a", pages.url), ("b", bare.url))
        ]
        lines.append(backend("c", other, bare, models=["other"]))
        async with router(tmp_path / "r.yaml", config(*lines)) as it:
            await until(lambda: "a" in it.gateway.downtimes() and it.gateway.downtimes()["a"][0].reason == "asleep")
            await until(lambda: bare.asked.count("/metrics") >= 4)
            assert bare.asked.count("/is_paused") == 1
            pages.pages["/is_paused"] = (500, b'{"error": "Failed to fetch pause status"}')  # says nothing
            asked = pages.asked.count("/is_paused")
            await until(lambda: pages.asked.count("/is_paused") >= asked + 3)
            assert "a" in it.gateway.downtimes()
            pages.pages["/is_paused"] = (200, b'{"is_paused": false}')
            await until(lambda: "a" not in it.gateway.downtimes())
            pages.pages["/is_paused"] = (200, b'{"is_paused": true}')
            await until(lambda: "a" in it.gateway.downtimes())


async def test_a_sleep_that_no_page_can_end_any_more_is_forgotten(tmp_path: Path) -> None:
    """Its metrics have gone while it slept: by its health checks it is up, and nothing else would wake it."""
    async with (
        ScriptedEngine([stream("a")]) as engine,
        Pages({"/health": (200, b""), "/metrics": (200, page(OFFLOADED))}) as pages,
        router(tmp_path / "r.yaml", config(backend("a", engine, pages)), ready=False) as it,
    ):
        await until(lambda: "a" in it.gateway.reports and it.gateway.reports["a"].asleep)
        del pages.pages["/metrics"]
        failed = pages.asked.count("/metrics") + 2
        await until(lambda: pages.asked.count("/metrics") >= failed)
        await until(lambda: it.gateway.engines.watches["a"].up)
        now_s = it.gateway.clock()
        for age_s, ready in ((29.0, False), (31.0, True)):
            it.gateway.reports["a"] = EngineReport(now_s - age_s, asleep=True)
            it.gateway._wake(now_s)
            assert it.gateway.ready is ready
