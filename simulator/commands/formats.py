"""The command ``formats``: the trace formats that are read, and curves of rates, each with an example."""

from argparse import Namespace
from collections.abc import Sequence
from typing import Final

from rich.console import Console

from router.spelling import suggestion
from simulator.commands.shared import plain_errors, wants_table, write_json
from simulator.traces.entry import TraceFormat
from simulator.traces.formats import formats
from simulator.workload.rate_curve import EXAMPLE

CURVE: Final = TraceFormat(
    "rate curve",
    line="t_s,rate",
    arrival="seconds, with requests per second",
    example=EXAMPLE,
    note="played as gen:curve:rates=FILE; ServeGen's files of clients and of totals have this form",
)


def run(options: Namespace) -> None:
    """List them, or those named."""
    with plain_errors():
        chosen = _named(options.names) if options.names else [*formats(), CURVE]
    if wants_table(options.json):
        _print(Console(), chosen)
    if options.json is not None:
        write_json(options.json, [_plain(each) for each in chosen])


def _named(names: Sequence[str]) -> list[TraceFormat]:
    known = {each.name.lower(): each for each in (*formats(), CURVE)}
    for name in names:
        if name.lower() not in known:
            raise ValueError(
                f"unknown format {name!r}; {suggestion(name, [each.name for each in (*formats(), CURVE)])}"
            )
    return [known[name.lower()] for name in names]


def _print(console: Console, chosen: Sequence[TraceFormat]) -> None:
    for each in chosen:
        note = "".join(f"; {text}" for text in (each.note, each.caution) if text)
        console.print(f"{each.name}: arrival in {each.arrival}{note}", highlight=False, markup=False, soft_wrap=True)
        for line in _example(each).splitlines():
            console.print(f"    {line}", highlight=False, markup=False, soft_wrap=True, style="dim")


def _plain(each: TraceFormat) -> dict[str, str]:
    return {"name": each.name, "arrival": each.arrival, "example": _example(each), "note": each.note or each.caution}


def _example(each: TraceFormat) -> str:
    return each.example or each.line
