"""A plan in the terminal and as plain data: what attains, the cheapest first, then why each other loses."""

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from simulator.planning.plan import Answer, Loser, Plan
from simulator.planning.search import Played
from simulator.planning.trial import plain
from simulator.planning.variants import Mix
from simulator.report.table import spread_text, widen
from simulator.report.whole import print_whole

EXAMPLE = "~"
"""Before a sum that holds a price without a source."""


def usd(mix: Mix, value: float) -> str:
    """A sum of money of a mix."""
    return f"{'' if mix.price_known else EXAMPLE}${value:,.2f}"


def heading(found: Plan) -> str:
    """The load, the goals and the size of the search."""
    demand, goals = found.demand, found.load.goals
    asked = ", ".join(
        f"{goals.shown(goals.label(g))} within {_seconds(g.bound_s)} for {g.share:.4g}" for g in goals.goals
    )
    ended = "" if found.complete else "; the budget ended it, so something cheaper may be among the undecided"
    return (
        f"{len(demand):,} requests a run at {_rate(found)}, prompts of {demand.prompt_tokens.mean():,.0f} "
        f"tokens and replies of {demand.output_tokens.mean():,.0f} on average; {asked}\n"
        f"{found.candidates:,} candidates, {len(found.every)} of them simulated with {found.load.policy}{ended}"
    )


def _rate(found: Plan) -> str:
    if not found.demand.follows:
        return f"{found.demand.rate_per_s:.3g}/s"
    return f"{found.demand.rate_per_s:.3g}/s or more (they follow from replies)"


def notes(found: Plan) -> list[str]:
    """What a reader has to know of the figures."""
    lines = [
        "attained: mean over seeds +- 95 % confidence; every seed attains, and by their spread a further one would"
    ]
    mixes = [answer.mix for answer in found.answers] + [loser.mix for loser in found.losers if loser.mix]
    guessed = sorted({v.card.name for mix in mixes for v, _ in mix.parts if not v.price.known})
    if guessed:
        lines.append(
            f"{EXAMPLE} of a price without a source, an example of the card table: {', '.join(guessed)}; "
            "give yours by --prices FILE"
        )
    dated = {v.card.name: v.price for mix in mixes for v, _ in mix.parts if v.price.known}
    lines += [
        f"{name}: ${price.usd_per_hour:g} an hour, {price.source}" + (f", {price.date}" if price.date else "")
        for name, price in sorted(dated.items())
    ]
    return lines


def print_plan(console: Console, found: Plan) -> None:
    """The ranking, the losers, the notes."""
    widen(console, 190)
    console.print(heading(found), highlight=False)
    if found.answers:
        print_whole(console, _ranking(found), keys=2)
    else:
        console.print("nothing attains the SLO", highlight=False)
    if found.losers:
        print_whole(console, _losers(found))
    for line in notes(found):
        console.print(line, style="dim", highlight=False)


def _ranking(found: Plan) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title="attains, the cheapest first", title_justify="left")
    for name in ("", "replicas", "cards", "USD/h", "USD/1M out", "attained", "p99", "binds"):
        right = name in {"cards", "USD/h", "USD/1M out"}
        table.add_column(name, justify="right" if right else "left", no_wrap=True)
    for rank, answer in enumerate(found.answers, 1):
        table.add_row(*answer_cells(found, rank, answer), style="bold" if rank == 1 else None)
    return table


def answer_cells(found: Plan, rank: int, answer: Answer) -> tuple[str, ...]:
    """One row of the ranking, as text."""
    return (
        str(rank),
        answer.mix.label,
        str(answer.mix.cards),
        usd(answer.mix, answer.mix.usd_per_hour),
        usd(answer.mix, answer.usd_per_million_tokens),
        attained_text(found, answer.played),
        p99_text(answer.played),
        answer.limit,
    )


def attained_text(found: Plan, played: Played) -> str:
    """``TTFT 99.61% +-0.20%, TPOT ...``."""
    shown = found.load.goals.shown
    return ", ".join(
        f"{shown(label)} {spread_text(mean, half, lambda x: f'{x:.2%}', 1.0)}"
        for label, (mean, half) in played.attained.items()
    )


def p99_text(played: Played) -> str:
    """The worst seed's 99th percentiles."""
    names = played.trials[0].p99_s
    worst = {name: max((one.p99_s[name] or 0.0 for one in played.trials), default=0.0) for name in names}
    return ", ".join(f"{name.upper()} {_seconds(value)}" for name, value in worst.items())


def _seconds(value: float) -> str:
    return f"{value * 1e3:.0f} ms" if value < 1 else f"{value:.2f} s"


def _losers(found: Plan) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title="loses", title_justify="left")
    table.add_column("candidate", no_wrap=True)
    table.add_column("USD/h at least", justify="right", no_wrap=True)
    table.add_column("why", overflow="fold")
    for loser in found.losers:
        table.add_row(loser.label, usd(loser.mix, loser.mix.usd_per_hour) if loser.mix else "", loser.why)
    return table


# ---- plain data -------------------------------------------------------------------


def plain_plan(found: Plan) -> dict[str, Any]:
    """The same for ``--json``."""
    demand, goals = found.demand, found.load.goals
    return {
        "load": {
            "traffic": list(found.load.source.traces),
            "requests": len(demand),
            "rate_per_s": demand.rate_per_s,
            "follows_from_replies": demand.follows,
            "prompt_tokens": float(demand.prompt_tokens.mean()),
            "output_tokens": float(demand.output_tokens.mean()),
        },
        "goals": [
            {"class": g.slo_class, "metric": g.metric, "bound_s": g.bound_s, "share": g.share} for g in goals.goals
        ],
        "policy": found.load.policy,
        "candidates": found.candidates,
        "simulated": len(found.every),
        "complete": found.complete,
        "answers": [_answer(answer) for answer in found.answers],
        "losers": [_loser(loser) for loser in found.losers],
        "notes": notes(found),
    }


def _answer(answer: Answer) -> dict[str, Any]:
    return {
        **_mix(answer.mix),
        "usd_per_million_output_tokens": answer.usd_per_million_tokens,
        "binds": answer.limit,
        "attained": _attained(answer.played.attained),
        "runs": [plain(one) for one in answer.played.trials],
    }


def _attained(shares: Mapping[str, tuple[float, float]]) -> dict[str, Any]:
    return {label: {"mean": mean, "half_width": half} for label, (mean, half) in shares.items()}


def _loser(loser: Loser) -> dict[str, Any]:
    facts: dict[str, Any] = {"candidate": loser.label, "why": loser.why, "binds": loser.limit or None}
    if loser.mix is not None:
        facts["at_least"] = _mix(loser.mix)
    if loser.played is not None:
        facts["runs"] = [plain(one) for one in loser.played.trials]
    return facts


def _mix(mix: Mix) -> dict[str, Any]:
    return {
        "candidate": mix.label,
        "replicas": mix.replicas,
        "cards": mix.cards,
        "usd_per_hour": mix.usd_per_hour,
        "price_known": mix.price_known,
        "parts": [
            {
                "card": v.card.name,
                "tp": v.tp,
                "pp": v.pp,
                "precision": v.precision,
                "engine": v.engine,
                "replicas": count,
            }
            for v, count in mix.parts
        ],
    }
