"""Reply lengths under caps."""

import random
from math import inf, log

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.core import kernels, loops
from router.core.lengths import BINS, BINS_PER_OCTAVE, Lengths


def taught(chance, count, median, sigma, cap=0):
    """Lengths after lognormal replies, cut at a cap."""
    it = Lengths()
    for _ in range(count):
        whole = max(1, round(chance.lognormvariate(log(median), sigma)))
        it.update("m", "default", min(whole, cap) if cap else whole, cap)
    return it


def test_the_mean_and_the_quantiles_of_what_was_seen_are_expected():
    """Lognormal of median 100: mean 138, p90 279."""
    it = taught(random.Random(1), 3000, 100.0, 0.8)
    assert it.estimate("m", "default").tokens == pytest.approx(138, rel=0.1)
    assert it.quantile("m", "default", 0.9) == pytest.approx(279, rel=0.25)


WEIGHTS = st.lists(st.floats(0.01, 10.0), min_size=2 * BINS, max_size=2 * BINS)


def of_weights(weights):
    """Lengths whose replies ended and were cut with these weights, and the share that reaches each edge."""
    ended, cut = np.array(weights[:BINS]), np.array(weights[BINS:])
    it = Lengths()
    it.adopt("m", {"default": {"ended": ended.tolist(), "cut": cut.tolist()}})
    at_risk = (ended + cut)[::-1].cumsum()[::-1]
    return it, np.concatenate(([1.0], np.cumprod(1.0 - ended / at_risk)[:-1], [0.0]))


def in_time(it, tokens, cap=0.0):
    """The probability of a reply of at most so many tokens, by the loop that decisions use."""
    out = np.empty((2, 1))
    loops.in_time(it.survival("m", "default"), float(BINS_PER_OCTAVE), cap, np.array([tokens]), out)
    return out[0, 0]


@given(weights=WEIGHTS, quantile=st.floats(0.01, 0.999), cap=st.integers(0, 2**19))
def test_quantiles_are_straight_in_the_log_between_the_edges_of_bins(weights, quantile, cap):
    """As numpy interpolates them; a cap is never exceeded."""
    it, reach = of_weights(weights)
    expected = float(2.0 ** np.interp(quantile, 1.0 - reach, np.arange(BINS + 1) / BINS_PER_OCTAVE))
    assert it.quantile("m", "default", quantile) == pytest.approx(expected, rel=1e-6)
    assert it.quantile("m", "default", quantile, cap) == pytest.approx(min(expected, cap or inf), rel=1e-6)


@given(weights=WEIGHTS, quantile=st.floats(0.01, 0.99))
def test_the_probability_to_be_within_a_quantile_is_that_quantile(weights, quantile):
    """One is the other's inverse, and both rise."""
    it, _ = of_weights(weights)
    tokens = it.quantile("m", "default", quantile)
    if 1.0 <= tokens < kernels.REPLY_MOST:
        assert in_time(it, tokens) == pytest.approx(quantile, abs=1e-6)
        assert in_time(it, max(tokens / 2, 1.0)) <= quantile + 1e-9
    assert it.quantile("m", "default", quantile / 2) <= tokens


def test_quantiles_follow_the_replies_that_come():
    """A cached quantile is computed again after new replies."""
    it = taught(random.Random(9), 400, 50.0, 0.3)
    before, within = it.quantile("m", "default", 0.5), in_time(it, 60.0)
    for _ in range(1500):
        it.update("m", "default", 400)
    assert before < 60
    assert it.quantile("m", "default", 0.5) > 300
    assert in_time(it, 60.0) < within / 2


def test_many_quantiles_are_not_kept_for_ever():
    """Clients may use any quantile, so the cache is bounded."""
    it = taught(random.Random(10), 100, 50.0, 0.3)
    for n in range(1, 2000):
        it.quantile("m", "default", n / 2000)
    assert len(it._replies["m", "default"]._quantiles) <= 258


def test_a_cap_bounds_what_is_expected():
    """E[min(length, cap)], not min(E[length], cap)."""
    it = taught(random.Random(2), 3000, 100.0, 0.8)
    assert it.estimate("m", "default", 10).tokens == pytest.approx(10, rel=0.02)
    assert 70 < it.estimate("m", "default", 100).tokens < 92
    assert it.quantile("m", "default", 0.99, 50) == 50.0


def test_a_reply_cut_at_its_cap_says_only_that_it_is_at_least_so_long():
    """Learnt under caps of 50 and read without one, the tail beyond the cap is not empty."""
    it = taught(random.Random(3), 2000, 100.0, 0.8, cap=50)
    assert it.estimate("m", "default", 50).tokens == pytest.approx(46, rel=0.1)
    assert it.estimate("m", "default").tokens > 100


def test_replies_that_always_use_up_their_cap_are_expected_to():
    """A benchmark with ignore_eos: the length is known, and so is that it is known."""
    it = Lengths()
    for n in range(100):
        it.update("m", "default", (64, 256)[n % 2], (64, 256)[n % 2])
    assert it.estimate("m", "default", 256).tokens == pytest.approx(256, rel=0.1)
    assert it.estimate("m", "default", 256).spread < 0.5 < it.estimate("m", "default", 0).spread


def test_classes_and_models_are_apart_and_the_unseen_start_from_production_chat():
    """211 tokens, before anything was seen."""
    it = taught(random.Random(4), 500, 20.0, 0.1)
    assert it.estimate("m", "other").tokens == pytest.approx(211, rel=0.1)
    assert it.estimate("n", "default").tokens == pytest.approx(211, rel=0.1)


def test_old_replies_fade():
    """A model that got talkative is known to be so after a thousand replies."""
    it = taught(random.Random(5), 2000, 50.0, 0.3)
    for _ in range(1500):
        it.update("m", "default", 400)
    assert it.estimate("m", "default").tokens > 330


def test_the_mean_reply_of_a_model_is_that_of_all_its_classes_lately():
    """Capped ones as they were: they held their place no longer than that."""
    it = Lengths()
    assert it.mean_tokens("m", 7.0) == 7.0
    for n in range(400):
        it.update("m", "chat" if n % 2 else "batch", 300 if n % 2 else 100, 0 if n % 2 else 100)
    assert it.mean_tokens("m", 7.0) == pytest.approx(200, rel=0.02)
    for _ in range(300):
        it.update("m", "chat", 40)
    assert it.mean_tokens("m", 7.0) == pytest.approx(40, rel=0.02)
    assert it.mean_tokens("another", 7.0) == 7.0


def test_what_was_learnt_of_replies_can_be_taken_over():
    """A router without replies of its own adopts them."""
    taught_one = taught(random.Random(6), 1000, 40.0, 0.5)
    fresh = Lengths()
    fresh.adopt("m", taught_one.export("m"))
    assert fresh.estimate("m", "default").tokens == pytest.approx(taught_one.estimate("m", "default").tokens, rel=0.02)


def test_weights_that_grow_are_scaled_back_and_many_caps_are_not_kept_for_ever():
    """Ten thousand replies, each under a cap of its own."""
    it = taught(random.Random(7), 10_000, 50.0, 0.3)
    assert [round(it.estimate("m", "default", cap).tokens) for cap in range(1, 600)][9] == 10
    assert it._replies["m", "default"]._weight < 1e7
    assert len(it._replies["m", "default"]._estimates) <= 258
    assert it.estimate("m", "default").tokens == pytest.approx(52, rel=0.1)


def test_what_was_read_of_replies_follows_those_that_come():
    """The share that reaches four tokens falls once replies are shorter."""
    it = taught(random.Random(8), 400, 50.0, 0.3)
    four = 2 * BINS_PER_OCTAVE
    assert it.survival("m", "default")[four] > 0.98
    for _ in range(400):
        it.update("m", "default", 3)
    assert it.survival("m", "default")[four] < 0.7
    assert it.survival("never", "seen")[four] > 0.98
