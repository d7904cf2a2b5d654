"""One decode step in the terminal and as plain data: the article's arithmetic, then what an engine adds."""

from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from router.core.physics import weight_bytes
from simulator.calibration.measurements import Measurement
from simulator.planning.fitting import plain_bytes
from simulator.planning.stepping import PARTS, Question, Step, nominal_billions
from simulator.report.table import widen
from simulator.report.whole import print_whole


def print_steps(console: Console, of: Question, steps: Sequence[Step], best: Step | None) -> None:
    """One column a TP, the best one named."""
    widen(console, 60 + 22 * len(steps))
    console.print(_heading(of), highlight=False)
    there = [step for step in steps if not step.problem]
    if there:
        print_whole(console, _table(of, there, best))
    for step in steps:
        if step.problem:
            console.print(f"TP {step.tp}: {step.problem}", highlight=False)
    console.print(_verdict(of, best), highlight=False)


def _heading(of: Question) -> str:
    kind = "active billions of parameters" if of.model.experts else "billions of parameters"
    held = weight_bytes(of.model, of.precision)
    return (
        f"{of.model.name} at {of.precision} on {of.card.name}: {nominal_billions(of.model):.4g} {kind} "
        f"x {plain_bytes(of.precision):g} bytes = {of.weight_bytes / 1e9:.4g} GB "
        f"(all that an engine holds: {held / 1e9:.1f} GB)\n"
        f"bandwidth {of.card.bandwidth_bytes_per_s / 1e9:,.0f} GB/s, link {of.card.link} "
        f"{of.card.link_bytes_per_s / 1e9:.0f} GB/s one way, engine {of.engine}, batch {of.batch}, context "
        f"{of.context_tokens:,} tokens each{f' in {of.kv_precision}' if of.kv_precision else ''}"
    )


def _table(of: Question, steps: Sequence[Step], best: Step | None) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("", no_wrap=True)
    for step in steps:
        table.add_column(f"TP {step.tp}" + (" (best)" if step is best else ""), justify="right", no_wrap=True)

    def row(label: str, text: Callable[[Step], str], style: str | None = None) -> None:
        table.add_row(label, *(text(step) for step in steps), style=style)

    gb_s = of.card.bandwidth_bytes_per_s / 1e9
    row("weights a card reads", lambda s: f"{s.read_bytes / 1e9:.4g} GB")
    row("article: over the bandwidth", lambda s: f"{s.read_bytes / 1e9:.4g}/{gb_s:.4g} = {_ms(s.floor_s)}", "bold")
    for name in PARTS:
        row(f"  {name}", lambda s, name=name: _ms((s.parts_s or {})[name]))  # type: ignore[misc]
    row("expected, +- standard error", lambda s: f"{_ms(s.expected_s)} +- {s.error:.0%}", "bold")
    row("tokens/s of all sequences", lambda s: f"{of.batch / s.expected_s:,.0f}")
    row("card-milliseconds a token", lambda s: f"{s.tp * s.expected_s / of.batch * 1e3:.2f}")
    row("tokens of KV left", lambda s: f"{s.kv_tokens:,}" if s.kv_tokens else "does not fit")
    for batch in sorted({each.batch for step in steps for each in step.measured}):
        row(f"measured, batch {batch:g}", lambda s, batch=batch: _measured(s.measured, batch))  # type: ignore[misc]
    return table


def _measured(rows: Sequence[Measurement], batch: float) -> str:
    """The median of the rows of that batch, and how many there are."""
    times = [each.tpot_s for each in rows if each.batch == batch]
    return f"{_ms(median(times))} ({len(times)})" if times else "-"


def _verdict(of: Question, best: Step | None) -> str:
    if best is None:
        return f"best TP: none, no TP listed holds {of.batch} x {of.context_tokens:,} tokens beside the weights"
    return (
        f"best TP: {best.tp}, {_ms(best.expected_s)} a step; the article's floor is {_ms(best.floor_s)}, "
        f"{best.floor_s / best.expected_s:.0%} of it"
    )


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.2f} ms"


def plain_steps(of: Question, steps: Sequence[Step], best: Step | None) -> dict[str, Any]:
    """The same for ``--json``."""
    return {
        "model": of.model.name,
        "card": of.card.name,
        "precision": of.precision,
        "kv_precision": of.kv_precision,
        "engine": of.engine,
        "batch": of.batch,
        "context_tokens": of.context_tokens,
        "weight_bytes": of.weight_bytes,
        "bandwidth_bytes_per_s": of.card.bandwidth_bytes_per_s,
        "best_tp": best.tp if best else None,
        "steps": [_plain(step) for step in steps],
    }


def _plain(step: Step) -> dict[str, Any]:
    if step.problem:
        return {"tp": step.tp, "problem": step.problem}
    return {
        "tp": step.tp,
        "read_bytes": step.read_bytes,
        "floor_s": step.floor_s,
        "parts_s": step.parts_s,
        "expected_s": step.expected_s,
        "error": step.error,
        "kv_tokens": step.kv_tokens,
        "measured": [
            {"source": each.source, "engine": each.shape.engine, "batch": each.batch, "tpot_s": each.tpot_s}
            for each in step.measured
        ],
    }
