"""An engine ten times slow for a minute, then well: service is normal again within 5 s or 20 requests."""

from dataclasses import replace

import pytest

from simulator.experiment import Source
from simulator.world import Fault, World
from tests.cell_runs import POLICY, among, paired_error, played
from tests.cells import POOLS, Cell, generator

SLOW_AT_S, SLOW_FOR_S, FACTOR = 30.0, 60.0, 10.0
WELL_S = SLOW_AT_S + SLOW_FOR_S
UNTIL_S = WELL_S + 60.0
AFTER_S, AFTER_REQUESTS = 5.0, 20
POINT, ERRORS = 0.01, 2.0
"""Allowed below the run without the fault: a point and two standard errors of the paired difference."""


@pytest.mark.parametrize("load", ["0.3", "0.7"])
@pytest.mark.parametrize("pool", ["one", "four"])
@pytest.mark.parametrize("promise", ["ttft", "tpot", "e2e", "ttft+tpot", "all", "classes"])
def test_service_is_normal_soon_after_an_engine_has_recovered(promise: str, pool: str, load: str) -> None:
    """Of those that come later than 5 s and 20 requests after the recovery as many meet their SLO as without it."""
    cell = Cell("azure-conv", promise, "edge", pool, load, seed=1)
    rate = cell.capacity_per_s * float(load)
    case = replace(cell.case(POLICY), source=Source((generator("azure-conv", rate, int(rate * UNTIL_S)),)))
    arrivals = list(case.source.arrivals(case.pool, cell.seed))
    name = next(iter(POOLS[pool].sites(1))).name
    fault = World(faults=(Fault(SLOW_AT_S, name, "slow", SLOW_FOR_S, FACTOR),))
    after = [a.request.id for a in arrivals if a.request.arrived_s > WELL_S][AFTER_REQUESTS:]
    late = {a.request.id for a in arrivals if a.request.arrived_s > WELL_S + AFTER_S} & set(after)
    ill, well = (among(played(arrivals, replace(POOLS[pool], world=world), 1), late) for world in (fault, World()))
    allowed = POINT + ERRORS * paired_error(ill, well)
    assert ill.attained >= well.attained - allowed, f"{ill.attained:.1%}, without the fault {well.attained:.1%}"
