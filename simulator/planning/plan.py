"""From choices and a load to a ranking: what attains, the cheapest first, and why each other loses.

Must not depend on how it is shown.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from statistics import mean
from typing import Final

from simulator.planning.demand import Demand
from simulator.planning.families import Family, alone, mixed
from simulator.planning.fluid import Bound, bound, never
from simulator.planning.goals import Goals
from simulator.planning.search import Bracket, Played, Search, search
from simulator.planning.trial import Load
from simulator.planning.variants import Choices, Mix, variants

UNDECIDED: Final = "undecided: the simulations were used up"
_HOUR_S: Final = 3_600.0
_CENT: Final = 0.01


@dataclass(frozen=True, slots=True)
class Answer:
    """A candidate that attains. ``limit``: what binds the replicas of which it has most."""

    played: Played
    limit: str
    usd_per_million_tokens: float

    @property
    def mix(self) -> Mix:
        """What it consists of."""
        return self.played.mix


@dataclass(frozen=True, slots=True)
class Loser:
    """A family that does not win. ``mix``: the cheapest of it that may attain; None: nothing of it can."""

    label: str
    why: str
    mix: Mix | None = None
    limit: str = ""
    played: Played | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """The ranking. ``complete``: nothing cheaper was left to simulate; ``every``: all that was simulated."""

    answers: tuple[Answer, ...]
    losers: tuple[Loser, ...]
    every: tuple[Played, ...]
    demand: Demand
    load: Load
    candidates: int
    complete: bool


@dataclass(frozen=True, slots=True)
class Effort:
    """How much is simulated. ``budget``: requests in all; ``answers``: families that attain, before it ends."""

    seed: int = 0
    seeds: int = 5
    answers: int = 3
    budget: int = 80_000
    mixes: bool = True


def plan(
    choices: Choices, demand: Demand, load: Load, effort: Effort, executor: Executor, done: Callable[[int], None]
) -> Plan:
    """Enumerate, bound, simulate what may attain, rank."""
    fit, unfit = variants(choices)
    bounds = [bound(variant, demand) for variant in fit]
    share = min(goal.share for goal in load.goals.goals)
    families, excluded = _families(bounds, demand, load.goals, share)
    pairs = mixed(bounds, demand, share) if effort.mixes else []
    found = search(
        [*families, *pairs],
        load,
        executor,
        seed=effort.seed,
        seeds=effort.seeds,
        answers=effort.answers,
        budget=effort.budget,
        done=done,
    )
    answers = _answers(found, demand)
    losers = [*_dearer(found, answers), *excluded, *(Loser(each.variant.label, each.why) for each in unfit)]
    return Plan(
        tuple(answers),
        tuple(losers),
        tuple(found.every),
        demand,
        load,
        len(fit) + len(unfit) + len(pairs),
        found.complete,
    )


def _families(bounds: Sequence[Bound], demand: Demand, goals: Goals, share: float) -> tuple[list[Family], list[Loser]]:
    """Of one make each; and those that no number of replicas makes attain, with the reason."""
    shares = {metric: min(g.share for g in goals.goals if g.metric == metric) for metric in _metrics(goals)}
    families: list[Family] = []
    excluded: list[Loser] = []
    for each in bounds:
        why = never(each, demand, shares)
        family = None if why else alone(each, demand, share)
        if family is not None:
            families.append(family)
            continue
        excluded.append(Loser(each.variant.label, why or _too_many(each, demand), limit=each.whole.limit))
    return families, excluded


def _metrics(goals: Goals) -> set[str]:
    return {goal.metric for goal in goals.goals}


def _too_many(of: Bound, demand: Demand) -> str:
    needed = demand.rate_per_s / of.whole.rate_per_s
    return f"{of.whole.limit}: needs {needed:,.0f} replicas"


# ---- the ranking -------------------------------------------------------------------


def _answers(found: Search, demand: Demand) -> list[Answer]:
    return [
        Answer(b.best, _limit(b.family), b.best.mix.usd_per_hour / (_HOUR_S * _tokens_per_s(b.best, demand)) * 1e6)
        for b in found.found
        if b.best is not None
    ]


def _tokens_per_s(played: Played, demand: Demand) -> float:
    """Output tokens: of the load; where that follows from replies, of what came about."""
    if not demand.follows:
        return demand.rate_per_s * float(demand.output_tokens.mean())
    return mean(one.output_tokens / one.span_s for one in played.trials)


def _limit(family: Family) -> str:
    return family.grows.whole.limit or family.grows.part.limit


def _dearer(found: Search, answers: Sequence[Answer]) -> list[Loser]:
    """Families that were left, by what they would cost at least."""
    left = sorted((b for b in found.brackets if b.best is None), key=lambda bracket: (bracket.hopeless, bracket.cost))
    return [_left(bracket, answers, found.load.goals) for bracket in left]


def _left(bracket: Bracket, answers: Sequence[Answer], goals: Goals) -> Loser:
    family = bracket.family
    next_mix = family.mix(bracket.low + 1)
    label = family.grows.variant.label if family.beside is None else next_mix.label
    why = _missed(bracket.failed, goals) if bracket.failed is not None else _needed(family, next_mix)
    if bracket.hopeless:
        return Loser(label, f"{why}, and more replicas do not help", None, _limit(family), bracket.failed)
    return Loser(label, f"{why}; {_against(next_mix, answers)}", next_mix, _limit(family), bracket.failed)


def _against(mix: Mix, answers: Sequence[Answer]) -> str:
    """How the least that it can cost compares with the winner."""
    if not answers or mix.order < answers[0].mix.order:
        return UNDECIDED
    best = answers[0].mix.usd_per_hour
    word = "dearer" if mix.usd_per_hour > best + _CENT / 2 else "no cheaper"
    return f"{word} than ${best:.2f}/h"


def _needed(family: Family, mix: Mix) -> str:
    if family.beside is not None:
        return "by the fluid bound no fewer serve the load"
    flow = family.grows.whole
    return f"at most {flow.rate_per_s:.2f} requests/s a replica ({flow.limit} binds), so at least {mix.replicas}"


def _missed(played: Played, goals: Goals) -> str:
    """The goal that was missed by most, under the worst seed."""
    worst = min(played.trials, key=lambda one: one.margin)
    label = min(worst.attained, key=lambda name: worst.attained[name] - goals.share_of(name), default="slo")
    within = f"{played.mix.label}: {goals.shown(label)} within its bound for {worst.attained.get(label, 0.0):.1%}"
    if all(one.met for one in played.trials):
        return f"{within} at worst, and by the spread of seeds a further one would miss {goals.share_of(label):.1%}"
    after = f" of the first {worst.requests:,}" if worst.broken_off else ""
    return f"{within}{after}, not {goals.share_of(label):.1%}"


def frontier(every: Sequence[Played]) -> list[Played]:
    """Those of which nothing that costs as much or less attains more: the cheapest first."""
    kept: list[Played] = []
    for one in sorted(every, key=lambda played: (played.mix.order, -played.margin)):
        if not kept or one.margin > kept[-1].margin:
            kept.append(one)
    return kept
