"""Closed loops of traces: turns that follow ends, forks that join, and what a rate and a window do to them."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

import policies
from simulator.errors import BadLine
from simulator.experiment import Source
from simulator.pool import BUILT_IN
from simulator.run.play import RunResult, play
from simulator.traces import TraceEntry, read_trace
from simulator.traces.recent import recent
from simulator.workload.arrivals import Shaping
from simulator.workload.replayed import ReplayedLoops
from tests.commands import simulator_command
from tests.refusals import refused
from tests.simulator.test_traces import written

Row = dict[str, object]
SHAPING = Shaping("llama-3-8b")


def rows(folder: Path, *lines: Row, name: str = "trace") -> Path:
    defaults = {"input_length": 100, "output_length": 5}
    return written(folder, "".join(json.dumps({**defaults, **line}) + "\n" for line in lines), name)


def played(path: Path, **how: float) -> RunResult:
    routing, admission = policies.find("routing", "session_affinity"), policies.find("admission", "deadline")
    workload = Source((str(path),), **how).arrivals(BUILT_IN, 0)  # type: ignore[arg-type]
    return play(workload, BUILT_IN, routing, admission, 0)


def times(run: RunResult) -> dict[str, tuple[float, float]]:
    """Arrival and end by request."""
    arrived_s, ended_s = run.table.column("arrived_s"), run.table.column("ended_s")
    return {name: (float(arrived_s[n]), float(ended_s[n])) for n, name in enumerate(run.table.ids)}


SESSIONS: Sequence[Row] = (
    {"session_id": "a", "timestamp": 1000},
    {"session_id": "b", "timestamp": 3000},
    {"session_id": "a", "delay": 250, "input_length": 200},
    {"session_id": "a", "delay_ms": 500, "input_length": 300},
    {"session_id": "b", "timestamp": 5000, "input_length": 200},
)


def test_a_later_turn_arrives_its_delay_after_the_end_of_the_one_before(tmp_path: Path) -> None:
    """By ``delay``, ``delay_ms``, or the difference of two timestamps."""
    at = times(played(rows(tmp_path, *SESSIONS)))
    assert at["a#0"][0] == 0.0
    assert at["b#0"][0] == 2.0
    for before, turn, delay_s in (("a#0", "a#1", 0.25), ("a#1", "a#2", 0.5), ("b#0", "b#1", 2.0)):
        assert at[turn][0] - at[before][1] == pytest.approx(delay_s)


def test_a_request_that_waits_for_several_arrives_after_the_last(tmp_path: Path) -> None:
    """Dynamo's agents: branches of one request, and one that waits for both, with the time of a tool."""
    path = rows(
        tmp_path,
        {"request_id": "root", "session_id": "s", "timestamp": 0},
        {"request_id": "join", "session_id": "s", "wait_for": ["left", "right"], "tool_wait_ms": 100, "delay": 50},
        {"request_id": "left", "session_id": "s", "wait_for": ["root"], "output_length": 50},
        {"request_id": "right", "session_id": "s", "wait_for": ["root"]},
    )
    at = times(played(path))
    assert at["left"][0] == at["right"][0] == pytest.approx(at["root"][1])
    assert at["join"][0] == pytest.approx(max(at["left"][1], at["right"][1]) + 0.15)


def test_a_rate_moves_the_beginnings_and_no_delay(tmp_path: Path) -> None:
    """Twice as many sessions begin; a tool takes as long as before."""
    at = times(played(rows(tmp_path, *SESSIONS), rate=2.0))
    assert at["b#0"][0] == 1.0
    assert at["a#1"][0] - at["a#0"][1] == pytest.approx(0.25)


def test_a_window_keeps_whole_loops_and_a_limit_cuts(tmp_path: Path) -> None:
    """Session b begins in it, session a does not."""
    path = rows(tmp_path, *SESSIONS)
    assert set(times(played(path, from_s=1.0))) == {"b#0", "b#1"}
    assert times(played(path, from_s=1.0))["b#0"][0] == 1.0
    assert len(played(path, limit=3).table) == 3
    with pytest.raises(ValueError, match="--window: no requests begin in it"):
        played(path, from_s=60.0)


def test_loops_that_all_begin_at_once_have_no_rate_and_no_capacity(tmp_path: Path) -> None:
    """A rate would change nothing, and a search for one would not end."""
    path = rows(tmp_path, {"session_id": "a"}, {"session_id": "a", "delay": 2}, {"session_id": "b"})
    assert len(played(path).table) == 3
    with pytest.raises(ValueError, match="--rate: every request of this trace begins at once or follows"):
        played(path, rate=2.0)
    for trace in (str(path), "gen:closed:requests=20"):
        result = simulator_command(["capacity", trace, "--policy", "round_robin"])
        assert result.exit_code == 2
        assert "capacity searches for a rate" in result.output


def test_a_client_that_retries_is_followed_all_the_same() -> None:
    """A retry has another id."""
    entries = [TraceEntry(0, 1, 1, id="x"), TraceEntry(0, 1, 1, id="y", after=("x",), delay_s=2.0)]
    workload = ReplayedLoops(entries, SHAPING, 0)
    (first,) = list(workload)
    retried = replace(first, request=replace(first.request, id="x~1~2"), tries=2, first_try_s=0.0)
    (follower,) = workload.after(retried, 5.0)
    assert (follower.request.id, follower.request.arrived_s, workload.pending) == ("y", 7.0, 1)


def test_requests_that_wait_for_each_other_are_refused() -> None:
    """They would never arrive, and the run would have fewer requests than its trace."""
    entries = [TraceEntry(0, 1, 1, id="x"), *(TraceEntry(0, 1, 1, id=a, after=(b,)) for a, b in ("yz", "zy"))]
    with pytest.raises(ValueError, match="'y' waits for z, and that never ends"):
        ReplayedLoops(entries, SHAPING, 0)


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ([{}], ":1: timestamp must be a number of milliseconds, or the row needs a session_id or wait_for"),
        ([{"timestamp": "x"}], ":1: timestamp must be a number of milliseconds"),
        (
            [{"session_id": "a", "timestamp": 9}, {"session_id": "a", "timestamp": 8}],
            ":2: timestamp must not be before",
        ),
        ([{"session_id": "a"}, {"session_id": "a", "delay": -1}], ":2: delay must be a number of milliseconds, 0 or"),
        ([{"request_id": "a", "timestamp": 0}] * 2, ":2: request_id 'a' is in the file twice"),
        ([{"request_id": "a", "wait_for": ["b"]}], "request 'a' waits for 'b', which is not in the file"),
        ([{"request_id": "a", "wait_for": [1]}], ":1: wait_for must be a list of request ids"),
    ],
)
def test_a_loop_that_cannot_be_is_refused(tmp_path: Path, lines: Sequence[Row], expected: str) -> None:
    """With file, line and what was expected."""
    path = rows(tmp_path, *lines)
    with refused(BadLine, path, expected):
        read_trace(path)


def test_a_validation_gets_loops_at_times_of_their_own(tmp_path: Path) -> None:
    """It plays a part of a trace, which may lack the beginning of a loop: 30 ms a token stand for each reply."""
    entries = recent(rows(tmp_path, *SESSIONS), 100.0, 100)
    assert [(entry.id, entry.after) for entry in entries] == [
        ("a#0", ()),
        ("a#1", ()),
        ("a#2", ()),
        ("b#0", ()),
        ("b#1", ()),
    ]
    assert [entry.arrived_s for entry in entries] == pytest.approx([1.0, 1.4, 2.05, 3.0, 5.15])
    assert [entry.id for entry in recent(rows(tmp_path, *SESSIONS), 3.0, 100)] == ["b#0", "b#1"]


# ---- block sizes ------------------------------------------------------------------


@pytest.mark.parametrize("size", [16, 64, 128, 512, 1024])
@pytest.mark.parametrize("part", [True, False])
def test_the_size_of_a_block_follows_from_all_rows(tmp_path: Path, size: int, part: bool) -> None:
    """So many hashes for so many tokens; whether the last, partial block has one or not."""
    lines = []
    for tokens in (3 * size + 7, 5 * size + size // 2, 9 * size - 1):
        count = tokens // size + part
        lines.append({"timestamp": 0, "input_length": tokens, "hash_ids": list(range(count))})
    assert {entry.prefix_block_tokens for entry in read_trace(rows(tmp_path, *lines)).entries} == {size}


def test_hashes_that_contradict_the_length_are_named_by_line(tmp_path: Path) -> None:
    """A row that does not fit those before it; or one with more hashes than tokens."""
    good = {"timestamp": 0, "input_length": 6755, "hash_ids": list(range(14))}
    path = rows(tmp_path, good, {"timestamp": 1, "input_length": 700, "hash_ids": [1, 2, 3, 4, 5]})
    expected = ":2: hash_ids has 5 hashes for 700 tokens; the rows before have blocks of 512 tokens, expected 2"
    with refused(BadLine, path, expected):
        read_trace(path)
    assert len(read_trace(path, skip_bad=True).entries) == 1
    path = rows(tmp_path, {"timestamp": 1, "input_length": 2, "hash_ids": [1, 2, 3, 4, 5]})
    with refused(BadLine, path, ":1: hash_ids has 5 hashes for 2 tokens; expected no more than tokens"):
        read_trace(path)


def test_turns_that_state_what_they_add_are_put_together(tmp_path: Path) -> None:
    """AIPerf's: the second turn has other hashes than the first, or is too short to hold it."""
    path = rows(
        tmp_path,
        {"session_id": "a", "timestamp": 0, "input_length": 1000, "output_length": 50, "hash_ids": [0, 1]},
        {"session_id": "a", "delay": 9, "input_length": 600, "output_length": 10, "hash_ids": [2, 3]},
        {"session_id": "b", "timestamp": 0, "input_length": 1500, "hash_ids": [0, 1, 4]},
    )
    first, second, other = read_trace(path).entries
    assert (first.prompt_tokens, second.prompt_tokens, other.prompt_tokens) == (1000, 1650, 1500)
    assert first.prefix == (0,)
    assert second.prefix[0] == other.prefix[0] == 0
    assert len(second.prefix) == 1650 // 512
    assert set(second.prefix[1:]).isdisjoint(other.prefix)
    path = rows(
        tmp_path, {"session_id": "a", "input_length": 300, "output_length": 40}, {"session_id": "a", "delay": 2}
    )
    assert [entry.prompt_tokens for entry in read_trace(path).entries] == [300, 440]


def test_what_a_later_prompt_repeats_of_a_reply_is_in_the_cache(tmp_path: Path) -> None:
    """Whole prompts: the hashes of the second turn name the blocks of the first reply."""
    path = rows(
        tmp_path,
        {"session_id": "a", "timestamp": 0, "input_length": 1100, "output_length": 500, "hash_ids": [0, 1, 2]},
        {"session_id": "a", "delay": 9, "input_length": 2100, "hash_ids": [0, 1, 5, 6, 7]},
    )
    first, second = read_trace(path).entries
    assert first.known_prefix == (0, 1, 5)
    assert (second.known_prefix, second.prompt_tokens) == ((), 2100)
    run = played(path)
    assert int(run.table.column("cached_tokens").max()) >= 1536 - 16
