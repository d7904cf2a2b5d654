"""The commands of ``headroom-simulator`` and their options. Imports nothing of what they do."""

from argparse import ArgumentParser
from pathlib import Path

from router.arguments import Command, Program, at_least, number_within, output_file, port
from router.version import version
from simulator.commands import planning_options

CALIBRATE_HELP = """Correct the efficiency tables by your own measurements, or fit one engine to a gateway's record.

Of a CSV: finds corrections for your cards, engines, precisions and models, shrunk towards the tables where rows
are few, and prints the errors before and after, also on rows left out of finding them. --profile writes the
corrections to a file that `profile:` in router.yaml or pool.yaml applies; it is refused where they do not help.
Of a record as a gateway writes it: prints each backend's coefficients as YAML.

Columns of the CSV (plain or .gz; a heading, any order, others are ignored; * needed):

  engine *                 vllm, sglang, tensorrt-llm, triton, llamacpp, lmdeploy, transformers, ...
  engine_version           0.6.3, 2023; empty: today's
  card *, model *          names or aliases, as `headroom-simulator cards` and `models` list them
  precision *              fp16, bf16, fp8, int8, int4, awq, fp4, q4_0, ...
  tp, pp, ep               default 1
  kv_precision             of the KV cache, where it is not 16 bits: fp8, ...
  load_kind *              static_batch (all at once, in step) or concurrency (closed loop)
  batch_or_concurrency *   sequences, or users
  isl, osl                 prompt and output tokens; default 128
  ttft_ms_mean or _p50     first token, milliseconds          at least one of
  itl_ms_mean or _p50      gap between tokens, milliseconds   these three
  e2e_ms                   last token of the batch, milliseconds
  itl_kind                 "derived ..." (from throughput), "UPPER BOUND ..." (the figure hides the prefill)
  spec_drafted, spec_acceptance   speculative decoding: tokens proposed a step, rate at which each is accepted
  source, note             who measured; a note with DO NOT FIT, LOW TRUST or per-POOL leaves the row out

  engine,engine_version,card,model,precision,tp,load_kind,batch_or_concurrency,isl,osl,ttft_ms_mean,itl_ms_mean
  vllm,0.12.0,mi300x,llama-3-70b,bf16,4,concurrency,16,1024,512,140,21.5"""


def calibrate(parser: ArgumentParser) -> None:
    """The options of ``calibrate``."""
    parser.add_argument("csv", type=Path, nargs="?", metavar="CSV", help="measurements, plain or .gz")
    parser.add_argument(
        "--record",
        type=Path,
        metavar="FILE",
        help="instead of a CSV: a gateway's record; fits the coefficients of each backend in it",
    )
    how = parser.add_mutually_exclusive_group()
    how.add_argument(
        "--leave-one-out",
        choices=["source", "card", "half"],
        help="for developers: test each on tables fitted to the others",
    )
    how.add_argument("--as-is", action="store_true", help="test the committed tables, fit nothing")
    parser.add_argument("--profile", type=output_file, metavar="FILE", help="write the corrections of the tables there")
    parser.add_argument(
        "--write", type=output_file, metavar="FILE", help="for developers: write tables fitted to everything as Python"
    )


def _workload(parser: ArgumentParser, *, policies: str = "slo_headroom and baselines") -> None:
    """What every command that plays takes."""
    parser.add_argument(
        "traces",
        nargs="+",
        metavar="TRACE",
        help="trace files, plain or gzipped (the command formats lists what is read), - for standard input, or "
        "gen:KIND:key=value,...",
    )
    parser.add_argument(
        "--policy",
        action="append",
        metavar="NAME[:KEY=VALUE,...]",
        help="a routing policy, a file of your own (./mine.py), or 'clairvoyant', the bound (one strategy of it: "
        f"clairvoyant:strategy=NAME); may be repeated; default: {policies}",
    )
    parser.add_argument(
        "--admission",
        default="deadline",
        metavar="NAME[:KEY=VALUE,...]",
        help="the admission policy; default: deadline",
    )
    parser.add_argument(
        "--slo",
        action="append",
        metavar="[CLASS@SHARE:]ttft=2s,tpot=100ms,e2e=60s",
        help="the SLO of requests that bring none of their own; may be repeated, for several classes by share; with "
        "infeasible=refuse a request with a bound that no idle backend could meet may be refused at once",
    )
    parser.add_argument("--window", default="", metavar="FROM-TO", help="only this part of the trace, such as 5m-10m")
    parser.add_argument("--limit", type=at_least(1), metavar="N", help="at most N requests")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of all random draws; default: 0")
    parser.add_argument("--skip-bad", action="store_true", help="count bad lines and continue")
    parser.add_argument("--json", type=output_file, metavar="FILE", help="write every figure there; - for stdout")


def _pool(parser: ArgumentParser) -> None:
    parser.add_argument("--pool", type=Path, metavar="FILE", help="pool.yaml or router.yaml; default: a mixed pool")


def _pools(parser: ArgumentParser) -> None:
    parser.add_argument("--pool", type=Path, action="append", metavar="FILE", help="a pool.yaml; may be repeated")


def _rate(parser: ArgumentParser) -> None:
    parser.add_argument("--rate", default="x1", metavar="xN", help="play the trace N times as fast; default: x1")


def _seeds(
    parser: ArgumentParser, default: int, narrow: str = "attainment and of every difference of two attainments"
) -> None:
    parser.add_argument(
        "--seeds",
        type=at_least(1),
        default=default,
        metavar="N",
        help=f"play under N seeds, print 95 %% confidence intervals; default: {default}",
    )
    parser.add_argument(
        "--half-width",
        type=number_within(0),
        metavar="X",
        help=f"play further seeds until every interval of {narrow} is that narrow to either side, such as 0.01",
    )
    parser.add_argument(
        "--seeds-most", type=at_least(5), default=40, metavar="N", help="seeds with --half-width at most; default: 40"
    )
    parser.add_argument(
        "--jobs", type=at_least(0), default=0, metavar="N", help="processes; default: as many as there are cores"
    )


def _executor(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--executor",
        default="processes",
        metavar="WHERE",
        help="processes, or dask://HOST:PORT for a cluster; default: processes",
    )


def _replay(parser: ArgumentParser) -> None:
    _workload(parser)
    _pool(parser)
    _rate(parser)
    _seeds(parser, 1)
    parser.add_argument(
        "--html", type=output_file, metavar="FILE", help="write a report there: one file, needs no network"
    )
    parser.add_argument(
        "--requests", type=output_file, metavar="FILE", help="write one row a request there (CSV; .gz compresses it)"
    )
    parser.add_argument("--chrome-trace", type=output_file, metavar="FILE", help="write a trace for Perfetto there")


def _compare(parser: ArgumentParser) -> None:
    _workload(parser)
    _pools(parser)
    parser.add_argument("--rate", action="append", metavar="xN", help="may be repeated; default: x1")
    _seeds(parser, 3)
    _executor(parser)


def _capacity(parser: ArgumentParser) -> None:
    _workload(parser)
    _pools(parser)
    parser.add_argument(
        "--goal",
        type=number_within(0, 1),
        default=0.99,
        metavar="SHARE",
        help="the SLO attainment to hold; default: 0.99",
    )
    parser.add_argument(
        "--precision",
        type=number_within(0.001),
        metavar="SHARE",
        help="relative precision of the rate found; default: 0.02",
    )
    parser.add_argument(
        "--beyond",
        type=number_within(1),
        action="append",
        metavar="N",
        help="print the goodput left at N times that rate; may be repeated",
    )
    parser.add_argument(
        "--replicas",
        metavar="NAME",
        help="search for the fewest replicas of that backend of the pool instead, at the trace's rate (times --rate)",
    )
    parser.add_argument("--rate", metavar="xN", help="with --replicas: play the trace N times as fast; default: x1")
    _seeds(parser, 3, "the rate (of replicas: their number), and of every difference of two, as a share of it,")
    _executor(parser)


def _diff(parser: ArgumentParser) -> None:
    _workload(parser, policies="least_work and slo_headroom")
    _pool(parser)
    _rate(parser)
    parser.add_argument(
        "--worst", type=at_least(1), default=8, metavar="N", help="print the N largest changes each way; default: 8"
    )


def _serve(parser: ArgumentParser) -> None:
    add = parser.add_argument
    add("--card", required=True, metavar="NAME", help="the accelerator")
    add("--port", type=port, required=True, metavar="PORT", help="where to listen; 0 takes a free port")
    add("--host", default="127.0.0.1", metavar="ADDRESS", help="default: 127.0.0.1")
    add("--model", default="llama-3-8b", metavar="NAME", help="the model; default: llama-3-8b")
    add("--model-name", default="", metavar="NAME", help="its name in the API; default: the model's own")
    add("--protocol", default="vllm", metavar="NAME", help="vllm or triton; default: vllm")
    add("--tp", type=at_least(1), default=1, metavar="N", help="cards that share each layer; default: 1")
    add("--pp", type=at_least(1), default=1, metavar="N", help="pipeline stages; default: 1")
    add("--precision", default="bf16", metavar="NAME", help="of the weights; default: bf16")
    planning_options.kv_precision(parser)
    add("--name", default="", metavar="NAME", help="of the replica: a replay draws the same model error for this name")
    add("--seed", type=int, default=0, metavar="N", help="of the model error; default: 0")
    add(
        "--spread",
        type=float,
        default=0.15,
        metavar="X",
        help="log-standard deviation of the model error against the data sheet; default: 0.15",
    )
    add("--speedup", type=float, default=1.0, metavar="X", help="virtual seconds in a real one; default: 1")
    add(
        "--mean-output-tokens",
        type=float,
        default=200.0,
        metavar="N",
        help="of replies that end by themselves; default: 200",
    )
    add("--max-num-seqs", type=int, default=256, metavar="N", help="default: 256")
    add("--max-num-batched-tokens", type=int, default=2048, metavar="N", help="default: 2048")
    add("--max-model-len", type=int, default=131_072, metavar="N", help="default: 131072")
    add("--max-num-queued-reqs", type=int, default=1 << 30, metavar="N", help="default: no limit")
    add("--max-num-queued-tokens", type=int, default=1 << 60, metavar="N", help="of prompts; default: no limit")
    add("--block-size", type=int, default=16, metavar="N", help="default: 16")
    add("--num-gpu-blocks", type=int, default=0, metavar="N", help="default: 0, as many as the card holds")
    add("--priority", action="store_true", help="schedule by priority")
    add("--enable-prompt-tokens-details", action="store_true", help="report in usage how much of a prompt was cached")
    add("--until-eof", action="store_true", help="end when standard input closes too, as when the parent process dies")


def _formats(parser: ArgumentParser) -> None:
    parser.add_argument("names", nargs="*", metavar="NAME", help="only these; default: all")
    parser.add_argument("--json", type=output_file, metavar="FILE", help="write them there; - for stdout")


def _steps(parser: ArgumentParser) -> None:
    add = parser.add_argument
    add("worlds", type=Path, metavar="WORLDS.json", help="a list of worlds: simulator/README.md says what is in one")
    add("--json", type=output_file, metavar="FILE", help="write what happened there, no steps for people; - for stdout")
    add("--engine", default="vllm", metavar="NAME[@VERSION]", help="whose scheduler, such as vllm@0.9; default: vllm")
    add("--world", type=at_least(0), metavar="N", help="only this one of the file, counted from 0")
    add("--coalesced", action="store_true", help="walk many steps at once, as a replay does; steps are not listed")
    add("--quiet", action="store_true", help="print nothing")


def _none(_: ArgumentParser) -> None:
    """No options."""


PROGRAM = Program(
    name="headroom-simulator",
    module="simulator",
    help="Replay traces through the router's own decision code, on a virtual clock.",
    version=version,
    commands=(
        Command(
            "replay",
            "simulator.commands.replay",
            "Play a trace under each policy: attainment, goodput, latencies, shares, cost.",
            _replay,
        ),
        Command(
            "compare",
            "simulator.commands.compare",
            "Play policies x pools x rates x seeds on all cores: one row each, with confidence intervals.",
            _compare,
        ),
        Command(
            "capacity",
            "simulator.commands.capacity",
            "Search for the highest rate at which each policy still attains the goal, or for the fewest replicas.",
            _capacity,
        ),
        Command(
            "diff", "simulator.commands.diff", "Show what two policies did differently, request by request.", _diff
        ),
        Command(
            "serve",
            "simulator.commands.serve",
            "Emulate an engine: one replica in real time, with vLLM's or Triton's protocol and metrics.",
            _serve,
            serves=True,
        ),
        Command(
            "steps",
            "simulator.commands.steps",
            "Walk the scheduler over small worlds: one line a step, or first, end and preemptions as JSON.",
            _steps,
        ),
        Command("calibrate", "simulator.commands.calibrate", CALIBRATE_HELP, calibrate),
        Command(
            "plan",
            "simulator.commands.plan",
            "Find the cheapest cards, layout, precision and engine that attain an SLO under a load.",
            planning_options.plan,
        ),
        Command(
            "step",
            "simulator.commands.step",
            "Show one decode step line by line: weights / bandwidth, and what an engine adds; the best TP.",
            planning_options.step,
        ),
        Command(
            "fit",
            "simulator.commands.fit",
            "Show how many of each card hold a model at each precision, TP x PP, and the KV left.",
            planning_options.fit,
        ),
        Command(
            "formats", "simulator.commands.formats", "List the trace formats that are read, with examples.", _formats
        ),
        Command(
            "cards",
            "simulator.commands.cards",
            "List accelerators: facts, source, confidence, price and its date.",
            planning_options.cards,
        ),
        Command(
            "models", "simulator.commands.models", "List models: shape, source, confidence.", planning_options.models
        ),
        Command(
            "validate",
            "simulator.commands.validate",
            "May a policy serve? A question in JSON on stdin, a verdict on stdout; the gateway runs it.",
            _none,
            hidden=True,
        ),
    ),
)
