"""Routers send each other each change as it happens: messages, their order and number, the sockets of workers."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from math import inf, log2, nan
from pathlib import Path
from time import monotonic
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.core.decisions import Command, Send
from router.core.errors import SkipReason, StoreGone, Unreadable
from router.core.evidence import Outcome, ReplyLength
from router.core.held_lines import HeldLine
from router.core.peer_change import BEAT_S, WHOLE_S, PeerChange, SentPrompt, Work
from router.core.peers import SILENT_S
from router.core.types import Load
from router.gateway.app import Gateway
from router.gateway.config.plan import plan_file
from router.gateway.state.change_wire import BYTES_MOST, Envelope, decoded, encoded, messages
from router.gateway.state.changes import (
    BURST,
    GAP_MOST,
    LIVES_KEPT,
    PEER_KEPT_S,
    PEERS_MOST,
    READS_A_S,
    Changes,
    Channel,
)
from router.gateway.state.datagrams import Datagrams
from router.gateway.state.skipped import SkippedValues
from router.gateway.worker_identity import WorkerIdentity
from tests import fakes
from tests.waiting import until

CHANGE = PeerChange(
    {"a": Work(Load(1.0, 100.0, 2.0, 300.0, 0.05, 0.0), 1e6, 9e5), "b": Work()},
    True,
    (SentPrompt("a", (1, 2, (1 << 63) - 1), 16),),
    ("b",),
)
SHARED = PeerChange(
    {},
    True,
    part=1,
    parts=2,
    held=(HeldLine("m", (0.0, "chat"), (3.0, inf, inf, 0.9), 2, ((1.0, -2.5), (1.0, 7.0)), (1,), True, 9, 5),),
    outcomes=(Outcome("a", 7, 0, 1, 0.3, 0.001, 0.02, (0.1, 0.0, 0.0, 0.0, 0.0, 0.0, 0.2)),),
    replies=(ReplyLength("m", "chat", 200, 512),),
)
SENT: Sequence[Command] = (Send("r", "a", 1, "", nan, inf),)
NOTHING: Sequence[Command] = ()


class Source:
    """The core of one router: what it has to send, and what it was sent."""

    def __init__(self) -> None:
        self.next: list[PeerChange] = []
        self.got: list[tuple[str, PeerChange]] = []
        self.swept = 0
        self.waited_for = False

    def own_changes(self, whole: bool, part: int, parts: int) -> PeerChange | None:
        if whole:
            return PeerChange({}, whole=True)
        return self.next.pop(0) if self.next else None

    def on_peer_change(self, peer: str, change: PeerChange) -> None:
        self.got.append((peer, change))

    def forget_silent_peers(self) -> None:
        self.swept += 1


class Wire:
    """A channel of this process, which carries nothing to anybody."""

    name = "a wire"
    address = ""
    dropped = refused = 0

    def __init__(self) -> None:
        self.sent: list[Envelope] = []

    async def run(self, on_message: Callable[[bytes], None]) -> None:
        await asyncio.Event().wait()

    def send(self, message: bytes) -> None:
        self.sent.append(decoded(message))

    async def close(self) -> None: ...


class Clock:
    """A time that a test sets."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def changes(source: Source, *channels: Channel, clock: Callable[[], float] | None = None) -> Changes:
    return Changes(channels, source, "here", 7, 0.001, SkippedValues(), clock or Clock())


def message(number: int, life: int = 1, sender: str = "peer", change: PeerChange = CHANGE) -> bytes:
    return encoded(Envelope(sender, life, number, change))


# -- the form ----------------------------------------------------------------------------------------------------------


def test_a_change_comes_back_as_it_was() -> None:
    """Every field, and what a later release adds is passed over."""
    assert decoded(message(7)) == Envelope("peer", 1, 7, CHANGE)
    assert decoded(message(7).replace(b'"format"', b'"more":[1],"format"')) == Envelope("peer", 1, 7, CHANGE)
    assert decoded(message(7, change=SHARED)) == Envelope("peer", 1, 7, SHARED)


def test_a_change_of_a_release_before_holds_and_measures_nothing() -> None:
    """It states neither what it holds, which is then as it was, nor parts."""
    taken = decoded(message(7)).change
    assert (taken.held, taken.part, taken.parts, taken.outcomes, taken.replies) == (None, 0, 1, (), ())


@pytest.mark.parametrize(
    ("key", "wrong"),
    [
        ("part", [[1], [1, 2, 3], ["a", 2], [-1, 2], 7]),
        (
            "held",
            [7, {}, [[]], [["m"]], [["m", [0.0], [], 1, [[1.0]] * 99, [], False]], [["", [], [], 1, [[1.0]], [], 1]]],
        ),
        (
            "outcomes",
            [7, [[]], [["a", -1, 0, 0, 1.0, 0.0, 0.0, []]], [["a", 1, 0, 0, 1.0, 0.0, 0.0, [0.0] * 99]], [1] * 99],
        ),
        ("replies", [7, [["m", "c", 1.5, 0]], [["m", "", 1, 0]], [["m", "c", 1, 0]] * 99]),
    ],
)
def test_what_is_held_or_measured_in_another_form_is_skipped(key: str, wrong: list[Any]) -> None:
    """The message as a whole: a later one states it again."""
    for each in wrong:
        plain = orjson.loads(message(7, change=SHARED))
        plain[key] = each
        with pytest.raises(Unreadable):
            decoded(orjson.dumps(plain))


def test_thousands_of_backends_travel_in_messages_that_a_datagram_holds() -> None:
    """However long their names are: 200 kB is what a datagram may have where nobody has set more."""
    for length, count in ((20, 5_000), (256, 1_000)):
        rows = {f"{number:0>{length}}": Work(Load(*[1.0 / 3.0] * 6), 1e9 / 7, 1e9 / 9) for number in range(count)}
        prompts = (SentPrompt("a", tuple(range(1 << 62, (1 << 62) + 8_192)), 16),)
        parts = list(messages(PeerChange(rows, True, prompts)))
        raw = [encoded(Envelope("peer", 1, number, part)) for number, part in enumerate(parts)]
        assert max(map(len, raw)) < 150_000
        assert sum(len(decoded(each).change.work) for each in raw) == count
    assert list(messages(CHANGE)) == [CHANGE]


GARBAGE = [
    b"",
    b"[]",
    b"7",
    b"null",
    b"{}",
    b"\xff\x00",
    message(1)[:-1],
    message(1).replace(b'"number":1', b'"number":-1'),
    message(1).replace(b'"number":1', b'"number":1e9'),
    message(1).replace(b'"number":1', b'"number":true'),
    message(1).replace(b'"from":"peer"', b'"from":7'),
    message(1).replace(b'"from":"peer"', b'"from":""'),
    message(1).replace(b'"work":{', b'"work":{"x":[1],'),
    message(1).replace(b'"work":{', b'"work":{"x":7,'),
    message(1, change=PeerChange({})).replace(b'"work":{}', b'"work":[1]'),
    message(1).replace(b"[1,2,", b"[-1,2,"),
    message(1).replace(b"[1,2,", b'["1",2,'),
    message(1).replace(b'["a",16,', b'["a",0,'),
    message(1).replace(b'["a",16,', b'["a",100000,'),
    message(1).replace(b'["a",16,', b"["),
    message(1).replace(b'"ejected":["b"]', b'"ejected":7'),
    b" " * (BYTES_MOST + 1),
]


@pytest.mark.parametrize("raw", GARBAGE)
def test_what_is_no_change_is_skipped_and_counted(raw: bytes) -> None:
    """Nothing of it reaches the core."""
    with pytest.raises(Unreadable):
        decoded(raw)
    source = Source()
    it = changes(source)
    it.on_message(raw)
    assert (source.got, it.counts["skipped"], it.peers) == ([], 1, [])


def test_a_form_of_a_later_release_is_named_as_that() -> None:
    """So that a mixed pool is seen in the metrics."""
    with pytest.raises(Unreadable) as caught:
        decoded(message(1).replace(b'"format":1', b'"format":2'))
    assert caught.value.reason is SkipReason.NEWER


@given(st.binary(max_size=200) | st.integers(0, 200).map(lambda cut: message(1)[cut:]))
def test_bytes_of_any_kind_raise_nothing_else(raw: bytes) -> None:
    """A socket may bring anything."""
    changes(Source()).on_message(raw)


def test_numbers_that_are_none_are_left_to_the_border() -> None:
    """As in a view."""
    odd = decoded(message(1).replace(b"[1.0,100.0", b'["x",null'))
    assert odd.change.work["a"].load == Load(inf, inf, 2.0, 300.0, 0.05, 0.0)


# -- the order ---------------------------------------------------------------------------------------------------------


def test_late_and_repeated_messages_are_dropped_and_those_of_a_new_life_are_not() -> None:
    """Nor are this router's own taken, which a channel may bring back; a life that is over stays so."""
    source = Source()
    it = changes(source)
    for each in (message(1), message(3), message(2), message(3), message(1, life=9), message(9, life=1)):
        it.on_message(each)
    it.on_message(message(1, sender="here"))
    assert [peer for peer, _ in source.got] == ["peer"] * 3
    assert it.counts == {"sent": 0, "received": 3, "lost": 1, "skipped": 0, "dropped": 0}


def test_lives_are_in_no_order() -> None:
    """A host whose clock was set back starts a router again, and its changes are taken at once."""
    source = Source()
    it = changes(source)
    lives = [*range(LIVES_KEPT + 3, 0, -1)]
    for life in lives:
        it.on_message(message(5, life))
        it.on_message(message(6, life))
    assert len(source.got) == 2 * len(lives)
    assert it.lost == 0


def test_a_number_that_leaps_is_no_message_of_that_peer() -> None:
    """Else all that follow would be late."""
    source = Source()
    it = changes(source)
    for number in (1, GAP_MOST + 3, 2):
        it.on_message(message(number))
    assert (len(source.got), it.lost, it.unreadable) == (2, 0, 1)


def test_peers_are_bounded_and_those_that_are_silent_are_not_counted() -> None:
    """Whoever can write to the socket cannot fill this process with names."""
    clock, source = Clock(), Source()
    it = changes(source, clock=clock)
    for number in range(PEERS_MOST + 5):
        it.on_message(message(1, sender=f"r{number:04}"))
    assert (len(source.got), it.unreadable, len(it.peers)) == (PEERS_MOST, 5, PEERS_MOST)
    clock.now_s += SILENT_S + 0.01
    it.on_message(message(2, sender="r0007"))
    assert it.peers == ["r0007"]


# -- when messages are sent --------------------------------------------------------------------------------------------


@asynccontextmanager
async def running(*those: Changes) -> AsyncIterator[None]:
    tasks = [asyncio.create_task(each.run()) for each in those]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def test_changes_of_a_moment_are_sent_as_one_and_only_where_a_peer_is() -> None:
    """Without one everything is sent now and then, which is how routers find each other."""
    source, wire = Source(), Wire()
    it = changes(source, wire)
    it.on_event(SENT)  # before it runs
    async with running(it):
        await until(lambda: len(wire.sent) == 1)
        assert wire.sent[0].change.whole
        source.next = [CHANGE]
        it.on_event(SENT)
        await until(lambda: it._timer is None)
        assert len(wire.sent) == 1
        assert source.next
        it.on_message(message(1))
        it.on_event(NOTHING)
        it.on_event(SENT)
        it.on_event(SENT)
        await until(lambda: not source.next)
        assert [(each.number, each.change == CHANGE) for each in wire.sent[:2]] == [(1, False), (2, True)]
        assert {each.life for each in wire.sent} == {7}
    assert it._timer is None
    it.on_event(SENT)  # after it ran
    assert it._timer is None


async def test_a_send_is_not_kept_waiting_by_what_is_not_urgent() -> None:
    """An end may be gathered for longer; a send that follows it goes at once, and what follows that changes nothing."""
    it = changes(Source(), Wire())
    it._urgent = False
    it.on_event(NOTHING)
    lazy = it._timer
    assert lazy is not None
    it.on_event(NOTHING)
    assert it._timer is lazy
    it.on_event(SENT)
    urgent = it._timer
    assert urgent is not None
    assert lazy.cancelled()
    assert urgent.when() < lazy.when()
    it.on_event(SENT)
    assert it._timer is urgent
    urgent.cancel()


async def test_a_constant_load_is_gathered_for_longer_and_a_burst_is_not() -> None:
    """What a router reads a second is bounded, by as much as the logarithm of the number of its peers."""
    clock, source, wire = Clock(), Source(), Wire()
    it = changes(source, wire, clock=clock)
    it._urgent = False
    for peers in (1, 3, 63):
        for number in range(peers):
            it.on_message(message(len(source.got) + 1, sender=f"r{number}"))
        assert peers / it.interval_s == pytest.approx(READS_A_S * log2(1 + peers))
        clock.now_s += 1e3
        loop = asyncio.get_running_loop()
        waits_s = []
        for _ in range(3 * BURST):
            it.on_event(SENT)
            assert it._timer is not None
            waits_s.append(it._timer.when() - loop.time())
            it._timer.cancel()
            source.next = [CHANGE]
            it._flush()
        assert max(waits_s[:BURST]) == pytest.approx(0.001)
        assert waits_s[-1] == pytest.approx((2 * BURST - 1) * it.interval_s, rel=0.1)


async def test_something_is_sent_at_each_beat_and_everything_now_and_then() -> None:
    """So that silence means that a router is gone. With many peers and backends everything is sent less often."""
    clock, source, wire = Clock(), Source(), Wire()
    it = changes(source, wire, clock=clock)
    for peers, beats_a_whole in ((1, round(WHOLE_S / BEAT_S)), (1_000, 2 * round(WHOLE_S / BEAT_S))):
        for number in range(peers):
            it.on_message(message(1, sender=f"r{number}", life=peers))
        it._whole_rows = 10
        wire.sent.clear()
        swept = source.swept
        for _ in range(2 * beats_a_whole):
            clock.now_s += BEAT_S
            it._beat()
            it._whole_rows = 10
        assert [each.change.whole for each in wire.sent].count(True) == 2
        assert len(wire.sent) == 2 * beats_a_whole
        assert source.swept > swept
    clock.now_s += PEER_KEPT_S + 1.0
    it._beat()
    assert not it._peers


class Failing(Wire):
    """A channel that cannot be opened at first."""

    def __init__(self, failures: int) -> None:
        super().__init__()
        self.failures = failures

    async def run(self, on_message: Callable[[bytes], None]) -> None:
        self.failures -= 1
        if self.failures >= 0:
            raise StoreGone("no such folder")
        on_message(message(1))
        await asyncio.Event().wait()


async def test_a_channel_that_fails_is_run_again_and_both_are_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    """Meanwhile the views of peers count; the fault is shown."""
    caplog.set_level("INFO", "headroom")
    it = changes(Source(), Failing(2))
    faults: list[dict[str, str]] = []
    async with running(it):
        await until(lambda: it.faults)
        faults.append(dict(it.faults))
        await until(lambda: it.received)
        faults.append(dict(it.faults))
    assert faults == [{"a wire": "no such folder"}, {}]
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]


# -- datagrams ---------------------------------------------------------------------------------------------------------


def identity(folder: Path, slot: int, slots: int = 2) -> WorkerIdentity:
    return WorkerIdentity(folder, slot, slots, "r")


def datagrams(folder: Path, slot: int, slots: int) -> Datagrams:
    of = identity(folder, slot, slots)
    return Datagrams(of.changes(slot), map(of.changes, of.others))


@asynccontextmanager
async def listening(*channels: Channel) -> AsyncIterator[list[list[bytes]]]:
    """What each of the channels receives."""
    received: list[list[bytes]] = [[] for _ in channels]
    tasks = [asyncio.create_task(each.run(got.append)) for each, got in zip(channels, received, strict=True)]
    try:
        yield received
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for each in channels:
            await each.close()


def modes(folder: Path) -> set[int]:
    """Of the files in it."""
    return {path.stat().st_mode & 0o777 for path in folder.iterdir()}


async def test_workers_of_one_host_exchange_datagrams(tmp_path: Path) -> None:
    """Each has those of the others, whole and in order; what is too long, or for a worker that is gone, is dropped."""
    three = [datagrams(tmp_path, slot, 3) for slot in range(3)]
    async with listening(*three) as received:
        await until(lambda: len([*tmp_path.iterdir()]) == 3)
        assert modes(tmp_path) == {0o600}
        for number in range(200):
            three[number % 3].send(b"%d" % number)
            await asyncio.sleep(0)
        for slot, got in enumerate(received):
            expected = [b"%d" % number for number in range(200) if number % 3 != slot]
            await until(lambda got=got, expected=expected: len(got) == len(expected))
            assert got == expected
        three[0].send(b"x" * (1 << 22))
        assert three[0].dropped == 2
        identity(tmp_path, 1, 3).changes(1).unlink()
        three[0].send(b"again")
        await until(lambda: b"again" in received[2])
        assert three[0].dropped == 2
    assert not modes(tmp_path)
    three[0].send(b"closed")


async def test_a_worker_that_does_not_read_is_not_waited_for(tmp_path: Path) -> None:
    """What its socket has no room for is dropped, and the others get theirs."""
    three = [datagrams(tmp_path, slot, 3) for slot in range(3)]
    async with listening(three[0], three[2]) as received:
        await until(lambda: len([*tmp_path.iterdir()]) == 2)
        stopped = three[1]._open()
        count = 0
        while not three[0].dropped:
            three[0].send(b"x" * 4096)
            count += 1
            await until(lambda count=count: len(received[1]) == count)
        stopped.close()


async def test_a_folder_that_is_gone_is_no_channel(tmp_path: Path) -> None:
    """The error states which."""
    with pytest.raises(StoreGone, match="nowhere"):
        await datagrams(tmp_path / "nowhere", 0, 2).run(lambda _: None)


# -- whole routers -----------------------------------------------------------------------------------------------------


def gateway(folder: Path, slot: int, more: str = "", clock: Callable[[], float] = monotonic) -> Gateway:
    """One of two workers, with a backend; nothing runs yet."""
    path = folder / "r.yaml"
    given = "backends:\n  - {name: a, url: 'http://127.0.0.1:1', models: [m], card: l4, model: qwen3-4b}\n"
    path.write_text(given + more)
    it = Gateway(plan_file(path), path, clock, identity(folder, slot))
    it.core.backend_joined(fakes.backend("a"), it.clock())
    return it


async def test_a_worker_sees_what_another_has_just_sent(tmp_path: Path) -> None:
    """No view is read here: what one has in flight is known to the other at once, and gone at once."""
    one, two = (gateway(tmp_path, slot) for slot in range(2))
    assert one.changes is not None
    assert two.changes is not None
    peers = two.core.ledger.table.peers
    async with running(one.changes, two.changes):
        for it in (one.changes, two.changes):
            await until(lambda it=it: it.peers)
        held = one.core.ledger.load.reserve(0, 10.0, 20.0, inf, one.clock())
        one.driver.perform(())
        await until(lambda: peers[:, 0].sum() > 0.0)
        one.core.ledger.load.release(held, one.clock())
        one.driver.perform(())
        await until(lambda: peers[:, 0].sum() == 0.0)
        page = two.metrics.text().decode()
        assert "headroom_peers_pushing 1.0" in page
        assert 'headroom_peer_changes_total{event="received"}' in page


def test_what_a_worker_that_is_killed_had_in_flight_is_forgotten_with_its_lease_and_never_before(
    tmp_path: Path,
) -> None:
    """It ends without a word: first its changes stop, then its lease runs out."""
    clock = Clock()
    one, two = (gateway(tmp_path, slot, clock=clock) for slot in range(2))
    assert two.changes is not None
    peers = two.core.ledger.table.peers
    one.core.ledger.load.reserve(0, 10.0, 20.0, inf, clock())
    two.on_peer_load("r.w0", one.core.loads())
    two.changes.on_message(message(1, sender="r.w0", change=one.core.outbox.whole()))
    for passed_s in (0.3, SILENT_S):
        clock.now_s += passed_s
        two.changes._beat()
        assert peers[:, 0].sum() > 0.0
    assert two.changes.peers == []
    two.peer_lost("r.w0")
    assert not peers.any()


def test_a_router_alone_exchanges_nothing(tmp_path: Path) -> None:
    """Nor do workers whose config turns it off."""
    off = gateway(tmp_path, 0, "state: {push_s: null}\n")
    assert (off.changes, off.driver.on_event) == (None, None)
    gateway(tmp_path, 0)
    alone = Gateway(plan_file(tmp_path / "r.yaml"), tmp_path / "r.yaml")
    assert (alone.changes, alone.driver.on_event) == (None, None)
    assert "\nheadroom_peer" not in alone.metrics.text().decode()
