"""The scaling policy gets the demand and the replicas that there are; its answer stays within the config's bounds."""

from dataclasses import replace
from math import isnan

import pytest

from router.autoscaler.advice import advise
from router.autoscaler.memory import ScalingMemory
from router.core.errors import ConfigError
from router.core.scaling import KindDemand, ReplicaLoad, Supply
from router.gateway.state import KindOfDemand, ModelDemand
from router.targets import Advice, Replicas
from tests.autoscaler.worlds import ASKED, CONFIG, fixed, plan


def test_more_demand_never_asks_for_less() -> None:
    """The configured policy gets what the routers published; the sum of replicas grows with the rate."""
    wanted = []
    for rate in (0.5, 5.0, 50.0, 500.0):
        demand = {"m": ModelDemand(rate, 1000, 200, 100, 100, "default")}
        wanted.append(sum(one.replicas for one in advise(plan(), demand, {}).advice))
    assert wanted == sorted(wanted)
    assert wanted[-1] > wanted[0]


def test_advice_stays_within_the_bounds_of_the_config_and_says_so() -> None:
    """Seven wanted, five allowed."""
    made, policy = fixed(plan())
    (one,) = advise(made, {"m": ASKED}, {}).advice
    assert one == Advice("m", "small", 5, 1, "because; 7 is outside 1 to 5")
    (asked,) = policy.asked
    assert dict(asked.replicas) == {"small": 1, "big": 1}
    assert asked.attainment == 0.98
    assert asked.slo.ttft_s == 2.0


def test_nobody_is_asked_about_a_model_that_no_backend_serves_or_that_gave_no_token() -> None:
    """There is nothing to compute a batch from."""
    made, policy = fixed(plan())
    nothing = ModelDemand(1.0, 10, 0.0, 0, 0, "default")
    assert advise(made, {"elsewhere": ASKED, "m": nothing}, {}).advice == []
    assert policy.asked == []
    assert advise(made, {"m": ModelDemand(1.0, 10, 5, 0, 0, "gone")}, {}).advice
    assert isnan(policy.asked[0].attainment)


def test_replicas_that_the_target_observes_count_in_place_of_configured_backends() -> None:
    """Those that are starting are there too: without them each round would order them again."""
    made, policy = fixed(plan())
    (one,) = advise(made, {"m": ASKED}, {("m", "small"): Replicas(2, starting=1)}).advice
    (asked,) = policy.asked
    assert dict(asked.replicas) == {"small": 3, "big": 1}
    assert one.running == 3


def test_a_variant_that_no_listed_backend_has_is_what_the_config_states_of_a_replica() -> None:
    """Its backends come and go by discovery; there may be none when the first is needed."""
    replica = "{models: [x], card: l20, model: qwen2.5-7b}"
    text = CONFIG.replace("variants: {", f"variants: {{spare: {{replica: {replica}}}, ")
    made, policy = fixed(plan(text))
    assert advise(made, {"x": ASKED}, {}).advice[0].running == 0
    (asked,) = policy.asked
    assert (asked.variants["spare"].models, asked.variants["spare"].labels["card"]) == (("x",), "l20")


@pytest.mark.parametrize(
    ("replica", "why"),
    [
        ("{card: l20, model: qwen2.5-7b}", "autoscale.variants.spare.replica: models is missing"),
        ("{models: [x], card: l2000, model: qwen2.5-7b}", "autoscale.variants.spare.replica.card"),
        ("{models: [x], url: 'http://h:1'}", "url differs from backend to backend"),
    ],
)
def test_a_replica_that_cannot_be_is_refused_with_its_place(replica: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        plan(CONFIG.replace("variants: {", f"variants: {{spare: {{replica: {replica}}}, "))


def test_the_policy_sees_what_runs_on_each_replica_and_names_those_to_drain() -> None:
    """The one with the fewest replies in flight goes first."""
    loads = {("m", "small"): (ReplicaLoad("a", 5.0), ReplicaLoad("b", 1.0), ReplicaLoad("c", 3.0))}
    there = {("m", "small"): Replicas(3), ("m", "big"): Replicas(0)}
    advised = advise(plan(), {"m": IDLE}, there, loads=loads).advice
    (one,) = (each for each in advised if each.variant == "small")
    assert (one.replicas, one.drain) == (1, ("b", "c"))


IDLE = ModelDemand(0.0, 0, 0, 0, 0, "", (), (0.0,) * 240, 5.0)


def test_a_model_that_has_no_requests_any_more_gives_its_replicas_back() -> None:
    """Down to what the config says; a variant that it states no bounds of may go."""
    there = {("m", "small"): Replicas(4), ("m", "big"): Replicas(2)}
    wanted = {one.variant: one.replicas for one in advise(plan(), {"m": IDLE}, there).advice}
    assert wanted == {"small": 1, "big": 0}


def test_demand_goes_to_the_policy_as_it_arrives_with_what_is_known_of_the_variants() -> None:
    """Kinds under the SLO of their class; start times and bounds of the config; what is starting."""
    made, policy = fixed(plan(CONFIG.replace("max_replicas: 5", "max_replicas: 5, start_s: 90, loss_per_hour: 0.1")))
    kind = KindOfDemand("default", 3.0, 900.0, 150.0, 10, 9)
    arriving = replace(ASKED, kinds=(kind,), arrivals=(15.0, 16.0), bucket_s=5.0, in_flight=4.0)
    advise(made, {"m": arriving}, {("m", "small"): Replicas(2, starting=1)})
    (asked,) = policy.asked
    assert asked.kinds == (KindDemand("default", asked.slo, 3.0, 900.0, 150.0, 10, 9),)
    assert (asked.arrivals, asked.bucket_s, asked.in_flight, asked.period_s) == ((15.0, 16.0), 5.0, 4.0, 5.0)
    assert asked.supply["small"] == Supply(90.0, 1, 5, loss_per_hour=0.1, starting=1)


def test_a_policy_gets_its_last_decision_and_since_when_as_many_serve() -> None:
    """What it has to remember is handed back to it."""
    made, memory = plan(), ScalingMemory()
    advise(made, {"m": ASKED}, {}, memory, 0.0)
    decision = memory.decisions["m"]
    assert decision.demand_per_s == ASKED.requests_per_s
    recording, policy = fixed(made)
    for now_s, ready in ((10.0, 1), (40.0, 1), (50.0, 2)):
        advise(recording, {"m": ASKED}, {("m", "small"): Replicas(ready)}, memory, now_s)
    assert [asked.last for asked in policy.asked] == [decision] * 3
    assert [asked.settled_s for asked in policy.asked] == [10.0, 40.0, 0.0]


def test_what_came_beyond_the_plans_goes_to_the_policy() -> None:
    """Counted from when the replicas that a decision ordered have started."""
    made, memory = plan(), ScalingMemory()
    arriving = replace(ASKED, arrivals=(15.0,) * 24, bucket_s=5.0)
    memory.histories.add("m", arriving.arrivals, 5.0, 1000.0)
    advise(made, {"m": arriving}, {}, memory, at_s=1000.0)
    for at_s in range(1020, 1700, 20):
        memory.histories.add("m", (150.0,) * 4, 5.0, at_s)
    recording, policy = fixed(made)
    advise(recording, {"m": arriving}, {}, memory, at_s=1700.0)
    (asked,) = policy.asked
    shares, planned_per_s = dict(asked.beyond), memory.decisions["m"].planned_per_s
    assert asked.highest_per_s == pytest.approx(30.0, rel=0.01)
    assert 3.0 < planned_per_s < 8.0
    assert shares[1.0] == pytest.approx((1.0 - planned_per_s / 30.0) * 600.0 / 86_400.0, rel=0.01)
