"""What each backend should have cached: the index, and what the ledger makes of it."""

from math import nan

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.core.flight import Failure
from router.core.prefix import BLOCKS_EACH_MIN, PrefixIndex
from router.core.types import EngineReport, Usage
from tests.fakes import backend, core, request, sent

PROMPT = {"prompt_tokens": 400, "prefix": (1, 2, 3, 4), "prefix_block_tokens": 100}


def matched(index, *prefix):
    """Leading blocks by slot, of those that hold any."""
    depths = index.matched(prefix, np.arange(1000))
    return {} if depths is None else {slot: int(depths[slot]) for slot in np.flatnonzero(depths).tolist()}


def test_a_match_is_the_leading_blocks_that_a_slot_holds():
    """Each slot by its own; a block after a gap counts for nothing."""
    index = PrefixIndex()
    index.sent(0, (1, 2, 3), 10)
    index.sent(1, (1, 2, 9), 10)
    assert matched(index, 1, 2, 3, 4) == {0: 3, 1: 2}
    assert matched(index, 7, 1, 2) == {}


def test_the_ends_of_old_prompts_go_first_and_a_shared_beginning_stays():
    """LRU over blocks: the branch used last and the root both share outlive the older branch."""
    index = PrefixIndex()
    index.sent(0, (1, 2, 3), 3)
    index.sent(0, (1, 5), 3)
    assert matched(index, 1, 5) == {0: 2}
    assert matched(index, 1, 2, 3) == {0: 2}
    index.sent(0, (1, 6), 3)
    assert matched(index, 1, 2, 3) == {0: 1}


class PlainIndex:
    """The same the slow way: a list of blocks a slot, looked through one by one."""

    def __init__(self):
        self.blocks = {}

    def sent(self, slot, prefix, blocks_max):
        kept = self.blocks.setdefault(slot, [])
        for block in reversed(prefix[:blocks_max]):
            kept[:] = [*(b for b in kept if b != block), block]
        del kept[: max(len(kept) - blocks_max, 0)]

    def matched(self, prefix):
        depths = {
            slot: next((n for n, b in enumerate(prefix) if b not in kept), len(prefix))
            for slot, kept in self.blocks.items()
        }
        return {slot: depth for slot, depth in depths.items() if depth}


@given(st.lists(st.tuples(st.integers(0, 9), st.lists(st.integers(0, 9), max_size=6, unique=True), st.integers(0, 5))))
def test_the_index_finds_what_a_plain_one_finds_and_nothing_is_left_when_all_are_forgotten(sends):
    """Whatever is sent where; no slot holds more than its bound."""
    index, plain = PrefixIndex(), PlainIndex()
    for slot, prefix, blocks_max in sends:
        index.sent(slot, prefix, blocks_max)
        plain.sent(slot, prefix, blocks_max)
        assert matched(index, *prefix) == plain.matched(prefix)
        assert len(index) == sum(map(len, plain.blocks.values()))
        assert len(plain.blocks[slot]) <= blocks_max
    for slot in range(10):
        index.forget(slot)
    assert len(index) == 0
    assert not index
    assert all(matched(index, block) == {} for block in range(10))


def test_all_backends_together_are_bounded_and_share_alike():
    """A hundred backends whose caches are far larger than the index: each keeps its share, the newest of it."""
    index, share = PrefixIndex(blocks_max=10_000), 100
    for _ in range(3):
        for slot in range(100):
            for number in range(300):
                index.sent(slot, (slot * 1000 + number,), 10**6)
            assert len(index) <= 10_000 + 100 * BLOCKS_EACH_MIN
    assert len(index) == 10_000
    assert matched(index, 7299) == matched(index, 7300 - share) == {7: 1}
    assert matched(index, 7299 - share) == {}


def test_a_thousandth_backend_is_found_as_the_first_is():
    """Slots beyond the width of a machine's word."""
    index = PrefixIndex()
    for slot in (0, 63, 64, 999):
        index.sent(slot, (1, 2, 3)[: 1 + slot % 3], 10)
    assert matched(index, 1, 2, 3) == {0: 1, 63: 1, 64: 2, 999: 1}


def test_a_prompt_that_comes_again_is_credited_where_it_went():
    """All blocks but the token that has to be computed in any case; the other backend has none."""
    it = core(backend("a"), backend("b"))
    first = sent(it.arrived(request("r", **PROMPT), 0.0))
    slots = it.ledger.roster.pool("m")
    cached = it.ledger.cached_tokens(slots, request("s", **PROMPT))
    here = it.ledger.roster.slot(first.backend)
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
    assert it.ledger.cached_tokens(it.ledger.roster.pool("m"), request("s", **PROMPT)).sum() == 0.0


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
    it.first_token("r", first.attempt, 0.05)
    it.client_left("r", 0.2)
    again = sent(it.arrived(request("s", arrived_s=9.0, **PROMPT), 9.0))
    assert again.backend == first.backend
    assert again.predicted_ttft_s < first.predicted_ttft_s


def again(it, times, cached, *, report=None, counted=400, stated=False):
    """The same prompt, time after time on one backend, whose replies state *cached* of *counted* prompt tokens (0 is
    left out unless *stated*); before each the engine's page tells the hit rate *report*. Returns what the last was
    expected to find.
    """
    for n in range(times):
        if report is not None:
            it.reported("a", EngineReport.by_name(10.0 * n, prefix_hit_rate=report), 10.0 * n)
        it.arrived(request(f"r{n}", **PROMPT), 10.0 * n)
        it.first_token(f"r{n}", 1, 10.0 * n + 0.1)
        it.ended(f"r{n}", 1, Usage(5, counted, cached, stated or cached > 0), 10.0 * n + 0.2)
    it.arrived(request("last", **PROMPT), 10.0 * times)
    expected = counted - it.loads()["a"].prefill_tokens
    it.client_left("last", 10.0 * times)
    return expected


def test_what_an_engine_finds_again_is_expected_again():
    """All but the last token, as stated in usage."""
    assert again(core(backend("a")), 50, 399) == pytest.approx(399, abs=0.5)


def test_an_engine_that_finds_half_is_credited_with_half():
    """The share that was found of what should have been there."""
    assert again(core(backend("a")), 100, 200) == pytest.approx(200, abs=1)


def test_an_engine_that_states_no_cached_tokens_is_trusted_unless_its_pages_say_otherwise():
    """Most engines leave a count of 0 out, and vLLM all counts unless started to state them."""
    assert again(core(backend("a")), 100, 0) == pytest.approx(399)
    assert again(core(backend("a")), 100, 0, report=0.0) < 1.0
    assert again(core(backend("a")), 100, 0, report=nan) == pytest.approx(399)
    assert again(core(backend("a")), 100, 0, report=0.7) == pytest.approx(399)


def test_an_engine_that_states_time_after_time_that_nothing_was_cached_is_believed():
    """A count of 0 that is there is a count."""
    assert again(core(backend("a")), 100, 0, stated=True) < 1.0


def test_an_engine_that_states_hits_and_leaves_out_a_count_of_0_found_nothing_then():
    """As vLLM and SGLang do: it has stated counts before."""
    it = core(backend("a"))
    again(it, 10, 399)
    assert again(it, 100, 0) < 1.0


def test_an_engine_that_caches_after_all_is_credited_again():
    """Started anew with another flag: its pages tell of hits from then on."""
    it = core(backend("a"))
    assert again(it, 100, 0, report=0.0) < 1.0
    it.reported("a", EngineReport.by_name(5000.0, prefix_hit_rate=0.3), 5000.0)
    assert again(it, 100, 0) == pytest.approx(399, abs=1)


def test_cached_tokens_are_in_the_unit_of_the_prompt():
    """The engine counts twice what was estimated: of the prompt and of what is cached alike."""
    assert again(core(backend("a")), 100, 798, counted=800) == pytest.approx(798, rel=0.01)


def test_what_was_learnt_of_an_engines_cache_is_passed_on():
    """To another router; and what one of before says nothing of stays as believed."""
    it, other = core(backend("a")), core(backend("a"))
    again(it, 100, 200)
    learnt = it.beliefs()["a"]
    other.adopt_belief("a", learnt, 0.0)
    assert other.belief.credit[0] == pytest.approx(0.5, abs=0.01)
    other.adopt_belief("a", {key: value for key, value in learnt.items() if key != "credit"}, 0.0)
    assert other.belief.credit[0] == 1.0


def test_prefix_affinity_follows_no_match_that_is_never_found():
    """The engine that is sent the prompt does not cache; the other has less to do."""
    it = core(backend("a"), routing="prefix_affinity")
    again(it, 100, 0, report=0.0)
    it.backend_joined(backend("b"), 5000.0)
    assert sent(it.arrived(request("r", **PROMPT), 5000.0)).why == "no match worth following: least work"
