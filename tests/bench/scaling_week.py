"""A week of real rates on a mixed catalogue of cards: the scaling policy, a static pool and a clairvoyant plan.

``python -m tests.bench.scaling_week --workload language/m-small`` reads ServeGen's rates (alibaba/ServeGen, by ten
minutes; joined by straight lines) and plays them as a fluid (``fluid.py``), every request counted. Static pool and plan
are the cheapest of their kind that attain the goal: both are searched for by playing the whole week. ``--drawn walk``
plays weeks that are drawn, for no constant may fit the real ones alone. Progress goes to stderr.
"""

import argparse
import sys
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from math import ceil
from pathlib import Path
from typing import Final

import policies
from router.core.capacity import Traffic, capacity
from router.core.decisions import ScaleTo
from router.core.mixes import VariantOption, cheapest_mixes
from router.core.policy import Scaling
from router.core.scaling import Demand
from router.core.types import Slo
from simulator.experiment.confidence import interval
from simulator.pool import Member
from tests.bench.fluid import Fluid, FluidOutcome, FluidVariant, FluidWorld, Kind, variant_of
from tests.bench.scaling_worlds import DAY_S, DRAWN, RATES, Rate, curve, drawn, rate_of

SLO: Final = Slo(ttft_s=1.0, tpot_s=0.06)
KINDS: Final = (Kind(0.85, 700.0, 200.0, SLO), Kind(0.15, 4000.0, 300.0, SLO))
CATALOGUE: Final = (Member("l40s", "l40s"), Member("a100", "a100-80g-sxm"), Member("h100", "h100"))
GOAL: Final = 0.99
SEARCHES: Final = 7
START_S: Final = 120.0
PERIOD_S: Final = 30.0
AHEAD_S: Final = tuple(PERIOD_S * number for number in range(ceil(START_S / PERIOD_S) + 2))


class Static:
    """The same replicas all the time."""

    def __init__(self, counts: Mapping[str, int]) -> None:
        self.counts = counts

    def scale(self, demand: Demand) -> Sequence[ScaleTo]:
        """As they are."""
        return [ScaleTo(name, self.counts[name], "static") for name in demand.variants]


class Plan:
    """The cheapest mix for the highest rate until a replica that is ordered now would serve, times a margin."""

    def __init__(self, of: Fluid, mix: Callable[[float], Mapping[str, int]], margin: float) -> None:
        self.of, self.mix, self.margin = of, mix, margin

    def scale(self, demand: Demand) -> Sequence[ScaleTo]:
        """All that is to come is known."""
        now_s, rate = self.of.now_s, self.of.world.rate
        most = max(rate(now_s + ahead_s) for ahead_s in AHEAD_S)
        counts = self.mix(upwards(most * self.margin))
        return [ScaleTo(name, counts[name], "planned") for name in demand.variants]


def upwards(rate: float) -> float:
    """To a tenth of a request a second, so that mixes are few."""
    return ceil(rate * 10.0) / 10.0


def mixes(variants: Sequence[FluidVariant]) -> Callable[[float], Mapping[str, int]]:
    """The cheapest replicas by rate."""
    traffic = [
        Traffic(kind.share, kind.prompt_tokens, kind.output_tokens, kind.slo, kind.slo.quantile) for kind in KINDS
    ]
    serves = {each.name: capacity(each.pattern, traffic).requests_per_s for each in variants}
    options = [VariantOption(v.name, (serves[v.name],), v.usd_per_s, 0.0, 0, 0, 256) for v in variants]

    @lru_cache(maxsize=4096)
    def mix(rate: float) -> Mapping[str, int]:
        (best, *_) = cheapest_mixes(options, [rate])
        return {variant.name: count for variant, count in zip(variants, best.counts, strict=True)}

    return mix


def cheapest(play: Callable[[float], FluidOutcome], low: float, high: float) -> tuple[float, FluidOutcome]:
    """The least of a setting that attains the goal, and what came of it."""
    found = play(high)
    for _ in range(SEARCHES):
        middle = 0.5 * (low + high)
        tried = play(middle)
        if tried.attained >= GOAL:
            high, found = middle, tried
        else:
            low = middle
    return high, found


class Week:
    """One workload under one seed."""

    def __init__(self, rate: Rate, mean_per_s: float, until_s: float, seed: int, catalogue: Sequence[Member]) -> None:
        self.seed, self.mean_per_s = seed, mean_per_s
        self.variants = tuple(variant_of(member, KINDS, seed) for member in catalogue)
        self.mix = mixes(self.variants)
        first = self.mix(upwards(rate(0.0) * 1.2))
        self.world = FluidWorld(rate, until_s, KINDS, self.variants, START_S, PERIOD_S, 1, 256, first)

    def play(self, make: Callable[[Fluid], Scaling], name: str = "", *, measured: bool = True) -> FluidOutcome:
        """Under one scaler."""
        shown = [-1]

        def progress(share: float) -> None:
            if name and int(share * 20) > shown[0]:
                shown[0] = int(share * 20)
                print(f"\r{name}: {share:.0%} of the week", end="\n" if share >= 1 else "", file=sys.stderr, flush=True)

        return Fluid(self.world, make, self.seed, measured=measured).run(progress)

    def static(self) -> FluidOutcome:
        """The cheapest static pool that attains the goal."""

        def play(times: float) -> FluidOutcome:
            counts = self.mix(upwards(times * self.mean_per_s))
            world = self.world
            fixed = FluidWorld(world.rate, world.until_s, KINDS, self.variants, START_S, DAY_S, 1, 256, counts)
            return Fluid(fixed, lambda _: Static(counts), self.seed, measured=False).run()

        return cheapest(play, 0.8, 3.5)[1]

    def clairvoyant(self) -> FluidOutcome:
        """The cheapest plan that attains it."""
        return cheapest(self._planned, 0.7, 1.5)[1]

    def _planned(self, margin: float) -> FluidOutcome:
        return self.play(lambda of: Plan(of, self.mix, margin), measured=False)


def joined(path: Path, workload: str, mean_per_s: float) -> Rate:
    """The rates of a week, joined by straight lines between the middles of their windows."""
    of = curve(path, workload)
    steps = rate_of(of, mean_per_s)
    middles = [at_s - of.from_s[0] + 300.0 for at_s in of.from_s]
    rates = [steps(at_s) for at_s in middles]

    def rate(at_s: float) -> float:
        right = bisect_left(middles, at_s)
        if not 0 < right < len(middles):
            return rates[min(right, len(rates) - 1)]
        share = (at_s - middles[right - 1]) / (middles[right] - middles[right - 1])
        return rates[right - 1] + share * (rates[right] - rates[right - 1])

    return rate


HEAD: Final = f"{'policy':<14}{'attained':>18}{'replicas':>16}{'changes':>9}{'USD':>18}{'of static':>18}"


def line(name: str, found: Sequence[FluidOutcome], static: Sequence[FluidOutcome]) -> str:
    """One row: means and half of their 95 % intervals over the seeds."""

    def both(values: Sequence[float], form: str) -> str:
        mean, half = interval(values)
        return f"{mean:{form}}" + (f" +-{half:{form}}" if len(values) > 1 else "")

    shares = [each.usd / other.usd for each, other in zip(found, static, strict=True)]
    return (
        f"{name:<14}{both([each.attained for each in found], '.2%'):>18}"
        f"{both([each.replicas for each in found], '.1f'):>16}{sum(e.changes for e in found) / len(found):>9.0f}"
        f"{both([each.usd for each in found], '.0f'):>18}{both(shares, '.3f'):>18}"
    )


def table(name: str, weeks: Sequence[Week], policy: Scaling) -> None:
    """Of one workload, a week for each seed."""
    static = [week.static() for week in weeks]
    print(f"\n{name}\n{HEAD}\n{line('static', static, static)}", flush=True)
    clairvoyant = [week.clairvoyant() for week in weeks]
    print(line("clairvoyant", clairvoyant, static), flush=True)
    found = [week.play(lambda _: policy, "headroom") for week in weeks]
    print(line("headroom", found, static), flush=True)
    mean, half = interval([each.usd / other.usd for each, other in zip(found, clairvoyant, strict=True)])
    print(f"of clairvoyant's cost: {mean:.3f}" + (f" +-{half:.3f}" if len(weeks) > 1 else ""), flush=True)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rates", type=Path, default=RATES)
    parser.add_argument("--workload", action="append", help="language/m-large, m-mid or m-small")
    parser.add_argument("--drawn", action="append", help=f"{', '.join(DRAWN)}: weeks kept aside, another for each seed")
    parser.add_argument("--mean", type=float, default=60.0, help="requests a second")
    parser.add_argument("--days", type=float, default=7.0)
    parser.add_argument("--seeds", type=int, default=1)
    asked = parser.parse_args()
    policy, until_s, seeds = (
        policies.find("scaling", "headroom", {"replicas_max": 256}),
        asked.days * DAY_S,
        asked.seeds,
    )
    text = f"{asked.days:g} days at {asked.mean:g} requests a second, {seeds} seeds"
    for workload in asked.workload or (
        [] if asked.drawn else ["language/m-large", "language/m-mid", "language/m-small"]
    ):
        rate = joined(asked.rates, workload, asked.mean)
        table(
            f"{workload}, {text}", [Week(rate, asked.mean, until_s, seed, CATALOGUE) for seed in range(seeds)], policy
        )
    for name in asked.drawn or []:
        rates = [drawn(name, seed, asked.mean, until_s) for seed in range(seeds)]
        weeks = [Week(rate, asked.mean, until_s, seed, CATALOGUE) for seed, rate in enumerate(rates)]
        table(f"{name}, {text}", weeks, policy)


if __name__ == "__main__":
    main()
