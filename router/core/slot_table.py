"""The matrix of all numeric facts: one row a fact (``columns.py`` and the signals name them), one column a slot.

One matrix, so that a forecast over a thousand backends is a handful of loops over contiguous memory. Holds memory and
generations only; what the numbers mean is the business of the files that write them (roster, load, metering, reports,
peers). Must not depend on any of those.
"""

from collections.abc import MutableSequence
from typing import Final, cast

import numpy as np

from router.core.arrays import Floats, view_of
from router.core.columns import (
    E2E_TPOT_BOUND_S,
    FIRST_TOKEN_S,
    LAST_SENT,
    LOAD,
    OWN_E2E_TPOT_BOUND_S,
    OWN_TPOT_BOUND_S,
    PEERS,
    PEERS_E2E_TPOT_BOUND_S,
    PEERS_TPOT_BOUND_S,
    RATE_AT_S,
    REPORTED_S,
    TPOT_BOUND_S,
    UNATTRIBUTED,
    UP,
)
from router.core.signals import registered, row_count, rows

_INF: Final = float("inf")


class SlotTable:
    """Grows by doubling. ``generation``, by slot, counts the backends that have left it."""

    columns: Floats
    own: Floats  # rows as Load's fields: what this router sent
    peers: Floats  # the same, of its peers
    unattributed: Floats  # the same, of no known router
    # Single numbers are read and written through memoryviews: a third of the cost of indexing the array.
    cells: tuple[MutableSequence[float], ...]
    shown: Floats  # ``columns``, read-only: what policies see
    shown_rows: tuple[Floats, ...]

    def __init__(self, capacity: int) -> None:
        self.generation: list[int] = []
        self._use(np.zeros((row_count(), capacity)))

    def _use(self, columns: Floats) -> None:
        self.columns = columns
        self.own = columns[:LOAD]
        self.peers = columns[PEERS : PEERS + LOAD]
        self.unattributed = columns[UNATTRIBUTED : UNATTRIBUTED + LOAD]
        self.cells = cast("tuple[MutableSequence[float], ...]", tuple(row.data for row in columns))
        self.shown = view_of(columns)
        self.shown_rows = tuple(self.shown)

    @property
    def capacity(self) -> int:
        """Slots there is room for before the columns grow."""
        return int(self.columns.shape[1])

    def add(self) -> int:
        """One more slot; returns its number."""
        slot = len(self.generation)
        if slot == self.capacity:
            columns = np.zeros((row_count(), 2 * slot))
            columns[:, :slot] = self.columns
            self._use(columns)
        self.generation.append(0)
        return slot

    def occupy(self, slot: int, now_s: float) -> None:
        """A backend joins: nothing has happened there yet."""
        columns = self.columns
        columns[:, slot] = 0.0
        columns[UP, slot] = 1.0
        columns[LAST_SENT, slot] = -1.0
        columns[FIRST_TOKEN_S, slot] = -_INF
        columns[REPORTED_S, slot] = -_INF
        columns[RATE_AT_S, slot] = now_s
        columns[OWN_TPOT_BOUND_S, slot] = columns[PEERS_TPOT_BOUND_S, slot] = _INF
        columns[OWN_E2E_TPOT_BOUND_S, slot] = columns[PEERS_E2E_TPOT_BOUND_S, slot] = _INF
        self.combine_bounds(slot)
        for signal, row in zip(registered(), rows(), strict=True):
            columns[row, slot] = signal.absent

    def combine_bounds(self, slot: int) -> None:
        """Take the tighter of this router's and its peers' bounds in a slot, after either changed."""
        cells = self.cells
        cells[TPOT_BOUND_S][slot] = min(cells[OWN_TPOT_BOUND_S][slot], cells[PEERS_TPOT_BOUND_S][slot])
        cells[E2E_TPOT_BOUND_S][slot] = min(cells[OWN_E2E_TPOT_BOUND_S][slot], cells[PEERS_E2E_TPOT_BOUND_S][slot])

    def vacate(self, slot: int) -> None:
        """The backend left: what still refers to the slot is of an earlier generation."""
        self.columns[:, slot] = 0.0
        self.generation[slot] += 1
