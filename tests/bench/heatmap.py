"""The grid as one HTML page: a heat map, the levels, the cells that are worse. Self-contained, by day and by night."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from html import escape
from itertools import groupby, product
from typing import Any, Final

from simulator.report.style import STYLE
from tests.cell_runs import WORSE, Result
from tests.cells import LOADS, POOLS, PROMISES, TIGHTNESS, WORKLOADS

FULL: Final = 0.3
"""The difference, as a share of requests, from which on the colour is as strong as it gets."""

_STYLE: Final = """
.map{border-collapse:separate;border-spacing:1px;font-size:12px}
.map th,.map td{padding:1px 4px;border:0;text-align:center;white-space:nowrap;font-weight:400}
.map thead th{color:var(--soft);position:sticky;background:var(--paper)}
.map thead tr:first-child th{top:0;font-weight:600;color:var(--ink)}.map thead tr:last-child th{top:20px}
.map tbody th{text-align:left;color:var(--soft)}.map tbody th[rowspan]{color:var(--ink);font-weight:600;
vertical-align:top}.map td{min-width:38px;background:rgba(128,128,128,.06)}.map .gap{border-left:5px solid var(--paper)}
.map .new td,.map .new th{border-top:5px solid var(--paper)}
.map td.worse{outline:2px solid var(--s1);outline-offset:-2px;font-weight:600}
.key span{display:inline-block;min-width:46px;padding:1px 6px;margin-right:2px;text-align:center;font-size:12px}
.worst{font-size:13px}.worst td,.worst th{padding:2px 10px}
"""


def page(
    found: Sequence[Result], figures: Mapping[str, Any], levels: Sequence[str], line: Callable[[Result], str]
) -> str:
    """The page: *figures* and *levels* sum the grid up; *line* is one cell in words."""
    facts = (
        f"{figures['cells']} cells, {len(figures['worse'])} below {100 * WORSE:g} point; "
        f"mean {_points(figures['mean'])}"
    )
    if "near_capacity" in figures:
        near = figures["near_capacity"]
        facts += (
            f"; near capacity {_points(near['over_single'])} over {escape(near['single'])}, the best single baseline, "
            f"{_points(near['over_best'])} over each cell's best"
        )
    key = "".join(f'<span style="{_colour(x)}">{_points(x)}</span>' for x in (-0.3, -0.1, -0.03, 0.0, 0.03, 0.1, 0.3))
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>slo_headroom less the best baseline</title><style>{STYLE}{_STYLE}</style></head><body>"
        "<header><h1>slo_headroom less the best baseline of each cell</h1>"
        f"<p>Points of attainment (share of all requests served within their SLO). {facts}.</p>"
        f"<p class=key>{key}</p></header>{_map(found, line)}"
        f"<section><h2>By level</h2><pre>{escape(chr(10).join(levels))}</pre></section>"
        f"{_worst(found)}</body></html>\n"
    )


def _points(share: float) -> str:
    return f"{100 * share:+.1f}"


def _colour(ahead: float) -> str:
    """Vermilion below zero, blue above (told apart by colour-blind eyes), by the root so that small ones show."""
    strength = min(abs(ahead) / FULL, 1.0) ** 0.5
    rgb = "213,94,0" if ahead < 0 else "0,114,178"
    return f"background:rgba({rgb},{0.75 * strength:.2f})" if abs(ahead) >= 0.0005 else ""


def _map(found: Sequence[Result], line: Callable[[Result], str]) -> str:
    by_place: dict[tuple[str, str, str, str], list[Result]] = defaultdict(list)
    for one in found:
        cell = one.cell
        by_place[cell.workload, _promise(cell.promise, cell.tightness), cell.pool, cell.load].append(one)
    columns = list(product(POOLS, LOADS))
    pools = "".join(f"<th class=gap colspan={len(LOADS)}>{escape(pool)}</th>" for pool in POOLS)
    loads = "".join(f"<th{_gap(load)}>{load}</th>" for _, load in columns)
    promises = [_promise(p, t) for p in PROMISES for t in (TIGHTNESS if p != "none" else ("",))]
    there = [(w, p) for w in WORKLOADS for p in promises if any((w, p, *column) in by_place for column in columns)]
    rows = []
    for workload, group in groupby(there, key=lambda row: row[0]):
        listed = list(group)
        for number, (_, promise) in enumerate(listed):
            head = f"<th rowspan={len(listed)}>{escape(workload)}</th>" if not number else ""
            cells = "".join(_cell(by_place.get((workload, promise, *c), []), c[1], line) for c in columns)
            rows.append(f"<tr{' class=new' if not number else ''}>{head}<th>{escape(promise)}</th>{cells}</tr>")
    return (
        f"<section><h2>Heat map: pool and load across</h2><table class=map><thead><tr><th></th><th></th>{pools}</tr>"
        f"<tr><th></th><th></th>{loads}</tr></thead><tbody>{''.join(rows)}</tbody></table></section>"
    )


def _promise(promise: str, tightness: str) -> str:
    return f"{promise} {tightness}".strip()


def _gap(load: str) -> str:
    return " class=gap" if load == LOADS[0] else ""


def _cell(there: Sequence[Result], load: str, line: Callable[[Result], str]) -> str:
    """The worst of a place's seeds."""
    if not there:
        return f"<td{_gap(load)}></td>"
    least = min(there, key=lambda one: one.ahead)
    names = [name for name, holds in (("gap", load == LOADS[0]), ("worse", least.ahead < WORSE)) if holds]
    kind = f' class="{" ".join(names)}"' if names else ""
    title = escape("\n".join(" ".join(line(one).split()) for one in there), quote=True)
    return f'<td{kind} style="{_colour(least.ahead)}" title="{title}">{_points(least.ahead)}</td>'


def _worst(found: Sequence[Result]) -> str:
    listed = sorted((one for one in found if one.ahead < WORSE), key=lambda one: one.ahead)
    if not listed:
        return ""
    rows = "".join(
        f"<tr><th>{escape(str(one.cell))}</th><td>{_points(one.ahead)}</td><td>{one.ours:.1%}</td>"
        f"<td>{one.ours - one.ahead:.1%}</td><td>{escape(one.best)}</td></tr>"
        for one in listed
    )
    return (
        "<section><h2>Worse than a baseline</h2><table class=worst><thead><tr><th>cell</th><th>points</th>"
        f"<th>slo_headroom</th><th>best</th><th>which</th></tr></thead><tbody>{rows}</tbody></table></section>"
    )
