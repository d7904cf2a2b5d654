"""Worlds of hypothesis' own making: the extremes that chance alone would take long to meet."""

from math import inf

from hypothesis import strategies as st

from policies._contract import TAPE
from policies._worlds import World
from router.core import Backend, Request, Slo
from router.core.step import StepCoefficients
from router.core.types import Load

SECONDS = st.floats(1e-6, 10.0) | st.just(inf)
TPOTS_S = st.sampled_from([inf, 1e-6, 0.01, 0.05, 1.0])
SLOS = st.builds(
    Slo,
    ttft_s=st.floats(0.0, 100.0) | st.just(inf),
    tpot_s=SECONDS,
    e2e_s=st.floats(0.0, 1e4) | st.just(inf),
    quantile=st.floats(0.01, 0.999),
    refuse_infeasible=st.booleans(),
)
COSTS = st.builds(
    StepCoefficients,
    fixed_s=st.floats(1e-5, 1.0),
    seq_s=st.floats(0.0, 0.01),
    context_s=st.floats(0.0, 1e-5),
    token_s=st.floats(1e-9, 0.01),
    token_context_s=st.floats(0.0, 1e-7),
    first_token_s=st.floats(0.0, 1.0),
)
LOADS = st.builds(
    Load,
    prefilling=st.integers(0, 2000).map(float),
    prefill_tokens=st.integers(0, 10**7).map(float),
    decoding=st.integers(0, 2000).map(float),
    context_tokens=st.integers(0, 10**7).map(float),
)
TAPES = st.lists(st.floats(0.0, 1.0, exclude_max=True), min_size=TAPE, max_size=TAPE)
RANKS = st.lists(st.tuples(st.floats(-1e9, 1e9)), max_size=3).map(tuple)


def requests(now_s: float) -> st.SearchStrategy[Request]:
    """A request that came up to an hour ago."""
    return st.builds(
        Request,
        id=st.text(min_size=1, max_size=8),
        model=st.just("m"),
        arrived_s=st.floats(0.0, 3600.0).map(lambda waited_s: now_s - waited_s),
        prompt_tokens=st.integers(0, 2_000_000),
        output_tokens_max=st.integers(0, 1_000_000),
        slo=SLOS,
        priority=st.integers(-(2**31), 2**31),
        tenant=st.text(max_size=5),
        session=st.text(max_size=5),
        prefix=st.lists(st.integers(0, 2**64 - 1), max_size=20, unique=True).map(tuple),
        prefix_block_tokens=st.integers(0, 1024),
        sequences=st.just(1) | st.integers(1, 16_384),
    )


def backends(name: str) -> st.SearchStrategy[Backend]:
    """Any engine, from absurdly small to absurdly large."""
    return st.builds(
        Backend,
        name=st.just(name),
        models=st.just(("m",)),
        prior=COSTS,
        seqs_max=st.integers(1, 100_000),
        kv_tokens_max=st.integers(1, 10**8),
        chunk_tokens=st.integers(1, 65_536),
        price_per_hour=st.floats(0.0, 1e4),
        network_s=st.floats(0.0, 10.0),
        weight=st.floats(0.0, 1e6),
        variant=st.sampled_from(["one", "two"]),
        labels=st.just({}),
    )


@st.composite
def any_world(draw: st.DrawFn) -> World:
    """Any pool of up to five backends, in any state."""
    size = draw(st.integers(1, 5))
    now_s = draw(st.floats(0.0, 2e9))
    places = st.integers(0, size - 1)
    return World(
        request=draw(requests(now_s)),
        backends=tuple(draw(backends(f"b{index}")) for index in range(size)),
        loads=tuple(draw(LOADS | st.just(Load())) for _ in range(size)),
        tpot_bounds_s=tuple(draw(TPOTS_S) for _ in range(size)),
        turns=tuple(draw(st.lists(places, max_size=6))),
        down=frozenset(draw(st.sets(places, max_size=size - 1))),
        now_s=now_s,
        held_ranks=draw(RANKS),
    )
