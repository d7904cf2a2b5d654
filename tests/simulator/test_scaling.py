"""Scaling in the simulator, truth unlike belief: what was wrong once, each with the value that is right."""

from dataclasses import replace
from random import Random

import policies
from router.core.decisions import ScaleTo
from router.core.scaling import Demand
from router.core.types import Slo
from simulator.pool import Member, Pool
from simulator.run.play import Run, RunResult, play
from simulator.traces import TraceEntry
from simulator.workload.arrivals import Shaping, SloClass, shape
from simulator.world import Autoscaling, World

MODEL = "llama-3-8b"
CHAT = SloClass("chat", Slo(ttft_s=2.0, tpot_s=0.06))
BATCH = SloClass("batch", Slo(e2e_s=600.0), share=0.0)
CHEAP = Member("a10", "a10", tp=2, price_per_hour=1.0)
DEAR = Member("h100", "h100", price_per_hour=20.0)
ONE = Autoscaling(cold_start_s=60.0, replicas_max=8)


def arrivals(rate: float, from_s: float, to_s: float, tokens: tuple[int, int] = (2000, 400)) -> list[TraceEntry]:
    """A Poisson process."""
    draw, at_s, found = Random(f"{rate}/{from_s}"), from_s, []
    while (at_s := at_s + draw.expovariate(rate)) < to_s:
        found.append(TraceEntry(at_s, *tokens))
    return found


def played(entries: list[TraceEntry], scaling: Autoscaling = ONE, members: tuple[Member, ...] = (CHEAP,)) -> RunResult:
    """These requests, in order of time."""
    pool = Pool(members, (CHAT, BATCH), world=World(scaling=scaling))
    routing, admission = policies.find("routing", "slo_headroom"), policies.find("admission", "deadline")
    ordered = sorted(entries, key=lambda entry: entry.arrived_s)
    return play(shape(ordered, Shaping(MODEL, (CHAT, BATCH)), 0), pool, routing, admission, 0, sample_s=5.0)


def replicas(run: RunResult, at_s: float) -> float:
    """That serve, at that time."""
    assert run.timeline is not None
    return run.timeline.replicas[int(at_s / 5.0)]


def changes(run: RunResult, after_s: float = 0.0) -> list[tuple[float, str]]:
    """Orders and drains."""
    return [(at_s, what) for at_s, what in run.log if at_s > after_s and what.endswith((" ordered", " draining"))]


def test_an_idle_hour_after_a_burst_holds_the_minimum() -> None:
    """Nothing arrives and nothing ends: replicas go all the same."""
    run = played([*arrivals(4.0, 0, 240), TraceEntry(3900.0, 2000, 400)])
    assert max(replicas(run, at_s) for at_s in range(0, 400, 5)) >= 2
    assert replicas(run, 900) == 1
    assert replicas(run, 3800) == 1
    assert run.table.met()[-1]


def test_long_replies_are_seen_before_the_first_of_them_ends() -> None:
    """A reply of 8,000 tokens takes minutes: its age says what its end would."""
    run = played([*arrivals(0.3, 0, 500, (500, 8000))])
    first_s = changes(run)[0][0]
    assert first_s < run.table.column("ended_s").min() + 60.0
    assert first_s < 240.0


def test_prompts_that_no_replica_can_serve_are_no_shortage() -> None:
    """Every 33rd is hopeless; one replica serves all others, and stays alone."""
    entries = arrivals(0.8, 0, 600)
    mixed = [replace(entry, prompt_tokens=30_000) if n % 33 == 0 else entry for n, entry in enumerate(entries)]
    run = played(mixed)
    assert changes(run) == []


def test_constant_load_with_cold_starts_does_not_oscillate() -> None:
    """As many as are needed are ordered at once, not one more every tick while others start; then nothing changes."""
    run = played(arrivals(3.5, 0, 1200))
    assert len({at_s for at_s, _ in changes(run)}) <= 3
    assert changes(run, after_s=180.0)[1:] == []
    late = run.table.column("arrived_s") > 240.0
    assert run.table.met()[late].mean() >= 0.99


def test_the_dearest_variant_is_drained_once_the_cheap_one_serves_all() -> None:
    """Every variant is scaled, not only the cheapest per request."""
    run = played(arrivals(0.3, 0, 600), members=(DEAR, CHEAP))
    assert [what for _, what in changes(run)] == ["h100 draining"]
    assert run.table.met().mean() >= 0.99


def test_every_class_counts_with_its_own_traffic() -> None:
    """The first request's class does not decide for all: a batch that comes first lowers no bound of the chats."""
    chats = arrivals(3.5, 1, 300)
    first = replace(TraceEntry(0.0, 2000, 400), slo_class="batch")
    with_batch, without = played([first, *chats]), played(chats)
    assert replicas(with_batch, 290) == replicas(without, 290) > 1


def test_a_replica_is_ordered_soon_after_a_step_and_a_cancelled_order_never_joins() -> None:
    """Within two evaluations; when the step was a spike, what starts is cancelled before it serves anybody."""
    run = played([*arrivals(0.4, 0, 600), *arrivals(8.0, 200, 215)])
    ordered = [at_s for at_s, what in changes(run) if what.endswith(" ordered")]
    assert ordered
    assert ordered[0] <= 210.0
    assert replicas(run, 590) == 1


class Alternating:
    """Two replicas, then one, and so on: what a caller may hand in."""

    def __init__(self) -> None:
        self.count = 1

    def scale(self, demand: Demand) -> list[ScaleTo]:
        """Of each variant."""
        self.count = 3 - self.count
        return [ScaleTo(name, self.count, "alternating") for name in demand.variants]


def test_a_scaler_that_is_handed_in_decides_in_place_of_the_policy() -> None:
    """A baseline with a state of its own, that may read the whole run."""
    seen: list[Run] = []

    def make(run: Run) -> Alternating:
        seen.append(run)
        return Alternating()

    pool = Pool((CHEAP,), (CHAT,), world=World(scaling=replace(ONE, every_s=60.0, cold_start_s=5.0)))
    routing, admission = policies.find("routing", "slo_headroom"), policies.find("admission", "deadline")
    ended = play(
        shape(arrivals(0.3, 0, 400), Shaping(MODEL, (CHAT,)), 0),
        pool,
        routing,
        admission,
        0,
        sample_s=5.0,
        scaling=make,
    )
    assert [int(at_s) for at_s, _ in changes(ended)] == [60, 120, 180, 240, 300, 360]
    assert seen[0].fleet.engines == ended.engines


def test_requests_beyond_the_plan_are_counted_for_the_policy() -> None:
    """Ten times as many from one moment to the next: no plan had room for them."""

    class Recording:
        def __init__(self) -> None:
            self.seen: list[Demand] = []

        def scale(self, demand: Demand) -> list[ScaleTo]:
            self.seen.append(demand)
            return list(policies.find("scaling", "headroom").scale(demand))

    recording, pool = Recording(), Pool((CHEAP,), (CHAT,), world=World(scaling=ONE))
    entries = [*arrivals(0.5, 0.0, 190.0), *arrivals(5.0, 190.0, 245.0)]
    routing, admission = policies.find("routing", "slo_headroom"), policies.find("admission", "deadline")
    play(shape(entries, Shaping(MODEL, (CHAT,)), 0), pool, routing, admission, 0, scaling=lambda _: recording)
    assert recording.seen[36].beyond[0] == (1.0, 0.0)
    assert recording.seen[-1].beyond[0][1] > 0.0
    assert recording.seen[-1].highest_per_s > 3.0
