"""One HTML page of a plan: the ranking, the frontier of cost and attainment, why each other candidate loses.

Self-contained, as the page of a replay is.
"""

from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Final

from simulator.planning.plan import Plan, frontier
from simulator.planning.search import Played
from simulator.planning.variants import Mix
from simulator.report.page import document, legend, section
from simulator.report.planning import answer_cells, heading, notes, usd
from simulator.report.svg import Axis, Mark, plot

_SLOTS: Final = 8
_MIXED: Final = "two makes"
_TEXTS: Final = frozenset({"replicas", "attained", "p99", "binds", "candidate", "why"})


def write_page(path: Path, found: Plan) -> None:
    """Write the page."""
    path.write_text(page(found), encoding="utf-8")


def page(found: Plan) -> str:
    """The page."""
    title = f"Plan for {', '.join(found.load.models)}"
    parts = [
        f"<header><h1>{escape(title)}</h1>{''.join(f'<p>{escape(line)}</p>' for line in _heading(found))}</header>",
        _ranking(found),
        _frontier(found),
        _losers(found),
        f"<section><h2>Notes</h2>{''.join(f'<p>{escape(line)}</p>' for line in notes(found))}</section>",
    ]
    return document(title, parts)


def _heading(found: Plan) -> list[str]:
    """The answer, then what was asked."""
    if not found.answers:
        return ["Nothing attains the SLO.", *heading(found).splitlines()]
    best = found.answers[0]
    return [f"{best.mix.label}: {usd(best.mix, best.mix.usd_per_hour)} an hour.", *heading(found).splitlines()]


def _table(heads: Sequence[str], rows: Iterable[tuple[Sequence[str], bool]]) -> str:
    """A table; a row is its cells, and whether it is the best."""
    kinds = [" class=text" if name in _TEXTS else "" for name in heads]
    head = "".join(f"<th{kind}>{escape(name)}</th>" for name, kind in zip(heads, kinds, strict=True))
    body = "".join(
        f"<tr{' class=best' if best else ''}>"
        + "".join(f"<td{kind}>{escape(cell)}</td>" for cell, kind in zip(cells, kinds, strict=True))
        + "</tr>"
        for cells, best in rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _ranking(found: Plan) -> str:
    if not found.answers:
        return ""
    rows = [(answer_cells(found, rank, answer), rank == 1) for rank, answer in enumerate(found.answers, 1)]
    heads = ("", "replicas", "cards", "USD/h", "USD per 1M output tokens", "attained", "p99", "binds")
    return f"<section><h2>Attains, the cheapest first</h2>{_table(heads, rows)}</section>"


def _losers(found: Plan) -> str:
    rows = [
        ((loser.label, usd(loser.mix, loser.mix.usd_per_hour) if loser.mix else "", loser.why), False)
        for loser in found.losers
    ]
    table = _table(("candidate", "USD/h at least", "why"), rows)
    return f"<section><h2>Loses</h2>{table}</section>" if rows else ""


# ---- the frontier ------------------------------------------------------------------


def _frontier(found: Plan) -> str:
    """Every simulated candidate by cost and by the share of its worst bound; the line joins those that none beats."""
    if not found.every:
        return ""
    cards = list(dict.fromkeys(_kind(one.mix) for one in found.every))
    slots = {name: n % _SLOTS for n, name in enumerate(cards)}
    x = _dollars(found.every)
    return legend(cards) + section(
        "Cost against attainment", [_shares(found, x, slots), _first_tokens(found, x, slots)]
    )


def _kind(mix: Mix) -> str:
    return mix.parts[0][0].card.name if len(mix.parts) == 1 else _MIXED


def _dollars(every: Sequence[Played]) -> Axis:
    most = max(one.mix.usd_per_hour for one in every)
    return Axis("USD an hour", lambda v: f"${v:g}", 0.0, max(most, 0.01) * 1.08)


def _worst(one: Played) -> float:
    return min((mean for mean, _ in one.attained.values()), default=0.0)


def _shares(found: Plan, x: Axis, slots: dict[str, int]) -> str:
    low = min(_worst(one) for one in found.every)
    y = Axis("share within the bound that is missed most", lambda v: f"{v:.0%}", max(0.0, low - 0.05), 1.005)
    goal = max(goal.share for goal in found.load.goals.goals)
    best = [(one.mix.usd_per_hour, _worst(one)) for one in frontier(found.every)]
    marks = [Mark(f"goal {goal:.2%}", [(x.low, goal), (x.high, goal)], -1), Mark("frontier", _steps(best), 7)]
    marks += [_point(one, _worst(one), f"{_worst(one):.2%}", slots) for one in found.every]
    return plot("Frontier: none that costs as much attains more", x, y, marks)


def _steps(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """A staircase: the attainment of a candidate is to be had at its cost and above."""
    stairs: list[tuple[float, float]] = []
    for cost, share in points:
        if stairs:
            stairs.append((cost, stairs[-1][1]))
        stairs.append((cost, share))
    return stairs


def _first_tokens(found: Plan, x: Axis, slots: dict[str, int]) -> str:
    """Of the runs that were not broken off."""
    whole = [(one, p99) for one in found.every if (p99 := _p99_ttft(one)) is not None]
    if not whole:
        return ""
    y = Axis("TTFT p99", lambda v: f"{v:g} s", 0.0, max(p99 for _, p99 in whole) * 1.1)
    marks = [_point(one, p99, f"{p99:.2f} s", slots) for one, p99 in whole]
    return plot("Cost against time to first token", x, y, marks)


def _p99_ttft(one: Played) -> float | None:
    there = [trial.p99_s["ttft"] for trial in one.trials if not trial.broken_off]
    return max((value for value in there if value is not None), default=None)


def _point(one: Played, height: float, text: str, slots: dict[str, int]) -> Mark:
    return Mark(f"{one.mix.label}: {text}", [(one.mix.usd_per_hour, height)], slots[_kind(one.mix)], "points")
