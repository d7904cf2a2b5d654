"""Changes that peers send at once: N routers see what one would, whatever is lost, late or dead."""

from math import inf

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.core.border import PEER
from router.core.columns import FIRST_TOKEN_S, LOAD, PREFILL_RATE, RATE_AT_S, TPOT_BOUND_S
from router.core.flight import DispatchLimits, Failure
from router.core.ledger import Ledger
from router.core.outbox import NAMED_WHOLES, Outbox
from router.core.peer_change import BLOCKS_A_MESSAGE, PeerChange, SentPrompt, Work
from router.core.peers import GROWTH_MOST, SILENT_S
from router.core.types import Load
from tests.fakes import backend, core, request, sent

NAMES = ("a", "b", "c")


class Router:
    """A ledger with what it sends its peers."""

    def __init__(self, name: str) -> None:
        self.name, self.ledger = name, Ledger(2)
        for each in NAMES:
            self.ledger.join(backend(each), 0.0)
        self.outbox = Outbox(self.ledger.table, self.ledger.roster)

    def seen(self) -> np.ndarray:
        """What a forecast reads of each backend, whichever router sent the requests."""
        columns = self.ledger.table.columns[:, : len(NAMES)]
        load = columns[:LOAD] + columns[LOAD : 2 * LOAD]
        return np.vstack((load, columns[[TPOT_BOUND_S, PREFILL_RATE, RATE_AT_S, FIRST_TOKEN_S]]))

    def lived(self, now_s: float) -> list[tuple[float, float, float]]:
        """What each backend has done, as beliefs are learnt from it."""
        marks = [self.ledger.metering.snapshot(slot, now_s) for slot in range(len(NAMES))]
        return [(mark.decoding_s, mark.context_s, mark.prefilled_tokens) for mark in marks]


# One event: the router, what happens, the backend or request, the prompt, seconds since the last event, the bound.
EVENTS = st.lists(
    st.tuples(
        st.integers(0, 3),
        st.sampled_from(["send", "send", "first", "end"]),
        st.integers(0, 7),
        st.integers(1, 4000),
        st.sampled_from([0.0, 0.01, 0.5]),
        st.sampled_from([inf, 0.02, 0.05]),
    ),
    max_size=40,
)


def happen(events, routers, alone, after):
    """Play the events at ``routers`` and all of them at ``alone``; call ``after`` behind each."""
    open_, now_s = [], 0.0
    for who, kind, which, tokens, later_s, bound_s in events:
        now_s += later_s
        router = routers[who % len(routers)]
        if kind == "send":
            slot = which % len(NAMES)
            place = (slot, float(tokens), tokens + 50.0, bound_s, now_s)
            open_.append((router, router.ledger.load.reserve(*place), alone.ledger.load.reserve(*place)))
        elif open_:
            router, *held = open_[which % len(open_)]
            for ledger, reservation in zip((router.ledger, alone.ledger), held, strict=True):
                (ledger.load.prefilled if kind == "first" else ledger.load.release)(reservation, now_s)
            if kind == "end":
                del open_[which % len(open_)]
        after(router, now_s)
    return now_s


def send(router, routers, change, now_s):
    """Everybody else receives it now."""
    for other in routers:
        if other is not router and change is not None:
            other.ledger.peers.on_peer_change(router.name, change, now_s)


def introduced(count):
    """Routers that have sent each other their first whole messages."""
    routers = [Router(f"r{n}") for n in range(count)]
    for router in routers:
        send(router, routers, router.outbox.whole(), 0.0)
    return routers


@settings(max_examples=40, deadline=None)
@given(EVENTS, st.integers(1, 4))
def test_routers_that_send_their_changes_without_delay_see_what_one_router_sees(events, count):
    """Load, bounds, rates of prompts, times of sends and first tokens, and integrals: what decides and what is learnt
    from is the same at each of them as at one router with all the traffic.
    """
    routers, alone = introduced(count), Router("alone")

    def after(router, now_s):
        send(router, routers, router.outbox.changes(), now_s)
        for each in routers:
            assert np.allclose(each.seen(), alone.seen(), rtol=1e-9, atol=1e-9)

    now_s = happen(events, routers, alone, after)
    for each in routers:
        np.testing.assert_allclose(each.lived(now_s + 1.0), alone.lived(now_s + 1.0), rtol=1e-9, atol=1e-6)
        assert each.ledger.peers.unreported_load(np.arange(len(NAMES))) is None


@settings(max_examples=40, deadline=None)
@given(EVENTS, st.lists(st.sampled_from(["arrives", "lost", "twice"]), min_size=1, max_size=20))
def test_a_whole_message_heals_whatever_was_lost(events, fates):
    """Messages that are lost or come twice count nothing twice; after the next whole one the load is right again."""
    routers, alone = introduced(3), Router("alone")
    fate = iter(fates * 100)

    def after(router, now_s):
        change, what = router.outbox.changes(), next(fate)
        for _ in range({"arrives": 1, "lost": 0, "twice": 2}[what]):
            send(router, routers, change, now_s)

    now_s = happen(events, routers, alone, after)
    for router in routers:
        send(router, routers, router.outbox.whole(), now_s)
    for each in routers:
        np.testing.assert_allclose(each.seen()[: LOAD + 1], alone.seen()[: LOAD + 1], rtol=1e-9, atol=1e-9)
        prefilled = [tokens for *_, tokens in each.lived(now_s)]
        np.testing.assert_allclose(prefilled, [tokens for *_, tokens in alone.lived(now_s)], atol=1e-6)


def peer_load(ledger, slot=0):
    return ledger.table.peers[:, slot].tolist()


BUSY = Work(Load(1.0, 100.0, 2.0, 400.0), 100.0, 0.0)
VIEW = {"a": Load(1.0, 50.0, 0.0, 0.0)}


def test_a_router_that_dies_with_reservations_is_forgotten():
    """Nothing of it stays when it is silent, whether its lease ran out before that or not at all."""
    for lease_over_s in (0.5, 3.5):
        it = Router("here").ledger
        it.peers.on_peer_load("dead", VIEW, 0.0)
        it.peers.on_peer_change("dead", PeerChange({"a": BUSY}), 0.1)
        if lease_over_s < SILENT_S:
            it.peers.on_peer_load("dead", {}, lease_over_s)
            assert peer_load(it) == [1.0, 100.0, 2.0, 400.0]  # it still sends: the store lost it, not we
        assert not it.peers.forget_silent(SILENT_S)
        assert it.peers.forget_silent(SILENT_S + 0.2)
        it.peers.on_peer_load("dead", {}, SILENT_S + 0.3)
        assert peer_load(it) == [0.0] * 4
        assert not it.peers.forget_silent(100.0)


def test_a_peer_that_was_never_in_the_store_is_forgotten_when_it_is_silent():
    """Workers of one host may have no store in common but their messages."""
    it = Router("here").ledger
    it.peers.on_peer_change("beside", PeerChange({"a": BUSY}), 0.0)
    assert it.peers.forget_silent(SILENT_S + 0.1)
    assert peer_load(it) == [0.0] * 4


def test_views_count_again_when_the_changes_stop_and_not_before():
    """A view is older than what came at once; without the messages it is all there is, and growth is guessed again."""
    it = Router("here").ledger
    it.peers.on_peer_change("peer", PeerChange({"a": BUSY}), 0.0)
    it.peers.on_peer_load("peer", VIEW, SILENT_S)
    assert peer_load(it) == [1.0, 100.0, 2.0, 400.0]
    assert it.peers.unreported_load(np.arange(3)) is None
    it.load.reserve(0, 10.0, 10.0, inf, SILENT_S)
    it.peers.on_peer_load("peer", VIEW, SILENT_S + 0.1)
    assert peer_load(it) == [1.0, 50.0, 0.0, 0.0]
    it.load.reserve(0, 10.0, 10.0, inf, SILENT_S + 0.1)
    assert it.peers.unreported_load(np.arange(3))[0, 0] == 1.0


def test_a_whole_message_replaces_what_was_known_by_a_view():
    """A view that named a backend where nothing is in flight by now leaves nothing there."""
    it = Router("here").ledger
    it.peers.on_peer_load("peer", {"a": Load(1.0, 50.0), "b": Load(2.0, 80.0)}, 0.0)
    it.peers.on_peer_change("peer", PeerChange({"a": BUSY}, whole=True), 0.1)
    assert (peer_load(it, 0), peer_load(it, 1)) == ([1.0, 100.0, 2.0, 400.0], [0.0] * 4)


def test_a_router_that_begins_anew_counts_nothing_twice():
    """Its counters begin at 0: that they shrink is no prompt."""
    it = Router("here").ledger
    it.peers.on_peer_change("peer", PeerChange({"a": Work(Load(), 500.0, 400.0)}), 0.0)
    it.peers.on_peer_change("peer", PeerChange({"a": Work(Load(), 10.0, 5.0)}, whole=True), 1.0)
    assert it.table.columns[PREFILL_RATE, 0] == 0.0
    assert it.metering.snapshot(0, 1.0).prefilled_tokens == 0.0


def test_what_a_peer_sent_before_its_first_message_was_not_sent_now():
    """Its counters are of its whole life; what they grow by from then on counts, also where it had sent nothing before,
    and after a silence they are compared anew.
    """
    it = Router("here").ledger

    def prefilled() -> list[float]:
        return [it.metering.snapshot(slot, now_s).prefilled_tokens for slot in (0, 1)]

    for whole, now_s in ((False, 1.0), (True, 2.0)):
        it.peers.on_peer_change("peer", PeerChange({"a": Work(Load(1.0, 9.0), 5e6, 4e6)}, whole), now_s)
        assert it.table.columns[PREFILL_RATE, :2].tolist() == prefilled() == [0.0, 0.0]
        assert peer_load(it)[0] == 1.0
    it.peers.on_peer_change("peer", PeerChange({"a": Work(Load(), 5e6, 4e6 + 9.0), "b": Work(Load(), 7.0, 7.0)}), now_s)
    assert prefilled() == [9.0, 7.0]
    now_s += SILENT_S + 0.1
    assert it.peers.forget_silent(now_s)
    it.peers.on_peer_change("peer", PeerChange({"a": Work(Load(), 6e6, 6e6)}, whole=True), now_s)
    assert prefilled() == [9.0, 7.0]


def test_a_backend_that_leaves_takes_what_peers_had_there_with_it():
    """And a change of a backend that is not here is passed over."""
    it = Router("here").ledger
    it.peers.on_peer_change("peer", PeerChange({"a": BUSY, "elsewhere": BUSY}), 0.0)
    it.leave("a")
    it.join(backend("d"), 0.0)
    assert peer_load(it) == [0.0] * 4
    it.peers.on_peer_change("peer", PeerChange({"a": BUSY}, whole=True), 0.1)
    assert peer_load(it) == [0.0] * 4


def test_numbers_from_outside_stay_bounded():
    """What cannot be is 0 and counted; a counter that leaps does so by a bounded step."""
    it = core(backend("a"))
    odd = Work(Load(float("nan"), 1.0, -5.0, 1.0), inf, -1.0)
    it.on_peer_change("peer", PeerChange({"a": odd}), 0.0)
    assert peer_load(it.ledger) == [0.0, 1.0, 0.0, 1.0]
    assert it.dropped_numbers.by_source[PEER] == 4
    it.on_peer_change("peer", PeerChange({"a": Work(Load(), 9e14, 9e14)}), 0.1)
    assert it.ledger.metering.snapshot(0, 0.1).prefilled_tokens == GROWTH_MOST
    assert it.ledger.table.columns[PREFILL_RATE, 0] <= GROWTH_MOST


def test_nothing_is_sent_where_nothing_changed():
    """And what changed is named once."""
    here = Router("here")
    assert here.outbox.changes() is None
    held = here.ledger.load.reserve(1, 10.0, 20.0, 0.05, 0.0)
    assert here.outbox.changes() == PeerChange({"b": Work(Load(1.0, 10.0, 0.0, 0.0, 0.05), 10.0)})
    assert here.outbox.changes() is None
    here.ledger.load.release(held, 1.0)
    assert here.outbox.changes() == PeerChange({"b": Work(Load(), 10.0)})
    for number in range(40):  # the table grows
        here.ledger.join(backend(f"more-{number}"), 0.0)
    assert here.outbox.changes() is None
    here.ledger.load.reserve(30, 10.0, 20.0, 0.05, 0.0)
    assert list(here.outbox.changes().work) == [here.ledger.roster.name(30)]


def test_room_at_a_peer_serves_who_waits_here():
    """A change is an event as any: those held are decided again."""
    it = core(backend("a", seqs_max=1), routing="slo_headroom")
    assert it.forget_silent_peers(0.0) == ()
    assert it.on_peer_change("peer", PeerChange({"a": BUSY}), 0.0) == ()
    with pytest.raises(AttributeError):
        PeerChange({}).whole = True


# -- hints -------------------------------------------------------------------------------------------------------------

SYSTEM = tuple(range(1, 41))


def prompt(number: str, *blocks: int):
    return request(number, prompt_tokens=16 * len(blocks), prefix=blocks, prefix_block_tokens=16)


def holders(it, *blocks: int) -> list[float]:
    """How many leading blocks each backend should hold, as ``it`` sees it."""
    matched = it.ledger.prefixes.matched(blocks, np.arange(len(it.ledger.table.generation)))
    return [] if matched is None else matched.tolist()


def pair(**facts):
    """Two dispatchers before the same two backends that have sent each other everything once."""
    two = [core(backend("a"), backend("b"), **facts) for _ in range(2)]
    for one, other in (two, two[::-1]):
        one.on_peer_change("peer", other.outbox.whole(), 0.0)
    return two


def test_a_prompt_sent_by_one_router_is_known_to_the_other():
    """Block for block, and what was named lately is not named again."""
    one, other = pair()
    one.arrived(prompt("1", *SYSTEM, 100, 101), 0.0)
    other.on_peer_change("peer", one.outbox.changes(), 0.001)
    assert holders(other, *SYSTEM, 100, 101) == holders(one, *SYSTEM, 100, 101)
    assert max(holders(other, *SYSTEM, 100, 101)) == 42
    for each in ("a", "b"):  # round robin: the second goes to the other backend, the third to the first
        one.arrived(prompt(f"2{each}", *SYSTEM, 200, 201), 1.0)
    one.arrived(prompt("3", *SYSTEM, 300), 1.0)
    change = one.outbox.changes()
    assert sorted(len(each.blocks) for each in change.prompts) == [1, 2, 42]
    other.on_peer_change("peer", change, 1.001)
    for blocks in ((*SYSTEM, 100, 101), (*SYSTEM, 200, 201), (*SYSTEM, 300)):
        assert holders(other, *blocks) == holders(one, *blocks)


def test_blocks_in_use_are_named_again_and_messages_are_bounded():
    """A peer may have let them go; a flood of long prompts is dropped, not queued."""
    one, _ = pair()
    one.arrived(prompt("1", *SYSTEM), 0.0)
    assert one.outbox.changes().prompts
    for _ in range(2 * NAMED_WHOLES):
        assert not one.outbox.whole().prompts
    for each in ("2", "3"):
        one.arrived(prompt(each, *SYSTEM), 1.0)
    assert {len(each.blocks) for each in one.outbox.changes().prompts} == {40}
    for number in range(6):
        one.arrived(prompt(f"long-{number}", *range(10_000 * number + 1000, 10_000 * number + 5000)), 2.0)
    assert sum(len(each.blocks) for each in one.outbox.changes().prompts) <= BLOCKS_A_MESSAGE


def test_a_router_alone_keeps_nothing_for_peers():
    """Without a message to anyone there is nothing to send."""
    it = core(backend("a"))
    it.arrived(prompt("1", *SYSTEM), 0.0)
    it.outbox.ejected("a")
    assert it.outbox.changes().prompts == it.outbox.whole().prompts == ()


def test_what_a_backend_lost_is_not_brought_back_by_a_hint_while_it_is_down():
    """Its cache is gone."""
    one, other = pair()
    one.arrived(prompt("1", *SYSTEM), 0.0)
    change = one.outbox.changes()
    for name in ("a", "b"):
        other.backend_health(name, False, 0.1)
    other.on_peer_change("peer", change, 0.2)
    assert holders(other, *SYSTEM) == []


def fail(it, number: str, now_s: float) -> None:
    """One request that its first backend fails."""
    send = sent(it.arrived(request(number), now_s))
    it.failed(number, send.attempt, Failure("reset", retryable=False), now_s)


def test_a_backend_that_one_router_ejected_is_ejected_by_the_other_after_one_fault():
    """Not before that, and not after it has answered there: the fault may lie between that router and it."""
    one, other = (core(backend("a"), limits=DispatchLimits(failures_max=3)) for _ in range(2))
    other.on_peer_change("peer", one.outbox.whole(), 0.0)
    for number in range(3):
        fail(one, f"f{number}", 1.0)
    change = one.outbox.changes()
    assert change.ejected == ("a",)
    other.on_peer_change("peer", change, 1.0)
    assert not other.failures["a"].ejected
    fail(other, "f", 1.1)
    assert other.failures["a"].ejected
    third = core(backend("a"), limits=DispatchLimits(failures_max=3))
    third.on_peer_change("peer", change, 1.0)
    third.first_token("r", sent(third.arrived(request("r"), 1.0)).attempt, 1.1)
    fail(third, "f", 1.2)
    assert not third.failures["a"].ejected


def test_more_than_a_message_may_hold_is_dropped():
    """Its load counts all the same."""
    it = core(backend("a"))
    huge = SentPrompt("a", tuple(range(BLOCKS_A_MESSAGE + 1)), 16)
    it.on_peer_change("peer", PeerChange({"a": BUSY}, False, (huge,), ("a",)), 0.0)
    assert it.dropped_numbers.by_source[PEER] == 1
    assert not it.ledger.prefixes
    assert peer_load(it.ledger)[0] == 1.0
