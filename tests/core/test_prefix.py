"""What each backend should have cached: the index, and what the ledger makes of it."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from router.core.flight import Failure
from router.core.prefix import PrefixIndex
from tests.fakes import backend, core, request, sent

PROMPT = {"prompt_tokens": 400, "prefix": (1, 2, 3, 4), "prefix_block_tokens": 100}


def test_a_match_is_the_leading_blocks_that_a_slot_holds():
    """Each slot by its own; a block after a gap counts for nothing."""
    index = PrefixIndex()
    index.sent(0, (1, 2, 3), 10)
    index.sent(1, (1, 2, 9), 10)
    assert index.matched((1, 2, 3, 4)) == {0: 3, 1: 2}
    assert index.matched((7, 1, 2)) == {}


def test_the_ends_of_old_prompts_go_first_and_a_shared_beginning_stays():
    """LRU over blocks: the branch used last and the root both share outlive the older branch."""
    index = PrefixIndex()
    index.sent(0, (1, 2, 3), 3)
    index.sent(0, (1, 5), 3)
    assert index.matched((1, 5)) == {0: 2}
    assert index.matched((1, 2, 3)) == {0: 2}
    index.sent(0, (1, 6), 3)
    assert index.matched((1, 2, 3)) == {0: 1}


@given(st.lists(st.tuples(st.integers(0, 3), st.lists(st.integers(0, 9), max_size=6, unique=True), st.integers(0, 5))))
def test_no_slot_ever_holds_more_than_its_bound_and_nothing_is_left_when_all_are_forgotten(sends):
    """Whatever is sent where."""
    index = PrefixIndex()
    for slot, prefix, blocks_max in sends:
        index.sent(slot, prefix, blocks_max)
        assert index.matched(prefix).get(slot, 0) <= blocks_max
    for slot in range(4):
        index.forget(slot)
    assert len(index) == 0
    assert all(not index.matched((block,)) for block in range(10))


def test_a_prompt_that_comes_again_is_credited_where_it_went():
    """All blocks but the token that has to be computed in any case; the other backend has none."""
    it = core(backend("a"), backend("b"))
    first = sent(it.arrived(request("r", **PROMPT), 0.0))
    slots = it.ledger.pool("m")
    cached = it.ledger.cached_tokens(slots, request("s", **PROMPT))
    here = it.ledger.slot(first.backend)
    np.testing.assert_array_equal(cached, np.where(slots == here, 399.0, 0.0))


def test_only_what_is_not_cached_is_reserved_for_prefill():
    """The second prompt's load is its one token, and what is released is what was reserved."""
    it = core(backend("a"))
    it.arrived(request("r", **PROMPT), 0.0)
    it.arrived(request("s", **PROMPT), 0.0)
    assert it.loads()["a"].prefill_tokens == 401.0
    it.client_left("r", 0.1)
    assert it.loads()["a"].prefill_tokens == 1.0
    it.client_left("s", 0.1)
    assert it.loads()["a"].prefill_tokens == 0.0


def test_a_backend_that_went_down_is_taken_to_have_lost_its_cache():
    """It may come back restarted; so may another in its slot."""
    it = core(backend("a"))
    it.arrived(request("r", **PROMPT), 0.0)
    it.backend_health("a", False, 0.1)
    it.backend_health("a", True, 0.2)
    assert it.ledger.cached_tokens(it.ledger.pool("m"), request("s", **PROMPT)).sum() == 0.0


def test_a_retry_elsewhere_gets_no_credit_for_the_first_attempt():
    """The prefix index is by backend."""
    it = core(backend("a"), backend("b"))
    first = sent(it.arrived(request("r", **PROMPT), 0.0))
    second = sent(it.failed("r", first.attempt, Failure("reset"), 0.1))
    assert it.loads()[second.backend].prefill_tokens == 400.0


def test_a_cached_prompt_is_predicted_sooner_where_it_is_cached():
    """The credit is in the forecast: the twin without it takes longer."""
    it = core(backend("a"), backend("b"), routing="slo_headroom")
    first = sent(it.arrived(request("r", **PROMPT), 0.0))
    it.first_byte("r", first.attempt, 0.05)
    it.client_left("r", 0.2)
    again = sent(it.arrived(request("s", arrived_s=9.0, **PROMPT), 9.0))
    assert again.backend == first.backend
    assert again.predicted_ttft_s < first.predicted_ttft_s
