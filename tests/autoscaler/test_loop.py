"""The advisory loop: demand of all routers together, advice within bounds, silence survived."""

import json
from collections.abc import Mapping
from dataclasses import replace
from math import isnan

import pytest

from router.autoscaler.loop import Autoscaler, advise, together
from router.config.settings import Settings
from router.config.text import document
from router.core.decisions import ScaleTo
from router.core.errors import StoreGone
from router.core.policy import Demand
from router.gateway.config.plan import Plan, make
from router.gateway.state import ModelDemand, RouterView
from router.gateway.state.redis import RedisStore
from router.gateway.state.servers import RedisServers
from router.gateway.state.wire import UNREADABLE
from router.targets import Advice
from tests.pages import Pages
from tests.redis_server import RedisServer, server_binary

CONFIG = """
backends:
  - {name: a, url: "http://h:1", models: [m], card: l20, model: qwen2.5-7b, variant: small}
  - {name: b, url: "http://h:2", models: [m, n], card: h20, model: qwen2.5-7b, variant: big}
slo_classes: {default: {ttft_ms: 2000, tpot_ms: 60}}
autoscale: {variants: {small: {min_replicas: 1, max_replicas: 5}}}
"""
ASKED = ModelDemand(3.0, 1000, 200, 100, 98, "default")


def plan(text: str = CONFIG) -> Plan:
    """The plan of that text."""
    parsed = document(text, "r.yaml")
    return make(parsed.parse(Settings), parsed, {})


def test_demand_of_all_routers_adds_up() -> None:
    """Rates and counts are summed, means weigh by rate; the class with most traffic stands."""
    other = ModelDemand(1.0, 3000, 100, 20, 10, "batch")
    assert together([{"m": ASKED}, {"m": other}, {}]) == {"m": ModelDemand(4.0, 1500, 175, 120, 108, "default")}


def test_a_router_without_traffic_weighs_nothing() -> None:
    """No division by a rate of zero."""
    idle = ModelDemand(0.0, 10, 20, 0, 0, "default")
    assert together([{"m": idle}, {"m": idle}])["m"] == idle


def test_more_demand_never_asks_for_less() -> None:
    """The configured policy is asked with what the routers said; the sum of replicas grows with the rate."""
    wanted = []
    for rate in (0.5, 5.0, 50.0, 500.0):
        demand = {"m": ModelDemand(rate, 1000, 200, 100, 100, "default")}
        wanted.append(sum(one.replicas for one in advise(plan(), demand)))
    assert wanted == sorted(wanted)
    assert wanted[-1] > wanted[0]


def scaler(made: Plan) -> Autoscaler:
    """The loop of that plan, with the target of its config."""
    return Autoscaler(made, made.target.make({}))


class Fixed:
    """A scaling policy that wants seven of the small ones, and keeps what it was asked."""

    def __init__(self) -> None:
        self.asked: list[Demand] = []

    def scale(self, demand: Demand) -> list[ScaleTo]:
        self.asked.append(demand)
        return [ScaleTo("small", 7, "because")]


def fixed(made: Plan) -> tuple[Plan, Fixed]:
    """The plan with such a policy."""
    policy = Fixed()
    return replace(made, scaling=policy), policy


def test_advice_stays_within_the_bounds_of_the_config_and_says_so() -> None:
    """Seven wanted, five allowed."""
    made, policy = fixed(plan())
    (one,) = advise(made, {"m": ASKED})
    assert one == Advice("m", "small", 5, 1, "because; 7 is outside 1 to 5")
    (asked,) = policy.asked
    assert dict(asked.replicas) == {"small": 1, "big": 1}
    assert asked.attainment == 0.98
    assert asked.slo.ttft_s == 2.0


def test_nobody_is_asked_about_a_model_that_no_backend_serves_or_that_gave_no_token() -> None:
    """There is nothing to compute a batch from."""
    made, policy = fixed(plan())
    nothing = ModelDemand(1.0, 10, 0.0, 0, 0, "default")
    assert advise(made, {"elsewhere": ASKED, "m": nothing}) == []
    assert policy.asked == []
    assert advise(made, {"m": ModelDemand(1.0, 10, 5, 0, 0, "gone")})
    assert isnan(policy.asked[0].attainment)


async def test_a_round_sets_the_gauge_and_a_silent_source_leaves_it() -> None:
    """The last advice stands while nobody answers."""
    made, _ = fixed(plan())
    loop = scaler(made)

    async def views() -> Mapping[str, RouterView]:
        return {"r1": RouterView(demand={"m": ASKED})}

    async def silent() -> Mapping[str, RouterView]:
        raise StoreGone("gone")

    labels = {"model": "m", "variant": "small"}
    assert len(await loop.round(views)) == 1
    assert await loop.round(silent) == []
    assert loop.registry.get_sample_value("headroom_replicas_wanted", labels) == 5
    assert loop.registry.get_sample_value("headroom_replicas_running", labels) == 1
    assert loop.registry.get_sample_value("headroom_autoscale_failures_total") == 1


async def test_one_router_alone_is_asked_at_its_admin_path(caplog: pytest.LogCaptureFixture) -> None:
    """Memory as the state: the gateway of the config tells its demand over HTTP."""
    view = {
        "r1": {
            "loads": {},
            "version": "v",
            "demand": {"m": dict.fromkeys(ModelDemand.__slots__, 1) | {"slo_class": "default"}},
        }
    }
    async with Pages({"/admin/routers": (200, json.dumps(view).encode())}) as pages:
        made, _ = fixed(plan(CONFIG + f"listen: {{port: {pages.port}}}\n"))
        with caplog.at_level("INFO", "headroom"):
            await scaler(made).run(once=True)
    assert "m: 5 x small (now 1): because" in caplog.text


@pytest.mark.parametrize("answer", [b"<html>", b"[]", b'{"r1": 7, "r2": {"demand": {"m": {"requests_per_s": null}}}}'])
async def test_an_answer_that_cannot_be_read_gives_no_advice_and_ends_nothing(answer: bytes) -> None:
    """The last advice stands."""
    async with Pages({"/admin/routers": (200, answer)}) as pages:
        made, policy = fixed(plan(CONFIG + f"listen: {{port: {pages.port}}}\n"))
        await scaler(made).run(once=True)
    assert policy.asked == []


@pytest.mark.skipif(server_binary() is None, reason="no Redis-compatible server binary installed")
async def test_several_routers_are_heard_through_redis(caplog: pytest.LogCaptureFixture) -> None:
    """The same state the routers share."""
    async with RedisServer() as server:
        routers = [RedisStore(RedisServers.of_urls(server.url), "default", name, 5.0, 1.0) for name in ("r1", "r2")]
        for each in routers:
            await each.sync(RouterView(demand={"m": ASKED}), (), 0.0)
        made, policy = fixed(plan(CONFIG + f"state: {{redis_url: '{server.url}', timeout_s: 1}}\n"))
        with caplog.at_level("INFO", "headroom"):
            await scaler(made).run(once=True)
        assert policy.asked[0].requests_per_s == 6.0
        for each in routers:
            await each.close()


class Rate:
    """A scaling policy that wants one of the small ones for each request a second."""

    def scale(self, demand: Demand) -> list[ScaleTo]:
        return [ScaleTo("small", round(demand.requests_per_s), "rate")]


async def test_half_of_the_routers_out_of_sight_take_no_replica_away() -> None:
    """They may serve as ever: a partition, a view of another release. After a minute what is seen counts alone."""
    now_s = 0.0
    made = replace(plan(CONFIG.replace("max_replicas: 5", "max_replicas: 50")), scaling=Rate())
    looping = Autoscaler(made, made.target.make({}), clock=lambda: now_s)

    async def wanted(**demands: float | None) -> int:
        async def views() -> Mapping[str, RouterView]:
            return {
                name: UNREADABLE if rate is None else RouterView(demand={"m": replace(ASKED, requests_per_s=rate)})
                for name, rate in demands.items()
            }

        (one,) = await looping.round(views)
        return one.replicas

    assert await wanted(r1=4.0, r2=4.0) == 8
    now_s += 15.0
    assert await wanted(r1=4.0) == 8
    assert await wanted(r1=4.0, r2=None) == 8
    assert await wanted(r1=9.0) == 9  # more is wanted all the same
    assert await wanted(r1=4.0, r2=2.0) == 6  # all are seen
    assert await wanted(r1=4.0) == 6
    now_s += 61.0
    assert await wanted(r1=4.0) == 4
    assert await wanted(r1=1.0, r3=None) == 4
    assert "the demand of r3 cannot be read" in (await looping.round(_views_of_one))[0].why


async def _views_of_one() -> Mapping[str, RouterView]:
    return {"r1": RouterView(demand={"m": replace(ASKED, requests_per_s=1.0)}), "r3": UNREADABLE}
