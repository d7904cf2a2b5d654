"""What befalls a run: faults, impatient clients, several routers, scaling; whoever came is accounted for once."""

from dataclasses import dataclass, replace
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import policies
from router.core import Choice, Fleet, Forecast, Reason, Request, Rng, Shed
from router.core.types import Slo
from simulator.pool import Member, Pool
from simulator.run.play import RunResult, play
from simulator.run.summary import summarise
from simulator.traces import TraceEntry
from simulator.workload.arrivals import Arrival, Shaping, SloClass, shape
from simulator.world import Autoscaling, Clients, Fault, World

CHAT = (SloClass("chat", Slo(ttft_s=1.0, tpot_s=0.06)),)
PAIR = Pool((Member("h100", "h100"), Member("a100", "a100-80g-sxm")), CHAT)


def arrivals(count: int, every_s: float = 0.1) -> list[Arrival]:
    entries = [TraceEntry(n * every_s, 200 + 37 * n % 2000, 1 + 53 * n % 300) for n in range(count)]
    return shape(entries, Shaping("llama-3-8b", CHAT), 0)


def played(
    world: World, count: int = 300, every_s: float = 0.1, routing: str = "least_work", seed: int = 0
) -> RunResult:
    pool = replace(PAIR, world=world)
    admission = policies.find("admission", "deadline")
    return play(arrivals(count, every_s), pool, policies.find("routing", routing), admission, seed, sample_s=1.0)


def test_a_crash_loses_streams_and_spares_what_has_no_token_yet() -> None:
    """Streams of the dead engine break, the rest is retried elsewhere, nobody is lost; later it serves again."""
    run = played(World(faults=(Fault(10.0, "h100", "crash", for_s=5.0),)), count=1000)
    figures = summarise(run)
    assert figures["broken"] > 0
    assert figures["served"] + figures["broken"] == 1000
    sent_s, where = run.table.column("sent_s"), run.table.column("backend")
    number = run.table.backends.index("h100")
    assert not ((sent_s > 11.1) & (sent_s < 15.9) & (where == number)).any()
    assert ((sent_s > 80) & (where == number)).any()  # set aside for up to a minute
    assert [what for _, what in run.log] == ["h100 crashed", "h100 is back"]


def test_a_slow_engine_gets_less_once_it_is_seen() -> None:
    """Five times slower for a while: its share of what is sent then falls."""
    run = played(World(faults=(Fault(10.0, "h100", "slow", for_s=15.0, factor=5.0),)), routing="slo_headroom")
    calm = played(World(), routing="slo_headroom")
    assert share(run, "h100", 12, 25) < share(calm, "h100", 12, 25)


def share(run: RunResult, backend: str, from_s: float, to_s: float) -> float:
    sent_s, where = run.table.column("sent_s"), run.table.column("backend")
    then = (sent_s > from_s) & (sent_s < to_s)
    return float((where[then] == run.table.backends.index(backend)).mean()) if backend in run.table.backends else 0.0


def test_a_draining_engine_gets_nothing_new() -> None:
    """From the drain to its end all goes to the other."""
    run = played(World(faults=(Fault(5.0, "a100", "drain", for_s=10.0),)))
    assert share(run, "a100", 5.001, 14.999) == 0.0
    assert share(run, "a100", 15.001, 31.0) > 0.0
    assert summarise(run)["served"] == 300


def test_clients_that_wait_no_longer_leave_and_free_the_engine() -> None:
    """An overloaded pool, patience of half a second: some leave, and every block comes back."""
    run = played(World(clients=Clients(timeout_s=0.5)), count=600, every_s=0.005)
    figures = summarise(run)
    assert figures["left"] > 0
    assert figures["left"] + figures["served"] == 600
    assert all(engine.replica.kv_usage() == 0 for engine in run.engines.values())


def test_clients_that_hang_up_in_the_middle_are_counted_as_left() -> None:
    """Half of them mean to, some of those find the reply complete."""
    figures = summarise(played(World(clients=Clients(leave_share=0.5))))
    assert 20 < figures["left"] < 150


def test_refused_clients_come_again_and_are_counted_once() -> None:
    """With room for two that run and one that waits, and two retries: more are served than without, each in one row."""
    pool = replace(PAIR, members=tuple(replace(m, queue_max=3, seqs_max=2) for m in PAIR.members))
    admission, routing = policies.find("admission", "deadline"), policies.find("routing", "round_robin")
    served = []
    for retries in (0, 2):
        world = World(clients=Clients(retries=retries))
        run = play(arrivals(200, 0.02), replace(pool, world=world), routing, admission, 0)
        assert len(run.table) == 200
        assert (run.retried > 0) == (retries > 0)
        served.append(summarise(run)["served"])
    assert served[1] > served[0]


@dataclass(frozen=True, slots=True)
class RefusesAll:
    """Sheds everything for one reason."""

    reason: Reason

    def choose(self, request: Request, fleet: Fleet, forecast: Forecast, rng: Rng) -> Choice:
        """Nobody."""
        return Shed(self.reason, "a test's own")


@pytest.mark.parametrize(("reason", "again"), [(Reason.SATURATED, 20), (Reason.INFEASIBLE, 0)])
def test_clients_do_not_come_again_with_an_slo_that_is_infeasible(reason: Reason, again: int) -> None:
    """They are told that it is of no use; each of the ten is in the table once, with its reason."""
    pool = replace(PAIR, world=World(clients=Clients(retries=2)))
    run = play(arrivals(10), pool, RefusesAll(reason), policies.find("admission", "deadline"), 0)
    assert run.retried == again
    assert summarise(run)["shed_by_reason"] == {reason.value: 10}


def test_several_routers_share_the_work_and_hear_of_each_other() -> None:
    """Three routers with views 50 ms old attain about what one does; with views an hour old no more than that."""
    one = summarise(played(World(), every_s=0.06))["ttft_s"]["p90"]
    three = summarise(played(World(routers=3), every_s=0.06))["ttft_s"]["p90"]
    deaf = summarise(played(World(routers=3, sync_s=3600.0, scrape_s=0.0), every_s=0.06))["ttft_s"]["p90"]
    assert three == pytest.approx(one, rel=0.5)
    assert deaf >= three * 0.9


def test_scaling_orders_replicas_when_demand_comes_and_drains_them_when_it_goes() -> None:
    """One replica, a burst, then calm: more replicas for a while, then fewer, and nobody is cut off."""
    scaling = Autoscaling(every_s=5, cold_start_s=5)
    pool = Pool((Member("a10", "a10", tp=2),), CHAT, world=World(scaling=scaling))
    burst = [TraceEntry(n * 0.1, 500, 150) for n in range(600)] + [
        TraceEntry(60 + n * 5.0, 500, 150) for n in range(60)
    ]
    routing, admission = policies.find("routing", "least_work"), policies.find("admission", "deadline")
    run = play(shape(burst, Shaping("llama-3-8b", CHAT), 0), pool, routing, admission, 0, sample_s=1.0)
    assert summarise(run)["served"] == 660
    assert run.timeline is not None
    replicas = list(run.timeline.replicas)
    assert max(replicas) > 1
    assert replicas[-1] == 1
    flat = run.engines["a10"].site.backend.price_per_hour / 3600
    assert run.usd > flat * float(run.table.column("ended_s").max()) * 1.05


def test_a_cold_start_is_paid_for_before_it_serves() -> None:
    """No request is sent to a new replica before its cold start is over."""
    scaling = Autoscaling(every_s=5, cold_start_s=20)
    pool = Pool((Member("a10", "a10", tp=2),), CHAT, world=World(scaling=scaling))
    burst = [TraceEntry(n * 0.1, 500, 150) for n in range(600)]
    routing, admission = policies.find("routing", "least_work"), policies.find("admission", "deadline")
    run = play(shape(burst, Shaping("llama-3-8b", CHAT), 0), pool, routing, admission, 0)
    ordered_s = {what.split()[0]: at_s for at_s, what in run.log}
    where, sent_s = run.table.column("backend"), run.table.column("sent_s")
    first, at_s = next(iter(ordered_s.items()))
    assert sent_s[where == run.table.backends.index(first)].min() >= at_s + 20


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 1 << 32))
def test_whatever_happens_every_request_is_accounted_once(seed: int) -> None:
    """Random faults, patience, retries, routers and loads: one row a request, no block held, nothing in flight."""
    draw = Random(seed)
    faults = tuple(
        Fault(
            draw.uniform(0, 8),
            draw.choice(["h100", "a100"]),
            draw.choice(["crash", "slow", "drain"]),
            draw.uniform(0.5, 5),
        )
        for _ in range(draw.randint(0, 4))
    )
    clients = Clients(draw.choice([0.3, 2.0, float("inf")]), draw.randint(0, 2), draw.choice([0.0, 0.3]))
    world = World(draw.randint(1, 3), 0.2, draw.choice([0.0, 0.5]), draw.choice([0.0, 0.5]), faults, clients)
    routing = draw.choice(policies.names("routing"))
    run = played(world, count=120, every_s=draw.choice([0.01, 0.1]), routing=routing, seed=seed)
    assert len({request_id.partition("~")[0] for request_id in run.table.ids}) == len(run.table) == 120
    for engine in run.engines.values():
        assert (engine.replica.running, engine.replica.kv_usage()) == (0, 0)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Fault(1, "a", "explode"),
        lambda: Fault(-1, "a"),
        lambda: Clients(timeout_s=0),
        lambda: Clients(leave_share=2),
        lambda: World(routers=0),
        lambda: Autoscaling(replicas_min=3, replicas_max=2),
    ],
)
def test_a_world_that_cannot_be_is_refused(make) -> None:
    """Each with what was expected."""
    with pytest.raises(ValueError, match=r"must be|expected"):
        make()
