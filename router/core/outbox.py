"""What this router sends its peers: what changed since it last looked.

Compares the table with what was sent last, so that counting costs the life of a request nothing. Blocks of prompts are
named once in a while, not with each prompt that begins with them. Until it is used nothing is kept. Must not depend on
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
from router.core.peer_change import BLOCKS_A_MESSAGE, BLOCKS_A_PROMPT, PeerChange, SentPrompt, Work
from router.core.roster import Roster
from router.core.slot_table import SlotTable
from router.core.types import Load, Request

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
_NONE: Final[frozenset[int]] = frozenset()
NAMED_WHOLES: Final = 10  # whole messages: a block in use is named again after so many, for a peer may have let it go


class Outbox:
    """What was sent last, by slot."""

    __slots__ = ("_blocks", "_ejected", "_named", "_named_before", "_prompts", "_roster", "_sent", "_table", "_wholes")

    def __init__(self, table: SlotTable, roster: Roster) -> None:
        self._table = table
        self._roster = roster
        self._sent: Floats = self._rows()
        self._prompts: list[SentPrompt] = []
        self._blocks = 0  # of those prompts
        self._ejected: list[str] = []
        self._named: dict[int, set[int]] = {}  # by slot, the blocks that peers have heard of lately
        self._named_before: dict[int, set[int]] = {}  # and in the period before
        self._wholes = 0

    def _rows(self) -> Floats:
        rows: Floats = self._table.columns[_ROWS]
        rows[rows == _INF] = 0.0  # no bound
        return rows

    # -- hints ---------------------------------------------------------------------------------------------------

    def prompt_sent(self, slot: int, request: Request) -> None:
        """A backend is being sent this prompt."""
        if not self._wholes:
            return
        named = self._named.setdefault(slot, set())
        before = self._named_before.get(slot, _NONE)
        new = [b for b in request.prefix[:BLOCKS_A_PROMPT] if b not in named and b not in before]
        if new and self._blocks + len(new) <= BLOCKS_A_MESSAGE:
            self._blocks += len(new)
            named.update(new)
            self._prompts.append(SentPrompt(self._roster.name(slot), tuple(new), request.prefix_block_tokens))

    def ejected(self, backend: str) -> None:
        """This router has just ejected a backend."""
        if self._wholes:
            self._ejected.append(backend)

    def _hints(self) -> tuple[tuple[SentPrompt, ...], tuple[str, ...]]:
        hints = tuple(self._prompts), tuple(self._ejected)
        self._prompts, self._blocks, self._ejected = [], 0, []
        return hints

    # -- messages --------------------------------------------------------------------------------------------------

    def changes(self) -> PeerChange | None:
        """What differs from what was sent last; None: nothing does."""
        now = self._rows()
        self._fit(now)
        if np.array_equal(now, self._sent) and not self._prompts and not self._ejected:
            return None
        changed: list[int] = np.flatnonzero((now != self._sent).any(axis=0)).tolist()
        self._sent = now
        return PeerChange(self._works(now, changed), False, *self._hints())

    def _fit(self, now: Floats) -> None:
        """Make room for the slots that there are by now; nothing of those was sent."""
        more = now.shape[1] - self._sent.shape[1]
        if more > 0:
            self._sent = np.pad(self._sent, ((0, 0), (0, more)))

    def whole(self, part: int = 0, parts: int = 1) -> PeerChange:
        """Everything that this router has in flight or ever sent, as now and then it is sent in any case; of several
        parts, what that part names.
        """
        now, named = self._rows(), self._roster.in_part(part, parts)
        self._fit(now)
        self._sent[:, named] = now[:, named]
        used: list[int] = np.flatnonzero(now.any(axis=0) & named).tolist()
        if part == 0:
            if self._wholes % NAMED_WHOLES == 0:
                self._named, self._named_before = {}, self._named
            self._wholes += 1
        return PeerChange(self._works(now, used), True, *self._hints(), part, parts)

    def _works(self, rows: Floats, slots: list[int]) -> dict[str, Work]:
        """Of the backends in these slots; one may be free by now."""
        backends = self._roster.backends
        there = [(slot, backend) for slot in slots if (backend := backends[slot]) is not None]
        return {backend.name: _work(rows, slot) for slot, backend in there}


def _work(rows: Floats, slot: int) -> Work:
    values = rows[:, slot].tolist()
    return Work(Load(*values[:_LOAD]), *values[_LOAD:])
