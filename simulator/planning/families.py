"""Candidates in families: one variant in growing number, alone or beside a fixed number of another.

By the fluid bound a family may serve the load from some number on; below it nothing is simulated. A mixed pool also
serves what no single make can: long prompts go to one, and the rest to the cheaper other.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Final

from simulator.planning.demand import Demand
from simulator.planning.fluid import Bound
from simulator.planning.variants import Mix

REPLICAS_MOST: Final = 256
_MIXED_AMONG: Final = 8
_FIXED_MOST: Final = 8
_MIXES_MOST: Final = 60
_SPARE: Final = 4
_SPARE_OF_LOOPS: Final = 16  # where fast replies bring more requests than the slowest that attain, by which it is bound


@dataclass(frozen=True, slots=True)
class Family:
    """``fixed`` replicas of one bound's variant (0: none) beside a growing number of another's, ``least`` at least.

    ``spare``: so many times as many replicas and more do not help, since each has next to nothing to do then.
    """

    grows: Bound
    least: int
    beside: Bound | None = None
    fixed: int = 0
    spare: int = 4

    @property
    def most(self) -> int:
        """Beyond that number more of them do not help."""
        return min(REPLICAS_MOST, self.spare * self.least + 2)

    def mix(self, count: int) -> Mix:
        """Its candidate with *count* of the growing one."""
        parts = [(self.grows.variant, count)]
        if self.beside is not None:
            parts.append((self.beside.variant, self.fixed))
        return Mix(tuple(sorted(parts, key=lambda part: (-part[0].usd_per_hour, part[0].name))))


def alone(bound: Bound, demand: Demand, share: float) -> Family | None:
    """The family of one make; None where it would need more than ``REPLICAS_MOST``."""
    least = max(1, ceil(demand.rate_per_s * share / bound.whole.rate_per_s - 1e-9))
    return Family(bound, least, spare=_spare(demand)) if least <= REPLICAS_MOST else None


def _spare(demand: Demand) -> int:
    return _SPARE_OF_LOOPS if demand.follows else _SPARE


def mixed(bounds: Sequence[Bound], demand: Demand, share: float) -> list[Family]:
    """Pools of two makes, the cheapest first.

    *bounds*: of every variant; those that can serve a part of the load in time are taken.
    """
    chosen = _distinct(sorted((b for b in bounds if b.part.rate_per_s > 0), key=_usd_per_request))
    found = {family.mix(family.least).label: family for family in _pairs(chosen, demand, share)}
    return sorted(found.values(), key=lambda family: family.mix(family.least).order)[:_MIXES_MOST]


def _usd_per_request(bound: Bound) -> tuple[float, str]:
    return bound.variant.usd_per_hour / bound.part.rate_per_s, bound.variant.name


def _distinct(bounds: Sequence[Bound]) -> list[Bound]:
    """The best few, at most two of a card: a small and a large one."""
    kept: list[Bound] = []
    for bound in bounds:
        if sum(bound.variant.card.name == other.variant.card.name for other in kept) < 2:  # noqa: PLR2004
            kept.append(bound)
    return kept[:_MIXED_AMONG]


def _pairs(bounds: Sequence[Bound], demand: Demand, share: float) -> Iterator[Family]:
    for beside in bounds:
        enough = ceil(demand.rate_per_s * share / beside.part.rate_per_s)
        for grows in bounds:
            if beside is grows:
                continue
            for fixed in range(1, min(enough, _FIXED_MOST) + 1):
                least = _least(grows, beside, fixed, demand, share)
                if least:
                    yield Family(grows, least, beside, fixed, _spare(demand))


def _least(grows: Bound, beside: Bound, fixed: int, demand: Demand, share: float) -> int:
    """How many of *grows*, at least one, serve what *fixed* of *beside* leave; 0: no number is enough.

    What only one of the two serves in time, that one has to serve.
    """
    if (grows.idle.met | beside.idle.met).mean() < share:
        return 0
    missable = 1.0 - share
    theirs = demand.rate_per_s * max(0.0, float((beside.idle.met & ~grows.idle.met).mean()) - missable)
    own = demand.rate_per_s * max(0.0, float((grows.idle.met & ~beside.idle.met).mean()) - missable)
    if theirs > fixed * beside.part.rate_per_s:
        return 0
    left = max(own, demand.rate_per_s * share - fixed * beside.part.rate_per_s)
    needed = max(1, ceil(left / grows.part.rate_per_s - 1e-9))
    return needed if needed <= REPLICAS_MOST else 0
