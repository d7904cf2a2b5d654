"""What other routers have in flight, by what they publish, and what they must have sent since.

Peers publish now and then; between two messages they go on sending. This router's own growth since their last message,
times how their traffic compares with its own, stands for that: without it a burst that meets several routers at once
goes to one backend, for none of them sees the others' part. Must not depend on how messages travel.
"""

from collections.abc import Mapping
from typing import Final

import numpy as np

from router.core.arrays import Floats, Slots, frozen
from router.core.columns import (
    CONTEXT_TOKENS,
    DECODING,
    OWN_E2E_TPOT_BOUND_S,
    OWN_TPOT_BOUND_S,
    PEERS_E2E_TPOT_BOUND_S,
    PEERS_TPOT_BOUND_S,
    PREFILL_TOKENS,
    PREFILLING,
)
from router.core.metering import Metering
from router.core.roster import Roster
from router.core.slot_table import SlotTable
from router.core.types import Load

_INF: Final = float("inf")
_IDLE: Final = Load()


class Peers:
    """The rows of the table that peers fill."""

    def __init__(self, table: SlotTable, roster: Roster, metering: Metering) -> None:
        self._table = table
        self._roster = roster
        self._metering = metering
        self._loads: dict[str, dict[int, Load]] = {}  # by peer and slot
        self._own_at_message: dict[str, Floats] = {}  # by peer: what this router had in flight when it last published
        self._own_then: Floats | None = None  # the mean of those
        self._ratio = 0.0  # requests of peers to this router's own

    def forget(self, slot: int) -> None:
        """The backend left, and with it what peers had there."""
        for loads in self._loads.values():
            loads.pop(slot, None)

    def on_peer_load(self, peer: str, loads: Mapping[str, Load], now_s: float) -> None:
        """Replace what a peer has in flight, by backend name; an empty mapping forgets the peer."""
        self._metering.integrate_all(now_s)
        before = self._loads.get(peer, {})
        named = ((self._roster.slot(name), load) for name, load in loads.items())
        after = {slot: load for slot, load in named if slot is not None}
        self._loads[peer] = after  # in its old place: sums of floats depend on their order
        if not loads:
            del self._loads[peer]
        for slot in before.keys() | after.keys():
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
        self._table.combine_bounds(slot)

    def _compare(self, peer: str, there: bool) -> None:
        """Remember what was in flight here at a peer's message, and how its traffic and this router's compare."""
        own = self._table.own
        self._own_at_message.pop(peer, None)
        if there:
            self._own_at_message[peer] = own.copy()
        known = [then for then in self._own_at_message.values() if then.shape == own.shape]
        self._own_then = np.mean(known, axis=0) if known else None
        mine, theirs = (float(load[PREFILLING].sum() + load[DECODING].sum()) for load in (own, self._table.peers))
        self._ratio = min(theirs / mine, len(known)) if mine else 0.0

    def unreported_load(self, slots: Slots) -> Floats | None:
        """What peers should have sent since their last messages, in rows as ``Load``'s fields (None: nothing is known
        of peers). They see what this router sees, so they grew as it did, in proportion.
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
