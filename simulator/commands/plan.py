"""The command ``plan``: the cheapest cards, layout, precision and engine that attain an SLO under a load."""

import shlex
from argparse import ArgumentParser, Namespace
from dataclasses import replace
from typing import Final

from rich.console import Console

from router.config.profile import read_profile
from router.core.cards import CARDS, Card, card
from router.core.coefficients import precision
from router.core.models import model
from router.core.profile import NO_PROFILE
from router.engines import find
from simulator.commands import planning_options
from simulator.commands.shared import plain_errors, wants_table, write_json
from simulator.experiment import Source, admission_of, executor_of, routing_of
from simulator.planning.demand import Demand, demand_of
from simulator.planning.files import POOL, ROUTER, write
from simulator.planning.goals import goals_of
from simulator.planning.plan import Effort, plan
from simulator.planning.prices import Prices, load_prices
from simulator.planning.trial import Load
from simulator.planning.variants import CONTEXT_TOKENS_MAX, Choices
from simulator.pool import Member, Pool
from simulator.report.planning import plain_plan, print_plan
from simulator.report.progress import progress
from simulator.workload.recipe import PREFIX, Recipe, parse_recipe

_SPAN_S: Final = 180.0
_LEAST: Final = 600
_MOST: Final = 3_000
_ROUNDS: Final = 10  # requests of each client of a closed loop
_DECIDE: Final = (
    "rate", "limit", "skip_bad", "goal", "cards", "tp", "pp", "precision", "kv_precision", "engines", "cards_most",
    "prices", "profile", "no_mixed", "policy", "admission", "seed", "seeds", "answers", "budget",
)  # fmt: skip
"""Options that decide the answer, beside model, traffic and SLO."""


def run(options: Namespace) -> int:
    """Search, rank, show, write; 1 if nothing attains the SLO."""
    with plain_errors():
        choices, load, demand = _typed(options)
    effort = Effort(options.seed, options.seeds, options.answers, options.budget, not options.no_mixed)
    notes = Console(stderr=True)
    with executor_of("processes", options.jobs) as executor, progress(notes, "plan", effort.budget) as tell:
        found = plan(choices, demand, load, effort, executor, tell)
    if wants_table(options.json):
        print_plan(Console(), found)
    if options.json is not None:
        write_json(options.json, plain_plan(found))
    if options.html is not None:
        from simulator.report.plan_page import write_page  # noqa: PLC0415 - only --html needs it

        write_page(options.html, found)
    if options.write is not None and found.answers:
        for rank, answer in enumerate(found.answers, 1):
            folder = options.write if rank == 1 else options.write / str(rank)
            write(folder, answer.mix, load, words(options), options.profile)
            notes.print(f"wrote {folder / POOL} and {folder / ROUTER}", highlight=False)
    return 0 if found.answers else 1


def words(options: Namespace) -> str:
    """The command line, shortened to what decides the answer."""
    given = ["plan", "--model", options.model, "--traffic", *options.traffic]
    given += [word for slo in options.slo for word in ("--slo", slo)]
    defaults = ArgumentParser()
    planning_options.plan(defaults)
    for name in _DECIDE:
        value = getattr(options, name)
        if value != defaults.get_default(name):
            given += [f"--{name.replace('_', '-')}", *_texts(value)]
    return "python -m simulator " + shlex.join(given)


def _texts(value: object) -> list[str]:
    """As it is typed behind its option; nothing behind a flag."""
    if value is True:
        return []
    return [",".join(map(str, value))] if isinstance(value, list) else [str(value)]


def _typed(options: Namespace) -> tuple[Choices, Load, Demand]:
    """Everything that was typed, checked."""
    goals = goals_of(options.slo, options.goal)
    routing_of(options.policy), admission_of(options.admission)
    prices = load_prices(options.prices)
    of = model(options.model)
    cards = tuple(card(name) for name in options.cards) or _priced(prices)
    for name in (*options.precision, options.kv_precision or "bf16"):
        precision(name)
    engines = tuple(_engine(name) for name in options.engines)
    choices = Choices(
        of,
        cards,
        tuple(options.tp),
        tuple(options.pp),
        tuple(options.precision),
        engines,
        prices,
        options.cards_most,
        read_profile(options.profile) if options.profile else NO_PROFILE,
        kv_precision=options.kv_precision,
    )
    stand_in = Pool((Member("a", cards[0], of.name),), goals.classes)  # arrivals need its model and classes alone
    source = _source(options, stand_in)
    demand = demand_of(source.arrivals(stand_in, options.seed))
    if options.rate is not None and not demand.follows:
        demand = replace(demand, rate_per_s=options.rate)  # what a seed draws differs a little
    choices = replace(choices, longest_tokens=min(demand.longest_tokens, CONTEXT_TOKENS_MAX))
    return choices, Load(source, goals, options.policy, options.admission, demand.models), demand


def _engine(text: str) -> str:
    """Its one name; with a version or an era, as it was typed. Raises UnknownEngine."""
    kind = find(text)
    return kind.name if find(kind.name) == kind else text.strip().lower()


def _priced(prices: Prices) -> tuple[Card, ...]:
    """The cards whose price has a source."""
    return tuple(each for each in CARDS.values() if prices.of(each).known)


def _source(options: Namespace, stand_in: Pool) -> Source:
    """The traffic at the rate that is asked for, and no more of it than a run needs."""
    source = Source(tuple(options.traffic), limit=options.limit, skip_bad=options.skip_bad)
    if source.traces[0].startswith(PREFIX):
        recipe = parse_recipe(source.traces[0])
        source = _generator(source, recipe, options)
        if recipe.kind != "curve":
            own_rate = recipe.rate * recipe.requests_each
            return source if options.rate is None else replace(source, rate=options.rate / own_rate)
    source = replace(source, limit=options.limit or _MOST)
    native = demand_of(source.arrivals(stand_in, options.seed)).rate_per_s
    rate = options.rate or native
    return replace(source, rate=rate / native, limit=options.limit or _count(rate))


def _generator(source: Source, recipe: Recipe, options: Namespace) -> Source:
    """A generator makes as many requests as a run needs, if it does not state how many or how long."""
    text = source.traces[0]
    if recipe.kind == "closed" and options.rate is not None:
        raise ValueError(f"--rate: {text!r} has none, its load is its clients: give clients=")
    if recipe.kind == "curve" or "requests=" in text or "period=" in text:
        return source
    joint = "," if ":" in text.removeprefix(PREFIX) else ":"
    return replace(source, traces=(f"{text}{joint}requests={options.limit or _needed(recipe, options.rate)}",))


def _needed(recipe: Recipe, rate: float | None) -> int:
    """Requests of three minutes; of loops, once as many have begun as end; of clients, so many rounds; of a day, as
    many as a run may have.
    """
    if recipe.kind == "diurnal":
        return _MOST
    if recipe.kind == "closed":
        return min(max(_LEAST, _ROUNDS * recipe.clients), max(_MOST, 2 * recipe.clients))
    per_s = rate or recipe.rate * recipe.requests_each
    return _count(per_s, _SPAN_S + recipe.pauses_s)


def _count(rate: float, span_s: float = _SPAN_S) -> int:
    """Requests of that time, within bounds."""
    return int(min(max(_LEAST, rate * span_s), _MOST))
