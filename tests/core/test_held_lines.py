"""What several routers hold is one queue: who is served next, whatever becomes of the messages between them."""

from dataclasses import dataclass, field, replace
from heapq import heappop, heappush
from itertools import count, pairwise
from math import inf, isnan
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import policies
from router.core import border
from router.core.decisions import Dispatch, Hold, RequestRecord, Send
from router.core.dispatcher import Dispatcher
from router.core.errors import DownReason
from router.core.held_lines import LINES_A_MESSAGE, SETTLE_S, YIELD_S, HeldLine, PeersHeld, first_lines
from router.core.held_queue import RANKS_A_LINE, HeldQueue
from router.core.holding import line_of
from router.core.peer_change import WHOLE_S, PeerChange
from router.core.types import Slo, Usage
from tests import fakes
from tests.fakes import backend, request

LINE = ((0.0, ""), (1.0, inf, inf, 0.9))
SERVICE_S = 0.1
HOP_S = 0.001


def line(*ranks, model="m", **facts):
    """A line of requests with these ranks, each a number."""
    return HeldLine(model, *LINE, len(ranks), tuple([(float(rank),) for rank in ranks]), **facts)


def before_all(model):
    """A peer's request in the line of those with a TTFT SLO of 5 s, long before them."""
    return HeldLine(model, *line_of(Slo(ttft_s=5.0), (0.0, "")), 1, ((0.0, -50.0, -50.0),))


def pushed(ranks):
    """A queue of requests with these ranks in one line."""
    queue = HeldQueue()
    for number, rank in enumerate(ranks):
        queue.push((float(rank),), f"r{number}", LINE)
    return queue


def summary(queue):
    """What a peer gets of its one line."""
    ((key, waiting, ranks, _),) = queue.summaries()
    return HeldLine("m", *key, waiting, ranks)


@given(st.lists(st.integers(0, 50), min_size=1, max_size=40), st.integers(-1, 51))
def test_a_summary_tells_how_many_are_before_a_rank(ranks, mine):
    """Exactly where a line is short; else whether any is, and how many to within what lies between two of its ranks."""
    made = summary(pushed(ranks))
    before = sum(rank < mine for rank in ranks)
    assert len(made.ranks) <= RANKS_A_LINE
    assert (made.ranks[0], made.ranks[-1]) == ((min(ranks),), (max(ranks),))
    if len(ranks) <= RANKS_A_LINE:
        assert made.before((float(mine),)) == before
    assert bool(made.before((float(mine),))) == bool(before)
    assert abs(made.before((float(mine),)) - before) <= len(ranks) / (RANKS_A_LINE - 1) + 1


@given(
    st.lists(st.tuples(st.sampled_from("ab"), st.lists(st.integers(0, 9), max_size=5)), max_size=12),
    st.integers(0, 10),
    st.sampled_from([(), ("a",), ("a", "b")]),
)
def test_the_last_word_of_each_peer_counts_once(messages, mine, kept):
    """However often peers send what they hold, and whichever are forgotten: as if each had sent its last alone."""
    held, last = PeersHeld(), {}
    for peer, ranks in messages:
        held.replace(peer, [line(*sorted(ranks))] if ranks else [], 0.0)
        last[peer] = sorted(ranks)
    held.keep(kept)
    there = [rank for peer in kept for rank in last.get(peer, ())]
    assert held.count("m") == len(there)
    assert held.ahead("m", LINE, (float(mine),)) == sum(rank < mine for rank in there)
    assert held.is_first("m", LINE, (float(mine),)) == all(rank >= mine for rank in there)
    assert held.first_rank("m") == ((min(there),) if there else ())
    assert bool(held) == bool(there)


def test_lines_of_other_bounds_models_and_policies_are_in_nobodys_way():
    """A line is that of the same bounds and model; ranks of another length are another policy's. A reservation holds
    for the whole model.
    """
    held = PeersHeld()
    held.replace("a", [line(1.0)], 0.0)
    other = (LINE[0], (2.0, inf, inf, 0.9))
    assert not held.is_first("m", LINE, (5.0,))
    assert held.is_first("m", other, (5.0,))
    assert held.is_first("another", LINE, (5.0,))
    assert held.is_first("m", LINE, (5.0, 5.0))
    held.replace("a", [line(1.0, alone=True)], 0.0)
    assert not held.is_first("m", other, (5.0,))
    assert held.is_first("m", other, (1.0,))
    held.replace("a", [line(1.0, alone=True, pool=7)], 0.0)
    for pool, ranks in ((7, [1.0]), (8, [])):
        assert held.is_first("m", other, (5.0,), pool=pool) == (not ranks)
        assert held.count("m", pool) == held.ahead("m", LINE, (5.0,), pool) == len(ranks)
        assert held.first_rank("m", pool) == tuple(ranks)


def test_requests_of_one_moment_have_the_same_order_everywhere():
    """By a number of each: the moments that a message states are later by what it took."""
    first = HeldLine("m", *LINE, 1, ((0.0, 5.001),), (1,), ticket=7)
    for rank, ticket, before in (
        ((0.0, 5.0), 8, True),
        ((0.0, 5.0), 6, False),
        ((0.0, 5.2), 6, True),
        ((0.0, 4.9), 8, False),
        ((1.0, 4.9), 6, True),  # a priority is no moment
        ((0.0, 5.0, 0.0), 8, False),
    ):
        assert first.goes_before(rank, ticket) == before


def test_moments_travel_between_clocks():
    """As seconds from the sending on; what is no moment, such as a priority, stays."""
    sent = HeldLine("m", *LINE, 1, ((2.0, 105.0, 101.0),), (1, 2)).later(-100.0)
    assert sent.ranks == ((2.0, 5.0, 1.0),)
    held = PeersHeld()
    held.replace("a", [sent], 7_000.0)
    assert held.first_rank("m") == (2.0, 7_005.0, 7_001.0)


def test_a_message_has_a_bounded_number_of_lines():
    """Those whose first is served first."""
    lines = [line(rank, model=f"m{rank}") for rank in range(2 * LINES_A_MESSAGE, 0, -1)]
    assert [each.ranks[0][0] for each in first_lines(lines)] == list(range(1, LINES_A_MESSAGE + 1))


@pytest.mark.parametrize(
    "wrong",
    [
        {"ranks": ()},
        {"ranks": ((1.0,), (2.0,))},  # more than are held
        {"ranks": ((float("nan"),),)},
        {"ranks": ((inf,),)},
        {"count": 0},
        {"count": 10**9},
        {"count": 2, "ranks": ((2.0,), (1.0,))},
        {"count": 2, "ranks": ((1.0,), (1.0, 2.0))},
        {"times": (1,)},
        {"bounds": (float("nan"),)},
        {"place": (0.0,) * 9},
    ],
)
def test_a_line_that_cannot_be_is_dropped_and_counted(wrong):
    """The rest of the message is taken."""
    dropped = border.DroppedNumbers()
    change = PeerChange({}, held=(line(1.0), replace(line(1.0), **wrong)))
    assert border.peer_change(change, "peer", dropped).held == (line(1.0),)
    assert dropped.by_source[border.PEER] == 1


# -- several routers ---------------------------------------------------------------------------------------------------


class OneAtATime:
    """Sends to the one backend while nothing is in flight there, its own or a peer's."""

    def choose(self, request, fleet, forecast, rng):
        if fleet.requests.item(0) < 1.0:
            return Dispatch(fleet.slots.item(0), "idle")
        return Hold(fleet.now_s + 0.05, "busy")


@dataclass
class Routers:
    """Routers before one backend, on virtual time; their messages take ``HOP_S``, or as *fate* has it (None: lost)."""

    number: int
    fate: object = lambda: HOP_S
    backends: str = "a"
    routing: object = field(default_factory=OneAtATime)
    seed: int = 0
    now_s: float = 0.0
    dead: set[int] = field(default_factory=set)
    sends: list[tuple[float, str]] = field(default_factory=list)
    over: list[str] = field(default_factory=list)
    chosen: list[str] = field(default_factory=list)

    def __post_init__(self):
        self.cores = [
            Dispatcher(self.routing, policies.find("admission", "deadline", None), Random(10 * self.seed + n))
            for n in range(self.number)
        ]
        self._heap, self._order, self._numbers, self._last = [], count(), count(), {}
        for number, core in enumerate(self.cores):
            for name in self.backends:
                core.backend_joined(backend(name), 0.0)
            self.at(0.0, self._whole, number)
            self.at(0.1, self._sweep, number)

    def at(self, when_s, act, *args):
        heappush(self._heap, (when_s, next(self._order), act, args))

    def run(self, until_s):
        while self._heap and self._heap[0][0] <= until_s:
            self.now_s, _, act, args = heappop(self._heap)
            act(*args)
        self.now_s = until_s

    def arrive(self, number, name, ttft_s=5.0, prompt_tokens=100):
        asked = request(name, arrived_s=self.now_s, slo=Slo(ttft_s=ttft_s), prompt_tokens=prompt_tokens)
        self._perform(number, self.cores[number].arrived(asked, self.now_s))

    def _perform(self, number, commands):
        for command in commands:
            if isinstance(command, Send):
                self.sends.append((self.now_s, command.request_id))
                self.chosen.append(command.backend)
                self.at(self.now_s + SERVICE_S, self._end, number, command)
            elif isinstance(command, RequestRecord):
                self.over.append(command.request.id)
        self._send(number, False)
        wake_s = self.cores[number].wake_s
        if wake_s < inf:
            self.at(max(wake_s, self.now_s), self._tick, number)

    def _tick(self, number):
        if number not in self.dead and self.cores[number].wake_s <= self.now_s:
            self._perform(number, self.cores[number].ticked(self.now_s))

    def _end(self, number, send):
        if number not in self.dead:
            core = self.cores[number]
            first = core.first_token(send.request_id, send.attempt, self.now_s)
            self._perform(number, [*first, *core.ended(send.request_id, send.attempt, Usage(1), self.now_s)])

    def _whole(self, number):
        if number not in self.dead:
            self._send(number, True)
            self.at(self.now_s + WHOLE_S / 2, self._whole, number)

    def _sweep(self, number):
        if number not in self.dead:
            self._perform(number, self.cores[number].forget_silent_peers(self.now_s))
            self.at(self.now_s + 0.25, self._sweep, number)

    def _send(self, number, whole):
        change, message = self.cores[number].own_change(self.now_s, whole=whole), next(self._numbers)
        for other in range(self.number) if change is not None else ():
            hop_s = self.fate()
            if other != number and hop_s is not None:
                self.at(self.now_s + hop_s, self._receive, other, number, change, message)

    def _receive(self, number, sender, change, message):
        if number not in self.dead and message > self._last.get((number, sender), -1):
            self._last[number, sender] = message
            self._perform(number, self.cores[number].on_peer_change(f"r{sender}", change, self.now_s))


def test_room_goes_to_the_first_of_all_whoever_holds_it():
    """Requests come to routers in turn, each with a TTFT SLO of its own line's; they are served in the order of their
    deadlines, and one that comes while others wait at a peer waits behind them.
    """
    it = Routers(3)
    it.run(0.5)
    for number in range(9):
        it.arrive(number % 3, f"r{number}")
        it.run(it.now_s + 0.01)
    it.run(0.5 + 12 * SERVICE_S)
    assert [name for _, name in it.sends] == [f"r{number}" for number in range(9)]
    assert all(later - sooner < SERVICE_S + 3 * HOP_S for (sooner, _), (later, _) in pairwise(it.sends))
    assert sorted(it.over) == sorted(f"r{number}" for number in range(9))


@pytest.mark.parametrize("seed", range(3))
def test_a_burst_over_several_routers_is_spread_as_by_one(seed):
    """Long prompts that come at once: each goes to a backend of its own, a few milliseconds later. Short ones, and
    those before a router without peers, wait for nothing.
    """
    routing = policies.find("routing", "slo_headroom")
    it = Routers(4, backends="abcd", routing=routing, seed=seed)
    it.run(0.4)
    for number in range(4):
        it.arrive(number, f"long{number}", ttft_s=1.0, prompt_tokens=4_000)
    assert it.chosen == []
    it.run(0.4 + 10 * SETTLE_S)
    assert sorted(it.chosen) == list("abcd")
    assert all(when_s <= 0.4 + 4 * SETTLE_S for when_s, _ in it.sends)
    it.run(1.4)
    it.arrive(0, "short", ttft_s=1.0)
    assert it.sends[-1] == (1.4, "short")
    alone = Routers(1, routing=routing, seed=seed)
    alone.arrive(0, "long", ttft_s=1.0, prompt_tokens=4_000)
    assert alone.sends == [(0.0, "long")]


@pytest.mark.parametrize(
    ("admission", "bound_s", "sent"),
    [
        ({}, 1.0, False),
        ({}, 0.2, True),
        ({}, inf, True),
        ({"hold_s_max": 0.0}, 1.0, True),
        ({"held_max": 0}, 1.0, True),
    ],
)
def test_a_request_settles_only_where_it_may_be_held_and_has_the_time(admission, bound_s, sent):
    """Else it is decided at once, as before."""
    it = fakes.core(backend(), routing="least_request", admission=admission)
    it.on_peer_change("peer", PeerChange({}, whole=True), 0.0)
    commands = it.arrived(request("long", slo=Slo(ttft_s=bound_s), prompt_tokens=8_000), 0.0)
    assert any(isinstance(each, Send) for each in commands) == sent
    assert it.held == (not sent)


def test_a_short_prompt_takes_no_forecast_of_all_backends_for_being_decided_at_once():
    """Of a thousand of them that would be most of a decision, for a policy that reads none."""
    it = fakes.core(backend("a"), backend("b", slower=0.5), routing="round_robin")
    it.on_peer_change("peer", PeerChange({}, whole=True), 0.0)
    (send,) = it.arrived(request("short", slo=Slo(ttft_s=1.0), prompt_tokens=100), 0.0)
    assert isnan(send.predicted_ttft_s)
    it.arrived(request("long", slo=Slo(ttft_s=1.0), prompt_tokens=16_000), 0.0)
    assert it.held == 1


@pytest.mark.parametrize("admission", [{"hold_s_max": 0.01}, {"held_max": 0}])
def test_what_may_not_be_held_does_not_give_way(admission):
    """It would be refused for a peer's sake, with room for it."""
    it = fakes.core(backend(), routing="round_robin", admission=admission)
    it.on_peer_change("peer", PeerChange({}, held=(before_all("m"),)), 0.0)
    (send,) = it.arrived(request("r", slo=Slo(ttft_s=5.0)), 0.0)
    assert isinstance(send, Send)


@pytest.mark.parametrize("free_s", [0.93, 0.951, 0.972, 0.99])
def test_a_request_whose_hold_is_about_to_end_does_not_give_way(free_s):
    """It would be refused while room is there."""
    it = fakes.core(backend(), routing="round_robin", admission={"hold_s_max": 1.0})
    it.routing = OneAtATime()
    it.arrived(request("running", slo=Slo(ttft_s=5.0)), 0.0)
    it.arrived(request("held", slo=Slo(ttft_s=5.0)), 0.0)
    while it.wake_s < free_s:
        it.ticked(it.wake_s)
    it.on_peer_change("peer", PeerChange({}, held=(before_all("m"),)), free_s)
    commands = list(it.client_left("running", free_s))
    while it.wake_s <= 1.0:
        commands += it.ticked(it.wake_s)
    assert [each.request_id for each in commands if isinstance(each, Send)] == ["held"]


def test_a_router_that_dies_with_held_requests_holds_up_nobody_for_long():
    """What it held is passed over after a moment, and forgotten once it is silent."""
    it = Routers(2)
    it.run(0.5)
    for name, number in (("running", 1), ("dies", 0), ("waits", 1)):
        it.arrive(number, name)
        it.run(it.now_s + 0.01)
    it.dead.add(0)
    it.run(2.5)
    assert [name for _, name in it.sends] == ["running", "waits"]
    assert it.sends[1][0] - it.sends[0][0] < SERVICE_S + 0.05 + 2 * YIELD_S
    assert not it.cores[1].held_anywhere


class FirstIdle:
    """Sends to the first backend that is idle."""

    def choose(self, request, fleet, forecast, rng):
        idle = fleet.slots[fleet.requests < 1.0].tolist()
        return Dispatch(idle[0], "idle") if idle else Hold(fleet.now_s + 0.05, "busy")


def test_room_is_not_kept_for_a_router_that_may_not_use_it():
    """It alone finds a backend down, and holds for the other one: meanwhile others use what it cannot."""
    it = Routers(2, backends="ab", routing=FirstIdle())
    it.run(0.4)
    it._perform(0, it.cores[0].backend_health("b", False, it.now_s, DownReason.REFUSED))
    for number, (router, name) in enumerate([(1, "first"), (0, "held"), (1, "second"), (1, "third")]):
        it.run(0.5 + number * 0.01)
        it.arrive(router, name)
    it.run(1.0)
    (first, second, *rest), free_s = it.sends, 0.5 + SERVICE_S
    assert [first, second] == [(0.5, "first"), (0.52, "second")]
    assert it.chosen[:2] == ["a", "b"]
    assert sorted(name for _, name in rest) == ["held", "third"]
    assert free_s <= rest[0][0] <= free_s + 2 * HOP_S


def test_what_a_router_holds_that_may_use_no_room_here_refuses_nobody():
    """Where many wait in front, the policy fair refuses at once; those of a router that finds other backends up do not
    wait in front.
    """
    lines = [HeldLine("m", *line_of(Slo(ttft_s=1.0), (0.0, "")), 1_000, ((-9.0, -9.0),), pool=7)]
    fair = policies.find("admission", "fair")
    it = Dispatcher(policies.find("routing", "least_request"), fair, Random(1))
    it.backend_joined(backend(), 0.0)
    it.arrived(request("running"), 0.0)
    it.first_token("running", 1, 0.1)
    it.on_peer_change("peer", PeerChange({}, held=tuple(lines)), 0.1)
    (send,) = it.arrived(request("r", arrived_s=0.1, slo=Slo(ttft_s=1.0)), 0.1)
    assert isinstance(send, Send)


def test_room_is_not_kept_for_a_router_that_reaches_no_backend():
    """It may hold requests for as long as it finds all of them down, and their deadlines are the earliest."""
    it = Routers(2)
    it.run(0.5)
    for name in ("sent", "held"):
        it.arrive(0, name)
    it._perform(0, it.cores[0].backend_health("a", False, it.now_s, DownReason.REFUSED))
    it.run(0.5 + 2 * SERVICE_S)
    due = [it.now_s + number * 1.5 * SERVICE_S for number in range(5)]
    for number, when_s in enumerate(due):
        it.run(when_s)
        it.arrive(1, f"other{number}")
    it.run(it.now_s + 1.5 * SERVICE_S)
    assert it.sends[1:] == [(when_s, f"other{number}") for number, when_s in enumerate(due)]
    it._perform(0, it.cores[0].backend_health("a", True, it.now_s))
    assert it.sends[-1] == (it.now_s, "held")


ARRIVALS = st.lists(
    st.tuples(st.integers(0, 2), st.sampled_from([0.0, 0.002, 0.03]), st.sampled_from([3.0, 5.0])), max_size=12
)


@settings(max_examples=30, deadline=None)
@given(ARRIVALS, st.randoms(use_true_random=False), st.sampled_from(["whole", "lossy", "late", "parted"]))
def test_every_held_request_is_served_once_whatever_becomes_of_messages(arrivals, draw, kind):
    """Lost, late and reordered messages, and routers that hear nothing of each other at all: no request is left, none
    is sent twice, and nothing is left of any in any ledger.
    """
    fates = {
        "whole": lambda: HOP_S,
        "lossy": lambda: HOP_S if draw.random() < 0.5 else None,
        "late": lambda: draw.choice([HOP_S, 10 * HOP_S, 100 * HOP_S]),
        "parted": lambda: None,
    }
    it = Routers(3, fates[kind])
    it.run(0.5)
    for number, (router, later_s, ttft_s) in enumerate(arrivals):
        it.run(it.now_s + later_s)
        it.arrive(router, f"r{number}", ttft_s)
    it.run(3.0 + 2 * SERVICE_S * len(arrivals))
    it.fate = lambda: HOP_S
    it.run(it.now_s + 2.5)
    names = sorted(f"r{number}" for number in range(len(arrivals)))
    assert sorted(name for _, name in it.sends) == names
    assert sorted(it.over) == names
    for core in it.cores:
        assert not core.held_anywhere
        assert not core.ledger.table.own.any()
        assert not core.ledger.table.peers.any()
