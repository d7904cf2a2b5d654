"""The scaling policy beside static pools: llm-d's published setting as a ramp and a step, a day, constant load.

``python -m tests.bench.scaling --world ramp`` prints attainment, the mean number of replicas paid for, money and
changes. The truth of every replica differs from what the routers and the policy start from. A world takes a minute of
CPU time without compiled modules.
"""

import argparse
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from math import cos, log, pi
from random import Random

import policies
from router.core.types import Slo
from simulator.pool import Member, Pool
from simulator.run.play import RunResult, play
from simulator.traces import TraceEntry
from simulator.workload.arrivals import Shaping, SloClass, shape
from simulator.world import Autoscaling, World

MODEL = "qwen3-32b"
CLASSES = (SloClass("chat", Slo(ttft_s=2.0, tpot_s=0.05)),)
MEMBER = Member("h100x2", "h100", MODEL, tp=2)
SETTINGS = Autoscaling(replicas_min=3, replicas_max=8, cold_start_s=60.0)


def ramp(at_s: float) -> float:
    """2 -> 10 requests a second in 30 minutes, and down to 1 in 30 minutes."""
    if at_s < 1800.0:
        return 2.0 + 8.0 * at_s / 1800.0
    return 10.0 - 9.0 * (at_s - 1800.0) / 1800.0


def step(at_s: float) -> float:
    """2, then 10, then 1 requests a second."""
    return 2.0 if at_s < 600.0 else (10.0 if at_s < 2400.0 else 1.0)


def day(at_s: float) -> float:
    """Between 1 and 9 requests a second in a day that lasts 4 hours."""
    return 5.0 - 4.0 * cos(2.0 * pi * at_s / 14_400.0)


def constant(_: float) -> float:
    """6 requests a second."""
    return 6.0


WORLDS: Mapping[str, tuple[Callable[[float], float], float, float]] = {
    "ramp": (ramp, 10.0, 3600.0),
    "step": (step, 10.0, 4200.0),
    "day": (day, 9.0, 14_400.0),
    "constant": (constant, 6.0, 7200.0),
}


def times(rate: Callable[[float], float], most: float, until_s: float, draw: Random) -> Iterator[float]:
    """A Poisson process of that rate, by thinning one of the highest."""
    at_s = 0.0
    while True:
        at_s -= log(1.0 - draw.random()) / most
        if at_s >= until_s:
            return
        if draw.random() * most < rate(at_s):
            yield at_s


@dataclass(frozen=True)
class Outcome:
    """What became of one run."""

    attained: float
    replicas: float
    most: int
    changes: int
    usd: float


def run(world: str, scaling: Autoscaling | None, seed: int, count: int = 3) -> tuple[Outcome, RunResult]:
    """One world under one policy (None: ``count`` replicas all the time)."""
    rate, most, until_s = WORLDS[world]
    entries = [TraceEntry(at_s, 4000, 1000) for at_s in times(rate, most, until_s, Random(f"{seed}/{world}"))]
    member = replace(MEMBER, count=count, variant=MEMBER.name)
    pool = Pool((member,), CLASSES, world=World(scaling=scaling))
    arrivals = shape(entries, Shaping(MODEL, CLASSES), seed)
    routing, admission = policies.find("routing", "slo_headroom"), policies.find("admission", "deadline")
    made = play(arrivals, pool, routing, admission, seed, sample_s=5.0)
    return outcome(made, until_s), made


def outcome(made: RunResult, until_s: float) -> Outcome:
    """Replicas are paid for from their order to the end of their drain, or to the end of the world."""
    assert made.timeline is not None
    engines = made.engines.values()
    price = next(iter(engines)).site.backend.price_per_hour / 3600.0
    paid_s = sum(e.paid_s + (max(0.0, until_s - e.ordered_s) if e.ordered_s >= 0 else 0.0) for e in engines)
    changes = sum(what.endswith((" ordered", " draining")) for _, what in made.log)
    attained = float(made.table.met().mean())
    return Outcome(attained, paid_s / until_s, int(max(made.timeline.replicas)), changes, paid_s * price)


def line(world: str, name: str, found: Outcome) -> str:
    """One row."""
    return (
        f"{world:<10}{name:<12}{found.attained:>10.2%}{found.replicas:>10.2f}{found.most:>6}{found.changes:>9}"
        f"{found.usd:>10.2f}"
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--world", choices=list(WORLDS), action="append")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--static", type=int, action="append", default=[], help="replicas of a static pool, beside")
    asked = parser.parse_args()
    print(f"{'world':<10}{'policy':<12}{'attained':>10}{'replicas':>10}{'most':>6}{'changes':>9}{'USD':>10}")
    for world in asked.world or WORLDS:
        print(line(world, "headroom", run(world, SETTINGS, asked.seed)[0]), flush=True)
        for count in asked.static:
            print(line(world, f"static {count}", run(world, None, asked.seed, count)[0]), flush=True)


if __name__ == "__main__":
    main()
