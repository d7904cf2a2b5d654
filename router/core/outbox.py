"""What this router sends its peers: what changed since it last looked.

Compares the table with what was sent last, so that counting costs the life of a request nothing. Must not depend on
how messages travel.
"""

from typing import Final

import numpy as np

from router.core.arrays import Floats
from router.core.columns import (
    CONTEXT_TOKENS,
    DECODING,
    OWN_E2E_TPOT_BOUND_S,
    OWN_TPOT_BOUND_S,
    PREFILL_TOKENS,
    PREFILLED_TOKENS,
    PREFILLING,
    SENT_TOKENS,
)
from router.core.peer_change import PeerChange, Work
from router.core.roster import Roster
from router.core.slot_table import SlotTable
from router.core.types import Load

_INF: Final = float("inf")
_ROWS: Final = [  # in the order of the fields of Load, then of Work
    PREFILLING,
    PREFILL_TOKENS,
    DECODING,
    CONTEXT_TOKENS,
    OWN_TPOT_BOUND_S,
    OWN_E2E_TPOT_BOUND_S,
    SENT_TOKENS,
    PREFILLED_TOKENS,
]
_LOAD: Final = 6  # of these rows


class Outbox:
    """What was sent last, by slot."""

    __slots__ = ("_roster", "_sent", "_table")

    def __init__(self, table: SlotTable, roster: Roster) -> None:
        self._table = table
        self._roster = roster
        self._sent: Floats = self._rows()

    def _rows(self) -> Floats:
        rows: Floats = self._table.columns[_ROWS]
        rows[rows == _INF] = 0.0  # no bound
        return rows

    def changes(self) -> PeerChange | None:
        """What differs from what was sent last; None: nothing does."""
        now = self._rows()
        if now.shape != self._sent.shape:
            self._sent = now
            return self.whole()
        if np.array_equal(now, self._sent):
            return None
        changed = frozenset(np.flatnonzero((now != self._sent).any(axis=0)).tolist())
        self._sent = now
        return PeerChange({name: _work(now, slot) for name, slot in self._roster.slots if slot in changed})

    def whole(self) -> PeerChange:
        """Everything that this router has in flight or ever sent, as now and then it is sent in any case."""
        now = self._sent = self._rows()
        used = frozenset(np.flatnonzero(now.any(axis=0)).tolist())
        return PeerChange({name: _work(now, slot) for name, slot in self._roster.slots if slot in used}, whole=True)


def _work(rows: Floats, slot: int) -> Work:
    values = rows[:, slot].tolist()
    return Work(Load(*values[:_LOAD]), *values[_LOAD:])
