"""The loop: advice applied, silence survived, routers out of sight take no replica away."""

import json
from collections.abc import Mapping
from dataclasses import replace

import pytest

from router.autoscaler.loop import Autoscaler
from router.autoscaler.process import advise_once
from router.core.decisions import ScaleTo
from router.core.errors import NotObserved, StoreGone
from router.core.policy import Demand
from router.gateway.config.plan import Plan
from router.gateway.state import ModelDemand, RouterView
from router.gateway.state.redis import RedisStore
from router.gateway.state.servers import RedisServers
from router.gateway.state.wire import UNREADABLE
from router.targets import Advice, Applied, Outcome, Replicas, Target
from tests.autoscaler.worlds import ASKED, CONFIG, fixed, plan
from tests.pages import Pages
from tests.redis_server import RedisServer, server_binary


def scaler(made: Plan) -> Autoscaler:
    """The loop of that plan, with the target of its config."""
    return Autoscaler(made, made.target.make({}))


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
    assert loop.metrics.registry.get_sample_value("headroom_replicas_wanted", labels) == 5
    assert loop.metrics.registry.get_sample_value("headroom_replicas_running", labels) == 1
    assert loop.metrics.registry.get_sample_value("headroom_autoscale_failures_total") == 1


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
            await advise_once(made, "")
    assert "m: 5 x small (now 1): because" in caplog.text


async def test_a_variant_that_gets_no_advice_is_named(caplog: pytest.LogCaptureFixture) -> None:
    """Its backends are found by routers, which this process does not do; it needs the facts of a replica."""
    replica = "{models: [m], card: l20, model: qwen2.5-7b}"
    variants = f"{{bare: {{}}, whole: {{replica: {replica}}}}}"
    found = "listen: {port: 9}\ndiscover: [{file: t.yaml}]\n"
    await advise_once(plan(f"{found}autoscale: {{variants: {variants}}}"), "")
    named = [each.getMessage() for each in caplog.records if "gets no advice" in each.getMessage()]
    assert [each.split(" ")[1] for each in named] == ["bare"]
    assert "autoscale.variants.bare.replica" in named[0]


@pytest.mark.parametrize("answer", [b"<html>", b"[]", b'{"r1": 7, "r2": {"demand": {"m": {"requests_per_s": null}}}}'])
async def test_an_answer_that_cannot_be_read_gives_no_advice_and_ends_nothing(answer: bytes) -> None:
    """The last advice stands."""
    async with Pages({"/admin/routers": (200, answer)}) as pages:
        made, policy = fixed(plan(CONFIG + f"listen: {{port: {pages.port}}}\n"))
        await advise_once(made, "")
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
            await advise_once(made, "")
        assert policy.asked[0].requests_per_s == 6.0
        for each in routers:
            await each.close()


class Rate:
    """A scaling policy that advises one of the small ones for each request a second."""

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
    now_s += 46.0
    assert await wanted(r1=9.0, r2=0.0) == 9
    assert await wanted(r1=4.0, r2=2.0) == 6  # all are seen
    assert await wanted(r1=4.0) == 6
    now_s += 61.0
    assert await wanted(r1=4.0) == 4
    assert await wanted(r1=1.0, r3=None) == 4
    assert "not fewer while the demand of r3 cannot be read" in (await looping.round(_views_of_one))[0].why


async def _views_of_one() -> Mapping[str, RouterView]:
    return {"r1": RouterView(demand={"m": replace(ASKED, requests_per_s=1.0)}), "r3": UNREADABLE}


class Seen(Target):
    """A target whose replicas can be observed, while ``there`` is a number."""

    def __init__(self) -> None:
        self.there: int | None = 3
        self.applied: list[Advice] = []

    async def observe(self, model: str, variant: str) -> Replicas | None:
        if self.there is None:
            raise NotObserved("the API does not answer")
        return Replicas(self.there) if variant == "small" else None

    async def apply(self, advice: Advice) -> Applied:
        self.applied.append(advice)
        return Applied(Outcome.APPLIED, "done")


async def test_nothing_is_applied_while_the_replicas_cannot_be_observed(caplog: pytest.LogCaptureFixture) -> None:
    """A number that is only assumed would add or take away what nobody wanted."""
    made, policy = fixed(plan())
    target = Seen()
    looping = Autoscaler(made, target)

    async def views() -> Mapping[str, RouterView]:
        return {"r1": RouterView(demand={"m": ASKED})}

    (one,) = await looping.round(views)
    assert one.running == 3
    assert dict(policy.asked[0].replicas) == {"small": 3, "big": 1}
    target.there = None
    assert await looping.round(views) == []
    assert len(target.applied) == 1
    assert looping.metrics.registry.get_sample_value("headroom_autoscale_failures_total") == 1
    assert "the replicas could not be observed: the API does not answer" in caplog.text


async def test_a_policy_that_fails_changes_nothing_and_ends_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """The advice stays as it is, and the next round is like any other."""

    class Broken:
        def scale(self, demand: Demand) -> list[ScaleTo]:
            return [ScaleTo("small", 1 // 0, "never")]

    target = Seen()
    looping = Autoscaler(replace(plan(), scaling=Broken()), target)

    async def views() -> Mapping[str, RouterView]:
        return {"r1": RouterView(demand={"m": ASKED})}

    assert await looping.round(views) == []
    assert target.applied == []
    assert "the scaling policy failed: ZeroDivisionError" in caplog.text
    assert looping.last is not None
    assert looping.last.failure.startswith("the scaling policy failed")


async def test_what_was_seen_for_less_than_a_minute_takes_no_replica_away() -> None:
    """After a restart of the autoscaler, of a router, or of the shared state, the demand is not whole yet."""
    now_s = 0.0
    made = replace(plan(CONFIG.replace("max_replicas: 5", "max_replicas: 50")), scaling=Rate())
    target = Seen()
    target.there = 20
    looping = Autoscaler(made, target, clock=lambda: now_s)

    async def wanted(*routers: str) -> Advice:
        async def views() -> Mapping[str, RouterView]:
            return {name: RouterView(demand={"m": replace(ASKED, requests_per_s=4.0)}) for name in routers}

        (one,) = await looping.round(views)
        return one

    first = await wanted("r1")
    assert first.replicas == 20
    assert first.why == "rate; not fewer while r1 was seen first less than 60 s ago"
    now_s = 60.0
    assert (await wanted("r1")).replicas == 4
    assert (await wanted("r1", "r2")).replicas == 8
    now_s = 119.0
    assert (await wanted("r2")).replicas == 8
