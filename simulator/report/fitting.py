"""The memory table in the terminal and as plain data: one table a model, a row a card, a cell a precision."""

from collections.abc import Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from router.core.physics import weight_bytes
from simulator.planning.fitting import Fit, Sized, plain_bytes
from simulator.report.table import widen
from simulator.report.whole import print_whole


def print_fit(console: Console, of: Sized, precisions: Sequence[str], rows: Sequence[Sequence[Fit]]) -> None:
    """How many cards, how they share the model, and the tokens of KV they hold beside it."""
    widen(console, 24 + 26 * len(precisions))
    stands = "" if of.label == of.model.name else f", as {of.model.name}"
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=f"{of.label}{stands}", title_justify="left")
    table.add_column("card", no_wrap=True)
    for stored in precisions:
        plain = f"{of.billions:g} x {plain_bytes(stored):g} = {of.billions * plain_bytes(stored):,.4g} GB"
        table.add_column(f"{stored.upper()}\n{plain}", no_wrap=True)
    for row in rows:
        table.add_row(row[0].card.name, *(_cell(each) for each in row))
    print_whole(console, table)


def print_fit_notes(console: Console, kv_tokens: int, kv_precision: str | None = None) -> None:
    """How the cells are read."""
    console.print(
        f"cards, TP x PP, tokens of {kv_precision or '16-bit'} KV left (at least {kv_tokens:,}); in the heading "
        "parameters x bytes, in the cells what an engine holds beside it too.\n* the card does not compute in it: "
        "weights are unpacked, memory is saved and no time is",
        style="dim",
        highlight=False,
    )


def _cell(each: Fit) -> str:
    if not each.cards:
        return "does not fit"
    mark = "" if each.native else "*"
    return f"{each.cards}{mark}{_layout(each.tp, each.pp)}, {_thousands(each.kv_tokens)}"


def _layout(tp: int, pp: int) -> str:
    return "" if tp * pp == 1 else f" TP{tp}" + (f" x PP{pp}" if pp > 1 else "")


def _thousands(tokens: int) -> str:
    return f"{tokens / 1e3:,.0f}k"


def plain_fit(of: Sized, precisions: Sequence[str], rows: Sequence[Sequence[Fit]]) -> dict[str, Any]:
    """The same for ``--json``."""
    return {
        "size": of.label,
        "model": of.model.name,
        "weights": {
            stored: {
                "article_bytes": of.billions * 1e9 * plain_bytes(stored),
                "engine_bytes": weight_bytes(of.model, stored),
            }
            for stored in precisions
        },
        "cards": {row[0].card.name: {each.precision: _plain(each) for each in row} for row in rows},
    }


def _plain(each: Fit) -> dict[str, Any] | None:
    if not each.cards:
        return None
    return {
        "cards": each.cards, "tp": each.tp, "pp": each.pp, "kv_tokens": each.kv_tokens, "native": each.native,
    }  # fmt: skip
