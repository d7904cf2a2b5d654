"""The record: what a gateway wrote replays to the letter, stays within its bound, and says what it lacks."""

from pathlib import Path

import orjson
import pytest

from router.core.errors import RecordError
from router.core.flight import DispatchLimits
from router.gateway.telemetry.recorder import Recorder, decisions, differences
from tests.fakes_router import HEALTHY, backend, config, router
from tests.fakes_wire import ScriptedEngine, stream
from tests.pages import Pages

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
        text = config(*lines, more=f"record: {{file: {record}}}\npolicy: {{routing: power_of_two}}\n")
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


def test_events_that_were_lost_are_said_to_be(tmp_path: Path) -> None:
    """A replay stops at the gap rather than call the rest a difference."""
    path = tmp_path / "run.jsonl"
    sink = recorder(path)
    sink.lost = 3
    sink.write({"event": "ticked", "at_s": 0.0, "answer": []})
    sink.close()
    with pytest.raises(RecordError, match="3 events were lost"):
        list(differences(path))


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", "expected the header"),
        ('{"record": 1}', "expected the header of a record of version 3, found one of version 1"),
        ('{"record": 2}', "expected the header of a record of version 3, found one of version 2"),
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
