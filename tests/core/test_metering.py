"""The integrals over a stream include the load of every router, as an engine's step does."""

import pytest

from router.core.fleet import Fleet
from router.core.ledger import Ledger
from router.core.types import Load
from tests.fakes import backend, core, request, sent


def test_what_peers_had_decoding_counts_in_what_a_stream_lived_through():
    """Two sequences of our own for 10 s, five of a peer for the last 4 of them."""
    it = Ledger()
    slot = it.join(backend("a"), 0.0)
    for _ in range(2):
        it.load.prefilled(it.load.reserve(slot, 100.0, 200.0, float("inf"), 0.0), 0.0)
    before = it.metering.snapshot(slot, 0.0)
    it.peers.on_peer_load("peer", {"a": Load(decoding=5.0, context_tokens=1000.0)}, 6.0)
    after = it.metering.snapshot(slot, 10.0)
    assert after.decoding_s - before.decoding_s == pytest.approx(2 * 10 + 5 * 4)
    assert after.context_s - before.context_s == pytest.approx(400 * 10 + 1000 * 4)


def test_prompts_of_peers_count_at_the_rate_at_which_our_own_traffic_brings_them():
    """Our one stream brought 1000 prompt tokens; a peer's stream is taken to bring as many."""
    it = core(backend("a"))
    send = sent(it.arrived(request("r", prompt_tokens=1000), 0.0))
    it.first_token("r", send.attempt, 0.0)
    it.backend_joined(backend("b"), 0.0)
    it.on_peer_load("peer", {"b": Load(decoding=1.0)}, 0.0)
    rate = it.ledger.metering.prompt_tokens_per_s_each
    assert rate == pytest.approx(1000 / 5.0)
    assert it.ledger.metering.snapshot(it.ledger.roster.slot("b"), 2.0).prefilled_tokens == pytest.approx(2.0 * rate)


def test_a_router_that_has_sent_nothing_knows_no_rate_of_prompts():
    """Nothing to go by: what peers bring in prompts is left to what engines report."""
    it = core(backend("a"))
    it.on_peer_load("peer", {"a": Load(decoding=5.0)}, 1.0)
    it.on_peer_load("peer", {}, 2.0)
    assert it.ledger.metering.snapshot(0, 3.0).prefilled_tokens == 0.0


def two_routers():
    """A ledger of two backends with one request of our own, whose peer says it has one too."""
    it = Ledger()
    for name in "ab":
        it.join(backend(name), 0.0)
    it.load.reserve(0, 100.0, 200.0, float("inf"), 0.0)
    it.peers.on_peer_load("peer", {"b": Load(prefilling=1.0, prefill_tokens=100.0)}, 0.0)
    return it


def requests_seen(it):
    """Requests in flight by backend, as a decision sees them."""
    return Fleet(it, it.roster.pool("m"), 0.0).requests.tolist()


def test_what_we_sent_since_a_peer_spoke_is_taken_to_be_matched_by_it():
    """A burst meets both routers: two of ours since then count as four, the earlier one as itself."""
    it = two_routers()
    assert requests_seen(it) == [1.0, 1.0]
    for _ in range(2):
        it.load.reserve(0, 100.0, 200.0, float("inf"), 0.0)
    assert requests_seen(it) == [5.0, 1.0]
    it.peers.on_peer_load("peer", {"a": Load(prefilling=2.0), "b": Load(prefilling=1.0)}, 0.0)
    assert requests_seen(it) == [5.0, 1.0]


def test_a_peer_that_is_gone_is_taken_to_send_nothing():
    """Alone again: what we have is all there is."""
    it = two_routers()
    it.peers.on_peer_load("peer", {}, 0.0)
    it.load.reserve(0, 100.0, 200.0, float("inf"), 0.0)
    assert requests_seen(it) == [2.0, 0.0]
