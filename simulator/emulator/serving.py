"""The command ``serve``: its options, and the emulated engine that they describe."""

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
class ServeOptions:
    """The options of the command."""

    card: str
    port: int
    model: str
    tp: int
    pp: int
    precision: str
    kv_precision: str | None
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
    queue_tokens_max: int
    block_tokens: int
    kv_blocks: int
    priority: bool
    reports_cached_tokens: bool
    until_eof: bool


def serving_of(options: ServeOptions) -> Serving:
    """The engine that the options describe. Raises ValueError, which names the option at fault."""
    protocol = find(options.protocol).protocol
    if protocol not in DIALECTS:
        raise ValueError(f"--protocol: expected an engine that serves one of {', '.join(DIALECTS)}, not {protocol}")
    if options.speedup <= 0 or options.mean_output_tokens < 1:
        raise ValueError("--speedup must be above 0 and --mean-output-tokens at least 1")
    member = Member(
        name=options.name or f"{options.card}x{options.tp}",
        card=options.card,
        model=options.model,
        tp=options.tp,
        pp=options.pp,
        precision=options.precision,
        kv_precision=options.kv_precision,
        seqs_max=options.seqs_max,
        chunk_tokens=options.chunk_tokens,
        block_tokens=options.block_tokens,
        kv_blocks=options.kv_blocks,
        model_tokens_max=options.model_tokens_max,
        queue_max=options.queue_max,
        queue_tokens_max=options.queue_tokens_max,
        priority=options.priority,
        engine=options.protocol,
    )
    member.limits()  # whether it fits its cards is known now, not at the first request
    return Serving(
        member,
        options.model_name or options.model,
        HiddenFactors(spread=options.spread),
        options.seed,
        options.speedup,
        options.mean_output_tokens,
        options.reports_cached_tokens,
    )


def run_engine(options: ServeOptions) -> None:
    """Serve until a signal, or until standard input closes where that is an option. Raises ValueError or OSError,
    which say what is wrong with the options.
    """
    serving = serving_of(options)

    def announce(address: str) -> None:
        member = serving.member
        what = f"{member.model_name} on {member.tp * member.pp}x {member.card_name}"
        sys.stdout.write(f"{what} speaks {options.protocol} as {serving.model_name!r} at {address}\n")
        sys.stdout.flush()

    dialect = DIALECTS[serving.member.kind.protocol]
    run(serve(serving, dialect, options.host, options.port, announce, until_eof=options.until_eof))
