"""Quantiles that cover their share of outcomes."""

import random

import numpy as np
import pytest

from router.core.estimators import FEW, QUANTILES
from router.core.loops import tails as tails_s
from router.core.tails import Tails, between
from tests.scores import current_spreads, fold_in

TTFT = 0


def run(tails, chance, count, draw, band=0, slot=0):
    """Share of outcomes inside each kept quantile, as it was predicted before each."""
    kept = np.zeros(len(QUANTILES))
    for _ in range(count):
        spreads = current_spreads(tails, band, slot)
        score = draw(chance)
        kept += score <= spreads[TTFT]
        fold_in(tails, TTFT, band, slot, score, spreads)
    return dict(zip(QUANTILES, kept / count, strict=True))


def made(slots=1):
    """Tails of one pool."""
    tails = Tails(slots)
    for slot in range(slots):
        tails.joined(slot, "m")
    return tails


SHAPES = {
    "normal": lambda c: c.gauss(0.0, 0.3),
    "skewed": lambda c: c.expovariate(2.0) - 0.3,
    "two humps": lambda c: c.gauss(1.0 if c.random() < 0.2 else 0.0, 0.05),
    "heavy": lambda c: 0.1 * c.gauss(0, 1) / max(1e-3, abs(c.gauss(0, 1))),
}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("shape", SHAPES)
def test_quantiles_cover_their_share_whatever_the_errors_look_like(shape, seed):
    """1,000 outcomes after 200 to begin with: p90 in 87 to 93 %, p99 at least 97.5 %."""
    tails, chance = made(), random.Random(seed)
    run(tails, chance, 200, SHAPES[shape])
    covered = run(tails, chance, 1000, SHAPES[shape])
    assert 0.87 <= covered[0.9] <= 0.93
    assert covered[0.99] >= 0.975
    assert 0.45 <= covered[0.5] <= 0.55


def test_coverage_recovers_after_a_change():
    """Errors grow threefold and move: within 150 outcomes quantiles cover their share again."""
    tails, chance = made(), random.Random(7)
    run(tails, chance, 500, SHAPES["normal"])
    run(tails, chance, 150, lambda c: c.gauss(0.5, 0.9))
    assert 0.86 <= run(tails, chance, 500, lambda c: c.gauss(0.5, 0.9))[0.9] <= 0.94


def test_each_load_band_has_tails_of_its_own():
    """A busy engine's spread must not widen an idle one's."""
    tails, chance = made(), random.Random(8)
    run(tails, chance, 200, lambda c: c.gauss(0, 0.05), band=0)
    run(tails, chance, 200, lambda c: c.gauss(0, 0.5), band=1)
    assert current_spreads(tails, 0, 0)[TTFT][2] < 0.12
    assert current_spreads(tails, 1, 0)[TTFT][2] > 0.4


def test_a_new_backend_borrows_from_its_pool_and_no_other():
    """Whoever joins later starts with what its model's backends learnt."""
    tails = Tails(4)
    tails.joined(0, "m")
    run(tails, random.Random(9), 200, lambda c: c.gauss(0, 0.01))
    tails.joined(1, "m")
    tails.joined(2, "other")
    assert current_spreads(tails, 0, 1)[TTFT][2] < 0.05 < current_spreads(tails, 0, 2)[TTFT][2]


def test_a_backend_already_there_borrows_too_until_it_has_enough_of_its_own():
    """Its own scores speak from FEW on."""
    tails = made(slots=2)
    run(tails, random.Random(10), 200, lambda c: c.gauss(0, 0.01))
    assert current_spreads(tails, 0, 1)[TTFT][2] < 0.05
    run(tails, random.Random(11), FEW, lambda c: c.gauss(0, 1.0), slot=1)
    assert current_spreads(tails, 0, 1)[TTFT][2] > 0.5


def test_a_slot_given_to_another_forgets():
    """The next backend in the slot starts from the prior, as its pool is new."""
    tails = made()
    run(tails, random.Random(12), 100, lambda c: c.gauss(0, 0.01))
    tails.joined(0, "another model")
    assert current_spreads(tails, 0, 0).tolist() == current_spreads(Tails(1), 0, 0).tolist()


def test_any_quantile_can_be_read_and_higher_is_never_lower():
    """Between the tracked ones, below the least and above the highest."""
    tails = made()
    run(tails, random.Random(13), 300, SHAPES["skewed"])
    asked = [0.05, 0.3, 0.5, 0.6, 0.75, 0.8, 0.9, 0.93, 0.99, 0.999]
    spreads = [spread(tails, q) for q in asked]
    assert spreads == sorted(spreads)
    kept = current_spreads(tails, 0, 0)[TTFT].tolist()
    assert [spread(tails, q) for q in QUANTILES] == pytest.approx(kept)
    with pytest.raises(ValueError, match="between 0 and 1"):
        spread(tails, 1.0)


def spread(tails, quantile):
    """The log of what a mean of TTFT is multiplied by, on slot 0 without a prompt ahead."""
    means, out = np.array([[1.0], [1.0], [1.0], [0.0]]), np.empty((3, 1))
    tails_s(means, tails.spread, np.array([0]), *between(quantile), 1.0, out)
    return float(np.log(out[TTFT, 0]))
