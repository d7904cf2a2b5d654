"""The command ``serve``: from what was typed to an emulated engine that runs."""

import sys
from dataclasses import dataclass
from typing import Final

from router.engines import find
from router.event_loop import run
from simulator.emulator.engine import Dialect, Serving, serve
from simulator.emulator.wire.triton import Triton
from simulator.emulator.wire.vllm import Vllm
from simulator.pool import Member
from simulator.replica.truth import HiddenFactors

DIALECTS: Final[dict[str, Dialect]] = {  # by protocol
    "openai": lambda engine: Vllm(engine).handle,
    "triton": lambda engine: Triton(engine).handle,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """What was typed."""

    card: str
    port: int
    model: str
    tp: int
    pp: int
    precision: str
    protocol: str
    host: str
    model_name: str
    name: str
    seed: int
    spread: float
    speedup: float
    mean_output_tokens: float
    seqs_max: int
    chunk_tokens: int
    model_tokens_max: int
    queue_max: int
    block_tokens: int
    kv_blocks: int
    priority: bool
    cached_tokens_told: bool


def serving_of(typed: Started) -> Serving:
    """What was typed, understood. ValueError names what cannot be."""
    protocol = find(typed.protocol).protocol
    if protocol not in DIALECTS:
        raise ValueError(f"--protocol: expected an engine that serves one of {', '.join(DIALECTS)}, not {protocol}")
    if typed.speedup <= 0 or typed.mean_output_tokens < 1:
        raise ValueError("--speedup must be above 0 and --mean-output-tokens at least 1")
    member = Member(
        name=typed.name or f"{typed.card}x{typed.tp}",
        card=typed.card,
        model=typed.model,
        tp=typed.tp,
        pp=typed.pp,
        precision=typed.precision,
        seqs_max=typed.seqs_max,
        chunk_tokens=typed.chunk_tokens,
        block_tokens=typed.block_tokens,
        kv_blocks=typed.kv_blocks,
        model_tokens_max=typed.model_tokens_max,
        queue_max=typed.queue_max,
        priority=typed.priority,
        engine=typed.protocol,
    )
    member.limits()  # whether it fits its cards is known now, not at the first request
    return Serving(
        member,
        typed.model_name or typed.model,
        HiddenFactors(spread=typed.spread),
        typed.seed,
        typed.speedup,
        typed.mean_output_tokens,
        typed.cached_tokens_told,
    )


def run_engine(typed: Started) -> None:
    """Serve until a signal. ValueError and OSError say what was wrong with what was typed."""
    serving = serving_of(typed)

    def announce(address: str) -> None:
        member = serving.member
        what = f"{member.model_name} on {member.tp * member.pp}x {member.card_name}"
        sys.stdout.write(f"{what} speaks {typed.protocol} as {serving.model_name!r} at {address}\n")
        sys.stdout.flush()

    run(serve(serving, DIALECTS[serving.member.kind.protocol], typed.host, typed.port, announce))
