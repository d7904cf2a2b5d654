"""What other routers have in flight, by what they publish, and what they must have sent since.

Peers publish now and then; between two messages they go on sending. This router's own growth since their last message,
times how their traffic compares with its own, stands for that: without it a burst that meets several routers at once
goes to one backend, for none of them sees the others' part. A peer that sends its changes at once is known exactly, and
nothing is added for it; one that falls silent is known by what it publishes again. Must not depend on how messages
travel.
"""

from collections.abc import Collection, Mapping
from typing import Final

import numpy as np

from router.core.arrays import Floats, Slots, frozen
from router.core.columns import (
    CONTEXT_TOKENS,
    COUNTED_PEERS,
    DECODING,
    FIRST_TOKEN_S,
    OWN_E2E_TPOT_BOUND_S,
    OWN_TPOT_BOUND_S,
    PEERS_E2E_TPOT_BOUND_S,
    PEERS_TPOT_BOUND_S,
    PREFILL_TOKENS,
    PREFILLING,
)
from router.core.metering import Metering
from router.core.peer_change import BEAT_S, PARTS_MOST, PeerChange, Work
from router.core.roster import Roster
from router.core.slot_table import SlotTable
from router.core.types import Load

SILENT_S: Final = 3 * BEAT_S  # after which a peer that sent its changes is known by what it publishes
GROWTH_MOST: Final = 1e9  # tokens between two messages
_INF: Final = float("inf")
_IDLE: Final = Load()
_NO_WORK: Final = Work()


class _Feed:
    """A peer that sends its changes at once. ``works``: the last of each slot; ``lost``: it publishes nothing else."""

    __slots__ = ("compared", "heard_s", "lost", "works")

    def __init__(self, lost: bool) -> None:
        self.works: dict[int, Work] = {}
        self.heard_s = 0.0
        self.compared: set[tuple[int, int]] = set()  # parts of whole messages: a counter that none named was 0 then
        self.lost = lost


class Peers:
    """The rows of the table that peers fill."""

    def __init__(self, table: SlotTable, roster: Roster, metering: Metering) -> None:
        self._table = table
        self._roster = roster
        self._metering = metering
        self._loads: dict[str, dict[int, Load]] = {}  # by peer and slot
        self._feeds: dict[str, _Feed] = {}  # of the peers that send their changes at once
        self._own_at_message: dict[
            str, Floats
        ] = {}  # by other peer: what this router had in flight at its last message
        self._own_then: Floats | None = None  # the mean of those
        self._ratio = 0.0  # requests of the other peers to this router's own

    def forget(self, slot: int) -> None:
        """The backend left, and with it what peers had there."""
        for loads in self._loads.values():
            loads.pop(slot, None)
        for feed in self._feeds.values():
            feed.works.pop(slot, None)

    # -- peers that publish now and then -------------------------------------------------------------------------

    def on_peer_load(self, peer: str, loads: Mapping[str, Load], now_s: float) -> None:
        """Replace what a peer has in flight, by backend name; an empty mapping forgets the peer. Of a peer that sends
        its changes it is older than those, and passed over.
        """
        feed = self._feeds.get(peer)
        if feed is not None:
            feed.lost = not loads
            if now_s - feed.heard_s <= SILENT_S:
                return
            del self._feeds[peer]
        self._replace(peer, loads, now_s)

    def _replace(self, peer: str, loads: Mapping[str, Load], now_s: float) -> None:
        self._metering.measure(now_s)
        before = self._loads.get(peer, {})
        named = ((self._roster.slot(name), load) for name, load in loads.items())
        after = {slot: load for slot, load in named if slot is not None}
        self._loads[peer] = after  # in its old place: sums of floats depend on their order
        if not loads:
            del self._loads[peer]
        for slot in before.keys() | after.keys():
            self._metering.integrate(slot, now_s)
            self._add_up(slot)
            self._metering.others_changed(slot)
        self._compare(peer, bool(loads))

    def _add_up(self, slot: int) -> None:
        """All that peers have in one slot."""
        parts = [part[slot] for part in self._loads.values() if slot in part]
        columns, peers = self._table.columns, self._table.peers
        peers[PREFILLING, slot] = sum(p.prefilling for p in parts)
        peers[PREFILL_TOKENS, slot] = sum(p.prefill_tokens for p in parts)
        peers[DECODING, slot] = sum(p.decoding for p in parts)
        peers[CONTEXT_TOKENS, slot] = sum(p.context_tokens for p in parts)
        columns[PEERS_TPOT_BOUND_S, slot] = min((p.tpot_bound_s or _INF for p in parts), default=_INF)
        columns[PEERS_E2E_TPOT_BOUND_S, slot] = min((p.e2e_tpot_bound_s or _INF for p in parts), default=_INF)
        counted = [feed.works[slot].load.decoding for feed in self._feeds.values() if slot in feed.works]
        columns[COUNTED_PEERS, slot] = sum(counted)
        self._table.combine_bounds(slot)

    def _compare(self, peer: str, there: bool) -> None:
        """Remember what was in flight here at a peer's message, and how the traffic of those peers and this router's
        compare.
        """
        own = self._table.own
        self._own_at_message.pop(peer, None)
        if there:
            self._own_at_message[peer] = own.copy()
        known = [then for then in self._own_at_message.values() if then.shape == own.shape]
        self._own_then = np.mean(known, axis=0) if known else None
        mine = float(own[PREFILLING].sum() + own[DECODING].sum())
        self._ratio = min(self._theirs() / mine, len(known)) if mine and known else 0.0

    def _theirs(self) -> float:
        """Requests in flight of the peers that publish now and then."""
        peers = self._table.peers
        theirs = float(peers[PREFILLING].sum() + peers[DECODING].sum())
        for feed in self._feeds.values():
            theirs -= sum(work.load.prefilling + work.load.decoding for work in feed.works.values())
        return max(theirs, 0.0)

    def unreported_load(self, slots: Slots) -> Floats | None:
        """What peers should have sent since their last messages, in rows as ``Load``'s fields (None: nothing is known
        of peers that publish now and then). They see what this router sees, so they grew as it did, in proportion.
        """
        own, then = self._table.own, self._own_then
        if then is None or then.shape != own.shape:
            return None
        grown = own.take(slots, axis=1) - then.take(slots, axis=1)
        return frozen(np.maximum(grown, 0.0) * self._ratio)

    def own_loads(self) -> dict[str, Load]:
        """What this router has in flight, by backend name, to be published to its peers."""
        table = self._table
        bounds = table.columns[[OWN_TPOT_BOUND_S, OWN_E2E_TPOT_BOUND_S]]
        rows = np.vstack((table.own, np.where(bounds < _INF, bounds, 0.0))).T.tolist()
        return {name: Load(*rows[slot]) if any(rows[slot]) else _IDLE for name, slot in self._roster.slots}

    # -- peers that send their changes at once ---------------------------------------------------------------------

    def on_peer_change(self, peer: str, change: PeerChange, now_s: float) -> None:
        """Replace what a peer has in flight where that changed; the first such message of a peer may be any."""
        feed = self._feeds.get(peer)
        if feed is None:
            feed = self._feeds[peer] = _Feed(lost=peer not in self._loads)
            self._compare(peer, False)
        feed.heard_s = now_s
        there = self._loads.setdefault(peer, {})
        part, parts = change.part, change.parts
        if change.whole:
            self._metering.measure(now_s)
            named = self._roster.in_part(part, parts)
            for slot in [slot for slot in there if named[slot] and self._roster.name(slot) not in change.work]:
                self._set(feed, there, slot, _NO_WORK, now_s)
        for name, work in change.work.items():
            at = self._roster.slot(name)
            if at is not None:
                self._set(feed, there, at, work, now_s)
        if change.whole and (part, parts) not in feed.compared:
            self._compare_from_now(feed, part, parts)

    def _compare_from_now(self, feed: _Feed, part: int, parts: int) -> None:
        """What comes later is compared with a whole message, or this part of it. Only now: what the peer had sent
        before this message was not sent now.
        """
        if len(feed.compared) >= PARTS_MOST:
            feed.compared.clear()
        feed.compared.add((part, parts))
        named = self._roster.in_part(part, parts)
        for _, slot in self._roster.slots:
            if named[slot] and slot not in feed.works:
                feed.works[slot] = _NO_WORK

    def _set(self, feed: _Feed, there: dict[int, Load], slot: int, work: Work, now_s: float) -> None:
        before = feed.works.get(slot)
        if work == before and there.get(slot, _IDLE) == work.load:
            return
        self._metering.integrate(slot, now_s)
        if before is not None:
            sent, prefilled = work.sent_tokens - before.sent_tokens, work.prefilled_tokens - before.prefilled_tokens
            self._count(slot, sent, prefilled, now_s)
        feed.works[slot], there[slot] = work, work.load
        self._add_up(slot)
        self._metering.others_changed(slot)

    def _count(self, slot: int, sent_tokens: float, prefilled_tokens: float, now_s: float) -> None:
        """A peer's counters grew by so much; they shrink where they begin anew, which says nothing."""
        if sent_tokens > 0.0:
            self._metering.prompt_sent(slot, min(sent_tokens, GROWTH_MOST), now_s)
        if prefilled_tokens > 0.0:
            self._metering.meters[slot].prefilled_tokens += min(prefilled_tokens, GROWTH_MOST)
            self._table.cells[FIRST_TOKEN_S][slot] = now_s

    @property
    def sending(self) -> Collection[str]:
        """The peers that send their changes at once."""
        return self._feeds.keys()

    def forget_silent(self, now_s: float) -> bool:
        """Peers that have sent nothing for ``SILENT_S`` are known by what they publish from now on, and those that
        publish nothing are forgotten. Returns whether there were any.
        """
        silent = [peer for peer, feed in self._feeds.items() if now_s - feed.heard_s > SILENT_S]
        for peer in silent:
            feed = self._feeds.pop(peer)
            for slot in feed.works:
                self._metering.integrate(slot, now_s)
                self._add_up(slot)
                self._metering.others_changed(slot)
            if feed.lost:
                self._replace(peer, {}, now_s)
        return bool(silent)
