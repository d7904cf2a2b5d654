"""Arrivals that follow from replies, without an engine: as a run brings them where each reply takes the same time."""

import pytest

from router.core.types import Slo
from simulator.planning.demand import demand_of
from simulator.workload.arrivals import Arrival, Shaping, SloClass
from simulator.workload.generators import generate, parse_recipe
from simulator.workload.walking import walked

HOW = Shaping("m", (SloClass("chat", Slo(ttft_s=1.0, tpot_s=0.05)),))


def arrivals(text: str, takes_s: float) -> list[Arrival]:
    return walked(generate(parse_recipe(text), HOW, 3), lambda _: takes_s)


@pytest.mark.parametrize("kind", ["closed:clients=5", "sessions:rate=2,think=1s", "agents:rate=1,think=1s", "poisson"])
def test_every_request_arrives_once_in_order(kind: str) -> None:
    """As many as the recipe has."""
    joint = "," if ":" in kind else ":"
    found = [arrival.request for arrival in arrivals(f"gen:{kind}{joint}requests=120", 2.0)]
    assert len({request.id for request in found}) == len(found) == 120
    assert [request.arrived_s for request in found] == sorted(request.arrived_s for request in found)


def test_clients_of_a_closed_loop_have_one_request_in_flight() -> None:
    """Each sends again when its reply is over: by Little's law clients / time of a reply."""
    found = arrivals("gen:closed:clients=5,requests=100", 2.0)
    assert found[-1].request.arrived_s == pytest.approx(2.0 * 19)
    assert all(
        later.request.arrived_s - early.request.arrived_s == pytest.approx(2.0)
        for early, later in zip(found, found[5:], strict=False)
    )


def test_the_rate_of_a_loop_is_that_of_the_slowest_replies_that_attain() -> None:
    """Ten clients whose replies may take 1 s and 20 x 50 ms: five a second, whatever the begin."""
    recipe = parse_recipe("gen:closed:clients=10,requests=400,prompt=100,output=21")
    demand = demand_of(generate(recipe, HOW, 0))
    assert demand.follows
    assert demand.rate_per_s == pytest.approx(5.0, rel=0.1)


def test_clients_in_step_are_no_higher_rate() -> None:
    """Ten bursts in ten times the time of a reply, however few they are: a bound must not exceed what comes about."""
    recipe = parse_recipe("gen:closed:clients=10,requests=100,prompt=100,output=21")
    assert demand_of(generate(recipe, HOW, 0)).rate_per_s == pytest.approx(5.0)


@pytest.mark.parametrize("kind", ["sessions:turns=3,think=1s", "agents:turns=2,steps=3,think=1s,tool=1s,fork=0.3"])
def test_a_conversation_or_a_task_comes_to_so_many_requests(kind: str) -> None:
    """On average, forks included: the rate of all requests follows from the rate at which they begin."""
    recipe = parse_recipe(f"gen:{kind},rate=1,requests=6000")
    found = [arrival.request for arrival in arrivals(f"gen:{kind},rate=1,requests=6000", 0.5)]
    begun = len({request.session.partition("/")[0] for request in found})
    assert len(found) / begun == pytest.approx(recipe.requests_each, rel=0.1)
