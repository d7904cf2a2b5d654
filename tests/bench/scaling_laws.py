"""What a scaling policy may not do over time, in worlds that are drawn: each law gives what is wrong, or nothing.

``python -m tests.bench.scaling_laws --seeds 200`` tries them all and prints what they found. Worlds are fluids
(``fluid.py``): other cards, models, lengths, start times, periods and rates for each seed.
"""

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from random import Random
from typing import Final

import policies
from simulator.pool import Member
from tests.bench.fluid import BUCKET_S, Fluid, FluidOutcome, FluidVariant, FluidWorld, Kind, variant_of
from tests.bench.scaling_worlds import SLO

MEMBERS: Final = (
    Member("h100x2", "h100", "qwen3-32b", tp=2),
    Member("a100", "a100-80g-sxm", "llama-3-8b"),
    Member("l40s", "l40s", "llama-3-8b"),
)
LENGTHS: Final = ((1000.0, 300.0), (2000.0, 600.0), (4000.0, 1000.0))
REPLICAS_MAX: Final = 200
KNOWN_S: Final = 1800.0  # until a constant rate is known for one
REACTION_S: Final = 30.0  # beside the start of a replica
CLEAR_SIGMA: Final = 7.5  # standard errors by which the counts of a step differ from those before
LEFT_S: Final = 900.0  # after the last request, until no replica is left that the traffic does not need
SHARE: Final = 0.9  # of what is needed: the rest is a chance of counts


@dataclass(frozen=True)
class Drawn:
    """A variant with its traffic; rates are so many times what one replica serves."""

    variant: FluidVariant
    kinds: tuple[Kind, ...]
    start_s: float
    period_s: float
    draw: Random

    @property
    def serves_per_s(self) -> float:
        """One replica, in the mean."""
        return sum(truth.requests_per_s for truth in self.variant.truths) / len(self.variant.truths)

    def play(self, rate: Callable[[float], float], until_s: float, first: int, least: int = 1) -> FluidOutcome:
        """Under the scaling policy."""
        world = FluidWorld(
            rate,
            until_s,
            self.kinds,
            (self.variant,),
            self.start_s,
            self.period_s,
            least,
            REPLICAS_MAX,
            {self.variant.name: first},
        )
        policy = policies.find("scaling", "headroom", {"replicas_max": REPLICAS_MAX, "step_max": REPLICAS_MAX})
        return Fluid(world, lambda _: policy, self.draw.randrange(1 << 30)).run()


@lru_cache(maxsize=64)
def _variant(place: int, lengths: tuple[float, float], truth: int) -> tuple[FluidVariant, tuple[Kind, ...]]:
    kinds = (Kind(1.0, *lengths, SLO),)
    return variant_of(MEMBERS[place], kinds, truth), kinds


def drawn(seed: int) -> Drawn:
    """A world without its traffic."""
    draw = Random(f"law/{seed}")
    variant, kinds = _variant(draw.randrange(len(MEMBERS)), draw.choice(LENGTHS), draw.randrange(2))
    return Drawn(variant, kinds, draw.choice([20.0, 60.0, 120.0, 300.0]), draw.choice([5.0, 15.0]), draw)


def constant_load_changes_at_most_once_an_hour(seed: int, hours: float = 4.0) -> str:
    """Once it is known."""
    world = drawn(seed)
    per_s = world.serves_per_s * world.draw.uniform(0.2, 12.0)
    found = world.play(lambda _: per_s, KNOWN_S + hours * 3600.0, max(1, round(per_s / world.serves_per_s * 1.2)))
    late = [f"{at_s:.0f} s: {count}" for at_s, _, count in found.log if at_s > KNOWN_S]
    return f"{per_s:.2f} a second: {', '.join(late)}" if len(late) > hours else ""


def a_step_is_answered_within_half_a_minute(seed: int) -> str:
    """All but a tenth of what it needs is ordered then, so that it serves that much after the cold start. Steps so
    small that their counts of half a minute may be a chance are left out.
    """
    world = drawn(seed)
    low = world.serves_per_s * world.draw.uniform(1.0, 4.0)
    high = max(low * world.draw.uniform(1.5, 6.0), (low**0.5 + CLEAR_SIGMA / 2.0 / REACTION_S**0.5) ** 2)
    found = world.play(
        lambda at_s: low if at_s < KNOWN_S else high, KNOWN_S + 120.0, round(low / world.serves_per_s) + 1
    )
    there = found.paid[round((KNOWN_S + REACTION_S) / BUCKET_S)]  # from then on
    needed = SHARE * high / world.serves_per_s
    return "" if there >= min(needed, REPLICAS_MAX) else f"{low:.1f} to {high:.1f}: {there} of {needed:.1f} replicas"


def a_step_long_ago_changes_nothing(seed: int) -> str:
    """From a quarter of an hour after it on, the load is as constant as any."""
    world = drawn(seed)
    low = world.serves_per_s * world.draw.uniform(1.0, 4.0)
    high = low * world.draw.uniform(1.5, 6.0)
    found = world.play(
        lambda at_s: low if at_s < KNOWN_S else high, 3.0 * KNOWN_S + LEFT_S, round(low / world.serves_per_s) + 1
    )
    late = [f"{at_s:.0f} s: {count}" for at_s, _, count in found.log if at_s > KNOWN_S + LEFT_S]
    return f"{low:.1f} to {high:.1f}: {', '.join(late)}" if len(late) > 1 else ""


def no_replica_is_held_without_traffic(seed: int) -> str:
    """A quarter of an hour after the last request the least is left; where a trickle is left, what that needs."""
    world = drawn(seed)
    high = world.serves_per_s * world.draw.uniform(1.0, 12.0)
    left = high * world.draw.choice([0.0, 0.0, 0.02])
    after_s = LEFT_S + 2.0 * world.variant.truths[0].life_s
    found = world.play(
        lambda at_s: high if at_s < KNOWN_S else left, KNOWN_S + after_s, round(high / world.serves_per_s) + 1
    )
    needed = max(1, round(1.5 * left / world.serves_per_s + 1.0) if left else 1)
    return "" if found.paid[-1] <= needed else f"{high:.1f} to {left:.2f}: {found.paid[-1]} replicas, {needed} needed"


def a_steady_state_attains_and_costs_no_more_than_it_needs(seed: int) -> str:
    """Of constant traffic, 99 %; with no more replicas than a quarter above what it needs, and one."""
    world = drawn(seed)
    times = world.draw.uniform(0.3, 15.0)
    per_s = world.serves_per_s * times
    found = world.play(lambda _: per_s, 3.0 * KNOWN_S, round(times * 1.1) + 1)
    attained = 1.0 - sum(found.missed) / max(per_s * 3.0 * KNOWN_S, 1.0)
    if attained < 0.99:
        return f"{times:.1f} replicas' worth: {attained:.2%} attained"
    return "" if found.replicas <= 1.25 * times + 1.5 else f"{times:.1f} replicas' worth: {found.replicas:.1f} replicas"


LAWS: Final[Mapping[str, Callable[[int], str]]] = {
    law.__name__: law
    for law in (
        constant_load_changes_at_most_once_an_hour,
        a_step_is_answered_within_half_a_minute,
        a_step_long_ago_changes_nothing,
        no_replica_is_held_without_traffic,
        a_steady_state_attains_and_costs_no_more_than_it_needs,
    )
}


def main() -> None:
    """Print what broke each law, by seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--law", choices=list(LAWS), action="append")
    parser.add_argument("--seeds", type=int, default=20)
    asked = parser.parse_args()
    for name in asked.law or LAWS:
        broken = {seed: why for seed in range(asked.seeds) if (why := LAWS[name](seed))}
        print(f"{name}: {asked.seeds - len(broken)} of {asked.seeds} hold", flush=True)
        for seed, why in broken.items():
            print(f"  seed {seed}: {why}", flush=True)


if __name__ == "__main__":
    main()
