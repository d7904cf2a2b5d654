"""Runs side by side in the terminal."""

from collections.abc import Callable, Mapping, Sequence
from math import inf, isnan
from typing import Any, Final

from rich import box
from rich.console import Console
from rich.table import Table

from router.core.slo_metrics import SLO_METRICS, SloMetric
from simulator.experiment import is_clear
from simulator.report.whole import print_whole


def print_runs(console: Console, runs: Mapping[str, Mapping[str, Any]], heading: str) -> None:
    """A table of figures with one column a run, and a table of the backends."""
    widen(console, 60 + 16 * len(runs))
    console.print(heading, highlight=False, style="dim")
    print_whole(console, _figures(runs))
    print_whole(console, _backends(runs), keys=2)


def _figures(runs: Mapping[str, Mapping[str, Any]]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("", no_wrap=True)
    for name in runs:
        table.add_column(name, justify="right", no_wrap=True)
    bound = (_BOUND,) if any("strategy" in run for run in runs.values()) else ()
    for label, text in (*_ROWS, *bound, *_latencies(), *_LAST):
        table.add_row(label, *(text(run) for run in runs.values()))
    return table


Figures = Mapping[str, Any]
Row = tuple[str, Callable[[Figures], str]]


def _latencies() -> list[Row]:
    pairs = [(metric, statistic) for metric in SLO_METRICS for statistic in ("mean", "p50", "p90", "p99")]
    return [(f"{metric.label} {statistic}", _latency(metric.seconds, statistic)) for metric, statistic in pairs]


def _latency(key: str, statistic: str) -> Callable[[Figures], str]:
    return lambda run: _seconds(run[key][statistic])


_ROWS: Final[tuple[Row, ...]] = (
    ("requests", lambda run: f"{run['requests']:,}"),
    ("SLO attainment", lambda run: _share(run["attainment"])),
    ("goodput", lambda run: _rate(run["goodput_per_s"])),
)
_BOUND: Final[Row] = ("bound attained by", lambda run: run.get("strategy", "").removeprefix("clairvoyant:strategy="))
_LAST: Final[tuple[Row, ...]] = (
    ("shed", lambda run: f"{run['shed']:,}"),
    ("held", lambda run: f"{run['held']:,}"),
    ("failed mid-stream, client left", lambda run: f"{run['broken']:,}, {run['left']:,}"),
    ("TTFT forecast error", lambda run: _share(run["forecast"]["ttft"]["error"])),
    ("GPU-seconds / lower bound", lambda run: _times(run["gpu_seconds"], run.get("gpu_seconds_lower_bound"))),
    ("USD per 1M output tokens", lambda run: _money(run["usd_per_million_output_tokens"])),
)


def _backends(runs: Mapping[str, Mapping[str, Any]]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("backend", no_wrap=True)
    table.add_column("cards", no_wrap=True)
    for name in runs:
        table.add_column(f"{name}\nshare busy", justify="right", no_wrap=True)
    first = next(iter(runs.values()))
    for backend, facts in first["backends"].items():
        cells = (run["backends"][backend] for run in runs.values())
        mark = " (slow)" if facts["slow_node"] else ""
        table.add_row(backend + mark, facts["card"], *(f"{c['share']:4.0%} {c['busy']:4.0%}" for c in cells))
    return table


def _seconds(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value * 1e3:.1f} ms" if value < 1 else f"{value:.2f} s"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.2%}"


def _rate(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}/s"


def _times(value: float, lower: float | None) -> str:
    return f"x{value / lower:.2f}" if lower else "-"


def _money(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


# ---- several runs of the same ------------------------------------------------------

Spread = Mapping[str, tuple[float, float]]


def _p99(metric: SloMetric) -> tuple[str, str, Callable[[float], str]]:
    if metric.in_ms:
        return f"{metric.name}_p99_s", f"{metric.label} p99 ms", lambda x: f"{x * 1e3:.1f}"
    return f"{metric.name}_p99_s", f"{metric.label} p99 s", lambda x: f"{x:.3g}"


_SHARES: Final = ("attainment",)  # figures that end at 1
CLEAR: Final = "*"  # of a difference whose interval leaves out 0
FIGURES: Final[tuple[tuple[str, str, Callable[[float], str]], ...]] = (
    ("attainment", "attainment", lambda x: f"{x:.2%}"),
    ("goodput_per_s", "goodput/s", lambda x: f"{x:.2f}"),
    *(_p99(metric) for metric in SLO_METRICS),
    ("usd_per_million_output_tokens", "USD/1M out", lambda x: f"{x:.3f}"),
)


def print_intervals(console: Console, spreads: Mapping[str, Spread]) -> None:
    """Means over seeds with their 95 % confidence intervals."""
    table = Table(
        box=box.SIMPLE_HEAD, pad_edge=False, title="means over seeds, +- 95 % confidence", title_justify="left"
    )
    _head(table, ("policy",))
    for name, spread in spreads.items():
        table.add_row(name, *_cells(spread))
    print_whole(console, table)


def print_comparison(console: Console, rows: Mapping[tuple[str, ...], Spread], seeds: int) -> None:
    """One row a combination; the best attainment of each pool and rate in bold."""
    widen(console, 130)
    heading = f"means over {seeds} seeds, +- 95 % confidence" if seeds > 1 else "one seed"
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=heading, title_justify="left")
    _head(table, ("pool", "rate", "policy"))
    for row, spread in rows.items():
        best = max(s["attainment"][0] for key, s in rows.items() if key[:2] == row[:2])
        style = "bold" if spread["attainment"][0] == best else None
        table.add_row(*row, *_cells(spread), style=style)
    print_whole(console, table, keys=3)


def _head(table: Table, names: tuple[str, ...]) -> None:
    for name in names:
        table.add_column(name, no_wrap=True)
    for _, title, _ in FIGURES:
        table.add_column(title, justify="right", no_wrap=True)


def _cells(spread: Spread) -> list[str]:
    return [spread_text(*spread[key], text, 1.0 if key in _SHARES else inf) for key, _, text in FIGURES]


def spread_text(mean: float, half: float, text: Callable[[float], str], most: float = inf) -> str:
    """A mean with its interval; as a range where a figure of 0 to *most* cannot be as far off to both sides."""
    if isnan(mean):
        return "-"
    if mean - half < 0.0 or mean + half > most:
        return f"{text(mean)} ({text(max(0.0, mean - half))} to {text(min(most, mean + half))})"
    return text(mean) + (f" +-{text(half)}" if half else "")


def interval_text(interval: tuple[float, float], form: str, most: float = inf) -> str:
    """The same, of a mean with its half width and the form of a number."""
    mean, half = interval
    return spread_text(mean, half, lambda x: format(x, form), most)


def difference_text(mean: float, half: float | None, text: Callable[[float], str]) -> str:
    """``+1.20% +-0.40% *``: signed, with its interval where it has one, marked where that leaves out 0."""
    if isnan(mean):
        return "-"
    signed = f"{'-' if mean < 0 else '+'}{text(abs(mean))}"
    if half is None or isnan(half):
        return signed
    return f"{signed} +-{text(half)}{' ' + CLEAR if is_clear(mean, half) else ''}"


def print_capacity(console: Console, found: Sequence[Any], goal: float, beyond: float) -> None:
    """The highest rate of each policy, and the goodput left at *beyond* times that rate (1: not measured)."""
    seeds = len(found[0].found)
    over = f", means over {seeds} seeds, +- 95 % confidence" if seeds > 1 else ""
    title = f"highest rate with attainment >= {goal:.1%}{over}"
    widen(console, 110)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=title, title_justify="left")
    several = len({one.pool for one in found}) > 1
    names = [
        *["pool"] * several,
        "policy",
        "rate",
        "requests/s",
        "attainment there",
        *([f"goodput left at x{beyond:g}"] * (beyond > 1.0)),
    ]
    for name in names:
        table.add_column(name, justify="left" if name in {"pool", "policy"} else "right", no_wrap=True)
    for one in sorted(found, key=lambda f: (f.pool, -f.rate[0])):
        rate = "x" + interval_text(one.rate, ".3g") if one.rate[0] else "none"
        left = [interval_text(one.goodput_left, ".1%", 1.0)] * (beyond > 1.0)
        facts = (one.policy, rate, interval_text(one.requests_per_s, ".2f"), f"{one.attainment[0]:.2%}")
        table.add_row(*[one.pool] * several, *facts, *left)
    print_whole(console, table)


def print_diff(
    console: Console, names: tuple[str, str], sums: Figures, worse: Sequence[Any], better: Sequence[Any]
) -> None:
    """Counts, flows, and the requests that changed most."""
    widen(console, 110)
    first, second = names
    mean, half = sums["attainment_gain"]
    gain = difference_text(mean, half, lambda x: f"{x:.2%}")
    console.print(
        f"{sums['requests']:,} requests, {sums['routed_differently']:,} routed differently. SLO met by both "
        f"{sums['both_met']:,}, only by {first} {sums['only_first_met']:,}, only by {second} "
        f"{sums['only_second_met']:,}, by neither {sums['neither_met']:,}. "
        f"Attainment of {second} less that of {first}: {gain} ({CLEAR}: without 0).",
        highlight=False,
    )
    flows = list(sums["flows"].items())[:10]
    console.print("moved: " + ", ".join(f"{flow} {count:,}" for flow, count in flows), highlight=False)
    for title, ranked in ((f"where {second} loses most", worse), (f"where {second} gains most", better)):
        print_whole(console, _changes(title, ranked))


def _changes(title: str, ranked: Sequence[Any]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=title, title_justify="left")
    for name in ("request", "backend", "TTFT", "TPOT", "SLO"):
        table.add_column(name, no_wrap=True)
    for one in ranked:
        slo = ["met" if met else "violated" for met in one.met]
        ttft, tpot = (
            [_seconds(None if isnan(value) else value) for value in pair] for pair in (one.ttft_s, one.tpot_s)
        )
        table.add_row(one.request, *(" -> ".join(pair) for pair in (one.backends, ttft, tpot, slo)))
    return table


def widen(console: Console, width: int) -> None:
    """At least *width* columns, unless it is a terminal: a file has no margin to wrap at."""
    if not console.is_terminal:
        console.width = max(console.width, width)
