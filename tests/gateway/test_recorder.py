"""The record: what a gateway wrote replays to the letter, stays within its bound, and says what it lacks."""

import logging
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from math import inf
from pathlib import Path
from random import Random
from zlib import crc32

import orjson
import pytest

import policies
from policies.admission.fair import LANES
from router.core.advances import Advance
from router.core.dispatcher import Dispatcher
from router.core.errors import RecordError
from router.core.flight import DispatchLimits
from router.core.held_lines import SETTLE_S, HeldLine
from router.core.peer_change import PeerChange
from router.core.record import READABLE, VERSION, Recording
from router.core.types import Slo
from router.gateway.rollout.guard import Bounds, DecisionStats, Faults, GuardedAdmission
from router.gateway.telemetry.recorder import Recorder, decisions, differences
from tests import fakes
from tests.fakes_router import HEALTHY, backend, config, router
from tests.fakes_wire import ScriptedEngine, stream
from tests.pages import Pages
from tests.waiting import until_async

DECISIONS = decisions(
    {"routing": {"name": "round_robin", "parameters": {}}, "admission": {"name": "deadline", "parameters": {}}},
    DispatchLimits(),
)


def recorder(path: Path, bytes_max: int = 1 << 20) -> Recorder:
    """A recorder of a core that decides by round robin."""
    return Recorder(path, bytes_max, {"seed": 7, **DECISIONS})


async def test_a_recorded_gateway_run_told_to_a_fresh_core_gives_the_same_commands(tmp_path: Path) -> None:
    """Through sockets, chance in the routing, and a change of policy on the way."""
    record, path = tmp_path / "run.jsonl", tmp_path / "r.yaml"
    async with (
        ScriptedEngine([stream("a", "b")]) as engine,
        Pages(dict(HEALTHY)) as pages,
    ):
        lines = [backend(name, engine, pages) for name in "abc"]
        text = config(
            *lines, more=f"record: {{file: {record}}}\npolicy: {{routing: power_of_two, guard: {{budget_ms: 10000}}}}\n"
        )
        async with router(path, text) as it:
            for _ in range(30):
                assert (await it.chat()).status_code == 200
            path.write_text(text.replace("power_of_two", "least_work"), encoding="utf-8")
            assert (await it.client.post("/admin/reload")).status_code == 200
            for _ in range(10):
                await it.chat()
    events = [orjson.loads(line)["event"] for line in record.read_bytes().splitlines()[1:]]
    assert events.count("arrived") == 40
    assert events.count("adopt") == 1
    assert list(differences(record)) == []


async def test_decisions_that_a_guard_replaced_are_replayed_as_they_were(tmp_path: Path) -> None:
    """Whether one is late depends on the machine: the record states which were, and who decided then."""
    record, path = tmp_path / "run.jsonl", tmp_path / "r.yaml"
    async with (
        ScriptedEngine([stream("a", "b")]) as engine,
        Pages(dict(HEALTHY)) as pages,
    ):
        lines = [backend(name, engine, pages) for name in "abc"]
        more = f"record: {{file: {record}}}\nreload: {{validation: {{enabled: false}}}}\n"
        more += "policy: {canary: {routing: random, share: 0.5}, routing: power_of_two}\n"
        text = config(*lines, more=more)
        async with router(path, text) as it:
            for _ in range(5):
                await it.chat()
            ticks = count()
            it.gateway.rollout._clock = lambda: next(ticks) * 0.006  # more than a decision may take
            path.write_text(text.replace("power_of_two", "least_work"), encoding="utf-8")
            assert (await it.client.post("/admin/reload")).status_code == 200
            for _ in range(12):
                assert (await it.chat()).status_code == 200
    header, *events = map(orjson.loads, record.read_bytes().splitlines())
    assert "last_good" not in header
    adopted = next(event for event in events if event["event"] == "adopt")
    assert (adopted["routing"]["name"], adopted["last_good"]["name"]) == ("least_work", "power_of_two")
    why = {why for event in events for _, why in event.get("replaced", ())}
    assert {"overran"} <= why <= {"overran", "dropped"}
    assert list(differences(record)) == []


def test_what_follows_from_peers_is_replayed(tmp_path: Path) -> None:
    """A long prompt is decided once peers know of it; a tenant's lead over its share is that of all routers."""
    path, bounds = tmp_path / "run.jsonl", Slo(ttft_s=1.0)
    named = {"routing": {"name": "least_work", "parameters": {}}, "admission": {"name": "fair", "parameters": {}}}
    sink = Recorder(path, 1 << 20, {"seed": 7, **decisions(named, DispatchLimits())})
    fair = policies.find("admission", "fair")
    guarded = GuardedAdmission(fair, Faults(Bounds(), DecisionStats(), lambda: 0.0, lambda fault: None))
    core = Dispatcher(policies.find("routing", "least_work"), guarded, Random(7))
    it = Recording(core, sink.write)
    for name in "ab":
        it.backend_joined(fakes.backend(name), 0.0)
    lane = crc32(b"greedy") % LANES
    it.on_peer_change("peer", PeerChange({}, whole=True, advances=(Advance(lane, 1.0, 1.0),)), 0.1)
    assert not it.arrived(fakes.request("long", prompt_tokens=4_000, arrived_s=0.2, slo=bounds), 0.2)
    assert fakes.sent(it.ticked(0.2 + SETTLE_S)).request_id == "long"
    held = HeldLine("m", (0.0, ""), (0.0, inf, inf, 0.9), 1, ((9.0, 0.0),), (0, 1))
    it.on_peer_change("peer", PeerChange({}, held=(held,), advances=(Advance(lane, 101.0, 1.0),)), 0.3)
    assert fakes.refused(it.arrived(fakes.request("r", arrived_s=0.4, tenant="greedy"), 0.4)).reason == "unfair-share"
    sink.close()
    assert list(differences(path)) == []


async def test_a_core_that_decides_otherwise_is_told_apart(tmp_path: Path) -> None:
    """Each differing command is named with its line."""
    record, path = tmp_path / "run.jsonl", tmp_path / "r.yaml"
    async with (
        ScriptedEngine([stream("a", "b")]) as engine,
        Pages(dict(HEALTHY)) as pages,
    ):
        lines = [backend(name, engine, pages) for name in "ab"]
        more = f"record: {{file: {record}}}\npolicy: {{routing: round_robin}}\n"
        async with router(path, config(*lines, more=more)) as it:
            for _ in range(4):
                await it.chat()
    record.write_bytes(record.read_bytes().replace(b'"round_robin"', b'"least_request"', 1))
    found = list(differences(record))
    assert found
    line, event, now = found[0]
    assert line > 1
    assert event["answer"] != now


def test_the_two_files_of_a_record_stay_within_its_bound(tmp_path: Path) -> None:
    """A full file is renamed and the one before it removed; the new one states that it continues the record."""
    path = tmp_path / "run.jsonl"
    sink = recorder(path, bytes_max=8192)
    for number in range(1000):
        sink.write({"event": "ticked", "at_s": float(number), "answer": []})
    sink.close()
    files = sorted(file.name for file in tmp_path.iterdir())
    assert files == ["run.jsonl", "run.jsonl.1"]
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) <= 8192 + 400  # a header and a line over
    assert orjson.loads(path.read_bytes().splitlines()[-1])["at_s"] == 999.0
    with pytest.raises(RecordError, match="begins in the middle of a run"):
        list(differences(path))


def test_a_header_states_the_policies_before_the_first_event_of_its_file(tmp_path: Path) -> None:
    """Also where policies are swapped before anything is written; nothing stays of a role that has ended."""
    path = tmp_path / "run.jsonl"
    sink = recorder(path, bytes_max=4096)
    sink.write({"event": "ticked", "at_s": 0.0, "answer": []})
    sink.adopted(DECISIONS | {"canary": {"name": "random", "parameters": {}}})
    sink.adopted(DECISIONS | {"last_good": {"name": "least_work", "parameters": {}}})
    for number in range(50):
        sink.write({"event": "ticked", "at_s": float(number), "answer": []})
    sink.close()
    headers = [orjson.loads(each.read_bytes().splitlines()[0]) for each in (tmp_path / "run.jsonl.1", path)]
    assert [header["continues"] for header in headers] == [False, True]
    assert [sorted(header.keys() & {"canary", "last_good"}) for header in headers] == [[], ["last_good"]]
    assert {header["seed"] for header in headers} == {7}


def test_events_that_were_lost_are_said_to_be(tmp_path: Path) -> None:
    """A replay stops at the gap rather than call the rest a difference."""
    path = tmp_path / "run.jsonl"
    sink = recorder(path)
    sink._overflowed = 3
    sink.write({"event": "ticked", "at_s": 0.0, "answer": []})
    sink.close()
    with pytest.raises(RecordError, match="3 events were lost"):
        list(differences(path))


@pytest.mark.parametrize("version", [each for each in READABLE if each != VERSION])
async def test_a_record_of_a_version_before_can_be_replayed(tmp_path: Path, version: int) -> None:
    """Version 3 states no last tokens, which are then taken for the end; none of them the limits that came later."""
    path = tmp_path / "run.jsonl"
    sink = recorder(path)
    sink.write({"event": "ticked", "at_s": 0.0, "answer": []})
    sink.close()
    header, *events = path.read_bytes().splitlines()
    before = orjson.loads(header) | {"record": version}
    del before["limits"]["late_final"]
    path.write_bytes(b"\n".join((orjson.dumps(before), *events)))
    assert list(differences(path)) == []


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", "expected the header"),
        ('{"record": 1}', f"expected the header of a record of version {VERSION}, found one of version 1"),
        ('{"record": 2}', f"expected the header of a record of version {VERSION}, found one of version 2"),
        ('{"event": "arrived"}', "found no header"),
        ("[1]", ":1: no event: expected a JSON object"),
        ("not json", ":1: not JSON"),
    ],
)
def test_what_is_no_record_is_refused_by_line(tmp_path: Path, text: str, match: str) -> None:
    """File and line are named."""
    path = tmp_path / "x.jsonl"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(RecordError, match=match):
        list(differences(path))


def ticks(first: int, count: int) -> list[dict[str, object]]:
    """Events that can be told apart."""
    return [{"event": "ticked", "at_s": float(number), "answer": []} for number in range(first, first + count)]


def recorded(path: Path) -> list[float | str]:
    """What a file holds after its header: times, and ``gap N``. Every line of it is whole."""
    header, *events = [orjson.loads(line) for line in path.read_bytes().splitlines()]
    assert "record" in header
    return [event["at_s"] if "at_s" in event else f"gap {event['lost']}" for event in events]


@contextmanager
def full_at(size: int) -> Iterator[None]:
    """No file may grow beyond so many bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_drops_events_and_says_so_once_until_there_is_room(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The recorder goes on; no line is torn, and the gap states how many are missing."""
    path = tmp_path / "run.jsonl"
    sink = recorder(path, bytes_max=1 << 26)
    for event in [{"event": "ticked", "at_s": -1.0, "answer": ["x" * 2**20]}, *ticks(0, 10)]:
        sink.write(event)
    while sink._file.lines < 11:
        sink._wake.wait(0.001)
    with full_at(path.stat().st_size + 200), caplog.at_level(logging.WARNING):
        for first in range(10, 60, 10):
            for event in ticks(first, 10):
                sink.write(event)
            while sink.dropped < first:
                sink._wake.wait(0.001)
    for event in ticks(60, 3):
        sink.write(event)
    sink.close()
    assert sink.dropped == 50
    assert recorded(path) == [-1.0, *map(float, range(10)), "gap 50", 60.0, 61.0, 62.0]
    assert [line.partition(": ")[2].partition(",")[0].partition(";")[0] for line in caplog.messages] == [
        "events cannot be recorded and are dropped: File too large",
        "events are recorded again",
    ]


@pytest.mark.parametrize("how", ["file", "folder", "moved", "emptied"])
def test_a_record_whose_file_is_gone_begins_anew(tmp_path: Path, how: str) -> None:
    """Else all that follows would be lost with it."""
    path = tmp_path / "logs" / "run.jsonl"
    sink = recorder(path)
    sink.write(*ticks(0, 1))
    while not sink._file.lines:
        sink._wake.wait(0.001)
    if how == "moved":
        path.rename(tmp_path / "kept.jsonl")
    elif how == "emptied":  # as logrotate's copytruncate does
        os.truncate(path, 0)
    else:
        path.unlink()
    if how == "folder":
        path.parent.rmdir()
    sink.write(*ticks(1, 1))
    sink.close()
    assert recorded(path) == [1.0]
    assert orjson.loads(path.read_bytes().splitlines()[0])["continues"] is True
    assert sink.dropped == 0


def test_a_folder_that_cannot_be_made_again_is_tried_until_it_can(tmp_path: Path) -> None:
    """What came meanwhile is a gap."""
    folder = tmp_path / "logs"
    sink = recorder(folder / "run.jsonl")
    folder.rename(tmp_path / "old")
    folder.write_bytes(b"")  # a file stands in its place
    for event in ticks(0, 4):
        sink.write(event)
    while sink.dropped < 4:
        sink._wake.wait(0.001)
    folder.unlink()
    sink.write(*ticks(4, 1))
    sink.close()
    assert recorded(folder / "run.jsonl") == ["gap 4", 4.0]


async def test_a_disk_that_is_full_from_the_start_keeps_no_router_from_serving(tmp_path: Path) -> None:
    """Requests are served; the metric counts what no file has."""
    record = tmp_path / "run.jsonl"
    record.symlink_to("/dev/full")
    async with (
        ScriptedEngine([stream("a")]) as engine,
        Pages(dict(HEALTHY)) as pages,
        router(tmp_path / "r.yaml", config(backend("a", engine, pages), more=f"record: {{file: {record}}}\n")) as it,
    ):
        assert (await it.chat()).status_code == 200

        async def counted() -> bool:
            page = (await it.client.get("/metrics")).text
            (line,) = [each for each in page.splitlines() if each.startswith("headroom_record_dropped_events_total ")]
            return float(line.split()[1]) > 3

        await until_async(counted)
