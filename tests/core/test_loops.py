"""Each loop in C gives what its Python reference gives, bit for bit; what is handed wrongly is refused, not read."""

from math import inf

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.routing import _headroom
from router.core import estimators, hashing, kernels
from router.core.columns import (
    BAND,
    BANDS,
    E2E_TPOT_BOUND_S,
    EXPECTATION,
    FORECAST,
    KEPT_QUANTILES,
    LEDGER,
    LEVELS,
    LOAD,
    METRICS,
    PRIOR,
    ROOF_POINTS,
    SCORES,
    SEEN_SCORES,
    STATS,
    TERMS,
    TPOT_BOUND_S,
    WATCH,
    WINDOW,
)
from router.core.estimators import QUANTILES
from router.core.hashing import BLOCK_WORDS
from router.core.native import extension, in_python

KERNELS, ESTIMATORS, HASHING = (extension(f"router.core._{name}") for name in ("kernels", "estimators", "hashing"))
HEADROOM = extension("policies.routing._headroom_loops")
pytestmark = pytest.mark.skipif(
    None in (KERNELS, ESTIMATORS, HASHING, HEADROOM), reason="the C loops are not built (make env)"
)

EXTREMES = (0.0, 1e-300, 1e-9, 0.5, 1.0, 3.0, 1e6, 1e300)
PLAIN, EXTREME, SIGNED = range(3)


class Drawn:
    """Arrays drawn at random: of sizes as they are, or of any size, with zeros among them."""

    def __init__(self, seed: int, kind: int, capacity: int = 7) -> None:
        self.chance = np.random.default_rng(seed)
        self.kind = kind
        self.capacity = capacity

    def numbers(self, *shape: int, least: float = 0.0, most: float = 50.0) -> np.ndarray:
        """From ``least`` to ``most``; where extremes are wanted, a third are these."""
        plain = self.chance.uniform(least, most, shape)
        if self.kind == PLAIN:
            return plain
        extreme = self.chance.choice(EXTREMES, shape)
        if self.kind == SIGNED:
            extreme *= self.chance.choice((-1.0, 1.0), shape)
        return np.where(self.chance.random(shape) < 1 / 3, extreme, plain)

    def number(self, least: float = 0.0, most: float = 50.0) -> float:
        """One such."""
        return float(self.numbers(1, least=least, most=most)[0])

    def index(self, end: int) -> int:
        """Below the end."""
        return int(self.chance.integers(end))

    def slots(self, count: int) -> np.ndarray:
        """Different ones, ascending."""
        return np.sort(self.chance.permutation(self.capacity)[:count]).astype(np.intp)

    def bounds(self, *shape: int) -> np.ndarray:
        """Bounds, of which some are not there."""
        return np.where(self.chance.random(shape) < 0.3, inf, self.numbers(*shape, most=3.0))

    def bound(self) -> float:
        """One such."""
        return float(self.bounds(1)[0])

    def columns(self) -> np.ndarray:
        """The ledger's."""
        columns = self.numbers(LEDGER, self.capacity)
        columns[[TPOT_BOUND_S, E2E_TPOT_BOUND_S]] = self.bounds(2, self.capacity)
        return columns

    def rows(self, count: int) -> np.ndarray:
        """A forecast's."""
        rows = self.numbers(FORECAST, count)
        rows[BAND] = self.chance.integers(BANDS, size=count)
        return rows

    def prior(self) -> np.ndarray:
        """Seconds, and a share and a scale as they may be."""
        return self.numbers(self.capacity, PRIOR, most=0.1)

    def alive(self) -> np.ndarray:
        """A survival curve."""
        return np.concatenate(([1.0], np.sort(self.chance.random(71))[::-1], [0.0]))


def same(made: object, loop: object, *arguments: object, filled: tuple[int, ...]) -> None:
    """The loop of that name of the extension and the Python one leave the same bits and return the same."""
    ours, theirs = ([each.copy() if isinstance(each, np.ndarray) else each for each in arguments] for _ in range(2))
    for at, (one, other) in enumerate(zip(ours, theirs, strict=True)):
        if isinstance(one, np.ndarray) and at not in filled:
            one.setflags(write=False)
            other.setflags(write=False)
    returned = getattr(made, loop.__name__)(*ours)
    expected = in_python(loop)(*theirs)
    assert equal(returned, expected), (returned, expected)
    for at in filled:
        wrong = np.flatnonzero(~equal(ours[at], theirs[at]).ravel())
        assert not len(wrong), (at, wrong, ours[at].ravel()[wrong], theirs[at].ravel()[wrong])


def equal(one: object, other: object) -> np.ndarray:
    """Bit for bit; nan is nan, whatever its sign."""
    if one is None or other is None:
        return np.bool_(one is other)
    one, other = np.asarray(one), np.asarray(other)
    bits = np.uint64 if one.dtype == np.float64 else one.dtype
    return (one.view(bits) == other.view(bits)) | ((one != one) & (other != other))  # noqa: PLR0124


seeds, counts = st.integers(0, 2**32), st.sampled_from([0, 1, 2, 6])
kinds = st.sampled_from([PLAIN, EXTREME, SIGNED])


@settings(deadline=None, max_examples=60)
@given(seed=seeds, count=counts, kind=kinds, share=st.sampled_from([0.0, 0.3]))
def test_what_is_predicted(seed, count, kind, share):
    """Loads at once of own and others, prompts cached or said to be, every band, with violations and without."""
    of = Drawn(seed, kind)
    slots = of.slots(count)
    unreported = of.numbers(LOAD, count) if of.index(2) else np.empty((0, 0))
    columns = of.columns()
    same(KERNELS, kernels.loads, columns, slots, unreported, np.empty((LOAD, count)), filled=(3,))
    rates = (of.number(), of.number(most=9.0), of.number())
    same(KERNELS, kernels.prefill_rates, columns, slots, *rates, np.empty(count), filled=(5,))
    hit, resident = of.numbers(of.capacity, most=1.0), of.numbers(count, most=4000.0) if of.index(2) else np.empty(0)
    alive = of.alive() if of.index(3) else np.empty(0)
    physics = (of.prior(), of.numbers(of.capacity, TERMS, most=2.0), of.numbers(of.capacity, ROOF_POINTS, most=0.1))
    same(
        KERNELS, kernels.predicted,
        columns, unreported, hit, resident, of.number(most=2.0), *physics, of.numbers(2, BANDS, of.capacity, most=2.0),
        of.numbers(METRICS, KEPT_QUANTILES, BANDS, of.capacity, most=2.0), slots, of.number(), of.number(most=4000.0),
        of.number(most=4000.0), of.number(most=400.0), of.number(most=400.0), of.number(most=4000.0),
        of.number(least=1.0, most=9.0), of.number(most=9.0), of.number(), of.index(KEPT_QUANTILES - 1), share,
        of.number(most=2.0), alive, 4.0, of.rows(count),
        filled=(25,),
    )  # fmt: skip


@settings(deadline=None, max_examples=40)
@given(seed=seeds, count=counts, kind=kinds, share=st.sampled_from([0.0, 0.7]))
def test_what_follows_from_a_forecast(seed, count, kind, share):
    """Its tails at another quantile, the chance to end in time, rest, what learning expects, and what was lived."""
    of = Drawn(seed, kind)
    slots, spread = of.slots(count), of.numbers(METRICS, KEPT_QUANTILES, BANDS, of.capacity, least=-2.0, most=2.0)
    physics = (of.prior(), of.numbers(of.capacity, TERMS, most=2.0), of.numbers(of.capacity, ROOF_POINTS, most=0.1))
    rows, tails = of.rows(count), np.zeros((METRICS, count))
    same(KERNELS, kernels.tails, rows, spread, slots, of.index(4), share, of.number(most=2.0), tails, filled=(6,))
    tokens, chances = of.numbers(count, most=300.0), np.zeros((2, count))
    same(KERNELS, kernels.in_time, of.alive(), 4.0, of.number(most=99.0), tokens, chances, filled=(4,))
    asked = (of.number(most=4000.0), of.number(most=400.0), of.number(most=4000.0))
    load_bias = of.numbers(2, BANDS, of.capacity, most=2.0)
    same(
        KERNELS,
        kernels.at_rest,
        of.columns(),
        *physics,
        load_bias,
        slots,
        *asked,
        of.number(most=9.0),
        rows,
        np.zeros((METRICS, count)),
        filled=(11,),
    )
    for i, slot in enumerate(slots.tolist()):
        same(
            KERNELS, kernels.expected, of.columns(), *physics, spread, slot, i, of.number(), *asked, rows,
            np.zeros(EXPECTATION), filled=(12,),
        )  # fmt: skip
    lived = [of.number() for _ in range(8)]
    same(KERNELS, kernels.lived, physics[0], physics[2], of.index(7), *lived, np.zeros(TERMS), filled=(11,))


@settings(deadline=None, max_examples=40)
@given(seed=seeds, kind=kinds)
def test_what_an_outcome_teaches_factors(seed, kind):
    """Forty outcomes, so that terms wander, are bound, and doubted."""
    of, kinds_of_outcome = Drawn(seed, kind, capacity=3), 2
    covariance = of.numbers(3, TERMS, TERMS, most=0.1)
    state = [
        np.ones((3, TERMS)), np.zeros((3, TERMS)), covariance + covariance.swapaxes(1, 2),
        of.numbers(3, TERMS, TERMS, most=0.01), of.numbers(3, TERMS, most=0.2),
        of.numbers(3, kinds_of_outcome, most=0.1), np.zeros((3, WATCH)),
    ]  # fmt: skip
    mine, theirs = ([each.copy() for each in state] for _ in range(2))
    for _ in range(40):
        slot, outcome, terms = of.index(3), of.index(kinds_of_outcome), of.numbers(EXPECTATION, most=2.0)
        numbers = (of.number(most=0.1), of.number(most=9.0), of.number(most=0.3))
        returned = ESTIMATORS.learn(*mine, slot, outcome, terms, *numbers)
        assert equal(returned, in_python(estimators.learn)(*theirs, slot, outcome, terms, *numbers))
        for one, other in zip(mine, theirs, strict=True):
            assert equal(one, other).all()
    same(ESTIMATORS, estimators.widen, covariance, state[4], of.numbers(3, WATCH), of.index(3), filled=(0, 2))


@settings(deadline=None, max_examples=20)
@given(seed=seeds, kind=kinds, outcomes=st.sampled_from([1, 19, 25, 200, 400]), equals=st.booleans())
def test_what_an_outcome_teaches_tails(seed, kind, outcomes, equals):
    """Scores in order, some of them the same, beyond the window; levels, counts and trust."""
    of = Drawn(seed, kind, capacity=3)
    scores, order = np.zeros(SCORES), np.zeros(WINDOW, np.uint8)
    scores[LEVELS : LEVELS + KEPT_QUANTILES] = QUANTILES
    state = [
        scores, order, scores, order, np.zeros((METRICS, KEPT_QUANTILES, BANDS, 3)),
        np.ones((METRICS, BANDS, 3), np.bool_), np.zeros((3, STATS)), np.zeros(3, np.int8),
    ]  # fmt: skip
    mine, theirs = ([each.copy() for each in state] for _ in range(2))
    for _ in range(outcomes):
        place = (of.index(METRICS), of.index(BANDS), of.index(3))
        score = of.number(least=-5.0, most=5.0)
        told = (
            round(score, 1) if equals else score,
            of.number(most=2.0),
            of.numbers(EXPECTATION, least=-1.0, most=3.0),
        )
        sure = bool(of.index(2))
        assert ESTIMATORS.judge(*mine, *place, *told, sure) == in_python(estimators.judge)(*theirs, *place, *told, sure)
        for one, other in zip(mine, theirs, strict=True):
            assert equal(one, other).all()
    count = min(outcomes, WINDOW)
    assert mine[0][mine[1][:count]].tolist() == sorted(mine[0][:count].tolist())
    assert sorted(mine[1][:count].tolist()) == list(range(count))
    same(ESTIMATORS, estimators.spreads, mine[0], mine[1], np.zeros(KEPT_QUANTILES), filled=(2,))


@settings(deadline=None, max_examples=60)
@given(seed=seeds, count=counts, kind=kinds, priced=st.booleans())
def test_what_headroom_weighs(seed, count, kind, priced):
    """With any bounds in force, by time or by price; what waiting changes and what a send gains."""
    of = Drawn(seed, kind)
    bounds = (of.bound(), of.bound(), of.bound())
    rows, columns, slots = of.rows(count), of.columns(), of.slots(count)
    rows[8:12] = of.numbers(4, count, most=2.0)
    rows[12] = np.where(of.chance.random(count) < 0.5, 0.0, rows[12])
    rows[:2] /= 20.0
    states = of.chance.integers(3, size=count).astype(np.int8)
    weights = np.zeros((_headroom.WEIGHED, count))
    prices = of.numbers(count) if priced else np.empty(0)
    numbers = (of.number(most=300.0), of.number(most=1.0), of.number(most=2.0), of.number(most=2.0))
    same(HEADROOM, _headroom.weigh, *bounds, *numbers, rows, states, columns, slots, prices, weights, filled=(12,))
    weights, rest = of.numbers(_headroom.WEIGHED, count, most=2.0), of.numbers(METRICS, count, most=2.0)
    same(HEADROOM, _headroom.longest_reply, *bounds, rest, filled=())
    numbers = tuple(of.number(most=most) for most in (300.0, 300.0, 1.0, 2.0, 9.0, 3.0))
    same(HEADROOM, _headroom.room_in_s, *bounds, *numbers, rows, rest, columns, slots, weights, filled=())
    tails, in_time = of.numbers(METRICS, count, most=3.0), of.numbers(2, count if of.index(2) else 0, most=1.0)
    same(
        HEADROOM, _headroom.most_gained, *bounds, of.number(most=1.0), of.number(most=2.0), rows, tails, rest, in_time,
        states, columns, slots, of.number(most=4.0), weights, filled=(13,),
    )  # fmt: skip


@given(seed=seeds, count=counts, masks=st.lists(st.integers(1, 2**70), min_size=1, max_size=4))
def test_what_of_a_prompt_is_resident(seed, count, masks):
    """Of runs that slots hold, within the width of what holds them and beyond it, up to the most."""
    of = Drawn(seed, PLAIN, capacity=90)
    width = (max(mask.bit_length() for mask in masks) + 7) // 8
    held, runs = b"".join(mask.to_bytes(width, "little") for mask in masks), [float(1 + of.index(9)) for _ in masks]
    given = (held, runs, of.slots(count), of.number(), of.number(most=500.0), np.empty(count))
    same(KERNELS, kernels.resident, *given, filled=(5,))


@given(seed=seeds, blocks=counts)
def test_hashes_of_blocks(seed, blocks):
    """The same below 2**63; of data that has no so many blocks none."""
    data = np.random.default_rng(seed).bytes(blocks * BLOCK_WORDS * 8 + 3)
    assert HASHING.chain(data, blocks, seed) == hashing.chain(data, blocks, seed)
    with pytest.raises(ValueError, match="chain: data"):
        HASHING.chain(data, blocks + 1, seed)


def tails_of(**more):
    """The arguments of one loop, one of them another."""
    of = Drawn(1, PLAIN)
    usual = {
        "rows": of.rows(3), "spread": of.numbers(METRICS, KEPT_QUANTILES, BANDS, 7), "slots": of.slots(3), "row": 1,
        "share": 0.5, "width": 1.0, "out": np.zeros((METRICS, 3)),
    }  # fmt: skip
    return tuple({**usual, **more}.values())


def frozen(array):
    """Read-only."""
    array.setflags(write=False)
    return array


@pytest.mark.parametrize(
    ("more", "fault"),
    [
        ({"rows": np.zeros((FORECAST, 3), np.float32)}, TypeError),
        ({"rows": np.zeros((FORECAST, 6))[:, ::2]}, TypeError),
        ({"rows": np.zeros(FORECAST)}, TypeError),
        ({"rows": np.zeros((FORECAST, 3)).tolist()}, TypeError),
        ({"rows": np.zeros((FORECAST, 3)).astype(">f8")}, TypeError),
        ({"rows": np.zeros((BAND, 3))}, ValueError),
        ({"rows": np.full((FORECAST, 3), 3.0)}, ValueError),
        ({"rows": np.full((FORECAST, 3), np.nan)}, ValueError),
        ({"slots": np.array([0, 1, 7])}, ValueError),
        ({"slots": np.array([-1, 1, 2])}, ValueError),
        ({"slots": np.array([0, 1])}, ValueError),
        ({"slots": np.array([0, 1, 2], np.int32)}, TypeError),
        ({"row": KEPT_QUANTILES}, IndexError),
        ({"row": KEPT_QUANTILES - 1}, ValueError),
        ({"row": 0.5}, TypeError),
        ({"share": "half"}, TypeError),
        ({"out": frozen(np.zeros((METRICS, 3)))}, TypeError),
        ({"out": np.zeros((METRICS, 2))}, ValueError),
    ],
)
def test_what_a_loop_does_not_take_is_refused(more, fault):
    """Of another type, size or order, or read-only where it is written: nothing beyond an array is touched."""
    with pytest.raises(fault, match=r"tails|float|integer|real number"):
        KERNELS.tails(*tails_of(**more))
    with pytest.raises(TypeError, match="takes 7 arguments, not 6"):
        KERNELS.tails(*tails_of()[1:])
    assert KERNELS.tails(*tails_of(row=KEPT_QUANTILES - 1, share=0.0)) is None
    assert KERNELS.tails(*tails_of(share=1)) is None


def test_scores_that_none_of_ours_left_are_refused():
    """Counts of scores are places in an array."""
    for seen in (-1.0, np.nan, np.inf, 1e300):
        scores = np.zeros(SCORES)
        scores[SEEN_SCORES] = seen
        with pytest.raises(ValueError, match="scores"):
            ESTIMATORS.spreads(scores, np.zeros(WINDOW, np.uint8), np.zeros(KEPT_QUANTILES))
    scores[SEEN_SCORES] = 3.0
    with pytest.raises(ValueError, match="beyond the scores"):
        ESTIMATORS.spreads(scores, np.full(WINDOW, WINDOW, np.uint8), np.zeros(KEPT_QUANTILES))
