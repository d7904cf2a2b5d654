"""What slo_headroom decides and why, one rule a test; then that it wins, in the simulator."""

import random
from collections import Counter
from dataclasses import replace
from math import inf

import pytest

import policies
from policies._worlds import World, scene
from router.core import Dispatch, Forecast, Hold, Reason, Shed, Slo
from router.core.columns import OFF, TRUSTED
from router.core.decisions import Send
from router.core.types import Load
from simulator.pool import Member, Pool
from simulator.replica.truth import HiddenFactors
from simulator.run.play import play
from simulator.traces import TraceEntry
from simulator.workload.arrivals import Shaping, parse_slo, shape
from tests.fakes import backend, core, request

IDLE = Load()
FULL = Load(decoding=600.0, context_tokens=300_000.0)  # a step of 100 ms
CHAT = Slo(ttft_s=1.0, tpot_s=0.05)


def world(*loads, backends=None, bounds=None, turns=(), now_s=0.0, held=0, **facts):
    """Backends with these loads from others, and one request."""
    pool = backends or [backend(f"b{i}") for i in range(len(loads))]
    ranks = ((0.0,),) * held
    return World(
        request("r", **facts), tuple(pool), loads, bounds or (inf,) * len(pool), turns, now_s=now_s, held_ranks=ranks
    )


def answer(situation, *, states=None, seed=1, replies=0, **parameters):
    """What it answers; ``states``: how far each forecast is trusted, all of them if not said; ``replies``: how many
    tokens replies have had (0: none were seen).
    """
    fleet, forecast = scene(situation)
    if replies:
        for _ in range(400):
            forecast._belief.lengths.update("m", "default", replies)
        forecast = Forecast(situation.request, fleet, forecast._belief)
    forecast._belief.state[: len(situation.backends)] = TRUSTED if states is None else states
    policy = policies.find("routing", "slo_headroom", parameters)
    return policy.choose(situation.request, fleet, forecast, random.Random(seed))


def where(situation, **facts):
    """The backend it sends to."""
    choice = answer(situation, **facts)
    assert isinstance(choice, Dispatch)
    return choice.slot


def test_the_tpot_slo_of_those_running_is_met():
    """A stream of 12 ms a token runs on the idle twin: the busier one is taken."""
    some = Load(decoding=40.0, context_tokens=10_000.0)
    assert where(world(IDLE, some, slo=CHAT, turns=(0,), bounds=(0.0101, inf))) == 1
    assert where(world(IDLE, some, slo=CHAT, turns=(0,), bounds=(0.05, inf))) == 0


@pytest.mark.parametrize("slo", [Slo(ttft_s=0.5), Slo(tpot_s=0.03), Slo(e2e_s=6.0)])
def test_each_bound_alone_rules_out_who_breaks_it(slo):
    """The slow one is the cheaper; only what keeps the bound is packed onto."""
    slow = backend("slow", slower=5.0, price_per_hour=1.0)
    fast = backend("fast", price_per_hour=100.0)
    situation = world(IDLE, IDLE, backends=[slow, fast], slo=slo, prompt_tokens=1500)
    assert where(situation, prefer="pack") == 1
    assert where(replace(situation, request=request("r", slo=Slo(ttft_s=60.0))), prefer="pack") == 0


def test_spread_takes_the_most_headroom_and_pack_the_least_cost():
    """Both fit; the dear one has more headroom."""
    pool = [backend("cheap", slower=2.0, price_per_hour=1.0), backend("dear", price_per_hour=10.0)]
    situation = world(IDLE, IDLE, backends=pool, slo=CHAT)
    assert where(situation, prefer="spread") == 1
    assert where(situation, prefer="pack") == 0


def test_near_equals_are_drawn_from_at_random():
    """Two routers with the same view do not both take the first."""
    drawn = Counter(where(world(IDLE, IDLE, IDLE, slo=CHAT), seed=seed) for seed in range(60))
    assert min(drawn[i] for i in range(3)) > 5


def test_a_cached_prompt_is_worth_a_busier_backend():
    """Prefix credit: the prompt's blocks are on the one that has work."""
    prompt = {"prompt_tokens": 6000, "prefix": tuple(range(12)), "prefix_block_tokens": 500}
    some = Load(decoding=4.0, context_tokens=2000.0)
    assert where(world(IDLE, some, slo=CHAT, turns=(1,), **prompt)) == 1
    assert where(world(IDLE, some, slo=CHAT, turns=(1,), prompt_tokens=6000)) == 0


def test_without_headroom_it_holds_while_the_first_token_can_still_come_in_time():
    """A TPOT of 20 ms will be there once 60 % of the sequences have ended, which replies of 30 tokens have in 0.6 s: it
    waits, asked again within 50 ms, if the first token may come that late; it does not for replies of 300 tokens.
    """
    slow = Load(decoding=200.0, context_tokens=50_000.0)  # a step of 35 ms
    situation = world(slow, slow, slo=Slo(ttft_s=1.0, tpot_s=0.02))
    choice = answer(situation, replies=30)
    assert isinstance(choice, Hold)
    assert choice.until_s <= 0.05
    sooner = replace(situation.request, slo=Slo(ttft_s=0.4, tpot_s=0.02))
    assert isinstance(answer(replace(situation, request=sooner), replies=30), Shed)
    assert isinstance(answer(situation, replies=300), Shed)


def test_doubt_that_waiting_would_not_lessen_is_no_reason_to_wait():
    """The mean keeps the SLO on an empty queue, the tail does not: it is sent now, not shed later."""
    situation = world(Load(decoding=5.0, context_tokens=2000.0), slo=Slo(ttft_s=0.35), prompt_tokens=2000)
    _, forecast = scene(situation)
    mean_s, tail_s = float(forecast.ttft_s[0]), float(forecast.ttft_tail_s(0.99)[0])
    bound_s = 1.35 * mean_s
    assert mean_s < bound_s < tail_s
    assert where(replace(situation, request=replace(situation.request, slo=Slo(ttft_s=bound_s, quantile=0.99)))) == 0


def young(short, *, turns, now_s=0.02, **facts):
    """Two backends, those in ``turns`` with a stream since 0 s; replies of ``short`` tokens; and a long prompt."""
    facts = {"slo": Slo(ttft_s=2.0, tpot_s=0.05), **facts}
    situation = world(IDLE, IDLE, turns=turns, bounds=(0.05, 0.05), prompt_tokens=2000, **facts)
    fleet, forecast = scene(replace(situation, now_s=0.0))
    fleet.now_s = now_s
    for _ in range(400):
        forecast._belief.lengths.update("m", "default", short)
    forecast._belief.state[:2] = TRUSTED
    return situation.request, fleet, Forecast(situation.request, fleet, forecast._belief)


def decided(situation, **parameters):
    """What is answered there."""
    return policies.find("routing", "slo_headroom", parameters).choose(*situation, random.Random(1))


def test_a_long_prompt_keeps_away_from_a_reply_that_may_end_before_its_step_is_made_up_for():
    """A step of 200 ms, with a TPOT SLO of 50 ms and 10 ms needed: a reply of up to five tokens breaks."""
    assert decided(young(4, turns=(0,))).slot == 1
    assert decided(young(4, turns=(1,))).slot == 0


def test_where_every_backend_has_such_a_reply_the_prompt_waits_a_little_but_not_long():
    """For a moment, then it goes; replies that are long, or no longer young, are no reason."""
    assert isinstance(decided(young(4, turns=(0, 1))), Hold)
    assert isinstance(decided(young(400, turns=(0, 1))), Dispatch)
    assert isinstance(decided(young(4, turns=(0, 1), now_s=0.9)), Dispatch)
    assert isinstance(decided(young(4, turns=(0, 1), arrived_s=-1.5)), Dispatch)


def test_a_reply_makes_no_tokens_while_a_prompt_is_taken_in_behind_it():
    """Its first token came 900 ms ago, but 10 ms later a prompt of 800 ms began: the next one would still break it."""
    asked, fleet, forecast = young(4, turns=(0, 1), now_s=0.9, slo=Slo(ttft_s=4.0, tpot_s=0.05))
    assert isinstance(decided((asked, fleet, forecast)), Dispatch)
    for slot in (0, 1):
        fleet._ledger.load.reserve(slot, 8000.0, 8000.0, 0.05, 0.01)
    again = Forecast(asked, fleet, forecast._belief)
    assert again.expected_tpot_violations.min() >= 1.0 + forecast.expected_tpot_violations.max()
    assert isinstance(decided((asked, fleet, again)), Hold)


def test_what_is_too_late_breaks_nobody_either():
    """Idle but for a reply whose TPOT SLO the prompt would violate: there are no takers for what is lost anyway."""
    asked, fleet, forecast = young(4, turns=(0, 1))
    late = replace(asked, arrived_s=-60.0)
    assert isinstance(decided((late, fleet, Forecast(late, fleet, forecast._belief))), Shed)
    asked, fleet, forecast = young(400, turns=(0, 1))
    late = replace(asked, arrived_s=-60.0)
    assert isinstance(decided((late, fleet, Forecast(late, fleet, forecast._belief))), Dispatch)


def test_too_late_under_load_is_refused_with_a_time_to_come_again():
    """429 at once: work on it would violate the SLOs of others."""
    choice = answer(world(FULL, slo=CHAT, now_s=5.0, held=3))
    assert isinstance(choice, Shed)
    assert choice.reason is Reason.SATURATED
    assert choice.retry_after_s >= 1.0


def test_an_slo_that_nobody_could_keep_is_served_from_an_idle_pool():
    """As well as can be, where that harms nobody."""
    slow, fast = backend("slow", slower=3.0), backend("fast")
    assert where(world(IDLE, IDLE, backends=[slow, fast], slo=Slo(ttft_s=1e-3))) == 1


@pytest.mark.parametrize(("best_effort", "kind"), [("send", Dispatch), ("shed", Shed), ("spare", Shed)])
def test_what_becomes_of_the_late_is_a_parameter(best_effort, kind):
    """With a TPOT SLO in force there that it would violate."""
    situation = world(FULL, slo=CHAT, now_s=5.0, turns=(0,), bounds=(0.01,))
    assert isinstance(answer(situation, best_effort=best_effort), kind)


def test_a_backend_whose_forecast_is_not_trusted_gets_a_few_whatever_it_says():
    """One that is taken for slower than it is would never show it."""
    slow = backend("slow", slower=1000.0)
    few, many = Load(decoding=2.0, context_tokens=500.0), Load(decoding=8.0, context_tokens=500.0)
    assert isinstance(answer(world(few, backends=[slow], slo=CHAT, now_s=2.0, held=1), states=[OFF]), Dispatch)
    assert isinstance(answer(world(many, backends=[slow], slo=CHAT, now_s=2.0, held=1), states=[OFF]), Shed)
    assert isinstance(answer(world(few, backends=[slow], slo=CHAT, now_s=2.0, held=1)), Shed)


def test_a_forecast_that_is_off_is_widened_more():
    """Just inside the bound when trusted, outside when off."""
    situation = world(Load(decoding=240.0, context_tokens=60_000.0), slo=Slo(tpot_s=0.058, ttft_s=5.0, quantile=0.99))
    assert isinstance(answer(situation), Dispatch)
    assert isinstance(answer(situation, states=[OFF]), Hold)


# ---- best effort ------------------------------------------------------------------


PROMISED = {"slo": Slo(ttft_s=1.0, tpot_s=0.0135), "slo_class": "chat"}


def with_streams(it, count, now_s):
    """A peer has so many streams on the one backend, with a TPOT SLO of 13.5 ms."""
    return it.on_peer_load("peer", {"a": Load(decoding=float(count), tpot_bound_s=0.0135)}, now_s)


def room_for_one():
    """How many streams leave room for exactly one more."""
    for count in range(256):
        it = core(backend("a"), routing="slo_headroom")
        with_streams(it, count, 0.0)
        if not it.arrived(request("r", **PROMISED), 0.0):
            return count - 1
    raise AssertionError("always room")


def waits_s(until_s, **facts):
    """How long one such request waits while another with an SLO comes for every place that is free, every 100 ms."""
    it = core(backend("a"), routing="slo_headroom", admission={"hold_s_max": 600.0})
    free = room_for_one()
    with_streams(it, free + 1, 0.0)
    assert it.arrived(request("patient", **facts), 0.0) == ()
    for step in range(1, int(until_s * 10)):
        now_s = step / 10
        commands = [*it.arrived(request(f"n{step}", arrived_s=now_s, **PROMISED), now_s)]
        commands += it.ticked(now_s)
        commands += with_streams(it, free, now_s)
        with_streams(it, free + 1, now_s)
        for served in [c.request_id for c in commands if isinstance(c, Send)]:
            if served == "patient":
                return now_s
            it.client_left(served, now_s)
    return inf


def test_a_request_without_an_slo_gives_way_but_not_for_ever():
    """Every place goes to a request with an SLO until its patience is over; then it is served in a turn of its own."""
    assert 5.0 <= waits_s(30.0, slo_class="batch") < 15.0


def test_a_request_with_an_earlier_deadline_does_not_wait_at_all():
    """The same place, for a tighter SLO."""
    assert waits_s(1.0, slo=Slo(ttft_s=0.5, tpot_s=0.0135), slo_class="urgent") == 0.1


# ---- it wins ----------------------------------------------------------------------

POOL = Pool(
    (Member("h100", "h100-sxm"), Member("a100", "a100-80g-sxm"), Member("l40s", "l40s"), Member("a10x2", "a10", tp=2)),
    truth=HiddenFactors(spread=0.2),
)


def attainment(routing, rate, routers=1):
    """The share of 800 requests of two classes that keep their SLO, on four unequal engines."""
    draw, at_s, entries = random.Random(5), 0.0, []
    for _ in range(800):
        at_s += draw.expovariate(rate)
        entries.append(
            TraceEntry(at_s, int(min(8000, draw.lognormvariate(6.6, 1.0))) + 1, int(draw.lognormvariate(5.0, 0.7)) + 1)
        )
    classes = (parse_slo("chat@0.8:ttft=1s,tpot=60ms"), parse_slo("tight@0.2:ttft=0.5s,tpot=35ms"))
    arrivals = shape(entries, Shaping(POOL.default_model, classes), 5)
    pool = replace(POOL, world=replace(POOL.world, routers=routers, sync_s=0.1))
    made = policies.find("routing", routing), policies.find("admission", "deadline")
    return play(arrivals, pool, *made, 5).table.met().mean()


def test_it_keeps_slos_at_a_load_where_the_baselines_have_given_up():
    """On a mixed pool whose truth strays 20 % from what is believed."""
    assert attainment("slo_headroom", 30.0) > 0.99
    assert max(attainment(name, 30.0) for name in ("least_work", "least_request", "round_robin")) < 0.95


def test_four_routers_with_old_views_do_nearly_as_well_as_one():
    """Each sees the others' load 100 ms late."""
    assert attainment("slo_headroom", 30.0, routers=4) > attainment("slo_headroom", 30.0) - 0.01


def test_overload_does_not_collapse():
    """Far beyond what the pool carries as many are served in time as ever."""
    assert 60.0 * attainment("slo_headroom", 60.0) > 40.0 * attainment("slo_headroom", 40.0)
