"""The fluid bound: nothing serves more than it, and what can never attain is named with its reason."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.core.cards import CARDS, Card, card
from router.core.models import model
from router.core.types import Request
from simulator.experiment import Case, Source
from simulator.planning.demand import Demand, demand_of
from simulator.planning.families import alone, mixed
from simulator.planning.fluid import bound, never
from simulator.planning.prices import Prices
from simulator.planning.variants import Choices, Variant, variants
from simulator.pool import Member, Pool
from simulator.replica.truth import EXACT
from simulator.workload.arrivals import Arrival, parse_slo

SLO = "ttft=1s,tpot=50ms"


def demand(traffic: str = "gen:poisson:rate=5,requests=200", slo: str = SLO, name: str = "llama-3-8b") -> Demand:
    pool = Pool((Member("a", "a10", name),), (parse_slo(slo),))
    return demand_of(list(Source((traffic,)).arrivals(pool, 0)))


def choices(*cards: str, name: str = "llama-3-8b", stored: str = "fp16") -> Choices:
    return Choices(
        model(name), tuple(card(each) for each in cards), (1, 2), (1,), (stored,), ("vllm",), Prices()
    )  # fmt: skip


LOAD = demand()


def variant(name: str, of: str = "llama-3-8b") -> Variant:
    return variants(choices(name, name=of))[0][0]


@pytest.mark.parametrize("name", ["a10", "l20", "a800"])
@pytest.mark.parametrize("slo", ["ttft=2s,tpot=60ms", "ttft=30s,tpot=40ms"])
def test_no_replica_serves_more_than_its_bound(name: str, slo: str) -> None:
    """Of a load 1.3 times the bound, a simulated replica attains the SLO of less than 99 %."""
    at_most = bound(variant(name), demand(slo=slo)).whole.rate_per_s
    of = variant(name)
    rate = 1.3 * at_most
    source = Source((f"gen:poisson:rate={rate:.3f},requests={int(60 * rate) + 100}",))
    pool = Pool((of.member("a", 1, ()),), (parse_slo(slo),), EXACT)
    table = Case(source, pool, "round_robin", "deadline").play().table
    assert table.met().mean() < 0.99


@given(
    st.sampled_from([each for each in CARDS.values() if each.family != "cpu"]),
    st.floats(1.0, 3.0),
    st.floats(1.0, 3.0),
)
def test_a_better_card_serves_at_least_as_much(on: Card, more: float, faster: float) -> None:
    """More memory and more bandwidth never lower the bound."""
    pair = replace(choices("a10"), cards=(on,), tp=(2,))
    better = replace(on, memory_bytes=on.memory_bytes * more, bandwidth_bytes_per_s=on.bandwidth_bytes_per_s * faster)
    [fit], _ = variants(pair)
    [larger], _ = variants(replace(pair, cards=(better,)))
    assert bound(larger, LOAD).whole.rate_per_s >= bound(fit, LOAD).whole.rate_per_s * (1 - 1e-9)


def test_long_prompts_that_cannot_be_prefilled_in_time_are_the_reason() -> None:
    """In words, with the tokens and the time they take."""
    load = demand(slo="ttft=300ms,tpot=1s")
    why = never(bound(variant("l4"), load), load, {"ttft": 0.99})
    assert why.startswith("long prompts cannot be prefilled in 300 ms")
    assert "tokens take" in why


def test_a_step_above_the_tpot_is_the_reason() -> None:
    """With what takes most of it."""
    load = demand(slo="tpot=20ms")
    why = never(bound(variant("l4"), load), load, {"tpot": 0.99})
    assert why.startswith("a step of one sequence takes")
    assert "(weights" in why


def test_memory_that_holds_no_request_is_the_reason() -> None:
    """The weights fit, the requests do not."""
    load = demand("gen:poisson:prompt=60000,output=100,requests=50", slo="ttft=1000s,tpot=10s")
    assert "memory" in never(bound(variant("a10"), load), load, {"ttft": 0.0})


def test_what_does_not_fit_is_named_before_any_load() -> None:
    """Heads, nodes, precision, memory."""
    few = replace(choices("a10"), tp=(1, 16), precisions=("fp16", "fp8"), model=model("qwen2.5-14b"))
    fit, unfit = variants(few)
    reasons = {each.variant.label: each.why for each in unfit}
    assert not fit
    assert "leave no room for KV" in reasons["a10 fp16 vllm"]
    assert "does not compute in fp8" in reasons["a10 fp8 vllm"]
    assert "more than the 8 cards of a node" in reasons["a10 TP16 fp16 vllm"]


def test_prompts_known_from_earlier_ones_are_not_computed_again() -> None:
    """Two blocks of 128 tokens that both begin with count once."""
    requests = [Request(f"r{n}", "m", float(n), 300, prefix=(1, 2, n + 3), prefix_block_tokens=128) for n in range(2)]
    load = demand_of([Arrival(request, 10) for request in requests])
    assert load.prompt_tokens.tolist() == [300, 300]
    assert load.fresh_tokens.tolist() == [300, 44]


def test_a_mixed_pool_is_for_what_one_make_cannot_serve() -> None:
    """Long prompts are late on a slow card; beside a fast one it is a candidate, alone it is not."""
    load = demand(slo="ttft=450ms,tpot=60ms")
    bounds = [bound(variant(name), load) for name in ("l4", "a800")]
    slow, fast = bounds
    assert never(slow, load, {"ttft": 0.99})
    assert not never(fast, load, {"ttft": 0.99})
    assert 0 < slow.idle.met.mean() < 0.99
    families = mixed(bounds, load, 0.99)
    assert families
    assert all(len(family.mix(family.least).parts) == 2 for family in families)


def test_a_family_begins_at_the_bound() -> None:
    """Fewer replicas are not played."""
    load = replace(demand(), rate_per_s=100.0)
    each = bound(variant("l20"), load)
    family = alone(each, load, 0.99)
    assert family is not None
    assert (family.least - 1) * each.whole.rate_per_s < 99.0 <= family.least * each.whole.rate_per_s
    assert alone(each, replace(load, rate_per_s=1e6), 0.99) is None


def test_an_engine_that_reserves_is_started_for_the_longest_request() -> None:
    """TensorRT-LLM holds room for a whole context for each request that states no limit."""
    of = replace(choices("a800"), engines=("vllm", "tensorrt-llm"), longest_tokens=LOAD.longest_tokens)
    contexts = {each.engine: each.member("a", 1, ()).model_tokens_max for each in variants(of)[0]}
    assert contexts["vllm"] == 131_072
    assert contexts["tensorrt-llm"] == LOAD.longest_tokens
    longest = float((LOAD.prompt_tokens + LOAD.output_tokens).max())
    assert 1.25 * longest <= LOAD.longest_tokens < 1.25 * longest + 1024


def test_a_load_needs_two_moments() -> None:
    """A rate is requests over time."""
    with pytest.raises(ValueError, match="at least two requests"):
        demand("gen:poisson:requests=1")
