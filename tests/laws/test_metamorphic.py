"""Service gets no worse by a looser SLO, fewer requests, another replica, a faster one, other names or another order.

Each law compares two runs of slo_headroom. "Not worse" is a difference of attainment of at least -2 standard errors of
the paired difference over the requests of both, and -0.5 points for runs that take other ways by chance.
"""

from dataclasses import replace
from itertools import pairwise

import pytest

from simulator.pool import Member, Pool
from simulator.truth import EXACT
from simulator.workload import Arrival, SloClass
from tests.cell_runs import Run, among, paired_error, played
from tests.cells import POOLS, PROMISES, TIGHTNESS, Cell, promised

ALLOWED = 0.005
ERRORS = 2.0
WORKLOAD, LOAD = "azure-conv", "0.95"
BOUND = [promise for promise in PROMISES if promise != "none"]
SEEDS = (1, 2)

pytestmark = [pytest.mark.parametrize("seed", SEEDS), pytest.mark.parametrize("promise", BOUND)]


def cell_of(promise: str, pool: str, seed: int) -> Cell:
    """The cell that a law starts from."""
    return Cell(WORKLOAD, promise, "edge", pool, LOAD, seed, small=True)


def arrivals_of(cell: Cell, classes: tuple[SloClass, ...] | None = None) -> list[Arrival]:
    """Its requests, or the same under other SLO classes."""
    case = cell.case("slo_headroom")
    pool = case.pool if classes is None else replace(case.pool, classes=classes)
    return list(case.source.arrivals(pool, cell.seed))


def not_worse(better: Run, worse: Run) -> None:
    """The run that has it easier attains no less."""
    allowed = ALLOWED + ERRORS * paired_error(better, worse)
    assert better.attained >= worse.attained - allowed, f"{better.attained:.1%} after {worse.attained:.1%}"


def alike(one: Run, other: Run) -> None:
    """Neither attains less."""
    not_worse(one, other)
    not_worse(other, one)


def pool_of(*members: Member) -> Pool:
    """A pool whose replicas are what their data sheets say, so that a name draws nothing."""
    return Pool(members, truth=EXACT)


MIXED = POOLS["mixed"].members


@pytest.mark.parametrize("pool", ["one", "four"])
def test_a_looser_slo_is_met_no_less_often(promise: str, seed: int, pool: str) -> None:
    """The same requests, every bound 1.5, 3 and 10 times what an idle engine takes."""
    cell = cell_of(promise, pool, seed)
    runs = [
        played(arrivals_of(cell, promised(promise, tightness, WORKLOAD, pool)), POOLS[pool], seed)
        for tightness in TIGHTNESS
    ]
    for tighter, looser in pairwise(runs):
        not_worse(looser, tighter)


def test_fewer_requests_are_served_no_worse(promise: str, seed: int) -> None:
    """Every fifth request stays away: of the others no fewer meet their SLO."""
    arrivals = arrivals_of(cell_of(promise, "four", seed))
    fewer = [arrival for number, arrival in enumerate(arrivals) if number % 5]
    some, every = played(fewer, POOLS["four"], seed), played(arrivals, POOLS["four"], seed)
    not_worse(some, among(every, {arrival.request.id for arrival in fewer}))


def test_one_more_replica_serves_no_worse(promise: str, seed: int) -> None:
    """A fifth engine beside four like it."""
    arrivals = arrivals_of(cell_of(promise, "four", seed))
    four = POOLS["four"]
    five = replace(four, members=(*four.members, replace(four.members[0], name="idle", count=1)))
    not_worse(played(arrivals, five, seed), played(arrivals, four, seed))


def test_a_faster_engine_serves_no_worse(promise: str, seed: int) -> None:
    """An H100 where one of four A100 was."""
    arrivals = arrivals_of(cell_of(promise, "four", seed))
    same = Member("a", MIXED[1].card, count=3)
    slower, faster = pool_of(same, Member("b", MIXED[1].card)), pool_of(same, Member("b", MIXED[0].card))
    not_worse(played(arrivals, faster, seed), played(arrivals, slower, seed))


def test_names_and_order_of_backends_do_not_matter(promise: str, seed: int) -> None:
    """Six engines under other names, and in reverse order."""
    arrivals = arrivals_of(cell_of(promise, "mixed", seed))
    first = played(arrivals, pool_of(*MIXED), seed)
    alike(first, played(arrivals, pool_of(*(replace(m, name=f"z{n}-{m.name}") for n, m in enumerate(MIXED))), seed))
    alike(first, played(arrivals, pool_of(*reversed(MIXED)), seed))
