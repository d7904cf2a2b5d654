"""The cheapest mix of replicas, against every mix there is."""

from itertools import product

from hypothesis import given, settings
from hypothesis import strategies as st

from router.core.mixes import NODES_MAX, TINY, VariantOption, cheapest_mixes, uncovered

COUNTS = st.integers(0, 3)


@st.composite
def options(draw: st.DrawFn) -> list[VariantOption]:
    """Up to three variants that serve one group of requests."""
    return [
        VariantOption(
            f"v{number}",
            (draw(st.sampled_from([0.0, 0.7, 1.0, 2.5])),),
            draw(st.sampled_from([1.0, 2.0, 3.5])),
            draw(st.sampled_from([0.0, 0.5])),
            draw(COUNTS),
            draw(st.integers(0, 1)),
            draw(st.integers(1, 4)),
            1.0,
        )
        for number in range(draw(st.integers(1, 3)))
    ]


@settings(max_examples=200, deadline=None)
@given(options=options(), rate=st.sampled_from([0.0, 0.5, 1.0, 3.3, 6.0, 40.0]))
def test_no_mix_is_cheaper(options: list[VariantOption], rate: float) -> None:
    """Of those that leave least demand; the runner-up costs no less."""
    found = cheapest_mixes(options, (rate,))
    counts = product(*(range(option.least, option.most + 1) for option in options))
    mixes = [(uncovered(options, each, (rate,)), sum(map(VariantOption.price, options, each))) for each in counts]
    least = min(short for short, _ in mixes)
    best = min(cost for short, cost in mixes if short <= least + TINY)
    assert found[0].short <= least + 1e-6
    assert found[0].cost <= best + 1e-6
    assert all(other.short > found[0].short or other.cost >= found[0].cost for other in found[1:])


def option(name: str, serves: tuple[float, ...], cost: float, usd: float = 1.0) -> VariantOption:
    return VariantOption(name, serves, cost, 0.0, 0, 0, 10, usd)


def test_a_group_that_one_variant_serves_gets_that_variant() -> None:
    """However dear it is; the other group goes to the cheap one."""
    small, big = option("small", (1.0, 0.0), 1.0), option("big", (1.0, 1.0), 5.0)
    (best, *_) = cheapest_mixes((small, big), (3.0, 1.0))
    assert best.counts == (3, 1)
    assert best.short == 0.0


def test_a_budget_bounds_the_mix() -> None:
    """What it leaves undone is what is left over."""
    (best, *_) = cheapest_mixes((option("a", (1.0,), 1.0, usd=2.0),), (5.0,), 6.5)
    assert best.counts == (3,)
    assert best.short == 2.0


@st.composite
def grouped(draw: st.DrawFn) -> list[VariantOption]:
    """Up to three variants, for two groups of requests."""
    serves = st.sampled_from([0.0, 0.7, 1.0, 2.5])
    return [
        VariantOption(
            f"v{number}",
            (draw(serves), draw(serves)),
            draw(st.sampled_from([1.0, 2.0, 3.5])),
            draw(st.sampled_from([0.0, 0.5])),
            draw(COUNTS),
            0,
            draw(st.integers(1, 4)),
            1.0,
        )
        for number in range(draw(st.integers(1, 3)))
    ]


@settings(max_examples=200, deadline=None)
@given(options=grouped(), rates=st.tuples(*[st.sampled_from([0.0, 0.5, 1.7, 4.0])] * 2))
def test_no_mix_of_two_groups_that_leaves_nothing_is_cheaper(
    options: list[VariantOption], rates: tuple[float, ...]
) -> None:
    """What ends a branch early loses no mix."""
    found = cheapest_mixes(options, rates)
    counts = product(*(range(option.least, option.most + 1) for option in options))
    whole = [sum(map(VariantOption.price, options, each)) for each in counts if uncovered(options, each, rates) <= TINY]
    if whole:
        assert found[0].short <= TINY
        assert found[0].cost <= min(whole) + 1e-6


def test_a_search_that_stops_states_after_how_many_mixes() -> None:
    """Many variants that cost nearly the same leave little to rule out; a few are compared in full."""
    many = [VariantOption(f"v{n}", (1.0 + 0.137 * n,), 1.0 + 0.1371 * n, 0.05, n % 3, 0, 64, 1.0) for n in range(6)]
    (best, *_) = cheapest_mixes(many, (197.3,))
    assert 0 < best.stopped_after <= NODES_MAX
    assert best.short == 0.0
    (best, *_) = cheapest_mixes(many[:2], (97.3,))
    assert best.stopped_after == 0
