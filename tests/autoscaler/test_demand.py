"""The demand of all routers together."""

from router.autoscaler.demand import together
from router.gateway.state import KindOfDemand, ModelDemand
from tests.autoscaler.worlds import ASKED


def test_demand_of_all_routers_adds_up() -> None:
    """Rates and counts are summed, means weigh by rate; the class with most traffic stands."""
    other = ModelDemand(1.0, 3000, 100, 20, 10, "batch")
    assert together([{"m": ASKED}, {"m": other}, {}]) == {"m": ModelDemand(4.0, 1500, 175, 120, 108, "default")}


def test_a_router_without_traffic_weighs_nothing() -> None:
    """No division by a rate of zero."""
    idle = ModelDemand(0.0, 10, 20, 0, 0, "default")
    assert together([{"m": idle}, {"m": idle}])["m"] == idle


def measured(rate: float, arrivals: tuple[float, ...], prompt: float = 1000.0) -> ModelDemand:
    """The demand of a router that measures it as it arrives."""
    kind = KindOfDemand("default", rate, prompt, 200.0, 10, 9)
    return ModelDemand(rate, prompt, 200, 10, 9, "default", (kind,), arrivals, 5.0, 2.0)


def test_arrivals_are_summed_from_the_newest_bucket_back() -> None:
    """A router that started later had none before; kinds that are alike become one."""
    whole = together([{"m": measured(3.0, (1.0, 2.0, 3.0), 1100.0)}, {"m": measured(1.0, (10.0,), 1140.0)}])["m"]
    assert whole.arrivals == (1.0, 2.0, 13.0)
    assert (whole.bucket_s, whole.in_flight) == (5.0, 4.0)
    assert whole.kinds == (KindOfDemand("default", 4.0, 1110.0, 200.0, 20, 18),)


def test_one_router_that_measures_no_arrivals_leaves_totals_alone() -> None:
    """Half of the arrivals would look like a fall."""
    whole = together([{"m": measured(3.0, (1.0, 2.0))}, {"m": ModelDemand(1.0, 1000, 200, 10, 9, "default")}])["m"]
    assert (whole.arrivals, whole.kinds, whole.requests_per_s) == ((), (), 4.0)
