"""Several trace files as one: names that clash, clocks that have nothing in common, and what is left out."""

import json
from pathlib import Path

import pytest

from simulator.experiment import Source
from simulator.pool import BUILT_IN
from tests.commands import simulator_command
from tests.simulator.test_traces import AZURE, BURSTGPT, MOONCAKE, RECORD, written


def own(folder: Path, name: str, *lines: dict[str, object]) -> str:
    defaults = {"prompt_tokens": 64, "output_tokens": 2}
    return str(written(folder, "".join(json.dumps({**defaults, **line}) + "\n" for line in lines), name))


def test_hashes_that_two_files_number_alike_are_different_texts(tmp_path: Path) -> None:
    """Mooncake numbers blocks from 0 in each file: equal numbers in two files share nothing."""
    paths = [str(written(tmp_path, MOONCAKE, name)) for name in ("a", "b")]
    first, second = Source(tuple(paths)).entries()
    assert len(first.prefix) == len(second.prefix) == 3
    assert set(first.prefix).isdisjoint(second.prefix)
    assert Source((paths[0],)).entries()[0].prefix == (46, 47, 48)


def test_hashes_of_contents_are_the_same_everywhere(tmp_path: Path) -> None:
    """Records of two gateways hash the text itself."""
    text = RECORD.replace('"prompt_tokens": 7', '"prompt_tokens": 7, "prefix": [5, 6], "prefix_block_tokens": 3')
    first, second = Source(tuple(str(written(tmp_path, text, name)) for name in ("a", "b"))).entries()
    assert first.prefix == second.prefix == (5, 6)


def test_ids_and_sessions_that_clash_are_told_apart(tmp_path: Path) -> None:
    """The second file's get its number; names that do not clash stay."""
    one = own(tmp_path, "a", {"arrived_s": 0, "id": "x", "session": "s"})
    two = own(tmp_path, "b", {"arrived_s": 1, "id": "x", "session": "s"}, {"arrived_s": 2, "id": "y", "session": "t"})
    three = own(tmp_path, "c", {"arrived_s": 3, "id": "z", "session": "u"})
    entries = Source((one, two, three)).entries()
    assert [(entry.id, entry.session) for entry in entries] == [("x", "s"), ("x@2", "s@2"), ("y@2", "t@2"), ("z", "u")]
    requests = [arrival.request for arrival in Source((one, two, three)).arrivals(BUILT_IN, 0)]
    assert len({request.id for request in requests}) == 4


def test_clocks_that_lie_apart_begin_together(tmp_path: Path) -> None:
    """Dates of November 2023 beside milliseconds from 0: nothing was 320 days idle, and a note says so."""
    source = Source((str(written(tmp_path, AZURE, "azure")), str(written(tmp_path, MOONCAKE, "mooncake"))))
    assert [round(entry.arrived_s, 1) for entry in source.entries()] == [0.0, 0.0, 4.3]
    (note,) = source.left_out()
    assert "lie 320 days apart: each counts from its own first request" in note
    assert "azure" in note
    assert "mooncake" in note


def test_files_of_one_clock_keep_their_distance(tmp_path: Path) -> None:
    """Two hours of the same day in two files, and two parts of one recording."""
    later = AZURE.replace("18:15", "18:20")
    source = Source((str(written(tmp_path, AZURE, "a")), str(written(tmp_path, later, "b"))))
    at_s = [entry.arrived_s for entry in source.entries()]
    assert at_s[2] - at_s[0] == pytest.approx(300.0)
    assert source.left_out() == []


def test_what_is_left_out_is_said_with_its_reason(tmp_path: Path) -> None:
    """A record with more arrivals than ends, and requests that failed when they were recorded: so many of so many."""
    record, burst = str(written(tmp_path, RECORD, "record")), str(written(tmp_path, BURSTGPT, "burst"))
    assert Source((record,)).left_out() == [
        f"{record}: 1 of 2 requests left out: they have no end in the record (refused, failed, left, or still running)"
    ]
    assert Source((burst,)).left_out() == [f"{burst}: 1 of 2 requests left out: they failed there (no response tokens)"]
    assert Source((record,), limit=1).left_out() == []


def test_replay_prints_and_writes_what_is_left_out(tmp_path: Path) -> None:
    """On stderr, and in the JSON."""
    record, out = written(tmp_path, RECORD, "record"), tmp_path / "out.json"
    result = simulator_command(["replay", str(record), "--policy", "round_robin", "--json", str(out)])
    assert result.exit_code == 0, result.output
    assert "1 of 2 requests left out" in result.stderr
    assert "1 of 2 requests left out" in json.loads(out.read_text())["left_out"][0]


def test_a_trace_of_nothing_but_failures_says_why_it_is_empty(tmp_path: Path) -> None:
    """No requests: because all failed there."""
    text = "".join(BURSTGPT.splitlines(keepends=True)[0::2])
    result = simulator_command(["replay", str(written(tmp_path, text, "burst"))])
    assert result.exit_code == 2
    assert "no requests in this BurstGPT trace; 1 failed there" in result.output
