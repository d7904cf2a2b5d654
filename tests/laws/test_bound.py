"""The clairvoyant bound is a bound: on a fixed sample of cells of all shapes of SLO no policy beats it."""

from dataclasses import dataclass

import pytest

import policies
from simulator.experiment import CLAIRVOYANT, Case, Source, bounded, figures
from simulator.pool import Member, Pool
from simulator.workload.arrivals import parse_slo

BEATEN_BY_MAX = 0.002  # of attainment, by any policy
ALONE_BELOW_MAX = 0.01  # of attainment, without the policies beside it
ONE = (Member("a", "a100-80g-sxm", "llama-3-8b"),)
FOUR = (Member("a", "a100-80g-sxm", "llama-3-8b", count=4),)
SMALL = (Member("a", "l4", "llama-3-8b", count=2),)  # whose KV caches hold four long prompts each
MIXED = (Member("h", "h100-sxm", "llama-3-8b"), *ONE, Member("l", "l40s", "llama-3-8b", count=2))


@dataclass(frozen=True)
class Cell:
    """A workload on a pool under an SLO (none: no bound at all)."""

    members: tuple[Member, ...]
    workload: str
    slos: tuple[str, ...] = ()

    def case(self, policy: str) -> Case:
        """It, under one policy."""
        classes = tuple(parse_slo(text) for text in self.slos)
        return Case(Source((f"gen:{self.workload}",)), Pool(self.members, classes=classes), policy)


CHAT = "ttft=1s,tpot=60ms"
CELLS = {
    "e2e below capacity": Cell(ONE, "poisson:rate=8,requests=200,prompt=500,output=200", ("e2e=5s",)),
    "e2e overload": Cell(ONE, "poisson:rate=25,requests=300,prompt=500,output=200", ("e2e=5s",)),
    "e2e chat lengths": Cell(ONE, "poisson:rate=8,requests=300", ("e2e=10s",)),
    "e2e mixed cards": Cell(MIXED, "poisson:rate=25,requests=400", ("e2e=6s",)),
    "e2e closed loop": Cell(ONE, "closed:clients=60,think=3s,requests=300", ("e2e=10s",)),
    "tpot impossible": Cell(ONE, "poisson:rate=8,requests=100,prompt=500,output=200", ("tpot=4ms",)),
    "tpot edge": Cell(ONE, "poisson:rate=15,requests=300,prompt=1000,output=150", ("tpot=40ms",)),
    "ttft overload": Cell(ONE, "poisson:rate=24,requests=300,prompt=1000,output=150", ("ttft=1s",)),
    "ttft tight": Cell(ONE, "poisson:rate=8,requests=300,prompt=1000,output=150", ("ttft=200ms",)),
    "chat edge": Cell(FOUR, "poisson:rate=38,requests=1000,prompt=1000,output=150", (CHAT,)),
    "chat overload": Cell(FOUR, "poisson:rate=50,requests=500,prompt=1000,output=150", (CHAT,)),
    "chat bursts": Cell(ONE, "gamma:rate=6,cv=3,requests=300", (CHAT,)),
    "code bursts": Cell(ONE, "gamma:rate=6,cv=2,requests=300,lengths=azure-code", (CHAT,)),
    "all three": Cell(ONE, "poisson:rate=10,requests=300", ("ttft=1s,tpot=50ms,e2e=8s",)),
    "sessions": Cell(FOUR, "sessions:rate=13,turns=5,think=10s,system=1500,requests=800", ("ttft=5s,tpot=150ms",)),
    "two classes": Cell(
        ONE, "poisson:rate=18,requests=400,prompt=800,output=150", (f"chat@0.5:{CHAT}", "batch@0.5:e2e=30s")
    ),
    "small kv cache": Cell(SMALL, "poisson:rate=0.6,requests=200,prompt=5000,output=600", ("ttft=8s,e2e=60s",)),
    "none": Cell(ONE, "poisson:rate=40,requests=150,prompt=1000,output=150"),
}


@pytest.mark.parametrize("name", CELLS)
def test_no_policy_beats_the_bound(name: str) -> None:
    """Neither with the policies played beside it nor, by more than a point, without them."""
    cases = [CELLS[name].case(policy) for policy in (*policies.names("routing"), CLAIRVOYANT)]
    results = [figures(case) for case in cases]
    attained = {case.policy: result["attainment"] for case, result in zip(cases, results, strict=True)}
    alone, best = attained.pop(CLAIRVOYANT), max(attained.values())
    bound = bounded(cases, results)[-1]
    assert bound["attainment"] >= best - BEATEN_BY_MAX, attained
    assert bound["strategy"] in {*attained, results[-1]["strategy"]}
    assert alone >= best - ALONE_BELOW_MAX, attained


def test_a_run_of_another_world_or_seed_is_no_part_of_the_bound() -> None:
    """Only what was attained on the same workload, pool and seed counts."""
    cell, other = CELLS["none"], CELLS["ttft tight"]
    bound, beside = {"attainment": 0.5, "strategy": "own"}, {"attainment": 0.9}
    cases = [cell.case(CLAIRVOYANT), other.case("least_work")]
    assert bounded(cases, [bound, beside]) == [bound, beside]
    cases = [cell.case(CLAIRVOYANT), cell.case("least_work")]
    assert bounded(cases, [bound, beside]) == [{"attainment": 0.9, "strategy": "least_work"}, beside]
