"""Several routers of one run: what they share, how old it is, and what that costs."""

from dataclasses import replace
from math import inf

import pytest

import policies
from simulator.pool import Member, Pool
from simulator.run.play import Run, play
from simulator.traces import TraceEntry
from simulator.workload.arrivals import Arrival, Shaping, parse_slo, shape
from simulator.world import World

CHAT = (parse_slo("ttft=1s,tpot=60ms"),)
FOUR = Pool((Member("a100", "a100-80g-sxm", count=4),), CHAT)


def arrivals(count: int, every_s: float) -> list[Arrival]:
    entries = [TraceEntry(n * every_s, 1000, 150) for n in range(count)]
    return shape(entries, Shaping("llama-3-8b", CHAT), 0)


def attained(world: World, count: int = 300, every_s: float = 1 / 31) -> float:
    routing, admission = policies.find("routing", "slo_headroom"), policies.find("admission", "deadline")
    played = play(arrivals(count, every_s), replace(FOUR, world=world), routing, admission, 0)
    return float(played.table.met().mean())


def test_four_routers_that_send_each_other_their_changes_attain_nearly_what_one_does() -> None:
    """Near the rate that one router carries: changes a millisecond old, against views a tenth of a second old."""
    one, views, pushed = (
        attained(world) for world in (World(), World(routers=4, sync_s=0.1), World(routers=4, push_s=0.001))
    )
    assert pushed >= one - 0.01
    assert pushed >= views


@pytest.mark.parametrize("world", [World(routers=3, sync_s=0.001), World(routers=3, push_s=0.001)])
def test_nothing_is_shared_while_nothing_happens(world: World) -> None:
    """Two requests an hour apart cost a few events, not one for each period."""
    run = Run(replace(FOUR, world=replace(world, scrape_s=0.0)), 0)
    run.open_routers(policies.find("routing", "slo_headroom"), policies.find("admission", "deadline"), None)
    run.play(arrivals(2, 3600.0), None)
    assert len(run.table) == 2
    assert run.kernel._order < 2_000


def test_a_delay_below_zero_is_refused() -> None:
    """As is none at all that is no number."""
    for push_s in (-1.0, float("nan")):
        with pytest.raises(ValueError, match="push_s 0 or more"):
            World(push_s=push_s)
    assert World(push_s=inf).push_s == inf
