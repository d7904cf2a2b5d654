"""Learning what each term of a backend's step costs, from times that are sums of terms."""

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.core.columns import FIRST, FIXED, TERMS
from router.core.regression import Regression

SIGMA = (0.3, 0.5, 0.3, 0.3, 0.5, 0.5, 1.0)
TRUTH = np.array([1.6, 0.6, 1.3, 0.7, 1.2, 1.5, 0.8])


def outcomes(chance, count):
    """Terms of random sizes: steps, sequences, context, prompt tokens, pairs, the way in, steps scheduled ahead."""
    for _ in range(count):
        steps, batch = 1 + chance.randrange(300), chance.randrange(60)
        prompt = chance.randrange(4000)
        decoding = [steps * 0.01, steps * batch * 1e-4, steps * batch * 5e-5]
        yield np.array([*decoding, prompt * 1e-4, prompt**2 * 1e-9, 0.005, 0.004 * (batch > 0)])


def taught(chance, truth, count, noise=0.05, it=None):
    """A regression after so many outcomes of a truth."""
    if it is None:
        it = Regression(1, kinds=1)
        it.joined(0, SIGMA)
    for terms in outcomes(chance, count):
        it.update(0, 0, terms, 0.0, float(terms @ truth) * np.exp(noise * chance.gauss(0, 1)))
    return it


def error(it, truth, chance):
    """Median relative error over fresh outcomes."""
    terms = np.array(list(outcomes(chance, 200)))
    return float(np.median(np.abs(terms @ it.factor[0] / (terms @ truth) - 1.0)))


@pytest.mark.parametrize("seed", range(5))
def test_a_hundred_outcomes_teach_factors_unlike_the_data_sheet(seed):
    """From 0.6 to 1.6 at once: predictions within 5 % at the median."""
    chance = random.Random(seed)
    assert error(taught(chance, TRUTH, 100), TRUTH, chance) < 0.05


def test_a_backend_three_times_slower_in_all_is_learnt_in_a_few_outcomes():
    """What a wrong data sheet looks like; far outside its own errors."""
    chance = random.Random(1)
    assert error(taught(chance, np.full(TERMS, 3.0), 20), np.full(TERMS, 3.0), chance) < 0.1


@pytest.mark.parametrize("slower", [2.0, 0.5])
def test_a_step_change_is_found_and_learnt_anew_within_50_outcomes(slower):
    """Half speed, or twice: error back under 20 %, and the change is counted."""
    chance = random.Random(2)
    it = taught(chance, TRUTH, 300)
    before = it.changes(0)
    taught(chance, slower * TRUTH, 25, it=it)
    assert error(it, slower * TRUTH, chance) < 0.2
    assert it.changes(0) == before + 1


def test_no_change_is_no_alarm():
    """A thousand outcomes of one truth."""
    assert taught(random.Random(3), TRUTH, 1000, noise=0.1).changes(0) <= 1


def test_outliers_move_little():
    """One outcome in ten is ten times as long: a stalled client, a preempted request."""
    chance = random.Random(4)
    it = taught(chance, TRUTH, 200)
    for terms in outcomes(chance, 200):
        odd = 10.0 if chance.random() < 0.1 else 1.0
        it.update(0, 0, terms, 0.0, float(terms @ TRUTH) * odd)
    assert error(it, TRUTH, chance) < 0.2


def test_what_an_outcome_is_doubted_for_teaches_less():
    """The same surprise, once certain and once mostly queue."""
    sure, unsure = Regression(1, 1), Regression(1, 1)
    terms = np.array([0.1, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0])
    for it, log_variance in ((sure, 0.0), (unsure, 1.0)):
        it.joined(0, SIGMA)
        it.update(0, 0, terms, 0.0, 0.2, log_variance)
    assert 1.0 < unsure.factor[0, FIXED] < sure.factor[0, FIXED]


def test_what_lies_beside_the_terms_is_not_put_on_them():
    """A network that takes half the time takes half the blame, and no factor learns it."""
    it = Regression(1, 1)
    it.joined(0, SIGMA)
    for _ in range(50):
        it.update(0, 0, np.array([0.0, 0.0, 0.0, 0.0, 0.0, 0.1, 0.0]), 0.1, 0.2)
    assert it.factor[0, FIRST] == pytest.approx(1.0, abs=0.02)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.floats(1e-4, 1e3), st.floats(0.0, 4.0)), max_size=60), st.integers(0, 9))
def test_factors_stay_positive_and_covariance_a_covariance_whatever_comes(times, seed):
    """Contract: any times, any log variance."""
    it, chance = Regression(1, 1), random.Random(seed)
    it.joined(0, SIGMA)
    for (actual_s, log_variance), terms in zip(times, outcomes(chance, len(times)), strict=True):
        it.update(0, 0, terms, 0.0, actual_s, log_variance)
    assert np.isfinite(it.factor).all()
    assert (it.factor > 0.0).all()
    assert np.linalg.eigvalsh(it._covariance[0]).min() > -1e-9


def test_a_term_never_seen_stays_as_uncertain_as_its_data_sheet():
    """No wind-up: after thousands of outcomes without it, its variance is bounded."""
    it = Regression(1, 1)
    it.joined(0, SIGMA)
    for _ in range(3000):
        it.update(0, 0, np.array([0.1, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]), 0.0, 0.1)
    assert np.sqrt(it._covariance[0, FIRST, FIRST]) < 0.8


def test_slots_are_apart_and_survive_growth():
    """What one backend teaches stays its own, also when the columns grow."""
    it = taught(random.Random(5), TRUTH, 50)
    learnt = it.factor[0].copy()
    it.grow(4)
    it.joined(1, SIGMA)
    assert it.factor[0].tolist() == learnt.tolist()
    assert it.factor[1].tolist() == [1.0] * TERMS
