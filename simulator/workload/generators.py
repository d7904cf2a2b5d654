"""Workloads without a trace: ``gen:KIND:key=value,...``, from published statistics.

* ``poisson`` (rate, requests): memoryless.
* ``gamma`` (rate, requests, cv): bursts; gaps are gamma with coefficient of variation ``cv`` (BurstGPT, arXiv
  2401.17644: 1 to 4).
* ``diurnal`` (rate, requests, peak, period): days whose highest rate is exactly ``peak`` times their mean ``rate``
  (ServeGen, arXiv 2505.09999: 1.4 to 2.8) and whose nights never fall below 0.15 of it. Without
  ``requests`` one whole period, without ``period`` one as long as the requests last.
* ``curve`` (rates, workload, rate, start, span): a Poisson process whose rate is read from a CSV file of times and
  rates, such as ServeGen's (``rate_curve.py``); ``rate`` scales its mean.
* ``closed`` (clients, think, requests): ``clients`` clients that each send again ``think`` (mean) after a reply.
* ``sessions`` (rate, requests, turns, think, system): conversations that begin at ``rate``, of ``turns`` turns (mean,
  geometric) with ``think`` between them; each prompt holds all earlier turns, and a system prompt of
  ``system`` tokens that all share.
* ``agents`` (rate, requests, turns, think, steps, tool, fork, branches, system): tasks that begin at ``rate``; see
  ``agents.py``.

Lengths of every kind: ``lengths=azure-conv`` (default), ``azure-code``, a trace file to draw pairs from, or
``prompt=`` and ``output=``: fixed, or with ``sigma=`` log-normal about these means. Every draw comes from the run's
seed.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import islice
from math import inf
from pathlib import Path
from random import Random
from typing import Final

from simulator.traces import TraceEntry
from simulator.workload.agents import Agents
from simulator.workload.arrival_times import by_curve, diurnal, gamma, poisson
from simulator.workload.arrivals import Arrival, Shaper, Shaping, shape
from simulator.workload.lengths import PUBLISHED, Lengths, lengths_of
from simulator.workload.loops import UNIT_TOKENS, ClosedLoop, Sessions
from simulator.workload.rate_curve import read_curve
from simulator.workload.recipe import PREFIX, Recipe, parse_recipe

LOOPS: Final = ("closed", "sessions", "agents")  # whose later arrivals follow from earlier ends


def generate(recipe: Recipe, how: Shaping, seed: int) -> Sequence[Arrival] | ClosedLoop | Sessions | Agents:
    """The workload of a recipe, shaped. Raises ValueError, or OSError if a file cannot be read."""
    if recipe.kind not in LOOPS:
        return _independent(recipe, how, seed)
    if how.from_s or how.to_s != inf:
        raise ValueError(f"--window cuts a trace; in gen:{recipe.kind} later requests follow from earlier ends")
    if recipe.kind == "closed" and how.rate != 1.0:
        raise ValueError("--rate: gen:closed has no rate, its load is its clients; give clients=")
    if how.limit is not None:
        recipe = replace(recipe, requests=min(recipe.requests, how.limit))
    draw = Random(f"{seed}/{recipe.kind}")
    scaled = replace(recipe, rate=recipe.rate * how.rate)
    lengths, shaper = _lengths(recipe, draw), Shaper(how, seed)
    if recipe.kind == "agents":
        return Agents(scaled, lengths, shaper, draw)
    if recipe.kind == "sessions":
        return Sessions(scaled, lengths, shaper, draw)
    return ClosedLoop(scaled, lengths, shaper, draw)


@lru_cache(maxsize=1)
def _independent(recipe: Recipe, how: Shaping, seed: int) -> Sequence[Arrival]:
    """Arrivals that depend on nothing else; cached, for every policy of a comparison is given the same."""
    draw = Random(f"{seed}/{recipe.kind}")
    lengths = _lengths(recipe, draw)
    count = how.limit if how.to_s == inf and not how.from_s else None
    arrivals = shape([TraceEntry(at_s, *lengths()) for at_s in islice(_times(recipe, draw), count)], how, seed)
    if not arrivals:
        raise ValueError(f"gen:{recipe.kind}: no requests in this part of it")
    return arrivals


def _lengths(recipe: Recipe, draw: Random) -> Lengths:
    return lengths_of(recipe.lengths, recipe.prompt, recipe.output, recipe.sigma, draw)


def _times(recipe: Recipe, draw: Random) -> Iterator[float]:
    if recipe.kind == "diurnal":
        yield from diurnal(recipe.requests, recipe.rate, recipe.peak, recipe.period, draw)
    elif recipe.kind == "curve":
        curve = read_curve(Path(recipe.rates), recipe.workload).part(recipe.start, recipe.span or inf)
        yield from by_curve(curve, recipe.rate / curve.mean if recipe.rate else 1.0, draw)
    else:
        endless = gamma(recipe.rate, recipe.cv, draw) if recipe.kind == "gamma" else poisson(recipe.rate, draw)
        for _ in range(recipe.requests):
            yield next(endless)


__all__ = [
    "PREFIX",
    "PUBLISHED",
    "UNIT_TOKENS",
    "Agents",
    "ClosedLoop",
    "Recipe",
    "Sessions",
    "generate",
    "parse_recipe",
]
