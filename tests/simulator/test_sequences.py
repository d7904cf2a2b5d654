"""Requests of several sequences in a run: choices of one prompt, several prompts, and what becomes of them together."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

import policies
from router.core.decisions import EndState
from simulator.pool import Member, Pool
from simulator.run.play import RunResult, play
from simulator.traces import TraceEntry, read_trace
from simulator.workload.arrivals import Shaping, shape
from simulator.world import Clients, Fault, World

ONE = Pool((Member("h100", "h100"),), ())
HOW = Shaping("llama-3-8b")


def run(*entries: TraceEntry, world: World | None = None, pool: Pool = ONE) -> RunResult:
    """These requests on one engine."""
    routing, admission = policies.find("routing", "slo_headroom"), policies.find("admission", "deadline")
    return play(shape(entries, HOW, 0), replace(pool, world=world or World()), routing, admission, 0)


def asked(output_tokens: int = 400, prompt_tokens: int = 4_000, at_s: float = 0.0, **more: int) -> TraceEntry:
    """One request of a trace."""
    return TraceEntry(at_s, prompt_tokens, output_tokens, **more)


def test_one_sequence_is_what_a_request_was() -> None:
    """Stated or not, to the last bit."""
    plain = [asked(30 * n, 100 * n, n / 10) for n in range(1, 40)]
    stated = [asked(30 * n, 100 * n, n / 10, sequences=1, prompts=1) for n in range(1, 40)]
    assert run(*plain).table._rows == run(*stated).table._rows


def test_choices_share_their_prompt_and_decode_together() -> None:
    """Four of 100 tokens: the TTFT of one prompt, the TPOT of a batch of four, tokens counted together."""
    four, alone = run(asked(400, sequences=4)), run(asked(100))
    apart = run(*[asked(100) for _ in range(4)])
    assert four.table.column("output_tokens").tolist() == [400]
    assert four.table.ttft_s()[0] == pytest.approx(alone.table.ttft_s()[0], rel=0.05)
    assert four.table.ttft_s()[0] < 0.6 * apart.table.ttft_s().max()
    assert four.table.tpot_s()[0] == pytest.approx(apart.table.tpot_s().min(), rel=0.1)
    replica = four.engines["h100"].replica
    assert replica.prefilled_tokens < 4_000 + 4 * 16
    assert (replica.running, replica.blocks.used) == (0, 0)


def test_without_a_prefix_cache_each_choice_computes_the_prompt() -> None:
    """As vLLM does with --no-enable-prefix-caching."""
    pool = replace(ONE, members=(replace(ONE.members[0], prefix_caching=False),))
    assert run(asked(400, sequences=4), pool=pool).engines["h100"].replica.prefilled_tokens == 4 * 4_000


def test_what_a_trace_names_of_a_prompt_is_found_by_later_ones() -> None:
    """The choices of two requests with one beginning: the second computes what follows it, once."""
    named = {"prefix": (1, 2, 3), "prefix_block_tokens": 1_000}
    entries = [replace_entry(asked(400, at_s=at_s, sequences=4), **named) for at_s in (0.0, 30.0)]
    assert run(*entries).engines["h100"].replica.prefilled_tokens < 4_000 + 1_000 + 8 * 64


def replace_entry(entry: TraceEntry, **more: object) -> TraceEntry:
    """The entry with other values."""
    for name, value in more.items():
        setattr(entry, name, value)
    return entry


def test_several_prompts_are_computed_each() -> None:
    """Two prompts of 2,000 tokens with two choices each; usage is of all together."""
    both = run(asked(403, 4_000, sequences=4, prompts=2))
    replica = both.engines["h100"].replica
    assert 4_000 <= replica.prefilled_tokens < 4_000 + 4 * 16
    assert both.table.column("output_tokens").tolist() == [403]
    assert both.table.column("prompt_tokens").tolist() == [4_000]


def test_a_request_of_several_sequences_ends_once_however_it_ends() -> None:
    """Engines crash, clients leave: each request has one row, and the engine is empty afterwards."""
    entries = [asked(2_000, 500, n / 5, sequences=1 + n % 5) for n in range(60)]
    world = World(faults=(Fault(4.0, "h100", "crash", for_s=3.0),), clients=Clients(leave_share=0.3))
    result = run(*entries, world=world)
    assert len(result.table) == 60
    ends = {list(EndState)[int(code)] for code in result.table.column("outcome")}
    assert {EndState.SERVED, EndState.LEFT} <= ends
    replica = result.engines["h100"].replica
    assert (replica.running, replica.waiting_max, replica.blocks.used) == (0, 0, 0)


def test_each_choice_counts_towards_the_bound_of_unfinished_requests() -> None:
    """Four choices do not enter an engine that takes three; three do, and then nobody else."""
    pool = replace(ONE, members=(replace(ONE.members[0], queue_max=3),))
    outcomes = [
        [list(EndState)[int(code)] for code in run(*entries, pool=pool).table.column("outcome")]
        for entries in ((asked(400, sequences=4),), (asked(400, sequences=3), asked(10, at_s=0.5)))
    ]
    assert outcomes[0] == [EndState.REFUSED]
    assert sorted(outcomes[1]) == [EndState.REFUSED, EndState.SERVED]


def test_traces_state_choices_and_prompts(tmp_path: Path) -> None:
    """In our own format by ``n`` and ``prompts``, in a gateway's record as it has them; wrong ones are named."""
    trace = tmp_path / "trace.jsonl"
    line = {"arrived_s": 1.5, "prompt_tokens": 800, "output_tokens": 120, "n": 3, "prompts": 2}
    trace.write_text(json.dumps(line) + "\n")
    (entry,) = read_trace(trace).entries
    assert (entry.sequences, entry.prompts) == (6, 2)
    (arrival,) = shape([entry], HOW, 0)
    assert (arrival.request.sequences, arrival.request.prompts, arrival.request.prompt_tokens_longest) == (6, 2, 400)
    for wrong in (0, 1.5, "many"):
        trace.write_text(json.dumps({**line, "n": wrong}) + "\n")
        with pytest.raises(ValueError, match="n must be "):
            read_trace(trace)
    trace.write_text(json.dumps({**line, "n": 900}) + "\n")
    with pytest.raises(ValueError, match=r"n x prompts must be at most 1024, got 900 x 2"):
        read_trace(trace)
    request = {"id": "a", "model": "m", "prompt_tokens": 7, "sequences": 4}
    events = [
        {"at_s": 2.0, "event": "arrived", "request": request},
        {"at_s": 3.0, "event": "ended", "id": "a", "usage": {"output_tokens": 40}},
    ]
    trace.write_text("".join(json.dumps(event) + "\n" for event in events))
    assert read_trace(trace).entries[0].sequences == 4
    request["sequences"] = request["prompts"] = 5_000  # texts to embed
    trace.write_text("".join(json.dumps(event) + "\n" for event in events))
    assert read_trace(trace).entries[0].sequences == 1_024
