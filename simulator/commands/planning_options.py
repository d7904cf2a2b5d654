"""The options of the commands that plan: cards, models, fit, step, plan. Imports nothing of what they do."""

from argparse import ArgumentParser, ArgumentTypeError
from pathlib import Path

from router.arguments import at_least, number_within, output_file

WRITE_HELP = "write the winner there: pool.yaml and router.yaml; the second into its folder 2, and so on"


def words(text: str) -> list[str]:
    """The type of an option that is a list: ``a,b,c``."""
    found = [part.strip() for part in text.split(",") if part.strip()]
    if not found:
        raise ValueError
    return found


def counts(text: str) -> list[int]:
    """The type of an option that is a list of numbers of at least 1: ``1,2,4``."""
    return [at_least(1)(part) for part in words(text)]


def output_folder(text: str) -> Path:
    """The type of an option that is a folder to write files in; it is made if it is not there."""
    path = Path(text)
    if path.exists() and not path.is_dir():
        raise ArgumentTypeError(f"{path} is no folder")
    if not path.exists() and not path.parent.is_dir():
        raise ArgumentTypeError(f"{path}: there is no folder {path.parent}")
    return path


def _json(parser: ArgumentParser) -> None:
    parser.add_argument("--json", type=output_file, metavar="FILE", help="write every figure there; - for stdout")


def _prices(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--prices",
        type=Path,
        metavar="FILE",
        help="your prices, USD for an hour of one card: 'prices: {l20: 0.9, a10: {usd_per_hour: 0.7, date: 2026-11}}'",
    )


def _profile(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--profile", type=Path, metavar="FILE", help="corrections of step times, as `calibrate --profile` writes them"
    )


def kv_precision(parser: ArgumentParser) -> None:
    """The option of all that computes KV."""
    parser.add_argument("--kv-precision", metavar="NAME", help="of the KV cache, such as fp8; default: 16 bits")


def cards(parser: ArgumentParser) -> None:
    """The options of ``cards``."""
    parser.add_argument("names", nargs="*", metavar="CARD", help="only these; default: all")
    _prices(parser)
    _json(parser)


def models(parser: ArgumentParser) -> None:
    """The options of ``models``."""
    parser.add_argument("names", nargs="*", metavar="MODEL", help="only these; default: all")
    _json(parser)


def fit(parser: ArgumentParser) -> None:
    """The options of ``fit``."""
    add = parser.add_argument
    add(
        "--model",
        action="append",
        metavar="NAME",
        help="a size (7B, 13B, 34B, 72B, 130B, 176B, 260B) or a model; may be repeated; default: every size",
    )
    add("--cards", type=words, default=[], metavar="NAME,...", help="default: all")
    add("--precision", type=words, metavar="NAME,...", help="default: fp32,fp16,fp8,int8,int4")
    add(
        "--kv-tokens",
        type=at_least(1),
        default=4_096,
        metavar="N",
        help="tokens of KV that have to fit beside the weights; default: 4096",
    )
    kv_precision(parser)
    _memory(parser)
    _json(parser)


def _memory(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--memory-utilization",
        type=number_within(0.05, 1),
        default=0.9,
        metavar="SHARE",
        help="of a card's memory that the engine takes; default: 0.9",
    )


def step(parser: ArgumentParser) -> None:
    """The options of ``step``."""
    add = parser.add_argument
    add("--model", required=True, metavar="NAME", help="the model")
    add("--card", required=True, metavar="NAME", help="the accelerator")
    add(
        "--tp", type=counts, default=[1, 2, 4, 8], metavar="N,...", help="cards that share each layer; default: 1,2,4,8"
    )
    add("--precision", default="fp16", metavar="NAME", help="of the weights; default: fp16")
    add("--engine", default="vllm", metavar="NAME", help="default: vllm")
    add("--batch", type=at_least(1), default=1, metavar="N", help="sequences that decode together; default: 1")
    add("--context", type=at_least(1), default=512, metavar="N", help="tokens that each of them holds; default: 512")
    add(
        "--measurements",
        type=Path,
        metavar="CSV",
        help="show beside it the rows of this file (as `calibrate` reads it) with the same card, model and TP",
    )
    kv_precision(parser)
    _profile(parser)
    _json(parser)


def plan(parser: ArgumentParser) -> None:
    """The options of ``plan``."""
    _asked(parser)
    _chosen_from(parser)
    add = parser.add_argument
    add("--policy", default="slo_headroom", metavar="NAME[:KEY=VALUE,...]", help="default: slo_headroom")
    add("--admission", default="deadline", metavar="NAME[:KEY=VALUE,...]", help="default: deadline")
    add("--seed", type=int, default=0, metavar="N", help="the first seed; default: 0")
    add("--seeds", type=at_least(1), default=5, metavar="N", help="an answer attains under N seeds; default: 5")
    add("--answers", type=at_least(1), default=3, metavar="N", help="makes to find that attain; default: 3")
    add(
        "--budget",
        type=at_least(1),
        default=80_000,
        metavar="N",
        help="requests to simulate in all; then what is undecided is listed as such; default: 80000",
    )
    add("--no-mixed", action="store_true", help="no pools of two makes")
    add("--jobs", type=at_least(0), default=0, metavar="N", help="processes; default: as many as there are cores")
    add("--html", type=output_file, metavar="FILE", help="write a page there: one file, needs no network")
    add("--write", type=output_folder, metavar="FOLDER", help=WRITE_HELP)
    _json(parser)


def _asked(parser: ArgumentParser) -> None:
    """The load and what has to be attained."""
    add = parser.add_argument
    add("--model", required=True, metavar="NAME", help="the model")
    add(
        "--traffic",
        nargs="+",
        default=["gen:poisson"],
        metavar="TRACE",
        help="trace files, or gen:KIND:key=value,...; of a long trace its beginning; default: gen:poisson",
    )
    add("--rate", type=number_within(1e-6), metavar="N", help="requests per second; default: those of the traffic")
    add("--limit", type=at_least(2), metavar="N", help="requests of a run; default: three minutes, 600 to 3000")
    add("--skip-bad", action="store_true", help="count bad lines of a trace and continue")
    add(
        "--slo",
        action="append",
        required=True,
        metavar="[CLASS@SHARE:]ttft=1s@0.99,tpot=50ms,...",
        help="the SLO; @0.99: the share of requests that has to be within that bound; may be repeated, for several "
        "classes by share",
    )
    add(
        "--goal",
        type=number_within(0.01, 0.9999),
        default=0.99,
        metavar="SHARE",
        help="that share where none is given; default: 0.99",
    )


def _chosen_from(parser: ArgumentParser) -> None:
    """The candidates."""
    add = parser.add_argument
    add("--cards", type=words, default=[], metavar="NAME,...", help="default: those whose price has a source")
    add("--tp", type=counts, default=[1, 2, 4, 8], metavar="N,...", help="default: 1,2,4,8")
    add("--pp", type=counts, default=[1, 2], metavar="N,...", help="pipeline stages; default: 1,2")
    add("--precision", type=words, default=["fp16", "fp8", "int8"], metavar="NAME,...", help="default: fp16,fp8,int8")
    add("--engines", type=words, default=["vllm"], metavar="NAME,...", help="default: vllm")
    kv_precision(parser)
    _profile(parser)
    add("--cards-most", type=at_least(1), default=16, metavar="N", help="of one replica; default: 16")
    _prices(parser)
