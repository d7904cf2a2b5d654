"""Runs side by side in the terminal."""

from collections.abc import Callable, Mapping
from typing import Any, Final

from rich import box
from rich.console import Console
from rich.table import Table


def print_runs(console: Console, runs: Mapping[str, Mapping[str, Any]], heading: str) -> None:
    """One table of figures, a column a run, and one of backends."""
    if not console.is_terminal:
        console.width = max(console.width, 60 + 16 * len(runs))  # a file has no margin to wrap at
    console.print(heading, highlight=False, style="dim")
    console.print(_figures(runs))
    console.print(_backends(runs))


def _figures(runs: Mapping[str, Mapping[str, Any]]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("")
    for name in runs:
        table.add_column(name, justify="right")
    for label, text in (*_ROWS, *_latencies(), *_LAST):
        table.add_row(label, *(text(run) for run in runs.values()))
    return table


Figures = Mapping[str, Any]
Row = tuple[str, Callable[[Figures], str]]


def _latencies() -> list[Row]:
    names = [(name, statistic) for name in ("TTFT", "TPOT", "E2E") for statistic in ("mean", "p50", "p90", "p99")]
    return [(f"{name} {statistic}", _latency(f"{name.lower()}_s", statistic)) for name, statistic in names]


def _latency(key: str, statistic: str) -> Callable[[Figures], str]:
    return lambda run: _seconds(run[key][statistic])


_ROWS: Final[tuple[Row, ...]] = (
    ("requests", lambda run: f"{run['requests']:,}"),
    ("SLO attainment", lambda run: _share(run["attainment"])),
    ("goodput", lambda run: _rate(run["goodput_per_s"])),
)
_LAST: Final[tuple[Row, ...]] = (
    ("shed", lambda run: f"{run['shed']:,}"),
    ("held", lambda run: f"{run['held']:,}"),
    ("broken, left", lambda run: f"{run['broken']:,}, {run['left']:,}"),
    ("TTFT forecast error", lambda run: _share(run["forecast"]["ttft"]["error"])),
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


def _money(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
