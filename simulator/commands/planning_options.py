"""The options of the commands that plan: cards, models, fit, step, plan. Imports nothing of what they do."""

from argparse import ArgumentParser
from pathlib import Path

from router.arguments import at_least, number_within, output_file


def words(text: str) -> list[str]:
    """The type of an option that is a list: ``a,b,c``."""
    found = [part.strip() for part in text.split(",") if part.strip()]
    if not found:
        raise ValueError
    return found


def counts(text: str) -> list[int]:
    """The type of an option that is a list of numbers of at least 1: ``1,2,4``."""
    return [at_least(1)(part) for part in words(text)]


def _json(parser: ArgumentParser) -> None:
    parser.add_argument("--json", type=output_file, metavar="FILE", help="write every figure there; - for stdout")


def _prices(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--prices",
        type=Path,
        metavar="FILE",
        help="your prices, USD for an hour of one card: 'prices: {l20: 0.9, a10: {usd_per_hour: 0.7, date: 2026-11}}'",
    )


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
    _json(parser)
