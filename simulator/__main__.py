"""``python -m simulator``: replay a trace under policies, serve an emulated engine, calibrate against a real one."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    help="Replay traces through the router's own decision code, on a virtual clock.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Traces = Annotated[list[str], typer.Argument(help="Trace files (JSONL or CSV, plain or gzipped).", metavar="TRACE...")]
Policies = Annotated[
    list[str] | None,
    typer.Option(
        "--policy",
        metavar="NAME[:KEY=VALUE,...]",
        help="A routing policy; as often as wanted. Default: slo_headroom and the baselines.",
    ),
]
Slos = Annotated[
    list[str] | None,
    typer.Option(
        "--slo",
        metavar="[CLASS@SHARE:]ttft=2s,tpot=100ms,e2e=60s",
        help="What requests are promised that bring no SLO of their own; several classes by share.",
    ),
]
PoolFile = Annotated[Path | None, typer.Option("--pool", help="pool.yaml; default: a built-in mixed pool.")]
Rate = Annotated[str, typer.Option("--rate", metavar="xN", help="Play the trace N times as fast.")]
Window = Annotated[str, typer.Option("--window", metavar="FROM-TO", help="Only this stretch of it, such as 5m-10m.")]


@app.callback()
def _main() -> None:
    """Replay traces through the router's own decision code, on a virtual clock."""


@app.command()
def replay(
    traces: Traces,
    policy: Policies = None,
    pool: PoolFile = None,
    admission: Annotated[str, typer.Option(metavar="NAME[:KEY=VALUE,...]", help="The admission policy.")] = "deadline",
    slo: Slos = None,
    rate: Rate = "x1",
    window: Window = "",
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many requests.")] = None,
    seed: Annotated[int, typer.Option(help="Of everything that is drawn; the same seed, the same figures.")] = 0,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Count bad lines and go on.")] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write every figure there; - for stdout.")] = None,
) -> None:
    """Play a trace under each policy and compare: attainment, goodput, latencies, shares, money."""
    from simulator.replaying import BASELINES, Replay, prepare, run_replay  # noqa: PLC0415 - --help need not pay for it

    with _plain_errors():
        ready = prepare(
            Replay(
                traces, policy or BASELINES, admission, pool, slo or [], rate, window, limit, seed, skip_bad, json_file
            )
        )
    run_replay(ready)


@app.command()
def serve(
    card: Annotated[str, typer.Option(help="The accelerator, by name.")],
    port: Annotated[int, typer.Option(help="0 takes a free one.")],
    model: Annotated[str, typer.Option(help="The model, by name.")] = "llama-3-8b",
    tp: Annotated[int, typer.Option(min=1, help="Cards that share each layer.")] = 1,
    pp: Annotated[int, typer.Option(min=1, help="Pipeline stages.")] = 1,
    precision: Annotated[str, typer.Option(help="Of the weights.")] = "bf16",
    protocol: Annotated[str, typer.Option(help="vllm or triton.")] = "vllm",
    host: str = "127.0.0.1",
    model_name: Annotated[str, typer.Option(help="What it answers to; default: the model's name.")] = "",
    name: Annotated[str, typer.Option(help="Whose truth it has: that of the replica of this name in a replay.")] = "",
    seed: Annotated[int, typer.Option(help="Of that truth.")] = 0,
    spread: Annotated[float, typer.Option(help="How far the truth strays from the data sheet.")] = 0.15,
    speedup: Annotated[float, typer.Option(help="Virtual seconds in a real one.")] = 1.0,
    mean_output_tokens: Annotated[float, typer.Option(help="Of replies that end by themselves.")] = 200.0,
    max_num_seqs: int = 256,
    max_num_batched_tokens: int = 2048,
    max_model_len: int = 131_072,
    max_num_queued_reqs: int = 1 << 30,
    block_size: int = 16,
    num_gpu_blocks: Annotated[int, typer.Option(help="0: what the card holds.")] = 0,
    priority: Annotated[bool, typer.Option("--priority", help="Schedule by priority.")] = False,
    prompt_tokens_details: Annotated[
        bool, typer.Option("--enable-prompt-tokens-details", help="Say in usage how much of a prompt was cached.")
    ] = False,
) -> None:
    """An emulated engine: one replica in real time, speaking vLLM's or Triton's protocol and metrics."""
    from simulator.serving import Started, run_engine  # noqa: PLC0415 - --help need not pay for it

    with _plain_errors():
        run_engine(
            Started(
                card=card,
                port=port,
                model=model,
                tp=tp,
                pp=pp,
                precision=precision,
                protocol=protocol,
                host=host,
                model_name=model_name,
                name=name,
                seed=seed,
                spread=spread,
                speedup=speedup,
                mean_output_tokens=mean_output_tokens,
                seqs_max=max_num_seqs,
                chunk_tokens=max_num_batched_tokens,
                model_tokens_max=max_model_len,
                queue_max=max_num_queued_reqs,
                block_tokens=block_size,
                kv_blocks=num_gpu_blocks,
                priority=priority,
                cached_tokens_told=prompt_tokens_details,
            )
        )


@app.command()
def prove() -> None:
    """May a policy serve? A question in JSON on stdin, a verdict on stdout; `python -m router check` asks it."""
    from simulator.proving import run as run_proof  # noqa: PLC0415 - the same

    if not run_proof(sys.stdin, sys.stdout):
        raise typer.Exit(1)


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []})
def calibrate(context: typer.Context) -> None:
    """Fit a card's or a real engine's coefficients from measurements; its own --help says how."""
    from simulator.calibrate import main as calibrate_main  # noqa: PLC0415 - the same

    raise typer.Exit(calibrate_main(context.args))


@contextmanager
def _plain_errors() -> Iterator[None]:
    """What the user got wrong is one line, not a traceback."""
    try:
        yield
    except (ValueError, OSError) as problem:
        print(f"error: {problem}", file=sys.stderr)
        raise typer.Exit(2) from None


def main() -> None:
    """Entry point."""
    app()


if __name__ == "__main__":
    main()
