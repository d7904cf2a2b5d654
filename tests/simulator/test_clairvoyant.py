"""What the clairvoyant decides: waits for what waiting can change, serves the rest where it costs nobody, drops it."""

from dataclasses import replace

import pytest

import policies
from router.core.types import Request, Slo
from simulator.bounds.clairvoyant import PORTFOLIO, Clairvoyant, Strategy
from simulator.pool import Member, Pool
from simulator.replica.truth import EXACT
from simulator.run.play import RunResult, play
from simulator.run.result_table import ResultTable
from simulator.workload.arrivals import Arrival
from simulator.world import Fault, World

POOL = Pool((Member("a", "a100-80g-sxm", "llama-3-8b"),), truth=EXACT)
SOONEST, LIGHTEST = PORTFOLIO[0], PORTFOLIO[1]


def run_of(
    arrivals: list[Arrival], strategy: Strategy = SOONEST, hold_s_max: float = 30.0, pool: Pool = POOL
) -> RunResult:
    """The arrivals on one A100 whose truth is its data sheet, or on another pool."""
    routing = policies.find("routing", "round_robin")
    admission = policies.find("admission", "deadline", {"hold_s_max": hold_s_max})
    return play(
        arrivals,
        pool,
        routing,
        admission,
        0,
        clairvoyant=lambda engines, known, limits: Clairvoyant(engines, known, limits, strategy),
    )


def played(
    arrivals: list[Arrival], strategy: Strategy = SOONEST, hold_s_max: float = 30.0, pool: Pool = POOL
) -> ResultTable:
    """What became of each."""
    return run_of(arrivals, strategy, hold_s_max, pool).table


def asked(name: str, at_s: float, slo: Slo, prompt: int = 1_000, output: int = 100) -> Arrival:
    """One request for Llama 3 8B."""
    return Arrival(Request(name, "llama-3-8b", at_s, prompt, 0, slo), output)


def waited_s(table: ResultTable) -> dict[str, float]:
    """Seconds at the gateway, by id; nan for what was dropped."""
    waits = table.column("sent_s") - table.column("arrived_s")
    return dict(zip(table.ids, (float(wait) for wait in waits), strict=True))


@pytest.mark.parametrize("slo", [Slo(e2e_s=2.0), Slo(tpot_s=0.015), Slo(ttft_s=0.3), Slo()])
@pytest.mark.parametrize("strategy", PORTFOLIO, ids=lambda strategy: strategy.name)
def test_an_idle_engine_serves_at_once(slo: Slo, strategy: Strategy) -> None:
    """Whatever was promised, three requests far apart wait for nothing and keep it."""
    table = played([asked(f"r{n}", 10.0 * n, slo) for n in range(3)], strategy)
    assert table.met().all()
    assert max(waited_s(table).values()) == 0.0


def test_a_bound_that_no_engine_can_keep_holds_nobody() -> None:
    """It is served at once where that costs nobody, for waiting would not change it."""
    table = played([asked(f"r{n}", 10.0 * n, Slo(tpot_s=0.001)) for n in range(3)])
    assert table.served().all()
    assert not table.met().any()
    assert max(waited_s(table).values()) == 0.0


def test_it_waits_where_an_end_makes_every_bound_attainable() -> None:
    """A pace that only an engine with nobody else keeps: the second waits for the end of the first, then keeps it."""
    alone = played([asked("one", 0.0, Slo(), 1_000, 200)])
    pace_s = float(alone.tpot_s()[0])
    table = played([asked(f"r{n}", 0.1 * n, Slo(tpot_s=1.01 * pace_s), 1_000, 200) for n in range(3)])
    assert table.met().all()
    assert waited_s(table)["r2"] > waited_s(table)["r1"] > 1.0


def test_what_is_lost_takes_nothing_from_those_that_keep_theirs() -> None:
    """A prompt that can no longer make it is dropped while another one's pace would suffer from it."""
    arrivals = [asked("kept", 0.0, Slo(tpot_s=0.0125), 200, 300), asked("lost", 0.5, Slo(ttft_s=0.05), 8_000, 10)]
    table = played(arrivals)
    assert dict(zip(table.ids, table.met(), strict=True)) == {"kept": True, "lost": False}
    assert dict(zip(table.ids, table.served(), strict=True)) == {"kept": True, "lost": False}


def test_the_latest_start_leaves_time_to_decode() -> None:
    """A whole reply within 2 s of which decoding takes more than one: it is given up before the second is over."""
    kept = asked("kept", 0.0, Slo(tpot_s=0.0125), 200, 400)
    table = played([kept, asked("lost", 0.5, Slo(e2e_s=2.0), 8_000, 100)])
    lost = table.ids.index("lost")
    assert table.met().sum() == 1
    assert 0.0 < table.column("ended_s")[lost] - 0.5 < 1.0


def test_who_was_promised_nothing_is_served_in_the_end() -> None:
    """It waits while it would cost somebody an SLO, as long as it may be held, and is never dropped."""
    kept = [asked(f"kept{n}", 3.0 * n, Slo(tpot_s=0.0125), 200, 300) for n in range(5)]
    free = asked("free", 0.5, Slo(), 8_000, 10)
    table = played(sorted([*kept, free], key=lambda arrival: arrival.request.arrived_s), hold_s_max=2.0)
    assert dict(zip(table.ids, table.served(), strict=True))["free"]
    assert waited_s(table)["free"] > 0.5


def test_beyond_capacity_the_least_work_keeps_more_slos() -> None:
    """Long and short prompts, twice as many as can be served in time: the strategies differ in whom they give up."""
    sizes = (200, 4_000)
    arrivals = [asked(f"r{n}", 0.05 * n, Slo(e2e_s=3.0), sizes[n % 2], 100) for n in range(200)]
    soonest, lightest = played(arrivals), played(arrivals, LIGHTEST)
    assert lightest.met().sum() > 1.2 * soonest.met().sum()
    short = lightest.column("prompt_tokens") == sizes[0]
    assert lightest.met()[short].mean() > 0.95 > lightest.met()[~short].mean()


def test_an_engine_that_is_down_gets_nothing() -> None:
    """It is known before any health check says so: nobody is sent there to be refused and tried elsewhere."""
    world = World(faults=(Fault(1.0, "a-0", "crash", 20.0),), health_s=5.0)
    pool = replace(POOL, members=(Member("a", "a100-80g-sxm", "llama-3-8b", count=2),), world=world)
    table = played([asked(f"r{n}", 1.1 + 0.5 * n, Slo(ttft_s=1.0)) for n in range(10)], pool=pool)
    assert table.met().all()
    assert (table.column("attempts") == 1).all()
    assert table.backends == ["a-1"]


@pytest.mark.parametrize("strategy", PORTFOLIO, ids=lambda strategy: strategy.name)
def test_a_full_queue_gets_nothing_that_it_would_refuse(strategy: Strategy) -> None:
    """Twenty at once for an engine that takes one at a time: nobody is sent to be refused, all are served."""
    pool = replace(POOL, members=(Member("a", "a100-80g-sxm", "llama-3-8b", queue_max=1),))
    table = played([asked(f"r{n}", 0.0, Slo()) for n in range(20)], strategy, pool=pool)
    assert table.served().all()
    assert (table.column("attempts") == 1).all()


@pytest.mark.parametrize("strategy", PORTFOLIO[:3], ids=lambda strategy: strategy.name)
def test_nobody_is_sent_for_whom_the_cache_has_no_room(strategy: Strategy) -> None:
    """Six in front of a cache that holds two of their prompts and not their replies: none is computed twice."""
    pool = replace(POOL, members=(Member("a", "a100-80g-sxm", "llama-3-8b", kv_blocks=100),))
    run = run_of([asked(f"r{n}", 0.1 * n, Slo(e2e_s=60.0), 600, 400) for n in range(6)], strategy, pool=pool)
    assert run.table.met().all()
    assert [engine.replica.preemptions for engine in run.engines.values()] == [0]


def test_a_later_turn_goes_where_its_prefix_is_cached() -> None:
    """The second of two idle engines, for it served the turn before."""
    pool = replace(POOL, members=(Member("a", "a100-80g-sxm", "llama-3-8b", count=2),))
    slo = Slo(ttft_s=1.0)
    turns = [
        Arrival(
            Request(f"turn{n}", "llama-3-8b", at_s, 4_000, 0, slo, prefix=tuple(range(30)), prefix_block_tokens=128), 50
        )
        for n, at_s in enumerate((0.1, 20.0))
    ]
    table = played([asked("other", 0.0, slo), *turns], pool=pool)
    where = dict(zip(table.ids, table.column("backend"), strict=True))
    assert where["turn1"] == where["turn0"] != where["other"]
    assert table.column("cached_tokens")[table.ids.index("turn1")] > 3_000
