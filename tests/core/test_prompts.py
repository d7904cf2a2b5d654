"""How many tokens a prompt has, by what engines counted of others: the estimate, its error, and what it learns from."""

import random
from math import isfinite

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.core.prompts import Prompts
from router.core.text_size import TEXT_SIGMA
from tests.fakes import request


def estimated(tokens, sigma=TEXT_SIGMA, model="m"):
    """A request whose prompt is estimated at so many tokens."""
    return request(prompt_tokens=tokens, prompt_sigma=sigma, model=model)


def taught(ratio, own=0, *, texts=0.05, sizes=(50, 5_000), count=300, seed=3):
    """After so many prompts of a tokenizer that makes *ratio* of an estimate, ``own`` tokens of a template beside."""
    it, chance = Prompts(), random.Random(seed)
    for _ in range(count):
        estimate = chance.randint(*sizes)
        it.update("m", estimate, round(own + estimate * ratio * chance.lognormvariate(0.0, texts)))
    return it


def test_what_engines_count_more_than_was_estimated_is_expected():
    """Estimated at 4 characters a token where it is 3: a third more; of another model nothing is known."""
    it = taught(4 / 3)
    assert it.tokens(estimated(3_000)) == pytest.approx(4_000, rel=0.02)
    assert it.tokens(estimated(3_000, model="another")) == 3_000
    assert it.mean_tokens("m", 5.0) == pytest.approx(3_300, rel=0.25)
    assert it.mean_tokens("never", 5.0) == 5.0


def test_a_template_is_told_from_a_tokenizer():
    """40 tokens beside every prompt make a short one ten times longer, and a long one none."""
    it = taught(1.1, 40)
    assert it.tokens(estimated(4)) == pytest.approx(44, abs=8)
    assert it.tokens(estimated(100_000)) == pytest.approx(110_000, rel=0.03)


def test_short_prompts_alone_say_little_of_long_ones():
    """Whoever was taught by greetings refuses no document for it."""
    it = taught(1.0, 60, sizes=(1, 12))
    least, most = it.bounds(estimated(20_000))
    assert least < 12_000
    assert most > 25_000


def test_an_exact_size_is_taken_as_it_is():
    """Token ids need no tokenizer: nothing learnt of text changes them, and they teach nothing of text."""
    it = taught(1.4)
    assert it.bounds(estimated(4_000, 0.0)) == (4_000, 4_000)
    assert it.tokens(estimated(4_000, 0.0)) == 4_000
    before = it.tokens(estimated(3_000))
    for _ in range(100):
        it.update("m", 3_000, 3_000, 0.0)
    assert it.tokens(estimated(3_000)) == before


def test_the_bounds_are_wide_before_anything_is_known_and_narrow_with_what_comes():
    """From half to double, and where all texts are alike to what another kind of text may differ by; never less."""
    fresh, known = Prompts().bounds(estimated(10_000)), taught(1.0).bounds(estimated(10_000))
    assert fresh[0] < 5_000 < known[0] < 7_000
    assert 13_000 < known[1] < 18_000 < fresh[1]


def test_the_bounds_hold_what_they_promise_of_texts_that_differ():
    """Prompts of prose, code and tables: less than one in a hundred is below the least, few are above the most."""
    it, chance = taught(1.0, texts=0.3, count=2_000), random.Random(9)
    outside = [0, 0]
    for _ in range(1_000):
        estimate = chance.randint(500, 50_000)
        least, most = it.bounds(estimated(estimate))
        count = estimate * chance.lognormvariate(0.0, 0.3)
        outside[0] += count < least
        outside[1] += count > most
    assert outside[0] <= 10
    assert outside[1] <= 60


def test_pictures_are_less_certain_than_text_and_teach_less():
    """In bounds, and in what one count changes."""
    assert Prompts().bounds(estimated(5_000, 1.0))[1] > 2 * Prompts().bounds(estimated(5_000))[1]
    text, picture = Prompts(), Prompts()
    text.update("m", 1_000, 2_000)
    picture.update("m", 1_000, 2_000, 1.0)
    assert 1_000 < picture.tokens(estimated(1_000)) < text.tokens(estimated(1_000)) < 2_000


def test_a_change_of_the_tokenizer_is_followed():
    """A model of the same name with another one: after a hundred prompts it is believed."""
    it, chance = taught(1.0, count=3_000), random.Random(1)
    for _ in range(150):
        estimate = chance.randint(50, 5_000)
        it.update("m", estimate, round(1.5 * estimate))
    assert it.tokens(estimated(4_000)) == pytest.approx(6_000, rel=0.07)


COUNTS = st.tuples(st.integers(0, 10**9), st.integers(0, 10**11), st.sampled_from((0.0, 0.35, 1.0)))


@given(st.lists(COUNTS, max_size=40))
def test_no_counts_make_an_estimate_that_is_none(counts):
    """Whatever engines said: finite, above 0, and the least below the most."""
    it = Prompts()
    for estimate, counted, sigma in counts:
        it.update("m", estimate, counted, sigma)
        for size in (1, 1_000, 10**8):
            least, most = it.bounds(estimated(size))
            assert 0.0 < least <= it.tokens(estimated(size)) <= most
            assert isfinite(most)
