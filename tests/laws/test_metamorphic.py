"""Service gets no worse by a looser SLO, fewer requests, another replica, a faster one, other names or another order.

Each law compares two runs of slo_headroom. "Not worse" is a difference of attainment of at least -2 standard errors of
the paired difference over the requests of both, and -0.5 points for runs that take other ways by chance.
"""

from collections.abc import Sequence
from dataclasses import replace

import pytest

from router.core.types import Slo
from simulator.experiment import Source
from simulator.pool import Member, Pool
from simulator.replica.truth import EXACT
from simulator.workload.arrivals import Arrival, SloClass
from tests.cell_runs import POLICY, Run, among, paired_error, played
from tests.cells import POOLS, PROMISES, Cell, generator, promised

ALLOWED = 0.005
ERRORS = 2.0
ORDER = 0.02
"""What two orders of one pool may differ by: ties fall otherwise and learning goes another way from there. Beyond
capacity least_work, which learns nothing, differs by 1.0 to 3.0 points between six orders of this pool."""
WORKLOAD = "azure-conv"
LOOSER = (1.5, 2.5, 4.0, 6.5, 10.0, 15.0)
BOUND = [promise for promise in PROMISES if promise != "none"]

promises = pytest.mark.parametrize("promise", BOUND)
places = pytest.mark.parametrize(("load", "seed"), [("0.95", 1), ("1.3", 2), ("1.3", 3)])


def cell_of(promise: str, pool: str, load: str, seed: int) -> Cell:
    """The cell that a law starts from."""
    return Cell(WORKLOAD, promise, "edge", pool, load, seed, small=True)


def arrivals_of(cell: Cell) -> list[Arrival]:
    """Its requests."""
    case = cell.case(POLICY)
    return list(case.source.arrivals(case.pool, cell.seed))


def not_worse(better: Run, worse: Run, chance: float = ALLOWED) -> None:
    """The run that has it easier attains no less."""
    allowed = chance + ERRORS * paired_error(better, worse)
    assert better.attained >= worse.attained - allowed, f"{better.attained:.1%} after {worse.attained:.1%}"


def never_falls(source: Source, pools: Sequence[Pool]) -> None:
    """No pool serves *source* worse than any before it."""
    best: Run | None = None
    for pool in pools:
        run = played(source.arrivals(pool, 1), pool, 1)
        if best is not None:
            not_worse(run, best)
        best = run if best is None or run.attained > best.attained else best


def alike(one: Run, other: Run) -> None:
    """Neither attains less."""
    not_worse(one, other, ORDER)
    not_worse(other, one, ORDER)


def pool_of(*members: Member) -> Pool:
    """A pool whose replicas are what their data sheets say, so that a name draws nothing."""
    return Pool(members, truth=EXACT)


MIXED = POOLS["mixed"].members


@promises
@pytest.mark.parametrize(("pool", "load", "requests"), [("one", "2.5", 2_000), ("four", "1.3", 1_200)])
def test_a_looser_slo_is_met_no_less_often(promise: str, pool: str, load: str, requests: int) -> None:
    """The same requests, under bounds from 1.5 times what an idle engine takes to 15 times that.

    One engine is overloaded for minutes, so that whatever waits has time to pile up.
    """
    rate = cell_of(promise, pool, load, 1).capacity_per_s * float(load)
    source = Source((generator(WORKLOAD, rate, requests),))
    never_falls(source, [replace(POOLS[pool], classes=promised(promise, m, WORKLOAD, pool)) for m in LOOSER])


def test_a_looser_ttft_is_met_no_less_often_far_beyond_capacity() -> None:
    """25 prompts of 1,000 tokens a second for one engine, more than it can take in."""
    source = Source(("gen:poisson:rate=25,requests=2000,prompt=1000,output=150",))
    one = pool_of(Member("a", MIXED[1].card))
    slos = [SloClass("chat", Slo(ttft_s=ttft_s)) for ttft_s in (0.2, 0.5, 1.0, 2.0, 4.0)]
    never_falls(source, [replace(one, classes=(slo,)) for slo in slos])


@promises
@places
def test_fewer_requests_are_served_no_worse(promise: str, load: str, seed: int) -> None:
    """Every fifth request stays away: of the others no fewer meet their SLO."""
    arrivals = arrivals_of(cell_of(promise, "four", load, seed))
    fewer = [arrival for number, arrival in enumerate(arrivals) if number % 5]
    some, every = played(fewer, POOLS["four"], seed), played(arrivals, POOLS["four"], seed)
    not_worse(some, among(every, {arrival.request.id for arrival in fewer}))


@promises
@places
def test_one_more_replica_serves_no_worse(promise: str, load: str, seed: int) -> None:
    """A fifth engine beside four like it."""
    arrivals = arrivals_of(cell_of(promise, "four", load, seed))
    four = POOLS["four"]
    five = replace(four, members=(*four.members, replace(four.members[0], name="idle", count=1)))
    not_worse(played(arrivals, five, seed), played(arrivals, four, seed))


@promises
@places
def test_a_faster_engine_serves_no_worse(promise: str, load: str, seed: int) -> None:
    """An H100 where one of four A100 was."""
    arrivals = arrivals_of(cell_of(promise, "four", load, seed))
    same = Member("a", MIXED[1].card, count=3)
    slower, faster = pool_of(same, Member("b", MIXED[1].card)), pool_of(same, Member("b", MIXED[0].card))
    not_worse(played(arrivals, faster, seed), played(arrivals, slower, seed))


@promises
@places
def test_names_and_order_of_backends_do_not_matter(promise: str, load: str, seed: int) -> None:
    """Six engines under other names, and in reverse order."""
    arrivals = arrivals_of(cell_of(promise, "mixed", load, seed))
    first = played(arrivals, pool_of(*MIXED), seed)
    alike(first, played(arrivals, pool_of(*(replace(m, name=f"z{n}-{m.name}") for n, m in enumerate(MIXED))), seed))
    alike(first, played(arrivals, pool_of(*reversed(MIXED)), seed))
