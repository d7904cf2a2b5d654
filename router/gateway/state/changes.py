"""Sends this router's changes to its peers as they happen, and passes on theirs.

The changes of some events are gathered for a moment and sent as one message. A send to a backend waits for the shortest
moment, since peers decide by it, and so does everything while requests are held; the rest is gathered for longer. How
many messages a router reads a second has a bound that grows with the logarithm of the number of peers: a burst may
exceed it for a moment, and a constant load is gathered for longer. Messages may be lost, late or repeated: each
replaces what an earlier one stated, an old one is dropped, and one with everything, every second or so, heals the rest.
It comes in parts where it is large, each as things are when it is sent. Where no channel works, peers are known by
their views in the store, as without it.

Must not depend on how messages travel, nor on what a load means.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from math import inf, log2
from typing import Final, Protocol

from router.core.decisions import Command, Send
from router.core.errors import SkipReason, StoreGone, Unreadable
from router.core.peer_change import BEAT_S, PARTS_MOST, WHOLE_S, PeerChange
from router.core.peers import SILENT_S
from router.gateway.state.change_wire import Envelope, decoded, encoded, messages
from router.gateway.state.skipped import Kind, SkippedValues

READS_A_S: Final = 150.0  # messages that a router reads from one peer; as many more with each doubling of the peers
BURST: Final = 32  # messages that may be sent sooner than that
ROWS_A_S: Final = 5_000.0  # backends of whole messages that a router reads: above it they are sent less often
ROWS_A_PART: Final = 128  # backends in a part of a whole message
PART_S: Final = 0.01  # between two parts of a whole message
GATHER_S: Final = 0.01  # for how long changes are gathered that no decision of a peer is urgent for
PEERS_MOST: Final = 1_024
PEER_KEPT_S: Final = 60.0  # how long the place of a silent peer in the order of its messages is kept
GAP_MOST: Final = 1 << 20  # messages of one peer that may be lost in a row
LIVES_KEPT: Final = 4
RETRY_S_MAX: Final = 5.0
_JITTER_S: Final = BEAT_S / 10  # by which a beat may come early
_log = logging.getLogger("headroom")


class Channel(Protocol):
    """Carries messages to peers. ``name``: for the log; ``dropped``: messages that a peer could not be sent;
    ``refused``: connections that were closed for what came over them; ``address``: to be published, if any.
    """

    name: str
    dropped: int
    refused: int
    address: str

    async def run(self, on_message: Callable[[bytes], None]) -> None:
        """Receive until cancelled. Raises StoreGone where that is not possible any more; it may be run again."""

    def send(self, message: bytes) -> None:
        """Send, or drop what cannot be sent at once; never raises, never waits."""

    async def close(self) -> None:
        """Close it; never raises."""


class ChangeSource(Protocol):
    """Where changes come from and go to."""

    def own_changes(self, whole: bool, part: int, parts: int) -> PeerChange | None:
        """What changed here since the last call (None: nothing), or everything, in so many parts."""

    @property
    def waited_for(self) -> bool:
        """Whether a request waits for such a change, here or at a peer."""

    def on_peer_change(self, peer: str, change: PeerChange) -> None:
        """What changed at a peer."""

    def forget_silent_peers(self) -> None:
        """Some may send nothing any more."""


class _Peer:
    """The order of one peer's messages: its life, the number of the last one, and lives that are over."""

    __slots__ = ("heard_s", "life", "lives", "number")

    def __init__(self, life: int) -> None:
        self.life, self.number, self.heard_s = life, 0, -inf
        self.lives: deque[int] = deque(maxlen=LIVES_KEPT)

    def missing_before(self, life: int, number: int) -> int | None:
        """How many messages are missing before this one; None: it is late or repeated."""
        if life == self.life:
            gap = number - self.number - 1 if self.number else 0
            return gap if number > self.number else None
        if life in self.lives:
            return None
        self.lives.append(self.life)
        self.life, self.number = life, 0
        return 0


class Changes:
    """One router's exchange of changes."""

    def __init__(
        self,
        channels: Sequence[Channel],
        source: ChangeSource,
        router_id: str,
        life: int,
        push_s: float,
        skipped: SkippedValues,
        clock: Callable[[], float],
    ) -> None:
        """``life``: a number that no earlier start of this router had; ``push_s``: how long sends are gathered."""
        self._channels, self._source, self._push_s, self._skipped = channels, source, push_s, skipped
        self._clock = clock
        self._router_id, self._life, self._number = router_id, life, 0
        self._peers: dict[str, _Peer] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._urgent = True  # nothing is sent sooner than is planned; true as well while nothing can be sent
        self._whole_s, self._whole_rows = -inf, 0  # of the last whole message: when it began, backends in it
        self._part, self._parts = 0, 0  # of it: the next part, and how many there are
        self._beat_number = 0  # of the last message at the last beat
        self._full_s = -inf  # when as many messages will have been due as were sent
        self._faults: dict[str, str] = {}  # by channel
        self.received = self.lost = self.unreadable = 0

    # -- what is shown -------------------------------------------------------------------------------------------

    @property
    def peers(self) -> list[str]:
        """The peers whose changes come now."""
        now_s = self._clock()
        return sorted(name for name, peer in self._peers.items() if now_s - peer.heard_s <= SILENT_S)

    def come_from(self, peers: Collection[str]) -> bool:
        """Whether the changes of all these come now."""
        return set(peers) <= set(self.peers)

    @property
    def address(self) -> str:
        """Where peers of other hosts send their changes; empty: nowhere."""
        return next((channel.address for channel in self._channels if channel.address), "")

    @property
    def faults(self) -> Mapping[str, str]:
        """Why a channel does not work, by its name."""
        return self._faults

    @property
    def counts(self) -> Mapping[str, int]:
        """Messages by what became of them."""
        dropped = sum(channel.dropped for channel in self._channels)
        return {
            "sent": self._number,
            "received": self.received,
            "lost": self.lost,
            "skipped": self.unreadable + sum(channel.refused for channel in self._channels),
            "dropped": dropped,
        }

    # -- sending -------------------------------------------------------------------------------------------------

    @property
    def interval_s(self) -> float:
        """Between two messages under a constant load."""
        peers = max(1, len(self._peers))
        return peers / (READS_A_S * log2(1 + peers))

    def on_event(self, commands: Sequence[Command]) -> None:
        """Something may have changed here, with these commands: send it in a moment."""
        if self._urgent:
            return
        urgent = any(isinstance(command, Send) for command in commands) or self._source.waited_for
        if urgent or self._timer is None:
            self._urgent = urgent
            self._send_in(self._push_s if urgent else max(self._push_s, GATHER_S))

    def _send_in(self, wait_s: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        wait_s = max(wait_s, self._full_s - BURST * self.interval_s - self._clock())
        self._timer = asyncio.get_running_loop().call_later(wait_s, self._flush)

    def _flush(self) -> None:
        self._timer, self._urgent = None, False
        if self._peers:  # else nobody is there, as far as is known: they get it with the next whole message
            change = self._source.own_changes(False, 0, 1)
            if change is not None:
                self._send(change)

    def _send(self, change: PeerChange) -> None:
        for part in messages(change):
            self._number += 1
            self._full_s = max(self._full_s, self._clock()) + self.interval_s
            message = encoded(Envelope(self._router_id, self._life, self._number, part))
            for channel in self._channels:
                channel.send(message)

    async def _beats(self) -> None:
        beat_s = -inf
        while True:
            if self._clock() - beat_s >= BEAT_S - _JITTER_S:
                beat_s = self._clock()
                self._beat()
            elif self._part < self._parts:
                self._send_part()
            await asyncio.sleep(PART_S if self._part < self._parts else BEAT_S)

    def _send_part(self) -> None:
        """The next part of a whole message, as things are now: one at a time, as sockets hold a few of them only."""
        part, parts = self._part, self._parts
        whole = self._source.own_changes(True, part, parts) or PeerChange({}, whole=True, part=part, parts=parts)
        self._part += 1
        self._whole_rows += len(whole.work)
        self._send(whole)

    def _beat(self) -> None:
        """Send everything now and then, and something at each beat; see whether peers fell silent."""
        now_s = self._clock()
        for name in [name for name, peer in self._peers.items() if now_s - peer.heard_s > PEER_KEPT_S]:
            del self._peers[name]
        if self._part < self._parts:
            self._send_part()
        elif now_s - self._whole_s >= max(WHOLE_S, len(self._peers) * self._whole_rows / ROWS_A_S) - _JITTER_S:
            self._part, self._parts = 0, min(max(1, -(-self._whole_rows // ROWS_A_PART)), PARTS_MOST)
            self._whole_s, self._whole_rows = now_s, 0
            self._send_part()
        elif self._number == self._beat_number:
            self._send(PeerChange({}))
        self._beat_number = self._number
        if self._peers:
            self._source.forget_silent_peers()

    # -- receiving -----------------------------------------------------------------------------------------------

    def on_message(self, raw: bytes) -> None:
        """A message came, from any router or from this one itself."""
        try:
            envelope = decoded(raw)
            self._take(envelope)
        except Unreadable as error:
            self.unreadable += 1
            self._skipped.add(Kind.CHANGE, "a peer", error.reason, str(error))

    def _take(self, envelope: Envelope) -> None:
        name = envelope.sender
        if name == self._router_id:
            return
        peer = self._peers.get(name)
        if peer is None:
            if len(self._peers) >= PEERS_MOST:
                raise Unreadable(SkipReason.IMPLAUSIBLE, f"changes of more than {PEERS_MOST} routers")
            peer = self._peers[name] = _Peer(envelope.life)
        lost = peer.missing_before(envelope.life, envelope.number)
        if lost is None:
            return
        if lost > GAP_MOST:
            raise Unreadable(SkipReason.IMPLAUSIBLE, f"number {envelope.number} after {peer.number}")
        peer.number, peer.heard_s = envelope.number, self._clock()
        self.lost += lost
        self.received += 1
        self._skipped.taken(Kind.CHANGE, "a peer")
        self._source.on_peer_change(name, envelope.change)

    # -- life ----------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Exchange changes until cancelled."""
        self._urgent = False
        try:
            async with asyncio.TaskGroup() as group:
                for channel in self._channels:
                    group.create_task(self._carry(channel), name=f"changes over {channel.name}")
                group.create_task(self._beats(), name="whole changes")
        finally:
            self._urgent = True
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

    async def _carry(self, channel: Channel) -> None:
        """Run a channel, and again where it fails."""
        wait_s = 0.0

        def on_message(raw: bytes) -> None:
            if channel.name in self._faults:
                self._note(channel.name, "")
            self.on_message(raw)

        while True:
            began_s = self._clock()
            try:
                await channel.run(on_message)
            except StoreGone as gone:
                self._note(channel.name, str(gone))
            short = self._clock() - began_s < RETRY_S_MAX
            wait_s = min(max(2 * wait_s, 0.1), RETRY_S_MAX) if short else 0.1
            await asyncio.sleep(wait_s)

    def _note(self, channel: str, fault: str) -> None:
        """Log that a channel began to fail, and that it works again."""
        if fault and channel not in self._faults:
            _log.warning(
                "changes of peers do not come over %s (%s): their load is known by their views until they do",
                channel,
                fault,
            )
        elif not fault:
            _log.info("changes of peers come over %s again", channel)
        if fault:
            self._faults[channel] = fault
        else:
            self._faults.pop(channel, None)

    async def close(self) -> None:
        """Send nothing any more."""
        for channel in self._channels:
            await channel.close()
