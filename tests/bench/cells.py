"""What cells cost: `python -m tests.bench.cells`. Simulated, one cell at a time.

Routers that all send each other their changes read more messages the more there are, so a large pool is divided into
cells: each has its own routers and its own backends, and requests are spread over cells evenly. What that costs is
that a cell has less room to even out chance in. The same rate a backend is played before pools of falling size, the
largest as one, with one router and with several that share as the gateway's do.
"""

import argparse
from collections.abc import Sequence
from time import process_time

from simulator.experiment import Case, Source
from simulator.pool import Member, Pool
from simulator.workload.arrivals import parse_slo
from simulator.world import World
from tests.bench.one_mind import HOP_S, POLICY, VIEWS_S


def case_of(backends: int, routers: int, rate: float, seconds: float, seed: int) -> Case:
    """A cell of so many backends, at so many requests a second for each of them."""
    all_s = rate * backends
    recipe = f"gen:gamma:rate={all_s:g},requests={round(all_s * seconds)},cv=2,prompt=1000,output=150"
    pool = Pool(
        members=(Member("a100", "a100-80g-sxm", count=backends),),
        classes=(parse_slo("ttft=1s,tpot=60ms"),),
        world=World(routers=routers, sync_s=VIEWS_S, push_s=HOP_S),
        name=f"{backends} A100",
    )
    return Case(Source((recipe,)), pool, POLICY, seed=seed)


def run(cells: Sequence[tuple[int, int]], rates: Sequence[float], seconds: float, seed: int) -> None:
    """A line a cell, a column a rate."""
    print(f"{'backends':>10}{'routers':>9}" + "".join(f"{rate:>11g}/s" for rate in rates), flush=True)
    for backends, routers in cells:
        line = f"{backends:>10}{routers:>9}"
        for rate in rates:
            began_s = process_time()
            met = case_of(backends, routers, rate, seconds, seed).play().table.met()
            line += f"{100.0 * float(met.mean()):>8.2f} {process_time() - began_s:>3.0f}s"
        print(line, flush=True)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cell", nargs="*", default=["1000x1", "250x1", "62x1", "62x4", "16x1", "16x4", "4x4"])
    parser.add_argument("--rate", type=float, nargs="*", default=[7.5, 8.5], help="requests a second and backend")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    cells = [(int(backends), int(routers)) for backends, _, routers in (each.partition("x") for each in given.cell)]
    run(cells, given.rate, given.seconds, given.seed)


if __name__ == "__main__":
    main()
