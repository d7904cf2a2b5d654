"""What peers measured: folded in once by each router, so that several know what one would that had seen it all."""

from dataclasses import replace
from math import inf, nan

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.core import border
from router.core.belief import Belief, Expectation
from router.core.columns import EXPECTATION, FULL, LEARNING, TERMS, TPOT, TRUSTED, TTFT
from router.core.evidence import (
    OUTCOMES_A_BACKEND,
    OUTCOMES_A_MESSAGE,
    OUTCOMES_A_PERIOD,
    REPLIES_A_PERIOD,
    Outcome,
    ReplyLength,
    SharedEvidence,
)
from router.core.peer_change import PeerChange
from router.core.score import TRUSTED_AFTER
from tests.fakes import backend, core

TERMS_S = (0.02, 0.005, 0.002, 0.03, 0.0, 0.005, 0.01)


def belief():
    """Of two backends that are alike."""
    made = Belief()
    for slot, name in enumerate("ab"):
        made.joined(slot, backend(name))
    return made


def expectation(band=0, scale=1.0):
    """What a send was expected to take."""
    terms = np.zeros(EXPECTATION)
    terms[:TERMS] = np.array(TERMS_S) * scale
    return Expectation(terms, 0.001, 0.01, band, 1.0)


def see(to, slot, band, scale, factor):
    """A first token that came ``factor`` times as late as the data sheet has it."""
    expected = expectation(band, scale)
    seconds = float(expected.terms_and_spreads[:TERMS].sum()) + 0.001
    to.first_token(slot, expected, seconds, factor * seconds)


OUTCOMES = st.lists(
    st.tuples(
        st.integers(0, 2),
        st.integers(0, 1),
        st.integers(0, FULL),
        st.sampled_from([0.5, 1.0, 3.0]),
        st.sampled_from([0.7, 1.0, 1.5, 3.0]),
    ),
    max_size=40,
)


@settings(max_examples=40, deadline=None)
@given(OUTCOMES)
def test_several_beliefs_that_share_outcomes_are_the_one_that_saw_them_all(outcomes):
    """Whoever measured it: factors and what they leave over are the same everywhere, and as of one router alone; so
    nothing was counted twice, though each outcome went to all others.
    """
    many, alone = [belief() for _ in range(3)], belief()
    for who, slot, band, scale, factor in outcomes:
        many[who].evidence.renew(1)
        see(many[who], slot, band, scale, factor)
        see(alone, slot, band, scale, factor)
        seen, _ = many[who].evidence.take()
        assert len(seen) == 1
        for other in many:
            if other is not many[who]:
                other.learn_from_peer(slot, seen[0])
                assert not other.evidence  # it is not passed on
    for each in many:
        np.testing.assert_allclose(each.regression.factor, alone.regression.factor, rtol=1e-12)
        np.testing.assert_allclose(each.load_band_bias, alone.load_band_bias, rtol=1e-12)


def test_a_router_without_traffic_trusts_what_its_peers_measured():
    """A backend that is twice as slow as its data sheet has it is known as that, and its forecast as trusted."""
    busy, idle = belief(), belief()
    for _ in range(3 * TRUSTED_AFTER):
        busy.evidence.renew(1)
        see(busy, 0, 0, 1.0, 2.0)
        for seen in busy.evidence.take()[0]:
            idle.learn_from_peer(0, seen)
    assert idle.state[0] == TRUSTED
    assert idle.state[1] == LEARNING
    assert float(np.array(TERMS_S) @ idle.regression.factor[0]) == pytest.approx(2.0 * sum(TERMS_S), rel=0.1)
    assert idle.seen(0) == 0  # its own forecasts are scored by its own requests


def test_an_outcome_of_other_facts_says_nothing():
    """A peer whose config has another card for the backend measured in other units."""
    here, there = belief(), Belief()
    there.joined(0, backend("a", slower=2.0))
    there.evidence.renew(1)
    see(there, 0, 0, 1.0, 3.0)
    (seen,), _ = there.evidence.take()
    here.learn_from_peer(0, seen)
    assert (here.regression.factor == 1.0).all()


def test_what_is_sent_has_a_budget_whatever_the_traffic():
    """A backend's, a period's and a message's; more peers have less each; without peers nothing is kept."""
    made = belief()
    for _ in range(50):
        see(made, 0, 0, 1.0, 1.0)
    assert not made.evidence
    made.evidence.renew(1)
    for _ in range(50):
        see(made, 0, 0, 1.0, 1.0)
    assert len(made.evidence.take()[0]) == OUTCOMES_A_BACKEND
    box = SharedEvidence()
    box.renew(2)
    outcome, reply = Outcome("a", 1, TTFT, 0, 1.0, 0.0, 0.0, TERMS_S), ReplyLength("m", "chat", 10, 0)
    for slot in range(1000):
        if box.has_room(slot):
            box.add(slot, outcome)
        box.add_reply(reply)
    messages = []
    while box:
        messages.append(box.take())
    assert sum(len(outcomes) for outcomes, _ in messages) == OUTCOMES_A_PERIOD // 2
    assert sum(len(replies) for _, replies in messages) == REPLIES_A_PERIOD // 2
    assert max(len(outcomes) for outcomes, _ in messages) <= OUTCOMES_A_MESSAGE


@pytest.mark.parametrize(
    "wrong",
    [
        {"metric": 2},
        {"band": 3},
        {"actual_s": 0.0},
        {"actual_s": inf},
        {"actual_s": -1.0},
        {"constant_s": nan},
        {"log_variance": -1.0},
        {"terms": TERMS_S[1:]},
        {"terms": (1e300,) * TERMS},
        {"terms": (-1.0,) * TERMS},
    ],
)
def test_an_outcome_that_cannot_be_is_dropped_and_counted(wrong):
    """Nothing of it is learnt; the rest of the message is."""
    it = core(backend("a"))
    good = Outcome("a", it.belief._sheets[0], TPOT, 0, 1.0, 0.0, 0.1, TERMS_S)
    it.on_peer_change(
        "peer", PeerChange({}, outcomes=(good, replace(good, **wrong), replace(good, backend="gone"))), 0.0
    )
    expected = core(backend("a"))
    expected.on_peer_change("peer", PeerChange({}, outcomes=(good,)), 0.0)
    np.testing.assert_array_equal(it.belief.regression.factor, expected.belief.regression.factor)
    assert it.dropped_numbers.by_source[border.PEER] == 1


def test_lengths_of_replies_are_learnt_from_peers():
    """Of models that are served here, and of lengths that can be."""
    it = core(backend("a"))
    replies = [ReplyLength("m", "chat", 5, 0)] * 40 + [
        ReplyLength("another", "chat", 5, 0),
        ReplyLength("m", "x", 0, 0),
    ]
    it.on_peer_change("peer", PeerChange({}, replies=tuple(replies)), 0.0)
    assert it.belief.lengths.estimate("m", "chat").tokens < 100
    assert it.belief.lengths.export("another") == {}
    assert set(it.belief.lengths.export("m")) == {"chat"}
