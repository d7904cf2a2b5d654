"""Scaling policies beside static pools, other autoscalers and one that can see what is to come; truth unlike belief.

``python -m tests.bench.scaling --world step --seeds 5`` prints attainment, the mean number of replicas paid for, money
and changes, each as a mean and its 95 % interval over the seeds. The truth of every replica differs from what routers
and policies start from. ``instant`` sees the true rate of each moment and nothing of the future: no scaler that reacts
attains more with as many replicas. ``bound`` orders all replicas at the instant of the first rise and routes by the
truth of engines and replies: what it misses, no scaler that reacts and no order of service could have saved (world
``onset`` is the step's first minutes alone, for it takes long). ``--fluid`` plays the same worlds as a fluid
(``fluid.py``), without routing and learning. ``python -m tests.bench.scaling_week`` is the week.
"""

import argparse
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

import policies
from router.core.capacity import Traffic, capacity
from router.core.policy import Scaling
from simulator.bounds.clairvoyant import PORTFOLIO, Clairvoyant, Strategy
from simulator.experiment.confidence import interval
from simulator.pool import Pool
from simulator.run.play import Run, RunResult, play
from simulator.traces import TraceEntry
from simulator.workload.arrivals import Arrival, Shaping, shape
from simulator.world import Autoscaling, World
from tests.bench.fluid import Fluid, FluidWorld, Kind, variant_of
from tests.bench.scalers import (
    SYNC_S,
    WAITING,
    HorizontalPodAutoscaler,
    Metrics,
    Planned,
    Polled,
    SloThresholds,
    in_time,
)
from tests.bench.scaling_worlds import WORLDS, BenchWorld, other

CONCURRENCY: Final = 0.8  # of the requests that a replica serves at once within the SLO: what a load test would advise
SEARCHES: Final = 4  # runs in which the clairvoyant plan is made as cheap as the goal allows
MakeHere = Callable[[Run, Sequence[Arrival], BenchWorld], Scaling]


@dataclass(frozen=True)
class Outcome:
    """What became of one run."""

    attained: float
    replicas: float
    most: int
    changes: int
    usd: float


@dataclass(frozen=True)
class Contender:
    """Who scales: ``make`` (None: the policy that the world names, or with ``count`` nobody), every ``every_s``; who
    routes: a clairvoyant ``strategy`` (None: the router).
    """

    make: MakeHere | None = None
    every_s: float = 5.0
    count: int = 0
    strategy: Strategy | None = None


# ---- who scales ----------------------------------------------------------------------


def hpa(run: Run, arrivals: Sequence[Arrival], world: BenchWorld) -> Scaling:
    """On the requests that wait, averaged over replicas."""
    metrics = Metrics(run, arrivals)
    return HorizontalPodAutoscaler(metrics.waiting, WAITING, lambda: run.kernel.now_s, world.replicas_max)


def hpa_in_flight(run: Run, arrivals: Sequence[Arrival], world: BenchWorld) -> Scaling:
    """On the requests in flight, with a target from a load test: the best that this kind can do."""
    metrics = Metrics(run, arrivals)
    target = CONCURRENCY * batch_of(world)
    return HorizontalPodAutoscaler(metrics.in_flight, target, lambda: run.kernel.now_s, world.replicas_max)


def keda(run: Run, arrivals: Sequence[Arrival], world: BenchWorld) -> Scaling:
    """A ScaledObject on the requests that wait, read every 30 seconds."""
    metrics = Metrics(run, arrivals)
    polled = Polled(metrics.waiting, lambda: run.kernel.now_s)
    return HorizontalPodAutoscaler(polled, WAITING, lambda: run.kernel.now_s, world.replicas_max)


def llmd(run: Run, arrivals: Sequence[Arrival], world: BenchWorld) -> Scaling:
    """Thresholds of P90 latencies over their SLOs."""
    return SloThresholds(Metrics(run, arrivals), world.slo, world.replicas_max)


CONTENDERS: Mapping[str, Contender] = {
    "headroom": Contender(),
    "hpa": Contender(hpa, SYNC_S),
    "hpa-in-flight": Contender(hpa_in_flight, SYNC_S),
    "keda": Contender(keda, SYNC_S),
    "llm-d": Contender(llmd, SYNC_S),
}


def planned(per_replica: float, *, instant: bool = False) -> Contender:
    """A replica in time for each so many requests a second, or ``instant``: ordered when they come."""

    def make(run: Run, _: Sequence[Arrival], world: BenchWorld) -> Scaling:
        ahead_s = 0.0 if instant else world.start_s + 5.0
        count = in_time(world.rate, per_replica, ahead_s, world.replicas_min, world.replicas_max)
        return Planned(lambda at_s: {world.member.name: count(at_s)}, lambda: run.kernel.now_s)

    return Contender(make)


def all_at_once(strategy: Strategy) -> Contender:
    """Every replica from the first rise on."""

    def make(run: Run, _: Sequence[Arrival], world: BenchWorld) -> Scaling:
        low, counts = world.rate(0.0), {world.member.name: world.replicas_min}
        most = {world.member.name: world.replicas_max}
        return Planned(lambda at_s: most if world.rate(at_s) > low else counts, lambda: run.kernel.now_s)

    return Contender(make, strategy=strategy)


def bound(world: BenchWorld, seed: int) -> Outcome:
    """The most that any strategy attains with every replica from the first rise on."""
    return max((run(world, all_at_once(each), seed)[0] for each in PORTFOLIO if each.sheds), key=lambda o: o.attained)


def traffic_of(world: BenchWorld) -> Traffic:
    """One request a second."""
    return Traffic(1.0, world.prompt_tokens, world.output_tokens, world.slo, world.slo.quantile)


def batch_of(world: BenchWorld) -> float:
    """Requests that a replica serves at once within the SLO, by its data sheet."""
    return capacity(Pool((world.member,)).sites(0)[0].backend, [traffic_of(world)]).batch


# ---- one run -------------------------------------------------------------------------


def run(world: BenchWorld, who: Contender, seed: int) -> tuple[Outcome, RunResult]:
    """One world under one scaler."""
    lengths = world.prompt_tokens, world.output_tokens
    entries = [TraceEntry(at_s, *lengths) for at_s in world.times(seed)]
    arrivals = list(shape(entries, Shaping(world.member.model_name, world.classes), seed))
    scaling = Autoscaling(
        every_s=who.every_s,
        cold_start_s=world.start_s,
        replicas_min=world.replicas_min,
        replicas_max=world.replicas_max,
    )
    member = replace(world.member, count=who.count or world.replicas_min, variant=world.member.name)
    pool = Pool((member,), world.classes, world=World(scaling=None if who.count else scaling))
    routing, admission = policies.find("routing", "slo_headroom"), policies.find("admission", "deadline")
    make = None if who.make is None else partial(_made, who.make, arrivals, world)
    clairvoyant = None if who.strategy is None else partial(Clairvoyant, strategy=who.strategy)
    played = play(arrivals, pool, routing, admission, seed, sample_s=5.0, scaling=make, clairvoyant=clairvoyant)
    return outcome(played, world.until_s), played


def _made(make: MakeHere, arrivals: Sequence[Arrival], world: BenchWorld, of: Run) -> Scaling:
    return make(of, arrivals, world)


def outcome(played: RunResult, until_s: float) -> Outcome:
    """Replicas are paid for from their order to the end of their drain, or to the end of the world."""
    assert played.timeline is not None
    engines = played.engines.values()
    price = next(iter(engines)).site.backend.price_per_hour / 3600.0
    paid_s = sum(e.paid_s + (max(0.0, until_s - e.ordered_s) if e.ordered_s >= 0 else 0.0) for e in engines)
    changes = sum(what.endswith((" ordered", " draining")) for _, what in played.log)
    attained = float(played.table.met().mean())
    return Outcome(attained, paid_s / until_s, int(max(played.timeline.replicas)), changes, paid_s * price)


def cheapest_plan(world: BenchWorld, seed: int) -> float:
    """The clairvoyant scaler: requests a second for each replica, of the plan with the fewest replicas that attains the
    goal under this seed.
    """
    sheet = capacity(Pool((world.member,)).sites(seed)[0].backend, [traffic_of(world)]).requests_per_s
    low, high = 0.6 * sheet, 1.4 * sheet
    for _ in range(SEARCHES):
        middle = 0.5 * (low + high)
        if run(world, planned(middle), seed)[0].attained >= world.goal:
            low = middle
        else:
            high = middle
    return low


def run_fluid(world: BenchWorld, scaling: Scaling, seed: int) -> Outcome:
    """The same world as a fluid."""
    kinds = (Kind(1.0, world.prompt_tokens, world.output_tokens, world.slo),)
    variant = variant_of(world.member, kinds, seed)
    fluid = FluidWorld(
        world.rate,
        world.until_s,
        kinds,
        (variant,),
        world.start_s,
        replicas_min=world.replicas_min,
        replicas_max=world.replicas_max,
        first={variant.name: world.replicas_min},
    )
    found = Fluid(fluid, lambda _: scaling, seed).run()
    return Outcome(found.attained, found.replicas, max(found.paid), found.changes, found.usd)


# ---- the table -----------------------------------------------------------------------

HEAD: Final = f"{'policy':<16}{'attained':>18}{'replicas':>16}{'most':>6}{'changes':>9}{'USD':>18}"


def line(name: str, found: Sequence[Outcome]) -> str:
    """One row: means, and where there are several seeds half of their 95 % intervals."""

    def both(values: Iterable[float], form: str) -> str:
        mean, half = interval(list(values))
        return f"{mean:{form}}" + (f" +-{half:{form}}" if len(found) > 1 else "")

    changes = sum(each.changes for each in found) / len(found)
    return (
        f"{name:<16}{both((each.attained for each in found), '.2%'):>18}"
        f"{both((each.replicas for each in found), '.2f'):>16}{max(each.most for each in found):>6}{changes:>9.1f}"
        f"{both((each.usd for each in found), '.2f'):>18}"
    )


def rows(world: BenchWorld, names: Sequence[str], seeds: int) -> None:
    """Print the table of one world."""
    print(f"\n{world.name}, {seeds} seeds\n{HEAD}", flush=True)
    for name in names:
        if name == "bound":
            print(line(name, [bound(world, seed) for seed in range(seeds)]), flush=True)
            continue
        if name in {"clairvoyant", "instant"}:
            who = planned(cheapest_plan(world, 0), instant=name == "instant")
        else:
            who = Contender(count=int(name.partition(":")[2])) if name.startswith("static:") else CONTENDERS[name]
        print(line(name, [run(world, who, seed)[0] for seed in range(seeds)]), flush=True)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--world", choices=list(WORLDS), action="append")
    parser.add_argument(
        "--policy", action="append", help=f"{', '.join(CONTENDERS)}, static:N, instant, bound or clairvoyant"
    )
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--fluid", action="store_true")
    parser.add_argument("--others", type=int, default=0, help="so many other ramps and steps, as a fluid")
    asked = parser.parse_args()
    headroom = policies.find("scaling", "headroom")
    for number in range(asked.others):
        world = other(number)
        print(line(world.name, [run_fluid(world, headroom, seed) for seed in range(asked.seeds)]), flush=True)
    for name in asked.world or ([] if asked.others else [name for name in WORLDS if name != "onset"]):
        if asked.fluid:
            print(line(name, [run_fluid(WORLDS[name], headroom, seed) for seed in range(asked.seeds)]), flush=True)
        else:
            rows(
                WORLDS[name],
                asked.policy or [*CONTENDERS, "static:7", "static:8", "instant", "clairvoyant"],
                asked.seeds,
            )


if __name__ == "__main__":
    main()
