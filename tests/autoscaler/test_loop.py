"""The loop: advice applied, silence survived, routers out of sight take no replica away."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from router.autoscaler.arrivals import MODELS_MOST, ArrivalHistories
from router.autoscaler.election import Election
from router.autoscaler.keeping import HISTORY
from router.autoscaler.loop import Autoscaler, make_target
from router.autoscaler.process import advise_once
from router.autoscaler.shown import shown
from router.core.belief import Belief
from router.core.decisions import ScaleTo
from router.core.errors import NotObserved, StoreGone
from router.core.policy import Demand
from router.gateway.config.plan import Plan
from router.gateway.state import ModelDemand, RouterView
from router.gateway.state.redis import RedisStore
from router.gateway.state.seen import SeenBackend, SeenVariant
from router.gateway.state.servers import RedisServers
from router.gateway.state.wire import UNREADABLE
from router.targets import Advice, Applied, Outcome, Replicas, Target
from tests.autoscaler.test_arrivals import BEGAN_S, DAY_S, arrivals, days, rate
from tests.autoscaler.test_election import World, candidate
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
            await advise_once(made, Path("r.yaml"), "")
    assert "m: 5 x small (now 1): because" in caplog.text


async def test_a_variant_that_gets_no_advice_is_named(caplog: pytest.LogCaptureFixture) -> None:
    """The config has no facts of a replica, and no router has one; one that a router has is known by that."""
    replica = "{models: [m], card: l20, model: qwen2.5-7b}"
    variants = f"{{bare: {{}}, found: {{}}, whole: {{replica: {replica}}}}}"
    made = plan(f"discover: [{{file: t.yaml}}]\nautoscale: {{variants: {variants}}}")
    facts = {"name": "x", "url": "http://h:1", "models": ["m"], "card": "l20", "model": "qwen2.5-7b"}
    looping = Autoscaler(made, make_target(made.target))

    async def views() -> Mapping[str, RouterView]:
        return {"r1": RouterView(seen=(SeenVariant("found", ("m",), {}, facts),))}

    for _ in range(2):
        await looping.round(views)
    named = [each.getMessage() for each in caplog.records if "gets no advice" in each.getMessage()]
    assert [each.split(" ")[1] for each in named] == ["bare"]
    assert "autoscale.variants.bare.replica" in named[0]


@pytest.mark.parametrize("answer", [b"<html>", b"[]", b'{"r1": 7, "r2": {"demand": {"m": {"requests_per_s": null}}}}'])
async def test_an_answer_that_cannot_be_read_gives_no_advice_and_ends_nothing(answer: bytes) -> None:
    """The last advice stands."""
    async with Pages({"/admin/routers": (200, answer)}) as pages:
        made, policy = fixed(plan(CONFIG + f"listen: {{port: {pages.port}}}\n"))
        await advise_once(made, Path("r.yaml"), "")
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
            await advise_once(made, Path("r.yaml"), "")
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
    assert "m: the replicas of small could not be observed: the API does not answer" in caplog.text
    assert looping.last is not None
    assert looping.last.without.keys() == {"m"}


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
    assert looping.last.without["m"].startswith("the scaling policy failed")


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


class Halves(Target):
    """A target of which the variant ``small`` cannot be observed while ``fails``; ``big`` runs five times."""

    def __init__(self) -> None:
        self.fails = True
        self.applied: list[Advice] = []

    async def observe(self, model: str, variant: str) -> Replicas | None:
        if variant == "small" and self.fails:
            raise NotObserved("403 forbidden")
        return Replicas(5)

    async def apply(self, advice: Advice) -> Applied:
        self.applied.append(advice)
        return Applied(Outcome.APPLIED, "done")


class Two:
    """A scaling policy that advises two of every variant, and fails for the models in ``fails``."""

    def __init__(self, *fails: str) -> None:
        self.fails = fails
        self.asked: list[Demand] = []

    def scale(self, demand: Demand) -> list[ScaleTo]:
        self.asked.append(demand)
        if demand.model in self.fails:
            raise ZeroDivisionError("oops")
        return [ScaleTo(name, 2, "two") for name in demand.variants]


async def both() -> Mapping[str, RouterView]:
    """Demand for two models, which share the replicas of ``big``."""
    return {"r1": RouterView(demand={"m": ASKED, "n": ASKED})}


async def test_one_workload_that_cannot_be_observed_stops_no_other() -> None:
    """The models of the others are advised; what they share with it loses no replica; the decision states it."""
    target = Halves()
    looping = Autoscaler(replace(plan(), scaling=Two()), target, settled_s=0.0)
    (one,) = await looping.round(both)
    assert (one.model, one.variant, one.replicas) == ("n", "big", 5)
    assert one.why == "two; not fewer while m, on the same replicas, has no advice"
    assert looping.last is not None
    assert "the replicas of small could not be observed: 403 forbidden" in looping.last.without["m"]
    target.fails = False
    assert len(await looping.round(both)) == 3
    assert {(each.model, each.variant): each.replicas for each in target.applied[1:]} == {
        ("m", "small"): 2,
        ("m", "big"): 2,
        ("n", "big"): 2,
    }


async def test_a_policy_that_fails_for_one_model_advises_the_others() -> None:
    target = Halves()
    target.fails = False
    looping = Autoscaler(replace(plan(), scaling=Two("m")), target, settled_s=0.0)
    (one,) = await looping.round(both)
    assert (one.model, one.replicas) == ("n", 5)
    assert looping.last is not None
    assert looping.last.without == {"m": "the scaling policy failed: ZeroDivisionError('oops')"}


async def test_replicas_that_nobody_can_count_are_not_taken_for_none() -> None:
    """Eight at once is the most that the policy orders: from none that would be 8, from the 20 that run it is 28."""
    text = """
discover: [{file: targets.yaml}]
slo_classes: {default: {ttft_ms: 2000, tpot_ms: 60}}
autoscale: {variants: {small: {max_replicas: 500, replica: {models: [m], card: l20, model: qwen2.5-7b}}}}
"""
    made = plan(text)
    looping = Autoscaler(made, make_target(made.target), settled_s=0.0)
    much = ModelDemand(3_000.0, 1000, 200, 100, 98, "default")
    twenty = SeenVariant("small", ("m",), {f"e{each}": SeenBackend(True) for each in range(20)})
    seen: list[tuple[SeenVariant, ...] | None] = [None]

    async def views() -> Mapping[str, RouterView]:
        return {"r1": RouterView(demand={"m": much}, seen=seen[0])}

    assert await looping.round(views) == []
    assert looping.last is not None
    assert "what runs of small is not known" in looping.last.without["m"]
    assert shown(looping.last)["decided"]["without_advice"].keys() == {"m"}
    seen[0] = (twenty,)
    (one,) = await looping.round(views)
    assert (one.running, one.replicas) == (20, 28)
    assert shown(looping.last)["decided"]["advice"][0]["counted_by"] == "routers"


async def test_a_view_that_is_old_is_no_demand_of_now() -> None:
    """A router that is gone under a long lease: what it served shows at the others. Meanwhile nothing is taken away."""
    policy = Two()
    looping = Autoscaler(replace(plan(), scaling=policy), Halves(), settled_s=0.0)
    old = [10.0]

    async def views() -> Mapping[str, RouterView]:
        return {"r1": RouterView(demand={"n": ASKED}, age_s=2.0), "r2": RouterView(demand={"n": ASKED}, age_s=old[0])}

    await looping.round(views)
    assert (policy.asked[-1].requests_per_s, policy.asked[-1].age_s) == (6.0, 2.0)
    old[0] = 16.0
    await looping.round(views)
    assert policy.asked[-1].requests_per_s == 3.0
    assert looping.last is not None
    assert looping.last.only_added == ["the demand of r2 cannot be read"]


async def test_what_waits_at_routers_and_what_they_refused_goes_to_the_policy() -> None:
    policy = Two()
    looping = Autoscaler(replace(plan(), scaling=policy), Halves(), settled_s=0.0)
    waiting = replace(ASKED, held=3.0, shed_per_s=0.5)

    async def views() -> Mapping[str, RouterView]:
        return {name: RouterView(demand={"n": waiting}) for name in ("r1", "r2")}

    await looping.round(views)
    assert (policy.asked[0].held, policy.asked[0].shed_per_s) == (6.0, 1.0)


async def test_a_belief_that_routers_publish_goes_to_the_policy_and_one_of_other_physics_does_not() -> None:
    policy, made = Two(), plan()
    belief = Belief(1)
    belief.joined(0, made.backends[1])
    learnt = belief.export(0)
    other = {**learnt, "prior": [each * 2.0 for each in learnt["prior"]]}
    for published, known in ((learnt, True), (other, False), ({"version": 0}, False)):
        looping = Autoscaler(replace(made, scaling=policy), Halves(), settled_s=0.0)
        seen = (SeenVariant("big", ("n",), {"b": SeenBackend(True)}, {}, published),)

        async def views(seen: tuple[SeenVariant, ...] = seen) -> Mapping[str, RouterView]:
            return {"r1": RouterView(demand={"n": ASKED}, seen=seen)}

        await looping.round(views)
        assert (policy.asked[-1].supply["big"].learnt is not None) is known


class Orders(Target):
    """A target that cannot observe, as a webhook; it keeps what it was given, and what it got to know of others."""

    def __init__(self) -> None:
        self.applied: list[int] = []
        self.stood_by: list[tuple[list[int] | None, float]] = []

    async def apply(self, advice: Advice) -> Applied:
        self.applied.append(advice.replicas)
        return Applied(Outcome.APPLIED, "done")

    async def stand_by(self, decided: Sequence[Advice] | None, age_s: float) -> None:
        self.stood_by.append((None if decided is None else [each.replicas for each in decided], age_s))


class Kept:
    """What autoscalers share."""

    def __init__(self, shared: bool = True) -> None:
        self.shared, self.values = shared, dict[str, bytes]()

    async def keep(self, name: str, value: bytes) -> None:
        self.values[name] = value

    async def kept(self, name: str) -> bytes:
        return self.values.get(name, b"")


async def test_the_next_to_lead_counts_what_the_last_one_ordered() -> None:
    """A post of eight is on its way: the same eight are wanted, not eight on top of what is there."""
    text = CONFIG.replace("max_replicas: 5}}", "max_replicas: 500}}, target: {name: webhook, url: 'http://h:1'}")
    made = replace(plan(text), scaling=Rate())
    keeper, now_s = Kept(), [1_000.0]
    seen = (SeenVariant("small", ("m",), {"a": SeenBackend(True), "b": SeenBackend(True)}),)

    async def views() -> Mapping[str, RouterView]:
        return {"r1": RouterView(demand={"m": replace(ASKED, requests_per_s=8.0)}, seen=seen)}

    def one() -> Autoscaler:
        return Autoscaler(made, Orders(), settled_s=0.0, keeper=keeper, wall_clock=lambda: now_s[0])

    (first,) = await one().round(views)
    assert (first.running, first.replicas) == (2, 8)
    now_s[0] += 30.0
    (second,) = await one().round(views)
    assert (second.running, second.replicas) == (8, 8)
    now_s[0] += 3_600.0
    (third,) = await one().round(views)
    assert third.running == 2  # they never came


async def test_one_that_does_not_lead_follows_and_one_that_leads_again_believes_nothing_of_its_own() -> None:
    """The target is given what the leader advised, with its age; a new term begins without what was done before."""
    keeper, now_s = Kept(), [1_000.0]
    made = replace(plan(), scaling=Rate())
    leads = [True]
    target, other = Orders(), Orders()
    looping = Autoscaler(
        made,
        target,
        election=Election(alone=lambda: leads[0]),
        settled_s=0.0,
        keeper=keeper,
        wall_clock=lambda: now_s[0],
    )
    leader = Autoscaler(made, other, settled_s=0.0, keeper=keeper, wall_clock=lambda: now_s[0])
    await looping.round(_views_of_one)
    assert (target.applied, target.stood_by) == ([1], [])
    leads[0] = False
    await leader.round(_views_of_one)
    now_s[0] += 7.0
    await looping.round(_views_of_one)
    assert (target.applied, target.stood_by) == ([1], [([1], 7.0)])
    keeper.shared = False
    await looping.round(_views_of_one)
    assert target.stood_by[-1] == (None, 0.0)
    leads[0] = True
    before = len(target.stood_by)
    await looping.round(_views_of_one)
    assert (target.applied, len(target.stood_by)) == ([1, 1], before + 1)
    await looping.round(_views_of_one)
    assert len(target.stood_by) == before + 1


async def test_a_term_that_ended_between_two_rounds_is_noticed() -> None:
    """Both rounds lead, and another has led meanwhile: what was applied in the first is not known to stand."""
    world, target = World(), Orders()
    election = candidate(world, "a")
    looping = Autoscaler(replace(plan(), scaling=Rate()), target, election=election, settled_s=0.0)
    await election.renew()
    await looping.round(_views_of_one)
    await election.renew()
    await looping.round(_views_of_one)
    assert (target.applied, target.stood_by) == ([1, 1], [])
    world.now_s = 20.0  # the lease has ended, and comes back before the next round
    await election.renew()
    await looping.round(_views_of_one)
    assert (target.applied, target.stood_by) == ([1, 1, 1], [(None, 0.0)])


async def test_a_memory_that_cannot_be_read_stops_the_round_and_one_that_cannot_be_written_does_not() -> None:
    """To act without it could repeat what was ordered; the next round reads again."""

    class Gone(Kept):
        async def kept(self, name: str) -> bytes:
            if not self.shared:
                raise StoreGone("no answer")
            return b""

        async def keep(self, name: str, value: bytes) -> None:
            raise StoreGone("no answer")

    target, keeper = Orders(), Gone(shared=False)
    looping = Autoscaler(replace(plan(), scaling=Rate()), target, settled_s=0.0, keeper=keeper)
    assert await looping.round(_views_of_one) == []
    keeper.shared = True
    assert len(await looping.round(_views_of_one)) == 1
    assert target.applied == [1]


async def test_arrivals_of_earlier_days_pass_from_one_autoscaler_to_the_next_and_foretell_the_rise() -> None:
    """What the first one stored, and what routers publish since, is what the second one forecasts from."""
    now_s, keeper, policy = BEGAN_S + 2.25 * DAY_S, Kept(), Two()
    earlier = ArrivalHistories()
    days(earlier, BEGAN_S, now_s - 1_200.0)
    keeper.values[HISTORY] = earlier.written()
    made = replace(plan(CONFIG.replace("max_replicas: 5", "max_replicas: 5, start_s: 7200")), scaling=policy)
    looping = Autoscaler(made, Halves(), settled_s=0.0, keeper=keeper, wall_clock=lambda: now_s)
    looping._target.fails = False  # type: ignore[attr-defined]

    async def views() -> Mapping[str, RouterView]:
        demand = replace(ASKED, arrivals=arrivals(now_s), bucket_s=5.0)
        return {"r1": RouterView(demand={"m": demand})}

    await looping.round(views)
    asked = policy.asked[-1]
    assert asked.seasonal_per_s == pytest.approx(rate(now_s + 7_200.0), rel=0.05)
    assert 0.0 < asked.seasonal_error_per_s < 5.0
    assert len(keeper.values[HISTORY]) > len(earlier.written())


async def test_arrivals_are_not_counted_while_a_router_cannot_be_read_and_are_later() -> None:
    """Its part would be missing for ever."""
    looping = Autoscaler(replace(plan(), scaling=Two()), Halves(), settled_s=0.0, wall_clock=lambda: 1_000.0)
    demand = {"n": replace(ASKED, arrivals=(5.0, 5.0), bucket_s=5.0)}

    async def views() -> Mapping[str, RouterView]:
        return {"r1": RouterView(demand=demand), "r2": UNREADABLE}

    async def all_views() -> Mapping[str, RouterView]:
        return {"r1": RouterView(demand=demand), "r2": RouterView(demand=demand)}

    await looping.round(views)
    assert looping.memory.histories._histories == {}
    await looping.round(all_views)
    assert [each[1] for each in looping.memory.histories._histories["n"].export()["slots"]] == [20.0]


async def test_names_that_no_variant_serves_take_no_place_in_the_history() -> None:
    """Clients may request any while there is no backend, and only so many models have a history."""
    looping = Autoscaler(replace(plan(), scaling=Two()), Halves(), settled_s=0.0, wall_clock=lambda: 1_000.0)
    each = replace(ASKED, arrivals=(5.0, 5.0), bucket_s=5.0)
    demand = {f"a{number}": each for number in range(MODELS_MOST)} | {"n": each}

    async def views() -> Mapping[str, RouterView]:
        return {"r1": RouterView(demand=demand)}

    await looping.round(views)
    assert list(looping.memory.histories._histories) == ["n"]
