"""``python -m simulator``: replay a trace under policies, serve an emulated engine, calibrate against a real one."""

import atexit
import gc
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from router.compiled import refuse_stale

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before numpy: nothing here is large enough to share
gc.set_threshold(500_000, 50, 100)  # next to no cycles are made, but requests by the million
atexit.register(gc.freeze)  # and the end is no time to look through them all

app = typer.Typer(
    help="Replay traces through the router's own decision code, on a virtual clock.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Traces = Annotated[
    list[str],
    typer.Argument(help="Trace files (JSONL or CSV, plain or gzipped), or gen:KIND:key=value,...", metavar="TRACE..."),
]
Policies = Annotated[
    list[str] | None,
    typer.Option(
        "--policy",
        metavar="NAME[:KEY=VALUE,...]",
        help="A routing policy, a file of your own (./mine.py), or 'clairvoyant', the bound (one "
        "strategy of it: clairvoyant:strategy=NAME); as often as wanted. "
        "Default: slo_headroom and baselines.",
    ),
]
Admission = Annotated[str, typer.Option(metavar="NAME[:KEY=VALUE,...]", help="The admission policy.")]
Slos = Annotated[
    list[str] | None,
    typer.Option(
        "--slo",
        metavar="[CLASS@SHARE:]ttft=2s,tpot=100ms,e2e=60s",
        help="What requests are promised that bring no SLO of their own; several classes by share. "
        "With infeasible=refuse a request with a bound that no backend could keep even idle may be refused at once.",
    ),
]
PoolFile = Annotated[Path | None, typer.Option("--pool", help="pool.yaml; default: a built-in mixed pool.")]
Rate = Annotated[str, typer.Option("--rate", metavar="xN", help="Play the trace N times as fast.")]
Window = Annotated[str, typer.Option("--window", metavar="FROM-TO", help="Only this stretch of it, such as 5m-10m.")]
Limit = Annotated[int | None, typer.Option(min=1, help="At most so many requests.")]
Seed = Annotated[int, typer.Option(help="Of everything that is drawn; the same seed, the same figures.")]
SkipBad = Annotated[bool, typer.Option("--skip-bad", help="Count bad lines and go on.")]
Json = Annotated[Path | None, typer.Option("--json", help="Write every figure there; - for stdout.")]
Seeds = Annotated[int, typer.Option(min=1, help="So many seeds, with 95 % confidence intervals.")]
Executor = Annotated[str, typer.Option(help="processes, or dask://HOST:PORT for a cluster.")]
Jobs = Annotated[int, typer.Option(min=0, help="Processes; 0: as many as there are cores.")]


@app.callback()
def _main() -> None:
    """Replay traces through the router's own decision code, on a virtual clock."""


@app.command()
def replay(
    traces: Traces,
    policy: Policies = None,
    pool: PoolFile = None,
    admission: Admission = "deadline",
    slo: Slos = None,
    rate: Rate = "x1",
    window: Window = "",
    limit: Limit = None,
    seed: Seed = 0,
    seeds: Seeds = 1,
    jobs: Jobs = 0,
    skip_bad: SkipBad = False,
    json_file: Json = None,
    html: Annotated[Path | None, typer.Option(help="Write a report to read there: one file, no network.")] = None,
    requests: Annotated[Path | None, typer.Option(help="Write one row a request there (CSV; .gz packs it).")] = None,
    chrome_trace: Annotated[Path | None, typer.Option(help="Write a trace for Perfetto there.")] = None,
) -> None:
    """Play a trace under each policy: attainment, goodput, latencies, shares, money."""
    from simulator.commands.replay import BASELINES, Outputs, Workload, run_replay  # noqa: PLC0415 - --help is quick

    typed = Workload(
        traces=traces,
        pool=pool,
        admission=admission,
        slos=slo or (),
        rate=rate,
        window=window,
        limit=limit,
        seed=seed,
        skip_bad=skip_bad,
    )
    with _plain_errors():
        cases = typed.cases(policy or BASELINES)
    outputs = Outputs(json_file=json_file, html=html, requests=requests, chrome_trace=chrome_trace)
    run_replay(cases, seeds, jobs, outputs)


@app.command()
def compare(
    traces: Traces,
    policy: Policies = None,
    pool: Annotated[list[Path] | None, typer.Option("--pool", help="A pool.yaml; as often as wanted.")] = None,
    rate: Annotated[list[str] | None, typer.Option("--rate", metavar="xN", help="As often as wanted.")] = None,
    admission: Admission = "deadline",
    slo: Slos = None,
    window: Window = "",
    limit: Limit = None,
    seed: Seed = 0,
    seeds: Seeds = 3,
    jobs: Jobs = 0,
    executor: Executor = "processes",
    skip_bad: SkipBad = False,
    json_file: Json = None,
) -> None:
    """Policies x pools x rates x seeds, on all cores: one row each, with confidence intervals."""
    from simulator.commands.compare import cases_of, run_compare  # noqa: PLC0415 - the same
    from simulator.commands.replay import BASELINES, Workload  # noqa: PLC0415 - the same

    typed = Workload(
        traces=traces, admission=admission, slos=slo or (), window=window, limit=limit, seed=seed, skip_bad=skip_bad
    )
    with _plain_errors():
        grid = cases_of(typed, policy or BASELINES, pool or [None], rate or ["x1"], seeds)
        run_compare(grid, executor, jobs, json_file)


@app.command()
def capacity(
    traces: Traces,
    policy: Policies = None,
    pool: PoolFile = None,
    goal: Annotated[float, typer.Option(min=0.0, max=1.0, help="The attainment that has to hold.")] = 0.99,
    precision: Annotated[float, typer.Option(min=0.001, help="Of the rate found, relative.")] = 0.02,
    admission: Admission = "deadline",
    slo: Slos = None,
    window: Window = "",
    limit: Limit = None,
    seed: Seed = 0,
    seeds: Seeds = 1,
    beyond: Annotated[
        list[float] | None,
        typer.Option(min=1.0, metavar="N", help="What is left of the goodput at N times that rate; may be repeated."),
    ] = None,
    jobs: Jobs = 0,
    executor: Executor = "processes",
    skip_bad: SkipBad = False,
    json_file: Json = None,
) -> None:
    """The highest rate at which each policy still attains the goal, by search."""
    from simulator.commands.capacity import run_capacity  # noqa: PLC0415 - the same
    from simulator.commands.replay import BASELINES, Workload  # noqa: PLC0415 - the same

    typed = Workload(
        traces=traces,
        pool=pool,
        admission=admission,
        slos=slo or (),
        window=window,
        limit=limit,
        seed=seed,
        skip_bad=skip_bad,
    )
    with _plain_errors():
        cases = typed.cases(policy or BASELINES)
        run_capacity(cases, goal, precision, json_file, seeds=seeds, beyond=beyond or (), executor=executor, jobs=jobs)


@app.command()
def diff(
    traces: Traces,
    policy: Policies = None,
    pool: PoolFile = None,
    worst: Annotated[int, typer.Option(min=1, help="How many of the largest changes to show, each way.")] = 8,
    admission: Admission = "deadline",
    slo: Slos = None,
    rate: Rate = "x1",
    window: Window = "",
    limit: Limit = None,
    seed: Seed = 0,
    skip_bad: SkipBad = False,
    json_file: Json = None,
) -> None:
    """What two policies did differently, request by request."""
    from simulator.commands.diff import run_diff  # noqa: PLC0415 - the same
    from simulator.commands.replay import Workload  # noqa: PLC0415 - the same

    typed = Workload(
        traces=traces,
        pool=pool,
        admission=admission,
        slos=slo or (),
        rate=rate,
        window=window,
        limit=limit,
        seed=seed,
        skip_bad=skip_bad,
    )
    with _plain_errors():
        cases = typed.cases(policy or ("least_work", "slo_headroom"))
        if len(cases) != 2:  # noqa: PLR2004 - one and the other
            raise ValueError(f"diff compares two policies; give --policy twice, not {len(cases)} times")
    run_diff((cases[0], cases[1]), worst, json_file)


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
    from simulator.emulator.serving import Started, run_engine  # noqa: PLC0415 - --help need not pay for it

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


@app.command(hidden=True)
def validate() -> None:
    """May a policy serve? A question in JSON on stdin, a verdict on stdout; `python -m router check` runs it."""
    from simulator.validation.validate import run as run_validation  # noqa: PLC0415 - the same

    if not run_validation(sys.stdin, sys.stdout):
        raise typer.Exit(1)


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []})
def calibrate(context: typer.Context) -> None:
    """Fit a card's or a real engine's coefficients from measurements; its own --help says how."""
    from simulator.commands.calibrate import main as calibrate_main  # noqa: PLC0415 - the same

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
    refuse_stale()
    app()


if __name__ == "__main__":
    main()
