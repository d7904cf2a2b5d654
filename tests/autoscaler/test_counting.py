"""What runs is what the target observes, else what the routers have; what nobody states is not known: not none."""

from collections.abc import Mapping
from math import inf, nan

from router.autoscaler.counting import CountedBy, Counting, seen_in, with_patterns
from router.autoscaler.memory import ScalingMemory
from router.core.errors import NotObserved
from router.core.scaling import ReplicaLoad
from router.core.types import Load
from router.gateway.state import RouterView
from router.gateway.state.seen import SeenBackend, SeenVariant
from router.targets import Advice, Applied, Outcome, Replicas, Target
from tests.autoscaler.worlds import CONFIG, plan

DISCOVERED = """
discover: [{file: targets.yaml}]
slo_classes: {default: {ttft_ms: 2000, tpot_ms: 60}}
"""
FACTS = {"name": "x", "url": "http://h:1", "models": ["m"], "card": "l20", "model": "qwen2.5-7b"}
SMALL = ("m", "small")


class Blind(Target):
    """A target that observes nothing, or fails for the variants in ``failing``."""

    def __init__(self) -> None:
        self.failing: set[str] = set()
        self.observed: list[str] = []

    async def apply(self, advice: Advice) -> Applied:
        return Applied(Outcome.APPLIED, "done")

    async def observe(self, model: str, variant: str) -> Replicas | None:
        self.observed.append(variant)
        if variant in self.failing:
            raise NotObserved("the API does not answer")
        return None


def small(up: Mapping[str, float], down: tuple[str, ...] = (), model: str = "m") -> SeenVariant:
    backends = {name: SeenBackend(True, ttft_s) for name, ttft_s in up.items()}
    return SeenVariant("small", (model,), backends | {name: SeenBackend(False) for name in down}, FACTS)


def having(*seen: SeenVariant) -> RouterView:
    return RouterView(seen=seen)


async def test_discovered_replicas_are_counted_though_the_config_lists_none() -> None:
    """By name, of all routers together: two of them have the same ones, one lags behind."""
    views = {"r1": having(small({"a": nan, "b": nan})), "r2": having(small({"b": 0.5, "c": nan})), "old": RouterView()}
    whole = with_patterns(plan(DISCOVERED), seen_in(views) or ())
    counts = await Counting().counts(whole, ["m"], Blind(), views, ScalingMemory(), 0.0)
    assert (counts.existing, counts.by, counts.unknown) == ({SMALL: Replicas(3)}, {SMALL: CountedBy.ROUTERS}, {})


async def test_a_variant_that_only_routers_know_has_the_facts_that_they_publish() -> None:
    """Its physics too; what the config states itself stays."""
    found = with_patterns(plan(DISCOVERED), (small({"a": nan}),))
    (pattern,) = found.patterns.values()
    listed = plan().backends[0]
    assert (pattern.variant, pattern.models, pattern.prior) == ("small", ("m",), listed.prior)
    assert with_patterns(plan(), (small({"a": nan}),)).patterns == {}
    unreadable = SeenVariant("small", ("m",), {}, {"card": "no such card"})
    assert with_patterns(plan(DISCOVERED), (unreadable,)).patterns == {}


async def test_of_a_workload_that_does_not_state_what_is_ready_those_are_that_routers_have_up() -> None:
    """Else all of it would start for ever, and none would ever be taken away."""

    class Counted(Blind):
        async def observe(self, model: str, variant: str) -> Replicas | None:
            return Replicas(3, ready_stated=False) if variant == "small" else None

    views = {"r1": having(small({"a": nan, "b": nan}, down=("c",)))}
    counts = await Counting().counts(plan(), ["m"], Counted(), views, ScalingMemory(), 0.0)
    assert (counts.existing[SMALL], counts.by[SMALL]) == (Replicas(2, starting=1), CountedBy.TARGET)
    more = {"r1": having(small(dict.fromkeys("abcde", nan)))}
    counts = await Counting().counts(plan(), ["m"], Counted(), more, ScalingMemory(), 0.0)
    assert counts.existing[SMALL] == Replicas(3)
    counts = await Counting().counts(plan(), ["m"], Counted(), {"old": RouterView()}, ScalingMemory(), 0.0)
    assert counts.existing[SMALL].ready == 3


async def test_what_nobody_states_is_not_known_and_is_not_taken_for_none() -> None:
    """Backends come by discovery, and no router says which: with a replica stated in the config too."""
    text = DISCOVERED + "autoscale: {variants: {small: {replica: {models: [m], card: l20, model: qwen2.5-7b}}}}\n"
    counts = await Counting().counts(plan(text), ["m"], Blind(), {"r1": RouterView()}, ScalingMemory(), 0.0)
    assert counts.existing == {}
    assert "what runs of small is not known" in counts.unknown["m"]
    listed = await Counting().counts(plan(), ["m"], Blind(), {"r1": RouterView()}, ScalingMemory(), 0.0)
    assert listed.by == {SMALL: CountedBy.CONFIG, ("m", "big"): CountedBy.CONFIG}
    assert listed.unknown == {}
    none = await Counting().counts(plan(text), ["m"], Blind(), {"r1": having()}, ScalingMemory(), 0.0)
    assert none.existing == {SMALL: Replicas(0)}


async def test_one_workload_that_cannot_be_observed_holds_up_its_own_models_alone() -> None:
    """It is observed less and less often; a failure of any kind counts as one."""
    counting, target = Counting(), Blind()
    target.failing = {"small"}
    views = {"r1": having()}
    for _ in range(16):
        counts = await counting.counts(plan(), ["m", "n"], target, views, ScalingMemory(), 0.0)
        assert counts.unknown.keys() == {"m"}
        assert "the replicas of small could not be observed: the API does not answer" in counts.unknown["m"]
        assert counts.existing["n", "big"] == Replicas(0)
    assert target.observed.count("small") == 5  # in rounds 1, 2, 4, 8 and 16
    target.failing = set()
    counting.restart()
    counts = await counting.counts(plan(), ["m", "n"], target, views, ScalingMemory(), 0.0)
    assert counts.unknown == {}


async def test_what_was_ordered_starts_until_it_is_there_or_too_late() -> None:
    """Without it the next round would order again; one that never comes does not count for ever."""
    counting, memory = Counting(), ScalingMemory()

    async def count(now_s: float, up: int, down: int = 0) -> Replicas:
        seen = small(dict.fromkeys(map(str, range(up)), nan), tuple(f"d{each}" for each in range(down)))
        return (await counting.counts(plan(), ["m"], Blind(), {"r1": having(seen)}, memory, now_s)).existing[SMALL]

    assert await count(0.0, 2) == Replicas(2)
    memory.ordered(SMALL, 6, 2, 0.0)
    assert await count(15.0, 2) == Replicas(2, 4)
    assert await count(30.0, 4, down=1) == Replicas(4, 2)
    assert await count(179.0, 5) == Replicas(5, 1)
    assert await count(181.0, 5) == Replicas(5, 0)
    memory.ordered(SMALL, 1, 5, 200.0)
    assert await count(201.0, 5) == Replicas(5)


async def test_a_clock_that_is_set_back_keeps_nothing_starting_for_long() -> None:
    """Neither what was ordered nor what is down: it counts as from then."""
    counting, memory = Counting(), ScalingMemory()
    views = {"r1": having(small({"a": nan}, ("b",)))}

    async def starting(now_s: float) -> int:
        found = await counting.counts(plan(), ["m"], Blind(), views, memory, now_s)
        return found.existing[SMALL].starting

    memory.ordered(SMALL, 5, 1, 10_000.0)
    assert await starting(10_000.0) == 4
    assert await starting(1_000.0) == 4
    assert await starting(1_121.0) == 4
    assert await starting(1_181.0) == 0


async def test_what_runs_on_each_replica_is_of_all_routers() -> None:
    """For the choice of which to drain; a load that is no number counts as none."""
    seen = small({"a": nan, "b": nan}, ("c",))
    loads = {
        "r1": {"a": Load(1.0, 100.0, 2.0)},
        "r2": {"a": Load(decoding=4.0), "b": Load(decoding=inf), "c": Load(9.0)},
    }
    views = {name: RouterView(each, seen=(seen,)) for name, each in loads.items()}
    counts = await Counting().counts(plan(), ["m"], Blind(), views, ScalingMemory(), 0.0)
    assert counts.loads[SMALL] == (ReplicaLoad("a", 7.0), ReplicaLoad("b", 0.0))


async def test_one_that_is_down_for_long_does_not_run() -> None:
    """Twice its start time; it may be back until then."""
    counting, memory = Counting(), ScalingMemory()
    for now_s, starting in ((0.0, 1), (119.0, 1), (121.0, 0)):
        views = {"r1": having(small({"a": nan}, ("b",)))}
        counts = await counting.counts(plan(CONFIG), ["m"], Blind(), views, memory, now_s)
        assert counts.existing[SMALL] == Replicas(1, starting)
