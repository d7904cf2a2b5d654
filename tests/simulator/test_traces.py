"""Reading traces: every form, told from its content; every bad line, named by its number."""

import gzip
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from threading import Thread

import pytest

from router.core.types import Slo
from router.search_path import environment, module_command
from simulator.commands.replay import Workload
from simulator.errors import BadLine
from simulator.experiment import figures
from simulator.traces import TraceEntry, formats, read_trace
from tests.commands import simulator_command
from tests.refusals import refused

AZURE = (
    "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.6805900,374,44\n2023-11-16 18:15:50.9951690,396,109\n"
)
MOONCAKE = '{"timestamp": 3052, "input_length": 1300, "output_length": 6, "hash_ids": [46, 47, 48]}\n'
BURSTGPT = (
    "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
    "5,ChatGPT,472,18,490,Conversation log\n6,GPT-4,10,0,10,API log\n"
)
BAILIAN = (
    '{"chat_id": 1, "parent_chat_id": -1, "timestamp": 0.5, "input_length": 20, "output_length": 9, "type": "text", '
    '"turn": 1, "hash_ids": [1, 2]}\n'
    '{"chat_id": 2, "parent_chat_id": 1, "timestamp": 9.0, "input_length": 40, "output_length": 8, "type": "text", '
    '"turn": 2, "hash_ids": [1, 2, 3]}\n'
)
OWN = '{"arrived_s": 1.5, "prompt_tokens": 800, "output_tokens": 120, "ttft_slo_s": 0.5, "model": "m"}\n'
RECORD = "".join(
    json.dumps(event) + "\n"
    for event in (
        {"event": "backend_joined", "at_s": 0.0, "backend": {}},
        {"event": "arrived", "at_s": 2.0, "request": {"id": "a", "model": "m", "prompt_tokens": 7}},
        {"event": "arrived", "at_s": 3.0, "request": {"id": "b", "model": "m", "prompt_tokens": 7}},
        {"event": "ended", "at_s": 9.0, "id": "a", "usage": {"output_tokens": 33}},
    )
)


def written(folder: Path, text: str, name: str = "trace") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def test_azure_lines_count_from_their_dates(tmp_path: Path) -> None:
    """Two requests 4.3 s apart, by the date and time of each."""
    first, second = read_trace(written(tmp_path, AZURE)).entries
    assert (first.prompt_tokens, first.output_tokens) == (374, 44)
    assert second.arrived_s - first.arrived_s == pytest.approx(4.314579, abs=1e-5)


def test_mooncake_lines_are_milliseconds_and_bring_their_prefix(tmp_path: Path) -> None:
    """timestamp is ms, a hash covers 512 tokens."""
    expected = TraceEntry(3.052, 1300, 6, prefix=(46, 47, 48), prefix_block_tokens=512)
    assert read_trace(written(tmp_path, MOONCAKE)).entries == [expected]


def test_burstgpt_leaves_failed_requests_out(tmp_path: Path) -> None:
    """A row without response tokens is a request that failed there."""
    reading = read_trace(written(tmp_path, BURSTGPT))
    assert reading.entries == [TraceEntry(5.0, 472, 18, tenant="ChatGPT")]
    assert "left out" in reading.notes[0]


def test_bailian_turns_share_the_session_of_their_first(tmp_path: Path) -> None:
    """parent_chat_id leads back to the chat that began it."""
    first, second = read_trace(written(tmp_path, BAILIAN)).entries
    assert (first.session, second.session, second.prefix_block_tokens) == ("1", "1", 16)


def test_own_lines_bring_their_slo(tmp_path: Path) -> None:
    """What a line promises is an Slo, the rest of it unbounded."""
    assert read_trace(written(tmp_path, OWN)).entries == [TraceEntry(1.5, 800, 120, model="m", slo=Slo(ttft_s=0.5))]
    refusing = OWN.replace('"model"', '"slo_infeasible": "refuse", "model"')
    assert read_trace(written(tmp_path, refusing)).entries[0].slo == Slo(ttft_s=0.5, refuse_infeasible=True)


def test_a_gateway_record_is_a_trace_of_what_ended(tmp_path: Path) -> None:
    """Arrival and end are joined; a request that never ended has no length to replay."""
    assert read_trace(written(tmp_path, RECORD)).entries == [TraceEntry(2.0, 7, 33, id="a", model="m")]


def test_a_gateway_record_keeps_what_becomes_of_bounds_that_cannot_be(tmp_path: Path) -> None:
    """As the core's record writes it."""
    asked = '"prompt_tokens": 7, "slo": {"tpot_s": 0.001, "quantile": 0.9, "refuse_infeasible": true}'
    (entry,) = read_trace(written(tmp_path, RECORD.replace('"prompt_tokens": 7', asked))).entries
    assert entry.slo == Slo(tpot_s=0.001, refuse_infeasible=True)


def test_whether_a_client_saw_its_reply_come_is_kept(tmp_path: Path) -> None:
    """Of a reply that comes whole only the end can be judged: replayed as a stream, it would be promised more."""
    whole = RECORD.replace('"prompt_tokens": 7}', '"prompt_tokens": 7, "streamed": false}')
    assert read_trace(written(tmp_path, whole)).entries == [TraceEntry(2.0, 7, 33, id="a", model="m", streamed=False)]
    own = OWN.replace('"m"}', '"m", "streamed": false}')
    assert not read_trace(written(tmp_path, own)).entries[0].streamed


@pytest.mark.parametrize("text", [AZURE, MOONCAKE, BURSTGPT, BAILIAN, OWN, RECORD])
def test_a_gzipped_trace_reads_as_the_plain_one(tmp_path: Path, text: str) -> None:
    """Told from the first two bytes, not from the name."""
    packed = tmp_path / "packed"
    packed.write_bytes(gzip.compress(text.encode()))
    assert read_trace(packed).entries == read_trace(written(tmp_path, text)).entries


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (AZURE + "2023-11-16 18:15:51,x,3\n", ":4: contexttokens must be a whole number, got 'x'"),
        (AZURE + "yesterday,1,3\n", ":4: TIMESTAMP must be a date and time"),
        (AZURE + "2023-11-16 18:15:51,1\n", ":4: expected 3 columns"),
        (OWN + "{not json}\n", ":2: expected a JSON object"),
        (OWN + '{"arrived_s": 1, "prompt_tokens": 0, "output_tokens": 1}\n', ":2: prompt_tokens must be at least 1"),
        (OWN + '{"arrived_s": -1, "prompt_tokens": 1, "output_tokens": 1}\n', ":2: arrived_s must be 0 or more"),
        (OWN.replace('"m"}', '"m", "streamed": "no"}'), ":1: streamed must be true or false, got 'no'"),
        (OWN.replace("ttft_slo_s", "ttft_slo"), ":1: unknown key 'ttft_slo'; did you mean 'ttft_slo_s'?"),
        (
            OWN.replace('"m"', '"m", "slo_infeasible": "no"'),
            ":1: slo_infeasible must be best_effort or refuse, got 'no'",
        ),
        (
            OWN.replace('"ttft_slo_s": 0.5', '"slo_infeasible": "refuse"'),
            ":1: slo_infeasible needs a bound: ttft_slo_s",
        ),
        (
            OWN.replace('"model"', '"prefix": [1, 2, 3], "prefix_block_tokens": 400, "model"'),
            ":1: prefix has 3 hashes of 400 tokens, more than prompt_tokens 800 have",
        ),
        (MOONCAKE + '{"timestamp": 1, "input_length": true, "output_length": 3}\n', ":2: input_length must be"),
        ('{"a": 1}\n', ":1: expected a key among"),
        ("a,b\n1,2\n", ":1: expected a JSON object or a header"),
        ("\n\n", "found an empty file"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, text: str, expected: str) -> None:
    """File, line number, and what was expected there."""
    path = written(tmp_path, text)
    with refused(BadLine, path, expected):
        read_trace(path)


def test_skip_bad_counts_and_goes_on(tmp_path: Path) -> None:
    """Two bad lines among three: one request, and the first bad line kept to be shown."""
    reading = read_trace(written(tmp_path, OWN + "{\n" + "[]\n"), skip_bad=True)
    assert (len(reading.entries), reading.skipped) == (1, 2)
    assert ":2: expected" in reading.first_skipped


def test_entries_come_in_order_of_arrival(tmp_path: Path) -> None:
    """Whatever the order of the lines."""
    lines = [f'{{"arrived_s": {t}, "prompt_tokens": 1, "output_tokens": 1}}\n' for t in (3, 1, 2)]
    assert [entry.arrived_s for entry in read_trace(written(tmp_path, "".join(lines))).entries] == [1, 2, 3]


TOY_FORMAT = '''
"""One request a line: seconds, prompt tokens, output tokens, under keys of one letter."""

from simulator.traces.entry import TraceEntry, TraceFormat
from simulator.traces.fields import by_record, count, seconds
from tests.refusals import refused


def _read(record):
    return TraceEntry(seconds(record.get("t"), "t"), count(record, "p"), count(record, "o"))


FORMAT = TraceFormat("toy", line='{"t": 0.5, "p": 90, "o": 9}', arrival="seconds", parser=by_record(_read), keys=("t",))
'''


@pytest.fixture
def toy_format(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A further file in the folder of formats, and nothing else."""
    folder = tmp_path / "formats"
    folder.mkdir()
    (folder / "toy.py").write_text(TOY_FORMAT)
    monkeypatch.setattr(formats, "__path__", [*formats.__path__, str(folder)])
    formats.formats.cache_clear()
    yield
    formats.formats.cache_clear()
    monkeypatch.delitem(sys.modules, "simulator.traces.formats.toy")


@pytest.mark.usefixtures("toy_format")
def test_a_format_is_added_by_one_file(tmp_path: Path) -> None:
    """A new file in traces/formats is recognised, replayed, and named where a line is of no format."""
    trace = written(tmp_path, "".join(f'{{"t": {t}, "p": 90, "o": 9}}\n' for t in range(5)))
    (case,) = Workload(traces=[str(trace)]).cases(["round_robin"])
    assert figures(case)["served"] == 5
    with pytest.raises(BadLine, match=r"expected a key among .*, t; found a"):
        read_trace(written(tmp_path, '{"a": 1}\n', "other"))


def test_the_readme_lists_every_format() -> None:
    """The table of simulator/README.md has exactly one row for each format, with its line and its unit of time."""
    readme = (Path(formats.__file__).parents[2] / "README.md").read_text()
    rows = [
        row
        for row in readme.splitlines()
        if row.startswith("| ") and row.endswith((" seconds |", " time |", " milliseconds |"))
    ]
    assert rows == [f"| {each.name} | `{each.line}` | {each.arrival} |" for each in formats.formats()]


# ---- dates, arrays, copies --------------------------------------------------------


def test_dates_with_zones_are_one_clock(tmp_path: Path) -> None:
    """20:00 in Berlin is an hour after 18:00 in London's winter; a fraction of 7 digits is read."""
    rows = "2024-01-16 18:00:00.0000000+00:00,1,1\n2024-01-16 20:00:00+01:00,1,1\n"
    text = "TIMESTAMP,ContextTokens,GeneratedTokens\n" + rows
    first, second = read_trace(written(tmp_path, text)).entries
    assert second.arrived_s - first.arrived_s == 3600.0


@pytest.mark.parametrize(
    ("zones", "expected"),
    [(("", "+00:00"), "without a zone, as in the rows before"), (("Z", ""), "with a zone, as in the rows before")],
)
def test_a_file_that_mixes_dates_with_and_without_a_zone_is_refused(
    tmp_path: Path, zones: tuple[str, str], expected: str
) -> None:
    """How far apart they are is hours of guessing."""
    text = "TIMESTAMP,ContextTokens,GeneratedTokens\n" + "".join(f"2024-01-16 18:00:00{zone},1,1\n" for zone in zones)
    path = written(tmp_path, text)
    with refused(BadLine, path, f":3: TIMESTAMP must be {expected}"):
        read_trace(path)


def test_lines_may_be_an_array(tmp_path: Path) -> None:
    """The same objects in one JSON list; a bad one is named by its place."""
    lines = [json.loads(MOONCAKE), {**json.loads(MOONCAKE), "timestamp": 4000}]
    path = written(tmp_path, json.dumps(lines, indent=2))
    assert [entry.arrived_s for entry in read_trace(path).entries] == [3.052, 4.0]
    path = written(tmp_path, json.dumps([lines[0], {**lines[1], "input_length": 0}]))
    with refused(BadLine, path, ": [1]: input_length must be at least 1"):
        read_trace(path)
    path = written(tmp_path, "[\n{},\n{]\n")
    with refused(BadLine, path, ":3: expected a JSON object"):
        read_trace(path)


def test_a_pipe_is_read_once_and_played_under_every_policy(tmp_path: Path) -> None:
    """Its lines are gone after the first reading; messages call it by the name that was typed."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = Thread(target=pipe.write_text, args=(OWN + OWN,))
    writer.start()
    result = simulator_command(
        ["compare", str(pipe), "--policy", "least_work", "--policy", "round_robin", "--jobs", "1"]
    )
    writer.join()
    assert result.exit_code == 0, result.output
    assert "round_robin" in result.stdout


@pytest.mark.parametrize("name", ["-", "/dev/stdin"])
def test_standard_input_is_a_trace(name: str) -> None:
    """As a pipe; a bad line in it is named as it was typed."""
    words = module_command("simulator", "replay", name, "--policy", "round_robin", "--json", "-")
    run = subprocess.run(words, input=OWN * 3, capture_output=True, text=True, env=environment(), check=False)
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout)["runs"]["round_robin"]["requests"] == 3
    run = subprocess.run(words, input=OWN + "{\n", capture_output=True, text=True, env=environment(), check=False)
    assert f"{name}:2: expected a JSON object" in run.stderr
