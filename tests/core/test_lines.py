"""Held requests wait in one line for each SLO: order within a line, and no line in the way of another."""

from dataclasses import dataclass
from itertools import pairwise
from math import inf

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from router.core import Dispatch, Hold, Reason, Shed, Slo
from router.core.belief import REQUESTS_UNSEEN
from router.core.decisions import EndState, Refuse, RequestRecord, Send
from router.core.flight import DispatchLimits, Failure
from router.core.held_queue import LINES_MAX
from router.core.holding import LOOK_AHEAD
from router.core.types import Load, Usage
from tests.fakes import assumed, backend, busy_core, core, refused, request, sent

CHAT, CODE = Slo(ttft_s=5.0, tpot_s=0.05), Slo(ttft_s=5.0, tpot_s=0.02)


@dataclass(frozen=True)
class Asked:
    """One call of the policy."""

    id: str
    at_s: float
    ahead: int
    held: int
    hold_s: float


class Desk:
    """A policy for tests: it sends those of ``sends``, refuses those of ``refuses`` and holds all others."""

    def __init__(self, *sends, again_s=inf):
        self.sends, self.refuses, self.alone = set(sends), set(), set()
        self.again_s = again_s
        self.asked = []

    def choose(self, request, fleet, forecast, rng):
        """By name."""
        self.asked.append(Asked(request.id, fleet.now_s, fleet.ahead, fleet.held, fleet.hold_s))
        if request.id in self.refuses:
            return Shed(Reason.SATURATED, "no")
        if request.id in self.sends:
            return Dispatch(int(fleet.slots[-1]), "yes")
        return Hold(fleet.now_s + self.again_s, "not yet", request.id in self.alone)

    def asked_since(self, count):
        """The names of the requests decided after the first *count* calls."""
        return [asked.id for asked in self.asked[count:]]


def at_a_desk(*sends, backends=("a",), again_s=inf, **facts):
    """A core with the policy ``Desk``."""
    desk = Desk(*sends, again_s=again_s)
    it = core(*[backend(name) for name in backends], **facts)
    it.adopt(desk, it.admission)
    return it, desk


def comes(it, request_id, slo=CHAT, now_s=0.0, **facts):
    """A request, and what is answered."""
    return it.arrived(request(request_id, arrived_s=now_s, slo=slo, **facts), now_s)


def names(commands, kind=Send):
    """Whose commands of this kind they are, in order."""
    return [command.request_id for command in commands if isinstance(command, kind)]


# -- between lines ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("waits", "goes"), [(CHAT, CODE), (CODE, CHAT), (CHAT, Slo()), (Slo(), CHAT)])
def test_a_request_that_waits_does_not_block_a_newcomer_with_another_slo(waits, goes):
    """In both orders, of an earlier or a later rank; also without any SLO."""
    it, _ = at_a_desk("goes")
    assert comes(it, "waits", waits) == ()
    assert names(comes(it, "goes", goes)) == ["goes"]
    assert it.held == 1


@pytest.mark.parametrize(("first", "second"), [(CHAT, CODE), (CODE, CHAT)])
@pytest.mark.parametrize("freed", ["first", "second"])
def test_a_request_that_waits_does_not_block_a_held_one_with_another_slo(first, second, freed):
    """Whichever has room is sent by the next event, before and behind the other."""
    it, desk = at_a_desk()
    comes(it, "first", first)
    comes(it, "second", second, 0.1)
    desk.sends.add(freed)
    assert names(it.on_peer_load("peer", {}, 0.2)) == [freed]
    assert it.held == 1


def test_requests_of_one_class_with_bounds_of_their_own_are_apart():
    """A client's impossible headers stop nobody of its class: the bounds count, not the name."""
    it, _ = at_a_desk("ordinary")
    comes(it, "impossible", Slo(ttft_s=10_000.0, tpot_s=0.001), slo_class="chat")
    assert names(comes(it, "ordinary", CHAT, 0.1, slo_class="chat")) == ["ordinary"]


@pytest.mark.parametrize(
    "slo", [Slo(ttft_s=6.0, tpot_s=0.05), Slo(ttft_s=5.0), Slo(5.0, 0.05, 60.0), Slo(5.0, 0.05, quantile=0.5)]
)
def test_every_bound_and_the_quantile_make_a_line(slo):
    """Each alone."""
    it, desk = at_a_desk()
    comes(it, "waits", CHAT)
    comes(it, "other", slo)
    assert desk.asked[-1].ahead == 0


def test_requests_that_fit_different_backends_are_apart():
    """A long prompt waits for the one engine that takes it; a short one has another."""
    desk = Desk("short")
    it = core(backend("small", context_tokens_max=1000), backend("large", context_tokens_max=100_000))
    it.adopt(desk, it.admission)
    comes(it, "long", prompt_tokens=50_000)
    assert names(comes(it, "short", now_s=0.1)) == ["short"]


def test_more_lines_than_are_looked_at_are_each_asked_again_at_their_own_time():
    """No event but time: each head once every 50 ms, and the last line's is sent when it may be."""
    count, it, desk = LINES_MAX, *at_a_desk(again_s=0.05)
    assert count > LOOK_AHEAD
    for n in range(count):
        comes(it, f"r{n}", Slo(ttft_s=5.0, tpot_s=0.02 * 1.1**n), n / 10_000)
    while it.wake_s < 0.5:
        it.ticked(it.wake_s)
    for n in range(count):
        times = [asked.at_s for asked in desk.asked if asked.id == f"r{n}"]
        gaps = [after - before for before, after in pairwise(times)]
        assert len(gaps) >= 8
        assert gaps == pytest.approx([0.05] * len(gaps))
    desk.sends.add(f"r{count - 1}")
    while it.held == count:
        commands = it.ticked(it.wake_s)
    assert names(commands) == [f"r{count - 1}"]


# -- between places --------------------------------------------------------------------------------------------------


def test_requests_that_other_backends_serve_are_apart_whichever_were_up_as_they_came():
    """Both came while the one backend that they have in common was up alone; then each waits for its own."""
    it, desk = at_a_desk(backends=("a", "b", "c"))
    for name in ("a", "b"):
        it.backend_health(name, False, 0.0)
    comes(it, "first", among=("a", "c"))
    comes(it, "second", now_s=0.1, among=("b", "c"))
    assert desk.asked[-1].ahead == 0
    it.backend_health("c", False, 0.2)
    desk.sends.add("second")
    assert names(it.backend_health("b", True, 0.3)) == ["second"]


def test_however_many_lines_there_are_elsewhere_a_request_is_behind_none_of_them():
    """As a newcomer, and at each event."""
    it, desk = at_a_desk(backends=("a", "b"))
    for n in range(2 * LINES_MAX):
        comes(it, f"r{n}", Slo(ttft_s=5.0, tpot_s=0.001 * 1.06**n), n / 10_000, among=("a",))
    comes(it, "other", Slo(ttft_s=50.0), 1.0, among=("b",))
    assert desk.asked[-1].ahead == 0
    desk.sends.add("other")
    assert names(it.on_peer_load("peer", {}, 1.1)) == ["other"]


def test_a_room_that_is_reserved_is_reserved_from_those_that_could_take_it():
    """One that other backends serve goes on as if nobody waited; one that any backend serves does wait."""
    it, desk = at_a_desk("newcomer", "anywhere", backends=("a", "b"))
    desk.alone.add("keeps")
    comes(it, "keeps", among=("a",))
    assert names(comes(it, "newcomer", CODE, 0.1, among=("b",))) == ["newcomer"]
    assert comes(it, "anywhere", CODE, 0.2) == ()
    comes(it, "held", CODE, 0.3, among=("b",))
    desk.sends.add("held")
    assert names(it.on_peer_load("peer", {}, 0.4)) == ["held"]


def test_those_that_wait_for_other_backends_do_not_count():
    """``held`` and ``held_rank`` are of those that a newcomer competes with."""
    it, desk = at_a_desk(backends=("a", "b"))
    for n in range(3):
        comes(it, f"r{n}", among=("a",))
    for name, among, held in (("b", ("b",), 0), ("any", (), 4), ("a", ("a",), 4), ("b2", ("b",), 2)):
        comes(it, name, among=among)
        assert desk.asked[-1].held == held, name


def test_who_competes_changes_with_the_backends_that_are_up_or_have_failed():
    """What is kept of a request's backends is of those that there were."""
    it, desk = at_a_desk("tried", backends=("a", "b", "c"))
    comes(it, "r", among=("a", "b"))
    held = []

    def ask():
        comes(it, f"n{len(held)}", among=("b", "c"))
        held.append(desk.asked[-1].held)
        it.client_left(f"n{len(held) - 1}", 0.0)

    ask()
    it.backend_health("b", False, 0.0)
    ask()
    it.backend_health("b", True, 0.0)
    ask()
    it.backend_draining("b", True, 0.0)
    ask()
    it.backend_draining("b", False, 0.0)
    assert held == [1, 0, 1, 0]
    assert sent(comes(it, "tried", CODE, among=("a", "b"))).backend == "b"
    it.client_left("r", 0.0)
    desk.sends.clear()
    it.failed("tried", 1, Failure("reset", backend_fault=False), 0.1)
    ask()
    assert held[-1] == 0


def test_requests_whose_endpoints_others_lack_are_apart():
    """The one backend has no embeddings, the other no completions."""
    it, _ = at_a_desk("goes", backends=("a", "b"))
    it.ledger.roster.refuse(0, "/v1/embeddings")
    it.ledger.roster.refuse(1, "/v1/completions")
    comes(it, "waits", endpoint="/v1/embeddings")
    assert names(comes(it, "goes", now_s=0.1, endpoint="/v1/completions")) == ["goes"]


def test_a_slow_start_that_takes_no_more_makes_no_line_of_its_own():
    """Which backends may have one request more changes with each reply; the same SLO waits in the same line."""
    it, desk = at_a_desk(*[f"r{n}" for n in range(REQUESTS_UNSEEN)])
    it.backend_joined(assumed("new"), 0.0)
    for n in range(REQUESTS_UNSEEN):
        assert sent(comes(it, f"r{n}")).backend == "new"
    comes(it, "first")
    it.client_left("r0", 0.1)
    desk.sends.add("second")
    assert names(comes(it, "second", now_s=0.2)) == []
    assert desk.asked[-1].ahead == 1


RESTRICTED = st.lists(
    st.tuples(st.sets(st.sampled_from("abc")), st.integers(0, 3), st.booleans(), st.booleans()), max_size=30
)


@settings(max_examples=100, deadline=None)
@given(RESTRICTED)
def test_no_request_waits_for_one_that_competes_for_none_of_its_backends(came):
    """Whatever the bounds, and whichever has the next room reserved: some request that waits rightly is in the way."""
    it, desk = at_a_desk(backends=("a", "b", "c"))
    may = {}
    for n, (among, slo, alone, _) in enumerate(came):
        may[f"r{n}"] = among or set("abc")
        desk.alone |= {f"r{n}"} if alone else set()
        comes(it, f"r{n}", Slo(ttft_s=5.0, tpot_s=0.01 * 2**slo), n / 1000, among=tuple(among))
    desk.sends |= {f"r{n}" for n, (*_, sends) in enumerate(came) if sends}
    it.on_peer_load("peer", {}, 1.0)
    waiting = set(it._holding.queue("m") or ())
    for name in waiting & desk.sends:
        assert any(may[other] & may[name] for other in waiting - desk.sends), name


# -- within a line ---------------------------------------------------------------------------------------------------


def test_order_within_an_slo_is_kept_even_where_a_later_one_would_fit():
    """As a newcomer, at every event and at its timer; once the first may go, both do."""
    it, desk = at_a_desk("second", again_s=0.05)
    comes(it, "first")
    assert comes(it, "second", now_s=0.01) == ()
    assert names(it.on_peer_load("peer", {}, 0.02)) == []
    while it.wake_s < 0.3:
        assert names(it.ticked(it.wake_s)) == []
    desk.sends.add("first")
    assert names(it.ticked(it.wake_s)) == ["first", "second"]
    assert it.held == 0


def test_bounds_within_some_percent_share_a_line():
    """A client that forwards what is left of its deadline names another bound each time."""
    it, desk = at_a_desk()
    comes(it, "first", Slo(ttft_s=2.0, tpot_s=0.05))
    comes(it, "near", Slo(ttft_s=2.02, tpot_s=0.05), 0.01)
    comes(it, "far", Slo(ttft_s=3.0, tpot_s=0.05), 0.02)
    assert [asked.ahead for asked in desk.asked] == [0, 1, 0]


def test_beyond_so_many_slos_the_further_ones_share_a_line():
    """Whatever clients name, an event asks for a bounded number of requests."""
    it, desk = at_a_desk()
    for n in range(3 * LINES_MAX):
        comes(it, f"r{n}", Slo(ttft_s=5.0, tpot_s=0.001 * 1.06**n), n / 10_000)
    assert [asked.ahead for asked in desk.asked[: LINES_MAX + 1]] == [0] * (LINES_MAX + 1)
    assert desk.asked[-1].ahead == 2 * LINES_MAX - 1
    assert it.held == 3 * LINES_MAX


def test_the_next_of_a_line_whose_head_left_is_asked_by_its_own_timer():
    """However many lines there are before it."""
    it, desk = at_a_desk(again_s=0.05)
    for n in range(LOOK_AHEAD + 4):
        comes(it, f"r{n}", Slo(ttft_s=20.0, tpot_s=0.01 * 1.1**n), n / 10_000)
    last = Slo(ttft_s=20.0, tpot_s=0.2)
    comes(it, "head", last, 0.1)
    comes(it, "next", last, 0.11)
    it.client_left("head", 0.2)
    desk.sends.add("next")
    sent_s = 0.0
    while not sent_s and it.wake_s < 1.0:
        sent_s = it.wake_s if "next" in names(it.ticked(it.wake_s)) else 0.0
    assert 0.2 <= sent_s <= 0.3


def test_a_more_urgent_one_of_the_same_slo_goes_before():
    """Rank, not arrival, is the order of a line."""
    it, desk = at_a_desk("urgent")
    comes(it, "first", priority=1)
    assert names(comes(it, "urgent", now_s=0.1, priority=0)) == ["urgent"]
    assert desk.asked[-1].ahead == 0


def test_ahead_and_held_are_what_they_say():
    """``ahead``: of the same SLO and no later rank; ``held``: all others that wait, whatever their SLO."""
    it, desk = at_a_desk()
    for name, slo, priority, ahead, held in (
        ("a", CHAT, 1, 0, 0),
        ("b", CHAT, 1, 1, 1),
        ("c", CODE, 1, 0, 2),
        ("d", CHAT, 2, 2, 3),
        ("e", CHAT, 0, 0, 4),
        ("f", CHAT, 1, 3, 5),
        ("g", CODE, 3, 1, 6),
    ):
        comes(it, name, slo, priority=priority)
        assert (desk.asked[-1].ahead, desk.asked[-1].held) == (ahead, held), name
    count = len(desk.asked)
    it.on_peer_load("peer", {}, 0.1)
    assert [(asked.id, asked.ahead, asked.held) for asked in desk.asked[count:]] == [("e", 0, 6), ("c", 0, 6)]


def test_another_models_queue_does_not_count():
    """Who waits for another model has other backends."""
    it, desk = at_a_desk()
    it.backend_joined(backend("n", models=("n",)), 0.0)
    comes(it, "a")
    comes(it, "b", model="n")
    assert (desk.asked[-1].ahead, desk.asked[-1].held) == (0, 0)


def test_how_long_a_request_may_wait_is_known_and_shrinks():
    """All of it for a newcomer; what is left of it later."""
    it, desk = at_a_desk(admission={"hold_s_max": 8.0})
    comes(it, "r", now_s=1.0)
    it.on_peer_load("peer", {}, 3.0)
    assert [asked.hold_s for asked in desk.asked] == pytest.approx([8.0, 6.0])


def test_a_newcomer_behind_others_is_asked_once_so_that_it_may_be_refused_early():
    """If refused, it leaves nothing behind; if not, it is not decided again before its turn."""
    it, desk = at_a_desk()
    comes(it, "first")
    desk.refuses.add("hopeless")
    assert refused(comes(it, "hopeless", now_s=0.1)).reason is Reason.SATURATED
    assert (it.held, it.in_flight) == (1, 1)
    comes(it, "second", now_s=0.2)
    assert (desk.asked[-1].ahead, it.held) == (1, 2)
    count = len(desk.asked)
    it.on_peer_load("peer", {}, 0.3)
    assert desk.asked_since(count) == ["first"]


def test_slo_headroom_refuses_a_newcomer_that_its_line_would_make_late():
    """Some wait; from one on, the sequences that end before its latest start are for those ahead of it. Another
    SLO has a line of its own.
    """
    it, slo = busy_core(), Slo(ttft_s=3.0, tpot_s=0.06)
    for n in range(200):
        answer = comes(it, f"r{n}", slo, n / 100_000)
        if answer:
            break
    assert 5 < n < 150
    assert refused(answer).reason is Reason.SATURATED
    assert it.held == n
    assert comes(it, "other", Slo(ttft_s=3.5, tpot_s=0.06), 0.003) == ()


def test_a_request_that_was_refused_leaves_nothing_in_the_queue():
    """Refused as it waited: nobody counts it, no timer is left, and the next of its SLO is decided as the first."""
    it, desk = at_a_desk(again_s=0.05)
    comes(it, "r")
    desk.refuses.add("r")
    assert refused(it.ticked(it.wake_s)).request_id == "r"
    assert (it.held, it.in_flight, it.wake_s) == (0, 0, inf)
    comes(it, "next", now_s=1.0)
    assert (desk.asked[-1].ahead, desk.asked[-1].held) == (0, 0)


def test_when_the_head_of_a_line_is_refused_left_or_over_time_the_next_is_asked_at_once():
    """It is no later than the head was: nothing else would decide it before its own time is up."""
    for way in ("refused", "left", "over time"):
        it, desk = at_a_desk("second", admission={"hold_s_max": 5.0})
        comes(it, "first")
        comes(it, "second", now_s=1.0)
        desk.refuses |= {"first"} if way == "refused" else set()
        if way == "left":
            commands = it.client_left("first", 2.0)
        else:
            commands = it.on_peer_load("peer", {}, 2.0) if way == "refused" else it.ticked(5.0)
        assert names(commands) == ["second"], way


def test_a_retried_request_with_fewer_backends_to_choose_among_blocks_no_other():
    """It failed on one and waits for the other; who comes after it with the same SLO may have the first."""
    it, desk = at_a_desk("r", "s", backends=("a", "b"))
    first = sent(comes(it, "r"))
    desk.sends.discard("r")
    it.failed("r", 1, Failure("reset", backend_fault=False), 0.1)
    assert it.held == 1
    assert sent(comes(it, "s", now_s=0.2)).backend == first.backend
    assert desk.asked[-1].ahead == 0


# -- the next room kept for one --------------------------------------------------------------------------------------


def test_a_line_whose_time_has_come_does_not_take_the_room_reserved_for_another():
    """Its timer is no way around; once the room is no longer reserved, it is decided."""
    it, desk = at_a_desk(again_s=0.05)
    comes(it, "patient", priority=0)
    comes(it, "other", CODE, 0.01, priority=1)
    desk.alone.add("patient")
    it.on_peer_load("peer", {}, 0.02)
    desk.sends.add("other")
    while it.wake_s < 1.0:
        assert names(it.ticked(it.wake_s)) == []
    assert it.held == 2
    desk.alone.clear()
    assert names(it.ticked(it.wake_s)) == ["other"]


@pytest.mark.parametrize("by", ["event", "timer"])
def test_a_line_whose_head_is_sent_does_not_take_the_room_that_is_reserved_before_its_next(by):
    """The head was before the one that the room is reserved for, the next is behind it; then it goes at once."""
    it, desk = at_a_desk(again_s=0.05)
    desk.alone.add("patient")
    comes(it, "first", now_s=0.0)
    comes(it, "patient", CODE, 0.01)
    comes(it, "next", now_s=0.02)
    desk.sends |= {"first", "next"}
    assert names(it.on_peer_load("peer", {}, 0.03) if by == "event" else it.ticked(0.05)) == ["first"]
    while it.wake_s < 0.3:
        assert names(it.ticked(it.wake_s)) == []
    desk.alone.clear()
    commands = []
    while it.wake_s < 0.5:
        commands += it.ticked(it.wake_s)
    assert names(commands) == ["next"]


def test_who_came_while_the_room_was_reserved_is_decided_once_it_is_not():
    """No timer of its own would decide it."""
    it, desk = at_a_desk("other", again_s=0.05)
    desk.alone.add("patient")
    comes(it, "patient", priority=0)
    assert comes(it, "other", CODE, 0.01, priority=1) == ()
    assert names(it.ticked(it.wake_s)) == []
    desk.alone.clear()
    assert names(it.ticked(it.wake_s)) == ["other"]


def test_a_line_of_an_earlier_rank_does_not_mind():
    """Room is reserved against later ranks alone."""
    it, desk = at_a_desk(again_s=0.05)
    desk.alone.add("patient")
    comes(it, "patient", priority=1)
    comes(it, "urgent", CODE, 0.01, priority=0)
    desk.sends.add("urgent")
    commands = []
    while it.wake_s < 0.1:
        commands += it.ticked(it.wake_s)
    assert names(commands) == ["urgent"]


# -- whatever happens ------------------------------------------------------------------------------------------------

SLOS = [Slo(), Slo(5.0, 0.012), Slo(5.0, 0.014), Slo(0.5, 0.014), Slo(e2e_s=1.0), Slo(2.0, 0.02, 3.0), Slo(ttft_s=0.1)]
MOVES = st.lists(
    st.one_of(
        st.tuples(st.just("comes"), st.sampled_from(SLOS), st.integers(0, 1), st.sampled_from([10, 500, 4000])),
        st.tuples(st.sampled_from(["first", "ends", "fails", "leaves"]), st.integers(0, 30)),
        st.tuples(st.just("passes"), st.floats(0.001, 1.0)),
        st.tuples(st.just("peer"), st.integers(0, 8)),
    ),
    min_size=20,
    max_size=80,
)
HOLD_S_MAX = 2.0


class Shell:
    """Performs the commands, and records which requests are held, sent and ended."""

    def __init__(self, routing):
        limits = DispatchLimits(failures_max=10**6, attempts_max=2)
        admission = {"hold_s_max": HOLD_S_MAX, "held_max": 20}
        self.core = core(backend("a"), backend("b"), routing=routing, admission=admission, limits=limits)
        for _ in range(100):
            self.core.belief.lengths.update("m", "default", 10)
        self.now_s, self.came, self.waiting, self.open, self.ends = 0.0, {}, {}, {}, {}
        self.most_held = 0

    def rank(self, request_id):
        """As ``deadline`` ranks it; equals in the order in which they came."""
        asked, number = self.came[request_id]
        return asked.priority, min(asked.first_token_due_s, asked.arrived_s + 10.0), asked.arrived_s, number

    def perform(self, commands):
        """In order: nobody is sent before one of the same SLO that waits and has the better rank."""
        for command in commands:
            if isinstance(command, Send):
                asked, _ = self.came[command.request_id]
                self.waiting.pop(command.request_id, None)
                for other in self.waiting if command.attempt == 1 else ():
                    if self.came[other][0].slo == asked.slo and other not in self.failed:
                        assert self.rank(other) > self.rank(command.request_id)
                self.open[command.request_id] = command.attempt
            elif isinstance(command, Refuse):
                self.waiting.pop(command.request_id, None)
            elif isinstance(command, RequestRecord):
                self.open.pop(command.request.id, None)
                self.waiting.pop(command.request.id, None)
                assert self.ends.setdefault(command.request.id, command.outcome) is command.outcome
                self.accounts += 1

    failed: frozenset[str] = frozenset()
    accounts = 0

    def check(self):
        """What holds at every moment."""
        assert self.core.held == len(self.waiting)
        assert self.core.in_flight == len(self.came) - self.accounts
        assert all(self.now_s <= since_s + HOLD_S_MAX + 1e-9 for since_s in self.waiting.values())
        self.most_held = max(self.most_held, len(self.waiting))

    def moves(self, kind, *facts):
        """One move of a client, an engine, a peer or the clock."""
        getattr(self, kind)(*facts)
        self.check()

    def comes(self, slo, priority, prompt_tokens):
        name = f"r{len(self.came)}"
        asked = request(name, arrived_s=self.now_s, slo=slo, priority=priority, prompt_tokens=prompt_tokens)
        self.came[name] = asked, len(self.came)
        self.waiting[name] = self.now_s
        self.perform(self.core.arrived(asked, self.now_s))

    def passes(self, passed_s):
        until_s = self.now_s + passed_s
        while self.core.wake_s <= until_s:
            self.now_s = max(self.now_s, self.core.wake_s)
            self.perform(self.core.ticked(self.now_s))
        self.now_s = until_s

    def peer(self, tens):
        self.perform(
            self.core.on_peer_load("peer", {n: Load(0, 0, 10 * tens, 10_000 * tens) for n in "ab"}, self.now_s)
        )

    def _open(self, which):
        return sorted(self.open.items())[which % len(self.open)] if self.open else ("nobody", 1)

    def first(self, which):
        self.perform(self.core.first_token(*self._open(which), self.now_s))

    def ends_(self, which):
        self.perform(self.core.ended(*self._open(which), Usage(10), self.now_s))

    def fails(self, which):
        name, attempt = self._open(which)
        self.failed |= {name}
        self.open.pop(name, None)
        since_s = self.now_s
        if name in self.came and name not in self.ends:
            self.waiting[name] = since_s
        self.perform(self.core.failed(name, attempt, Failure("reset"), self.now_s))

    def leaves(self, which):
        if self.came:
            name = sorted(self.came)[which % len(self.came)]
            self.perform(self.core.client_left(name, self.now_s))


@settings(max_examples=150, deadline=None)
@given(moves=MOVES)
def test_every_request_has_one_end_none_waits_too_long_and_equal_slos_keep_their_order(moves):
    """Any sequence of arrivals, first tokens, ends, failures, departures and loads of a peer, ticked at every wake."""
    shell = Shell("slo_headroom")
    for kind, *facts in moves:
        shell.moves("ends_" if kind == "ends" else kind, *facts)
    event(f"most held: {min(shell.most_held, 3)}")
    shell.passes(HOLD_S_MAX)
    assert shell.core.held == 0
    for name in list(shell.open):
        shell.perform(shell.core.client_left(name, shell.now_s))
    assert shell.core.in_flight == 0
    assert set(shell.ends) == set(shell.came)
    assert shell.accounts == len(shell.came)
    assert set(shell.ends.values()) <= {EndState.SERVED, EndState.REFUSED, EndState.LEFT, EndState.BROKEN}
