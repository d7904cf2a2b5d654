"""The demand of all routers together."""

from router.autoscaler.demand import together
from router.gateway.state import ModelDemand
from tests.autoscaler.worlds import ASKED


def test_demand_of_all_routers_adds_up() -> None:
    """Rates and counts are summed, means weigh by rate; the class with most traffic stands."""
    other = ModelDemand(1.0, 3000, 100, 20, 10, "batch")
    assert together([{"m": ASKED}, {"m": other}, {}]) == {"m": ModelDemand(4.0, 1500, 175, 120, 108, "default")}


def test_a_router_without_traffic_weighs_nothing() -> None:
    """No division by a rate of zero."""
    idle = ModelDemand(0.0, 10, 20, 0, 0, "default")
    assert together([{"m": idle}, {"m": idle}])["m"] == idle
