"""The cheapest numbers of replicas that serve the demand: an exact search over counts by branch and bound.

Demand comes in groups: kinds of requests that the same variants can serve. Groups that few variants serve are given
room first. Variants are few, so that no solver is needed: what is left of the demand costs at least its linear
relaxation, which ends most branches early. Must not depend on what demand is or how costs come about.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, inf
from typing import Final

NODES_MAX: Final = 20_000  # of the search: a second or two
KEPT: Final = 2  # mixes: the best, and the next
TINY: Final = 1e-9


@dataclass(frozen=True, slots=True)
class VariantOption:
    """One variant: ``serves`` requests a second of each group with one replica (0: none). ``cost`` of a replica over
    the time that a change has to pay for itself; ``order_cost`` of one beyond ``there``; ``usd_per_hour`` of one.
    """

    name: str
    serves: tuple[float, ...]
    cost: float
    order_cost: float
    there: int
    least: int
    most: int
    usd_per_hour: float = 0.0

    def price(self, count: int) -> float:
        """Of so many."""
        return count * self.cost + max(0, count - self.there) * self.order_cost


@dataclass(frozen=True, slots=True)
class ReplicaMix:
    """Replicas by variant, in the order of the options; ``cost`` with orders; ``short``: demand that is left;
    ``stopped_after``: mixes that had been looked at when the search ended at its limit (0: none that is better is
    left).
    """

    counts: tuple[int, ...]
    cost: float
    short: float
    stopped_after: int = 0


def cheapest_mixes(
    options: Sequence[VariantOption], demand: Sequence[float], usd_per_hour_max: float = inf
) -> list[ReplicaMix]:
    """The best mixes, best first: those that leave least demand, then those that cost least. At most two.

    No mix costs more than ``usd_per_hour_max`` an hour, except that no option has less than its least. They are exact,
    unless they state that the search stopped.
    """
    ordered = sorted(options, key=_worth)
    search = _Search(ordered, tuple(demand), usd_per_hour_max)
    search.visit((), 0.0)
    stopped = search.looked_at if search.nodes > NODES_MAX else 0
    places = [ordered.index(option) for option in options]
    return [
        ReplicaMix(tuple(mix.counts[place] for place in places), mix.cost, mix.short, stopped) for mix in search.best
    ]


def uncovered(options: Sequence[VariantOption], counts: Sequence[int], demand: Sequence[float]) -> float:
    """The demand that these replicas leave, in requests a second."""
    if len(demand) == 1:
        left = demand[0] - sum(count * option.serves[0] for option, count in zip(options, counts, strict=True))
        return left if left > TINY else 0.0
    room = [float(count) for count in counts]  # replicas of each variant that are still free
    short = 0.0
    order = sorted(range(len(demand)), key=lambda group: sum(option.serves[group] > 0.0 for option in options))
    for group in order:
        left = demand[group]
        for index in sorted(range(len(options)), key=lambda index: _others(options[index], group)):
            serves = options[index].serves[group]
            if serves > 0.0 and left > TINY:
                used = min(room[index], left / serves)
                room = [free - used if at == index else free for at, free in enumerate(room)]
                left -= used * serves
        short += left if left > TINY else 0.0
    return short


def _others(option: VariantOption, group: int) -> tuple[int, float]:
    """What a variant is worth to other groups: how many it serves, and how much of one in place of this. The variant
    that is worth least to others is filled first.
    """
    others = [serves for at, serves in enumerate(option.serves) if at != group and serves > 0.0]
    own = option.serves[group]
    return len(others), max(others) / own if others and own > 0.0 else 0.0


def _worth(option: VariantOption) -> float:
    """Cost of a request a second."""
    most = max(option.serves, default=0.0)
    return option.cost / most if most else inf


class _Search:
    """Depth first, the cheapest variant per request first."""

    def __init__(self, options: Sequence[VariantOption], demand: tuple[float, ...], usd_per_hour_max: float) -> None:
        self.options, self.demand, self.usd_per_hour_max = options, demand, usd_per_hour_max
        self.best: list[ReplicaMix] = []
        self.nodes = 0
        self.looked_at = 0  # mixes
        self.values = [self._values(at) for at in range(len(self.options) + 1)]

    def _values(self, at: int) -> tuple[list[float], float]:
        """Prices of the linear relaxation, where the variants from that place on are left to choose: what a replica of
        each variant is worth at most, and what all of the demand costs at least.
        """
        costs = [
            min((each.cost / each.serves[group] for each in self.options[at:] if each.serves[group] > 0.0), default=0.0)
            for group in range(len(self.demand))
        ]
        worths = [
            max((cost * serves for cost, serves in zip(costs, each.serves, strict=True)), default=0.0)
            for each in self.options
        ]
        return worths, sum(cost * rate for cost, rate in zip(costs, self.demand, strict=True))

    def visit(self, counts: tuple[int, ...], cost: float) -> None:
        """Try every number of the next variant that may still be among the best."""
        self.nodes += 1
        if self.nodes > NODES_MAX:
            return
        at = len(counts)
        rest = self.options[at:]
        if not rest:
            self.looked_at += 1
            short = uncovered(self.options, counts, self.demand)
            self.best = sorted([*self.best, ReplicaMix(counts, cost, short)], key=lambda mix: (mix.short, mix.cost))[
                :KEPT
            ]
            return
        option, most = rest[0], self._most(counts)
        if len(rest) == 1:
            self._last(counts, cost, option, most)
            return
        for count in range(most, option.least - 1, -1):
            price = cost + option.price(count)
            if not self._hopeless((*counts, count), price):
                self.visit((*counts, count), price)

    def _most(self, counts: tuple[int, ...]) -> int:
        """No more than would serve all that the variant can serve."""
        option = self.options[len(counts)]
        needed = sum(rate / serves for rate, serves in zip(self.demand, option.serves, strict=True) if serves > 0.0)
        wanted = ceil(min(needed, option.most) - TINY)
        return max(option.least, min(wanted, option.most, self._affordable(counts)))

    def _affordable(self, counts: tuple[int, ...]) -> int:
        """How many of the next variant the budget leaves, with the least of those after it."""
        option, after = self.options[len(counts)], self.options[len(counts) + 1 :]
        spent = sum(each.usd_per_hour * count for each, count in zip(self.options, counts, strict=False))
        left = self.usd_per_hour_max - spent - sum(each.usd_per_hour * each.least for each in after)
        if option.usd_per_hour <= 0.0 or left == inf:
            return option.most
        return max(0, min(option.most, int(left / option.usd_per_hour + TINY)))

    def _last(self, counts: tuple[int, ...], cost: float, option: VariantOption, most: int) -> None:
        """Of the last variant the fewest that leave no more than the most would."""
        least_short = uncovered(self.options, (*counts, most), self.demand)
        low, high = option.least, most
        while low < high:
            middle = (low + high) // 2
            if uncovered(self.options, (*counts, middle), self.demand) <= least_short + TINY:
                high = middle
            else:
                low = middle + 1
        for count in (low, low + 1):
            if count <= max(low, min(option.most, self._affordable(counts))):
                self.visit((*counts, count), cost + option.price(count))

    def _hopeless(self, counts: tuple[int, ...], cost: float) -> bool:
        """Whether two mixes are known that no mix which begins like this can be better than."""
        if len(self.best) < KEPT:
            return False
        worst = self.best[1]
        if worst.short <= TINY:
            worths, whole = self.values[len(counts)]
            rest = whole - sum(count * worth for count, worth in zip(counts, worths, strict=False))
            return cost + max(rest, 0.0) >= worst.cost
        short = self._short(counts)
        return short > worst.short + TINY or (short > worst.short - TINY and cost >= worst.cost)

    def _short(self, counts: tuple[int, ...]) -> float:
        """The demand that is left at least, with as many of the other variants as there may be."""
        most = [*counts, *(option.most for option in self.options[len(counts) :])]
        by_group = [
            rate - sum(count * option.serves[group] for count, option in zip(most, self.options, strict=True))
            for group, rate in enumerate(self.demand)
        ]
        return sum(left for left in by_group if left > TINY)
