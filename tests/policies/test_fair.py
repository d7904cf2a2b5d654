"""Admission by fair share: order, shares, refusals, and an end to every wait."""

from collections import Counter
from dataclasses import replace

import pytest

import policies
from policies._worlds import World, scene
from router.core import Admit, Reason, Shed, Slo
from router.core.types import Load
from tests.fakes import backend, request

BUSY = Load(decoding=50.0, context_tokens=20_000.0)


def admitted(policy, requests, *, held=0, load=BUSY):
    """What each is answered, in order of arrival, with the memory handed on."""
    memory, answers = None, []
    for each in requests:
        ranks = tuple((0.0, 0.0) for _ in range(held))
        pool = (backend("a"),)
        fleet, forecast = scene(World(each, pool, (load,), (float("inf"),), now_s=each.arrived_s, held_ranks=ranks))
        answer, memory = policy.admit(each, fleet, forecast, memory)
        answers.append(answer)
    return answers


def fair(**parameters):
    """The policy."""
    return policies.find("admission", "fair", parameters)


def order(policy, requests):
    """Their ids, as they would be served if all waited."""
    answers = admitted(policy, requests)
    ranked = sorted(zip(answers, requests, strict=True), key=lambda pair: pair[0].rank)
    return [each.id for _, each in ranked]


def burst(tenant, count, start_s=0.0, **facts):
    """So many requests of one tenant, 10 ms apart."""
    return [request(f"{tenant}{i}", arrived_s=start_s + i / 100, tenant=tenant, **facts) for i in range(count)]


def in_time(*bursts):
    """All of them by arrival."""
    return sorted((r for each in bursts for r in each), key=lambda r: r.arrived_s)


def test_the_earlier_deadline_goes_first():
    """Among equals of one tenant and priority."""
    late, early = request("late", slo=Slo(ttft_s=9.0)), request("early", slo=Slo(ttft_s=2.0))
    assert order(fair(), [late, early]) == ["early", "late"]


def test_the_more_urgent_priority_goes_first_but_not_for_ever():
    """One step is worth 5 s: what came 6 s later waits behind."""
    patient = request("patient", priority=1, slo=Slo(ttft_s=1.0))
    urgent = [request(f"u{s}", arrived_s=s, slo=Slo(ttft_s=1.0)) for s in (0.0, 4.0, 6.0)]
    served = order(fair(), [patient, *urgent])
    assert served.index("u4.0") < served.index("patient") < served.index("u6.0")


def test_a_greedy_tenant_does_not_hold_up_a_modest_one():
    """100 requests at once from one, two from the other: the two are served among the first."""
    requests = in_time(burst("greedy", 100), burst("modest", 2, start_s=0.5))
    served = order(fair(), requests)
    assert served.index("modest0") < 60
    assert served.index("modest1") < 65


def test_tenants_that_both_ask_for_more_are_served_by_weight():
    """Of the first thirty served, gold has about three for one."""
    requests = in_time(burst("gold", 60), burst("iron", 60))
    served = order(fair(weights={"gold": 3.0}), requests)
    counts = Counter(name.rstrip("0123456789") for name in served[10:50])
    assert counts["gold"] / counts["iron"] == pytest.approx(3.0, rel=0.5)


def test_shares_are_of_tokens_not_of_requests():
    """One tenant's prompts are ten times as long: it has its turn less often."""
    requests = in_time(burst("long", 40, prompt_tokens=5000), burst("short", 40, prompt_tokens=100))
    counts = Counter(name.rstrip("0123456789") for name in order(fair(), requests)[:40])
    assert counts["short"] > 2 * counts["long"]


def test_whoever_waits_is_served_before_what_comes_much_later():
    """Aging: the last request of a greedy tenant without SLO goes before a modest tenant's of a minute later."""
    greedy = burst("greedy", 50, priority=2)
    later = request("later", arrived_s=120.0, tenant="modest", slo=Slo(ttft_s=0.5), priority=-1)
    served = order(fair(), [*greedy, later])
    assert served[-1] == "later"


def test_a_request_that_the_queue_will_not_let_through_in_time_is_refused_at_once():
    """With the time after which those in front should be served."""
    (answer,) = admitted(fair(), [request(slo=Slo(ttft_s=0.1))], held=500)
    assert isinstance(answer, Shed)
    assert answer.reason is Reason.SATURATED
    assert 5.0 < answer.retry_after_s <= 60.0


def test_the_longer_the_queue_the_later_to_try_again():
    """Retry-After follows the predicted drain."""
    waits = [admitted(fair(), [request(slo=Slo(ttft_s=0.1))], held=held)[0].retry_after_s for held in (50, 100, 200)]
    assert waits == sorted(waits)
    assert waits[2] == pytest.approx(2 * waits[1], rel=0.01)


def test_nobody_is_refused_early_while_nobody_waits_or_when_told_not_to():
    """An SLO that cannot be kept is routing's to judge."""
    hopeless = request(slo=Slo(ttft_s=1e-6))
    assert isinstance(admitted(fair(), [hopeless], held=0)[0], Admit)
    assert isinstance(admitted(fair(early=False), [hopeless], held=500)[0], Admit)


def test_a_request_without_deadline_waits_however_long_the_queue():
    """It has no SLO, so none is violated."""
    assert isinstance(admitted(fair(), [request()], held=2000)[0], Admit)


def test_a_tenant_far_over_its_share_is_told_so_while_others_wait():
    """More ahead than anyone may be held: waiting is in vain."""
    requests = in_time(burst("modest", 2), burst("greedy", 200))
    answers = admitted(fair(hold_s_max=1.0), requests, held=5)
    refused = {r.tenant for r, a in zip(requests, answers, strict=True) if isinstance(a, Shed)}
    assert refused == {"greedy"}
    assert {a.reason for a in answers if isinstance(a, Shed)} == {Reason.UNFAIR_SHARE}


def test_what_is_remembered_of_tenants_has_a_bound():
    """Ten thousand tenants share a thousand lanes, and those that fell silent are forgotten."""
    policy, memory = fair(), None
    for number in range(3000):
        each = request(f"r{number}", tenant=f"t{number}")
        fleet, forecast = scene(World(each, (backend("a"),), (BUSY,), (float("inf"),)))
        memory = policy.admit(each, fleet, forecast, memory)[1]
    assert len(memory.lanes) <= 1024
    later = replace(each, arrived_s=1e6)
    fleet, forecast = scene(World(later, (backend("a"),), (BUSY,), (float("inf"),), now_s=1e6))
    assert len(policy.admit(later, fleet, forecast, memory)[1].lanes) == 1


@pytest.mark.parametrize("wrong", [{"weights": {"a": 0.0}}, {"held_max": -1}, {"patience_s": -1.0}])
def test_parameters_that_mean_nothing_are_refused(wrong):
    """By name."""
    with pytest.raises(ValueError, match="fair: "):
        fair(**wrong)
