"""One HTML page: figures, distributions against the SLO, the run over time, each backend.

Self-contained: styles and plots are in the file, and nothing is fetched.
"""

from collections.abc import Mapping, Sequence
from html import escape
from math import ceil, inf, isfinite
from pathlib import Path
from typing import Any, Final

import numpy as np

from router.core.slo_metrics import SLO_METRICS
from router.core.types import Slo
from simulator.experiment import Case
from simulator.report.style import STYLE
from simulator.report.svg import Axis, Mark, plot
from simulator.run.play import RunResult
from simulator.run.result_table import Floats, ResultTable
from simulator.run.timeline import Timeline

_BINS: Final = 60
_CURVE: Final = 160
_DOTS: Final = 900
_SLOTS: Final = 8
Results = Mapping[str, Mapping[str, Any]]
Runs = Mapping[str, RunResult]


def write_page(path: Path, cases: Sequence[Case], results: Results, runs: Runs) -> None:
    """Write the page of these runs; every run has a timeline."""
    path.write_text(page(cases, results, runs), encoding="utf-8")


def page(cases: Sequence[Case], results: Results, runs: Runs) -> str:
    """The page."""
    pool, source = cases[0].pool, cases[0].source
    count = max(result["requests"] for result in results.values())
    what = ", ".join(Path(name).name if "/" in name else name for name in source.traces)
    slos = [(c.name, c.slo) for c in pool.classes]
    parts = [
        f"<header><h1>{escape(what)} on {escape(pool.name)}</h1><p>{count:,} requests, seed {cases[0].seed}. "
        f"{escape(pool.described())}.</p>{_slos_text(slos)}</header>",
        legend(list(runs)),
        _figures(results),
        section("Latency against the SLO", _distributions(runs, slos)),
        section("Over time", _over_time(runs)),
        section("Predicted against actual", _predicted(runs)),
        *(_run(policy, played, results[policy]) for policy, played in runs.items()),
    ]
    return document(f"{what}: {', '.join(runs)}", parts)


def document(title: str, parts: Sequence[str]) -> str:
    """A page with the style of all."""
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body>{''.join(parts)}</body></html>\n"
    )


def _slos_text(slos: Sequence[tuple[str, Slo]]) -> str:
    texts = [f"<b>{escape(name)}</b>: {_slo_text(slo)}" for name, slo in slos]
    return f"<p>SLO {'; '.join(texts)}.</p>" if texts else "<p>No SLO is set.</p>"


def _slo_text(slo: Slo) -> str:
    bounds = zip(SLO_METRICS, slo.bounds_s(), strict=True)
    return (
        ", ".join(f"{metric.label} within {_seconds(bound)}" for metric, bound in bounds if bound < inf) or "no bound"
    )


def section(title: str, figures: Sequence[str]) -> str:
    """Plots under a heading; empty without any."""
    drawn = "".join(figures)
    return f"<section><h2>{escape(title)}</h2><div class=plots>{drawn}</div></section>" if drawn else ""


def legend(names: Sequence[str]) -> str:
    """Names by colour."""
    items = "".join(f'<li><i class="s{n % _SLOTS}"></i>{escape(name)}</li>' for n, name in enumerate(names))
    return f"<ul class=legend>{items}</ul>"


# ---- figures ---------------------------------------------------------------------

_ROWS: Final = (
    ("SLO attainment", ("attainment",), "share", 1),
    ("goodput, requests/s", ("goodput_per_s",), "number", 1),
    *(
        (f"{metric.label} {quantile}", (metric.seconds, quantile), "seconds", -1)
        for metric in SLO_METRICS
        for quantile in ("p50", "p99")
    ),
    ("shed", ("shed",), "count", -1),
    ("held", ("held",), "count", 0),
    ("failed mid-stream", ("broken",), "count", -1),
    ("clients disconnected", ("left",), "count", -1),
    ("USD per 1M output tokens", ("usd_per_million_output_tokens",), "number", -1),
    ("busy GPU-seconds", ("gpu_seconds",), "count", -1),
    ("GPU-seconds, lower bound", ("gpu_seconds_lower_bound",), "count", 0),
)


def _figures(results: Results) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in results)
    rows = "".join(_row(results, *row) for row in _ROWS)
    table = f"<table><thead><tr><th></th>{head}</tr></thead><tbody>{rows}</tbody></table>"
    return f"<section><h2>Figures</h2>{table}{_bound_note(results)}</section>"


def _bound_note(results: Results) -> str:
    """The strategy or policy that attained the bound, if there is a bound."""
    named = [(name, result["strategy"]) for name, result in results.items() if "strategy" in result]
    return "".join(f"<p>{escape(name)}: attained by {escape(strategy)}.</p>" for name, strategy in named)


def _row(results: Results, label: str, path: tuple[str, ...], kind: str, better: int) -> str:
    values = [_at(result, path) for result in results.values()]
    there = [value * better for value in values if value is not None]
    best = max(there, default=None) if better and len(set(there)) > 1 else None
    cells = "".join(
        f"<td{' class=best' if best is not None and value is not None and value * better == best else ''}>"
        f"{_text(value, kind)}</td>"
        for value in values
    )
    return f"<tr><th>{escape(label)}</th>{cells}</tr>"


def _at(result: Any, path: tuple[str, ...]) -> float | None:
    for key in path:
        result = result[key]
    return None if result is None else float(result)


def _text(value: float | None, kind: str) -> str:
    if value is None:
        return "&ndash;"
    return {"share": f"{value:.2%}", "count": f"{value:,.0f}", "number": f"{value:.3f}"}.get(kind) or _seconds(value)


def _seconds(value: float) -> str:
    if value < 1:
        return f"{value * 1e3:.3g} ms"
    return f"{value:.3g} s" if value < 100 else f"{value:,.0f} s"  # noqa: PLR2004 - three digits


# ---- plots of all runs ------------------------------------------------------------


def _distributions(runs: Runs, slos: Sequence[tuple[str, Slo]]) -> list[str]:
    tables = {name: played.table.latencies_s() for name, played in runs.items()}
    return [
        _distribution(
            metric.title, {name: values[metric.name] for name, values in tables.items()}, _bounds(slos, index)
        )
        for index, metric in enumerate(SLO_METRICS)
    ]


def _bounds(slos: Sequence[tuple[str, Slo]], index: int) -> list[tuple[str, float]]:
    several = len(slos) > 1
    bounds = [(f"SLO {label}" if several else "SLO", slo.bounds_s()[index]) for label, slo in slos]
    return [(label, bound) for label, bound in bounds if bound < inf]


def _distribution(title: str, values: Mapping[str, Floats], bounds: Sequence[tuple[str, float]]) -> str:
    there = {name: np.sort(column[np.isfinite(column)]) for name, column in values.items()}
    everything = np.concatenate([*there.values(), np.array([bound for _, bound in bounds])])
    if not len(everything):
        return ""
    x = Axis("seconds, log scale", _tick_seconds, *_log_range(everything), log=True)
    y = Axis("share of requests within", lambda v: f"{v:.0%}", 0.0, 1.0)
    marks = [Mark(name, _curve(column), n % _SLOTS) for n, (name, column) in enumerate(there.items())]
    return plot(title, x, y, marks, bounds)


def _log_range(values: Floats) -> tuple[float, float]:
    low, high = float(np.percentile(values, 0.5)), float(values.max())
    low = max(low, 1e-4)
    return low * 0.9, max(high, low * 10) * 1.1


def _curve(column: Floats) -> list[tuple[float, float]]:
    if not len(column):
        return []
    shares = np.concatenate([np.linspace(0, 0.98, _CURVE), np.linspace(0.98, 1, 40)])
    return [(float(a), float(b)) for a, b in zip(np.quantile(column, shares), shares, strict=True)]


def _tick_seconds(value: float) -> str:
    return f"{value * 1e3:g}ms" if value < 1 else f"{value:g}s"


def _time_axis(runs: Runs) -> Axis:
    last_s = max(float(np.nanmax(played.table.column("ended_s"))) for played in runs.values())
    return Axis("minutes", "{:g}".format, 0.0, max(1.0, float(ceil(last_s / 60))))


def _over_time(runs: Runs) -> list[str]:
    x = _time_axis(runs)
    attained = [Mark(name, _attained(p.table, x.high), n % _SLOTS) for n, (name, p) in enumerate(runs.items())]
    first = [Mark(name, _p99(p.table, x.high), n % _SLOTS) for n, (name, p) in enumerate(runs.items())]
    top = max((b for mark in first for _, b in mark.points if isfinite(b)), default=1.0)
    y_first = Axis("TTFT p99", _tick_seconds, 0.0, top * 1.05)
    lines = {n: played.timeline for n, played in enumerate(runs.values()) if played.timeline is not None}
    return [
        plot("SLO attainment", x, Axis("share met", lambda v: f"{v:.0%}", 0.0, 1.0), attained),
        plot("Time to first token, p99", x, y_first, first),
        _stepped("Replicas", x, {n: t.replicas for n, t in lines.items()}, lines, list(runs), "{:g}"),
        _stepped("Cost, USD", x, {n: t.usd for n, t in lines.items()}, lines, list(runs), "${:.3g}"),
    ]


def _stepped(
    title: str,
    x: Axis,
    columns: Mapping[int, Sequence[float]],
    lines: Mapping[int, Timeline],
    names: Sequence[str],
    form: str,
) -> str:
    top = max((max(column) for column in columns.values() if len(column)), default=1.0)
    y = Axis("", form.format, 0.0, max(top, 1e-3) * 1.1)
    marks = [Mark(names[n], _by_minute(lines[n].at_s, column), n % _SLOTS) for n, column in columns.items()]
    return plot(title, x, y, marks)


def _by_minute(at_s: Sequence[float], column: Sequence[float]) -> list[tuple[float, float]]:
    return [(at / 60, value) for at, value in zip(at_s, column, strict=True)]


def _binned(table: ResultTable, last: float, column: Floats) -> list[tuple[float, Floats]]:
    """A column by minute of arrival, in bins up to minute *last*."""
    width = last / _BINS
    where = (table.column("arrived_s") / 60 / width).astype(int)
    return [((n + 0.5) * width, column[where == n]) for n in range(_BINS)]


def _attained(table: ResultTable, last: float) -> list[tuple[float, float]]:
    return [(at, float(v.mean())) for at, v in _binned(table, last, table.column("met")) if len(v)]


def _p99(table: ResultTable, last: float) -> list[tuple[float, float]]:
    binned = _binned(table, last, table.ttft_s())
    there = [(at, v[np.isfinite(v)]) for at, v in binned]
    return [(at, float(np.quantile(v, 0.99))) for at, v in there if len(v)]


def _predicted(runs: Runs) -> list[str]:
    drawn = []
    for n, (name, played) in enumerate(runs.items()):
        table = played.table
        actual, predicted = table.column("first_s") - table.column("sent_s"), table.column("predicted_ttft_s")
        there = np.isfinite(actual) & np.isfinite(predicted) & (actual > 0) & (predicted > 0)
        if there.any():
            drawn.append(_scatter(f"TTFT from the send, {name}", predicted[there], actual[there], n % _SLOTS))
    return drawn


def _scatter(title: str, predicted: Floats, actual: Floats, slot: int) -> str:
    every = max(1, len(predicted) // _DOTS)
    low, high = _log_range(np.concatenate([predicted, actual]))
    x = Axis("predicted, log scale", _tick_seconds, low, high, log=True)
    y = Axis("actual", _tick_seconds, low, high, log=True)
    dots = [(float(a), float(b)) for a, b in zip(predicted[::every], actual[::every], strict=True)]
    return plot(
        title, x, y, [Mark("actual = predicted", [(low, low), (high, high)], -1), Mark(title, dots, slot, "dots")]
    )


# ---- one run -------------------------------------------------------------------------


def _run(policy: str, played: RunResult, result: Mapping[str, Any]) -> str:
    timeline = played.timeline
    if timeline is None:
        return ""
    x = _time_axis({policy: played})
    figures = "".join(_backend(name, timeline, result["backends"].get(name, {}), x) for name in timeline.running)
    happened = "".join(f"<li>{at_s / 60:.1f} min: {escape(what)}</li>" for at_s, what in played.log)
    events = f"<ul class=events>{happened}</ul>" if happened else ""
    return (
        f"<details><summary>{escape(policy)}: batch and queue of every backend</summary>{events}"
        f"<ul class=legend><li><i class=s0></i>running</li><li><i class=s1></i>waiting</li></ul>"
        f"<div class=plots>{figures}</div></details>"
    )


def _backend(name: str, timeline: Timeline, facts: Mapping[str, Any], x: Axis) -> str:
    running, waiting = timeline.running[name], timeline.waiting[name]
    at_s = timeline.at_s[-len(running) :]
    top = max([*running, *waiting, 1.0])
    y = Axis("sequences", lambda v: f"{v:g}", 0.0, top * 1.1)
    title = (
        f"{name} ({facts.get('card', '')}): {facts.get('share', 0):.0%} of requests, busy {facts.get('busy', 0):.0%}"
    )
    marks = [
        Mark("running", _by_minute(at_s, running), 0, "area"),
        Mark("waiting", _by_minute(at_s, waiting), 1),
    ]
    return plot(title, x, y, marks)
