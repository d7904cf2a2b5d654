"""The command ``plan``: the cheapest cards, layout, precision and engine that attain an SLO under a load."""

import shlex
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

from rich.console import Console

from router.config.profile import read_profile
from router.core.cards import CARDS, Card, card
from router.core.coefficients import precision
from router.core.models import model
from router.core.profile import NO_PROFILE
from router.engines import find
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
from simulator.workload.arrivals import Arrival
from simulator.workload.recipe import PREFIX, parse_recipe

_SPAN_S: Final = 180.0
_LEAST: Final = 600
_MOST: Final = 3_000
_COUNTED: Final = ("poisson", "gamma")
_LOOPS: Final = ("closed", "sessions", "agents")


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
        write(options.write, found.answers[0].mix, load.goals, load.models, _words(options), options.profile)
        notes.print(f"wrote {options.write / POOL} and {options.write / ROUTER}", highlight=False)
    return 0 if found.answers else 1


def _words(options: Namespace) -> str:
    """The command line, shortened to what decides the answer."""
    given = ["plan", "--model", options.model, "--traffic", *options.traffic]
    given += [word for slo in options.slo for word in ("--slo", slo)]
    if options.rate is not None:
        given += ["--rate", f"{options.rate:g}"]
    return "python -m simulator " + shlex.join(given)


def _typed(options: Namespace) -> tuple[Choices, Load, Demand]:
    """Everything that was typed, checked."""
    goals = goals_of(options.slo, options.goal)
    routing_of(options.policy), admission_of(options.admission)
    prices = load_prices(options.prices)
    of = model(options.model)
    cards = tuple(card(name) for name in options.cards) or _priced(prices)
    for name in options.precision:
        precision(name)
    engines = tuple(find(name).name for name in options.engines)
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
    )
    stand_in = Pool((Member("a", cards[0], of.name),), goals.classes)  # arrivals need its model and classes alone
    source = _source(options, stand_in)
    demand = demand_of(_arrivals(source, stand_in, options.seed))
    if options.rate is not None:
        demand = replace(demand, rate_per_s=options.rate)  # what a seed draws differs a little
    choices = replace(choices, longest_tokens=min(demand.longest_tokens, CONTEXT_TOKENS_MAX))
    return choices, Load(source, goals, options.policy, options.admission, demand.models), demand


def _priced(prices: Prices) -> tuple[Card, ...]:
    """The cards whose price has a source."""
    return tuple(each for each in CARDS.values() if prices.of(each).known)


def _source(options: Namespace, stand_in: Pool) -> Source:
    """The traffic at the rate that is asked for, and no more of it than a run needs."""
    traces = tuple(options.traffic)
    own_rate = None
    if traces[0].startswith(PREFIX):
        traces, own_rate = _generator(traces[0], options)
    source = Source(traces, limit=options.limit, skip_bad=options.skip_bad)
    if own_rate is not None:
        return source if options.rate is None else replace(source, rate=options.rate / own_rate)
    source = replace(source, limit=options.limit or _MOST)
    native = demand_of(_arrivals(source, stand_in, options.seed)).rate_per_s
    rate = options.rate or native
    return replace(source, rate=rate / native, limit=options.limit or _count(rate))


def _generator(text: str, options: Namespace) -> tuple[tuple[str], float]:
    """A generator that makes as many requests as a run needs, if it does not state how many; and its own rate."""
    recipe = parse_recipe(text)
    if recipe.kind in _LOOPS:
        raise ValueError(
            f"--traffic {text!r}: arrivals of gen:{recipe.kind} follow from replies, so a slower pool gets fewer; "
            "expected a trace or another generator"
        )
    if recipe.kind in _COUNTED and "requests=" not in text:
        joint = "," if ":" in text.removeprefix(PREFIX) else ":"
        text += f"{joint}requests={options.limit or _count(options.rate or recipe.rate)}"
    return (text,), recipe.rate


def _count(rate: float) -> int:
    """Requests of three minutes, within bounds."""
    return int(min(max(_LEAST, rate * _SPAN_S), _MOST))


def _arrivals(source: Source, stand_in: Pool, seed: int) -> Sequence[Arrival]:
    arrivals: Any = source.arrivals(stand_in, seed)
    return list(arrivals)
