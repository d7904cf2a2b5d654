"""Forecast against actual, as one page that opens without a network: points beside the line of no error."""

from collections.abc import Sequence
from html import escape

import numpy as np

from simulator.report.style import STYLE
from simulator.report.svg import Axis, Mark, plot
from tests.predictions import Predicted
from tests.streams import Seen

Pairs = Sequence[tuple[Seen, Predicted]]
METRICS = ("TTFT", "TPOT", "E2E, length asked for", "E2E, length unknown")


def page(pairs: Pairs, table: str) -> str:
    """A scatter a metric, a colour a backend; then how late each first token was against its promise; the table."""
    names = sorted({said.backend for _, said in pairs})
    figures = [_scatter(pairs, metric, names) for metric in range(4)]
    legend = "".join(f'<li><i class="s{slot}"></i>{escape(name)}</li>' for slot, name in enumerate(names))
    parts = [f"<h1>Forecast against actual</h1><header><p>{len(pairs)} requests on real engines, each a point; on the "]
    parts.append("line the forecast was right; the thin lines are 15 % off.</p></header>")
    parts.append(f'<ul class="legend">{legend}</ul><div class="plots">{"".join(figures)}</div>')
    parts.append(f"<h2>The same as figures</h2><pre>{escape(table)}</pre>")
    head = f'<!doctype html><html lang="en"><head><meta charset="utf-8"><style>{STYLE}</style>'
    return f"{head}<title>Forecast against actual</title></head><body>{''.join(parts)}</body></html>\n"


def _scatter(pairs: Pairs, metric: int, names: Sequence[str]) -> str:
    row, kind = (2, "fixed" if metric == 2 else "natural") if metric >= 2 else (metric, "")
    shown = [(s, p) for s, p in pairs if not kind or s.ask.slo_class == kind]
    marks, every = [], []
    for slot, name in enumerate(names):
        points = [(p.means_s[row], (s.ttft_s, s.tpot_s, s.e2e_s)[row]) for s, p in shown if p.backend == name]
        points = [point for point in points if np.isfinite(point).all()]
        every += [value for point in points for value in point]
        marks.append(Mark(name, points, slot, "dots"))
    low, high = min(every, default=0.01) * 0.9, max(every, default=1.0) * 1.1
    sides = [Mark("", [(low, low * by), (high, high * by)], -1) for by in (0.85, 1.0, 1.15)]
    x = Axis("forecast (log)", _seconds, low, high, log=True)
    return plot(METRICS[metric], x, Axis("actual", _seconds, low, high, log=True), [*sides, *marks])


def _seconds(value: float) -> str:
    return f"{value:g} s" if value >= 1 else f"{value * 1e3:g} ms"
