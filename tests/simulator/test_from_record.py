"""A gateway's record is enough to find out what an engine's step takes."""

import json
import random
from collections.abc import Sequence as Commands
from math import inf
from pathlib import Path
from typing import Any

import pytest
import yaml

import policies
from router.core.decisions import Command, Send
from router.core.dispatcher import Dispatcher
from router.core.errors import ConfigError
from router.core.flight import DispatchLimits
from router.core.physics import StepCoefficients, decode_step_s, prefill_s
from router.core.record import VERSION, Recording
from router.core.types import Backend, Request, Usage
from simulator.calibration.attempts import read_attempts
from simulator.calibration.from_record import fit_log
from simulator.errors import BadRecord
from simulator.pool_file import load_pool
from simulator.replica.replica import Replica
from simulator.replica.sequence import EngineLimits, Sequence
from simulator.replica.truth import HiddenFactors, Truth
from simulator.run.kernel import Kernel
from tests import fakes
from tests.commands import calibrate

SHEET = StepCoefficients(
    10e-3, 20e-6, 1e-7, 50e-6, 1e-9, 10e-3, weights_s=8e-3, gemm_token_s=45e-6, sigma=(0.5, 0.6, 0.6, 0.5, 0.8, 0.8)
)
TRUE = StepCoefficients(20e-3, 30e-6, 2e-7, 100e-6, 1e-9, 30e-3, weights_s=16e-3, gemm_token_s=90e-6)


class World:
    """A recording dispatcher in front of one replica that takes twice what its sheet says."""

    def __init__(self, path: Path, tokens: list[tuple[int, int]], seqs_max: int = 64, gap_s: float = 0.5) -> None:
        """Requests of these (prompt, output) tokens come two a second, unless *gap_s* is another."""
        self.clock, self.tokens = Kernel(), {f"{n}": each for n, each in enumerate(tokens)}
        written: list[str] = ['{"record": 3, "continues": false}']
        routing, admission = policies.find("routing", "round_robin", {}), policies.find("admission", "deadline", {})
        core = Dispatcher(routing, admission, random.Random(1), DispatchLimits(first_byte_s_max=inf))
        self.core = Recording(core, lambda event: written.append(json.dumps(event)))
        hidden = HiddenFactors(spread=0.0, drift=0.0, slow_share=0.0, api_s=0.0)
        truth, limits = Truth(TRUE, hidden, 1), EngineLimits(seqs_max=seqs_max, chunk_tokens=2048, kv_blocks=50_000)
        self.replica = Replica("r", truth, limits, self.clock, self.first, self.finished)
        self.core.backend_joined(Backend("r", ("m",), SHEET), 0.0)
        for n, (prompt, _) in enumerate(tokens):
            self.clock.at(gap_s * n, self.arrive, Request(f"{n}", "m", gap_s * n, prompt))
        self.clock.run()
        path.write_text("\n".join(written))

    def arrive(self, asked: Request) -> None:
        """From the client."""
        self.perform(self.core.arrived(asked, self.clock.now_s))

    def first(self, sequence: Sequence) -> None:
        """From the engine."""
        self.perform(self.core.first_token(sequence.id, sequence.attempt, self.clock.now_s))

    def finished(self, sequence: Sequence) -> None:
        """From the engine."""
        usage = Usage(sequence.output_tokens, sequence.prompt_tokens)
        self.perform(self.core.ended(sequence.id, sequence.attempt, usage, self.clock.now_s))

    def perform(self, commands: Commands[Command]) -> None:
        """Only sending matters here."""
        for command in commands:
            if isinstance(command, Send):
                sequence = Sequence(command.request_id, *self.tokens[command.request_id], command.attempt)
                self.replica.add(sequence, self.clock.now_s + TRUE.first_token_s)


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three hundred requests of many lengths, up to some tens at once."""
    draw = random.Random(2)
    path = tmp_path_factory.mktemp("record") / "record.jsonl"
    World(path, [(draw.choice((20, 200, 2000)), draw.randint(20, 600)) for _ in range(300)])
    return path


def test_a_record_of_an_engine_twice_as_slow_says_so(record: Path) -> None:
    """A step, a long context and a prompt are told as the engine takes them."""
    found = fit_log(read_attempts(record)["r"]).coefficients
    for batch, context in ((1, 500), (16, 16_000)):
        assert decode_step_s(found, batch, context) == pytest.approx(decode_step_s(TRUE, batch, context), rel=0.06)
    assert prefill_s(found, 2000) == pytest.approx(prefill_s(TRUE, 2000), rel=0.1)


def test_what_is_left_of_the_error_is_small_and_told(record: Path) -> None:
    """Median error of TPOT and first token, before and after; each coefficient is better known than it was."""
    found = fit_log(read_attempts(record)["r"])
    assert found.streams == 300
    assert found.before[0] > 0.4
    assert found.after[0] < 0.05
    assert found.after[1] < 0.15
    assert found.coefficients.sigma[0] < 0.2 * SHEET.sigma[0]


def test_the_command_prints_what_a_pool_can_take(
    record: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The fragment goes under a backend as it stands, and is what its replicas take."""
    assert calibrate(["--record", str(record)]) == 0
    told = capsys.readouterr().out
    line = next(line for line in told.splitlines() if line.startswith("coefficients:"))
    pool = tmp_path / "pool.yaml"
    pool.write_text(f"backends:\n  - card: a10\n    model: llama-3-8b\n    {line}\n")
    prior = load_pool(pool).members[0].prior
    assert prior.fixed_s == yaml.safe_load(line)["coefficients"]["fixed_s"]
    assert prior.fixed_s == pytest.approx(TRUE.fixed_s, rel=0.1)


def test_a_coefficient_that_is_none_is_refused_by_name(tmp_path: Path) -> None:
    """With the place in the pool."""
    pool = tmp_path / "pool.yaml"
    pool.write_text("backends:\n  - {card: a10, model: llama-3-8b, coefficients: {fixed: 1}}\n")
    with pytest.raises(ConfigError, match=r"pool.yaml:2: backends\[0\].coefficients: no coefficient 'fixed'; expected"):
        load_pool(pool)


def test_too_few_streams_are_no_measurement(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing is printed that could be pasted, and the exit status says so."""
    path = tmp_path / "short.jsonl"
    World(path, [(20, 20)] * 5)
    assert calibrate(["--record", str(path)]) == 2
    assert "r: 5 streams of 8 tokens or more; needs 20" in capsys.readouterr().out


def test_a_stream_that_was_left_is_load_and_no_lesson(tmp_path: Path) -> None:
    """Its decode counts until the client went."""
    path = tmp_path / "left.jsonl"
    core = Dispatcher(
        policies.find("routing", "round_robin", {}),
        policies.find("admission", "deadline", {}),
        random.Random(1),
        DispatchLimits(),
    )
    with path.open("w") as file:
        told = Recording(core, lambda event: print(json.dumps(event), file=file))
        told.backend_joined(Backend("r", ("m",), SHEET), 0.0)
        told.arrived(Request("a", "m", 0.0, 10), 0.0)
        told.first_token("a", 1, 1.0)
        told.client_left("a", 3.0)
    (attempt,) = read_attempts(path)["r"].attempts
    assert (attempt.sent_s, attempt.first_s, attempt.ended_s) == (0.0, 1.0, 3.0)
    assert attempt.output_tokens != attempt.output_tokens


def test_a_count_that_the_engine_did_not_state_is_not_fitted(tmp_path: Path) -> None:
    """It counts as load, as a stream that did not end by itself does."""
    path = tmp_path / "record.jsonl"
    core = Dispatcher(
        policies.find("routing", "round_robin", {}), policies.find("admission", "deadline", {}), random.Random(1)
    )
    with path.open("w") as file:
        told = Recording(core, lambda event: print(json.dumps(event), file=file))
        told.backend_joined(Backend("r", ("m",), SHEET), 0.0)
        for name, estimated in (("a", True), ("b", False)):
            told.arrived(Request(name, "m", 0.0, 10), 0.0)
            told.first_token(name, 1, 1.0)
            told.ended(name, 1, Usage(7, estimated=estimated), 3.0)
    estimate, stated = read_attempts(path)["r"].attempts
    assert (stated.output_tokens, estimate.ended_s) == (7.0, 3.0)
    assert estimate.output_tokens != estimate.output_tokens


def test_a_line_that_is_no_event_is_named(tmp_path: Path) -> None:
    """File and line."""
    path = tmp_path / "bad.jsonl"
    path.write_text('{"record": 3}\n{"event": "arrived"}\n')
    with pytest.raises(BadRecord, match=r"bad\.jsonl:2: expected an event"):
        read_attempts(path)


def test_a_stream_lasts_to_its_last_token(tmp_path: Path) -> None:
    """Where the record states it; in one of version 3, to its end."""
    for version, last in ((3, {}), (4, {"last_token_s": 2.0})):
        path = tmp_path / f"{version}.jsonl"
        lines: list[dict[str, Any]] = []
        it = Recording(fakes.core(), lines.append)
        it.backend_joined(Backend("r", ("m",), SHEET), 0.0)
        it.arrived(Request("a", "m", 0.0, 10), 0.0)
        it.first_token("a", 1, 1.0)
        it.ended("a", 1, Usage(11), 3.0, **last)
        path.write_text("\n".join(json.dumps(line) for line in ({"record": version}, *lines)))
        (attempt,) = read_attempts(path)["r"].attempts
        assert attempt.ended_s == (2.0 if last else 3.0)


def test_a_reply_that_a_proxy_has_from_another_backend_is_fitted_to_neither(tmp_path: Path) -> None:
    """The one chosen never had the request, and when it was sent to the other is not known."""
    path, lines = tmp_path / "moved.jsonl", list[dict[str, Any]]()
    it = Recording(fakes.core(), lines.append)
    for name in ("r", "s"):
        it.backend_joined(Backend(name, ("m",), SHEET), 0.0)
    it.arrived(Request("a", "m", 0.0, 10), 0.0)
    it.served_by("a", 1, "s", 0.5)
    it.first_token("a", 1, 1.0)
    it.ended("a", 1, Usage(11), 3.0)
    path.write_text("\n".join(json.dumps(line) for line in ({"record": VERSION}, *lines)))
    assert [log.columns().shape[1] for log in read_attempts(path).values()] == [0, 0]


def test_a_record_of_another_version_is_refused(tmp_path: Path) -> None:
    """Its events have other names: read as if they were known, no attempt would have a first token."""
    path = tmp_path / "old.jsonl"
    path.write_text('{"record": 2, "continues": false}\n')
    with pytest.raises(BadRecord, match=rf"old\.jsonl:1: expected a record of version {VERSION}, found 2"):
        read_attempts(path)


def test_a_record_that_is_none_is_told_in_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Where it is wrong, and status 2; no traceback."""
    path = tmp_path / "record.jsonl"
    path.write_text("junk\n")
    assert calibrate(["--record", str(path)]) == 2
    assert f"{path}:1: expected an event" in capsys.readouterr().out
    assert calibrate(["--record", str(tmp_path / "absent.jsonl")]) == 2
    assert "No such file" in capsys.readouterr().out


def test_waiting_for_room_is_no_prefill(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An engine of four sequences under three times its load: first tokens come after seconds, a step stays a step."""
    path = tmp_path / "queue.jsonl"
    draw = random.Random(3)
    World(path, [(draw.choice((20, 200, 2000)), draw.randint(20, 300)) for _ in range(200)], seqs_max=4, gap_s=0.4)
    found = fit_log(read_attempts(path)["r"])
    assert 100 < found.queued < 200
    for batch, context in ((1, 500), (4, 4_000)):
        assert decode_step_s(found.coefficients, batch, context) == pytest.approx(
            decode_step_s(TRUE, batch, context), rel=0.1
        )
    assert prefill_s(found.coefficients, 2000) == pytest.approx(prefill_s(TRUE, 2000), rel=0.35)
    assert calibrate(["--record", str(path)]) == 0
    assert f"{found.queued} of which waited for room" in capsys.readouterr().out


def test_no_queue_is_seen_where_none_was(record: Path) -> None:
    """Prompts on their way are not a queue."""
    assert fit_log(read_attempts(record)["r"]).queued == 0


def test_a_step_faster_than_its_weights_can_be_read_is_not_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A backend whose card or precision is another than stated: nothing is printed that could be pasted."""
    path = tmp_path / "other.jsonl"
    World(path, [(200, 100)] * 40)
    lines = (
        path.read_text()
        .replace('"weights_s": 0.008', '"weights_s": 0.08')
        .replace('"fixed_s": 0.01,', '"fixed_s": 0.1,')
    )
    path.write_text(lines)
    assert calibrate(["--record", str(path)]) == 2
    told = capsys.readouterr().out
    assert "is faster than the 40 ms that reading its weights takes at best" in told
    assert "coefficients:" not in told
