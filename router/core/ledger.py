"""Every fact that a policy sees of the backends: the parts that keep them, and what concerns several parts at once.

Three sources add up to the load of a backend: what this router sent (``load.py``, exact), what its peers publish
(``peers.py``), and what the engine itself reports beyond both (``reports.py``). All write into one table
(``slot_table.py``), a slot a backend. Must not choose: no file below this one does.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np

from router.core.adapters import Adapters
from router.core.arrays import Floats, Slots, frozen
from router.core.columns import KV_TOKENS_MAX
from router.core.load import Loads, Reservation
from router.core.metering import Metering
from router.core.peers import Peers
from router.core.prefix import PrefixIndex
from router.core.reports import Reports
from router.core.roster import Roster
from router.core.slot_table import SlotTable
from router.core.types import Backend, Request


class Ledger:
    """The parts, and who joins and leaves all of them."""

    def __init__(self, capacity: int = 16) -> None:
        self.table: Final = SlotTable(capacity)
        self.roster: Final = Roster(self.table)
        self.metering: Final = Metering(self.table)
        self.load: Final = Loads(self.table, self.metering)
        self.reports: Final = Reports(self.table, self.metering)
        self.peers: Final = Peers(self.table, self.roster, self.metering)
        self.prefixes: Final = PrefixIndex()
        self.adapters: Final = Adapters()

    def join(self, backend: Backend, now_s: float) -> int:
        """Give a backend a slot; joining again under the same name replaces its facts and keeps its load."""
        slot = self.roster.slot(backend.name)
        if slot is None:
            slot = self.roster.claim(backend.name)
            self.table.occupy(slot, now_s)
            self.metering.start(slot, now_s)
            self.load.start(slot)
        self.roster.describe(slot, backend)
        return slot

    def leave(self, name: str) -> int | None:
        """Forget a backend and everything in flight there; its slot may be used again."""
        slot = self.roster.remove(name)
        if slot is None:
            return None
        self.table.vacate(slot)
        self.metering.start(slot, 0.0)
        self.prefixes.forget(slot)
        self.adapters.forget(slot)
        self.reports.forget(slot)
        self.peers.forget(slot)
        return slot

    def mark_state(
        self, slot: int, *, up: bool | None = None, draining: bool | None = None, ejected: bool | None = None
    ) -> None:
        """Change who may be sent requests; what is in flight there stays."""
        self.roster.mark_state(slot, up=up, draining=draining, ejected=ejected)
        if up is False:
            self.prefixes.forget(slot)  # an engine that comes back may have been restarted
            self.adapters.forget(slot)

    def context_tokens_max(self, held: Reservation) -> int:
        """The longest context of the backend of a reservation (0: any, or it has left)."""
        backend = self.roster.backends[held.slot] if held.generation == self.table.generation[held.slot] else None
        return backend.context_tokens_max if backend is not None else 0

    def cached_tokens(self, slots: Slots, request: Request) -> Floats:
        """Leading prompt tokens that each slot was sent before and should still hold.

        At least one token is always computed: an engine needs the last one's output to go on from.
        """
        most, tokens = max(request.prompt_tokens - 1.0, 0.0), None
        if request.prefix:
            tokens = self.prefixes.matched(request.prefix, slots, float(request.prefix_block_tokens), most)
        return frozen(np.zeros(len(slots)) if tokens is None else tokens)

    def adapter_load_s(self, slots: Slots, model: str) -> Floats | None:
        """What each slot takes to load the adapter that the model is, 0 where it is ready; None: it takes none any
        time, as for every model that is no adapter.
        """
        if model not in self.roster.adapters:
            return None
        loads_s = []
        for slot in slots.tolist():
            backend = self.roster.backends[slot]
            loads = backend is not None and model in backend.adapters and not self.adapters.ready(slot, model)
            loads_s.append(backend.adapter_load_s if backend is not None and loads else 0.0)
        return frozen(np.array(loads_s)) if any(loads_s) else None

    def remember_prefix(self, slot: int, request: Request) -> None:
        """The slot is being sent this prompt: what its KV cache can hold of it will be there for the next."""
        self.remember_blocks(slot, request.prefix, request.prefix_block_tokens)

    def remember_blocks(self, slot: int, blocks: Sequence[int], block_tokens: int) -> None:
        """The same of the blocks of a prompt."""
        if blocks and block_tokens > 0:
            self.prefixes.sent(slot, blocks, int(self.table.cells[KV_TOKENS_MAX][slot] // block_tokens))
