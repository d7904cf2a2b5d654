"""Which backends there are, in which slot, and which of them may be sent a model's requests.

Holds names, facts, and the states up, draining and ejected. Must not depend on load, metering, reports or peers: a
backend is a candidate by its facts and its state alone, never by how busy it is.
"""

from collections.abc import Iterable, Sequence
from heapq import heappop, heappush
from typing import Final

import numpy as np
from numpy.typing import NDArray

from router.core.arrays import Slots, frozen, view_of
from router.core.columns import (
    CHUNK_TOKENS,
    DRAINING,
    EJECTED,
    KV_TOKENS_MAX,
    NETWORK_S,
    PRICE_PER_S,
    SEQS_MAX,
    UP,
    WEIGHT,
)
from router.core.hashing import hash64
from router.core.slot_table import SlotTable
from router.core.types import Backend, Request

_INF: Final = float("inf")
_DIGEST_SHIFT: Final = 11
_NONE: Final = frozen(np.array([], dtype=np.intp))


class Roster:
    """Backends by slot; a slot is used again after its backend has left."""

    name_hashes: NDArray[np.uint64]  # by slot, of the backend's name; a policy sees ``shown_name_hashes``
    shown_name_hashes: NDArray[np.uint64]

    def __init__(self, table: SlotTable) -> None:
        self._table = table
        self._slot_of: dict[str, int] = {}
        self.backends: list[Backend | None] = []
        self._pools: dict[str, Slots] = {}
        self._pool_digests: dict[str, int] = {}
        self._shortest: dict[str, float] = {}  # context of any backend in each pool, tokens
        self._spanned: tuple[Slots | None, slice | None] = (None, None)
        self.first = 0  # of the slots of the last ``span``
        self.version = 0  # another one whenever pools may have changed
        self._free: list[int] = []  # slots, as a heap
        self._replicas: dict[str, int] = {}  # by model
        self._beside: dict[str, frozenset[str]] = {}  # by model, the others that some backend of it serves
        self._adapted: dict[str, int] = {}  # backends, by adapter
        self.adapters: frozenset[str] = frozenset()  # of all backends
        self._asleep: set[int] = set()  # slots
        self._doubtful: set[int] = set()  # slots that are down, of backends that may be alive
        self._refusing: dict[str, set[int]] = {}  # slots by the model or endpoint that they refuse for now
        self.name_hashes = np.zeros(table.capacity, dtype=np.uint64)
        self.shown_name_hashes = view_of(self.name_hashes)

    # -- who is there ------------------------------------------------------------------------------------------

    def slot(self, name: str) -> int | None:
        """The slot of a backend, or None when there is none of this name."""
        return self._slot_of.get(name)

    def name(self, slot: int) -> str:
        """The name of the backend in a slot that is taken."""
        backend = self.backends[slot]
        assert backend is not None
        return backend.name

    @property
    def slots(self) -> Iterable[tuple[str, int]]:
        """Every backend there is, by name, with its slot."""
        return self._slot_of.items()

    @property
    def models(self) -> Sequence[str]:
        """Every model that a backend serves, up or not."""
        return sorted(self._replicas)

    def serves(self, model: str) -> bool:
        """Whether any backend, up or not, answers to this model name."""
        return model in self._replicas

    def beside(self, model: str) -> frozenset[str]:
        """The other models that some backend of this one, up or not, serves too."""
        found = self._beside.get(model)
        if found is None:
            served = [b.models for b in self.backends if b is not None and model in b.models]
            found = frozenset(other for models in served for other in models if other != model)
            if model in self._replicas:  # others are not kept: clients send any name
                self._beside[model] = found
        return found

    def in_part(self, part: int, parts: int) -> NDArray[np.bool_]:
        """By slot, whether its backend is named by that part of a peer's whole message: see ``peer_change.part_of``."""
        found: NDArray[np.bool_] = self.name_hashes % np.uint64(parts) == np.uint64(part)
        return found

    def claim(self, name: str) -> int:
        """A slot for a newcomer: the lowest that is free."""
        if self._free:
            slot = heappop(self._free)
        else:
            slot = self._table.add()
            self.backends.append(None)
        if len(self.name_hashes) < self._table.capacity:
            hashes = np.zeros(self._table.capacity, dtype=np.uint64)
            hashes[: len(self.name_hashes)] = self.name_hashes
            self.name_hashes, self.shown_name_hashes = hashes, view_of(hashes)
        self._slot_of[name] = slot
        return slot

    def describe(self, slot: int, backend: Backend) -> None:
        """Take over the facts of the backend in a slot."""
        before, self.backends[slot] = self.backends[slot], backend
        self.name_hashes[slot] = hash64(backend.name)
        columns = self._table.columns
        columns[SEQS_MAX, slot] = backend.seqs_max
        columns[KV_TOKENS_MAX, slot] = backend.kv_tokens_max
        columns[CHUNK_TOKENS, slot] = backend.chunk_tokens
        columns[PRICE_PER_S, slot] = backend.price_per_hour / 3600
        columns[NETWORK_S, slot] = backend.network_s
        columns[WEIGHT, slot] = backend.weight
        self._changed(before, backend)

    def remove(self, name: str) -> int | None:
        """Forget a backend; the slot that it had, None when there is none of this name."""
        slot = self._slot_of.pop(name, None)
        if slot is not None:
            before, self.backends[slot] = self.backends[slot], None
            heappush(self._free, slot)
            self._asleep.discard(slot)
            self._doubtful.discard(slot)
            self._changed(before, None)
        return slot

    def mark_state(
        self, slot: int, *, up: bool | None = None, draining: bool | None = None, ejected: bool | None = None
    ) -> None:
        """Change who may be sent requests; what is in flight there stays."""
        for row, value in ((UP, up), (DRAINING, draining), (EJECTED, ejected)):
            if value is not None:
                self._table.columns[row, slot] = value
        self._forget_pools()

    def mark_doubtful(self, slot: int, doubtful: bool) -> None:
        """Change whether a backend that is down is tried where no other one is up."""
        if doubtful:
            self._doubtful.add(slot)
        else:
            self._doubtful.discard(slot)
        self._forget_pools()

    def failing_open(self) -> Sequence[str]:
        """The models whose requests are sent to backends that are down, since no backend of theirs is up."""
        if not self._doubtful:
            return ()
        draining, up = self._table.cells[DRAINING], self._table.cells[UP]
        served: set[str] = set()
        tried: set[str] = set()
        for slot, backend in enumerate(self.backends):
            if backend is not None and not draining[slot] and slot not in self._asleep:
                if up[slot]:
                    served.update(backend.models)
                elif slot in self._doubtful:
                    tried.update(backend.models)
        return sorted(tried - served)

    def sleeps(self, slot: int) -> bool:
        """Whether the backend is asleep: it gets no requests, whatever its health checks say."""
        return slot in self._asleep

    def mark_sleep(self, slot: int, asleep: bool) -> None:
        """Change whether it is."""
        if asleep:
            self._asleep.add(slot)
        else:
            self._asleep.discard(slot)
        self._forget_pools()

    def refuse(self, slot: int, what: str) -> None:
        """The slot's backend refuses this model or endpoint: others are chosen for it where there are any."""
        self._refusing.setdefault(what, set()).add(slot)
        self._forget_pools()

    def offer(self, slot: int, what: str) -> None:
        """Choose it again for what it refused."""
        refusing = self._refusing.get(what, set())
        refusing.discard(slot)
        if not refusing:
            self._refusing.pop(what, None)
        self._forget_pools()

    def lacks(self, endpoint: str) -> bool:
        """Whether some backend refuses this endpoint."""
        return endpoint in self._refusing

    def is_up(self, slot: int) -> bool:
        """Whether the backend's last health check succeeded."""
        return self._table.cells[UP][slot] != 0.0

    def _forget_pools(self) -> None:
        self._pools.clear()
        self._pool_digests.clear()
        self.version += 1

    def _changed(self, before: Backend | None, now: Backend | None) -> None:
        """One backend came, went or has other facts; the others are not looked at, for a thousand may join in a row."""
        self._forget_pools()
        self._beside.clear()
        self._shortest.clear()
        for backend, by in ((before, -1), (now, 1)):
            if backend is not None:
                _count(self._replicas, backend.models, by)
                _count(self._adapted, backend.adapters, by)
        if self._adapted.keys() != self.adapters:
            self.adapters = frozenset(self._adapted)

    # -- who may be sent a request -----------------------------------------------------------------------------

    def pool(self, model: str) -> Slots:
        """Slots, ascending, of the backends that may be sent this model's requests now: up, awake, not draining, not
        ejected.

        When all that are up were ejected, or refuse the model, all of them are tried again: a guess beats a certain
        refusal. So are those that are down by doubtful checks when none is up; a backend that drains or sleeps is not.
        """
        slots = self._pools.get(model)
        if slots is None:
            if model not in self._replicas:
                return _NONE  # not kept: clients send any name
            up, draining, ejected = (self._table.columns[row] for row in (UP, DRAINING, EJECTED))
            serving = [s for s, b in enumerate(self.backends) if b and model in b.models]
            awake = [s for s in serving if not draining[s] and s not in self._asleep]
            there = [s for s in awake if up[s]] or [s for s in awake if s in self._doubtful]
            refusing = self._refusing.get(model, set())
            willing = [s for s in there if s not in refusing] or there
            chosen = [s for s in willing if not ejected[s]] or willing
            slots = self._pools[model] = frozen(np.array(chosen, dtype=np.intp))
            self._shortest[model] = min(map(self._context_tokens, chosen), default=_INF)
        return slots

    def pool_digest(self, model: str) -> int:
        """A number that routers have in common where their pools of a model have the same backends; 0: it is empty.
        Below 2**53: other readers of a record have no larger number.
        """
        digest = self._pool_digests.get(model)
        if digest is None:
            slots = self.pool(model)
            if not len(slots):
                return 0
            found = int(np.bitwise_xor.reduce(self.name_hashes[slots])) >> _DIGEST_SHIFT
            digest = self._pool_digests[model] = found
        return digest

    def taking(self, request: Request, least: float, most: float) -> Slots:
        """Those of the pool whose context holds the prompt, with its whole reply where there are such. Empty: the
        prompt is too long for all of them. Where some have the request's endpoint, those that lack it are left out.

        ``least`` and ``most``: tokens that the prompt has, by what is known of it. The longest contexts are tried where
        only a prompt that is shorter than expected would fit.
        """
        slots = self.pool(request.model)
        if request.endpoint in self._refusing:
            lacking = self._refusing[request.endpoint]
            having = [slot for slot in slots.tolist() if slot not in lacking]
            slots = frozen(np.array(having, dtype=np.intp)) if having else slots
        reply = max(request.output_tokens_max, 1)
        if most + reply <= self._shortest.get(request.model, _INF):
            return slots
        context = np.array([self._context_tokens(slot) for slot in slots.tolist()])
        for fits in (context >= most + reply, context > most):
            if fits.any():
                return frozen(slots[fits])
        return frozen(slots[(context > least) & (context == context.max(initial=0.0))])

    def longer(self, slots: Slots, tokens: float) -> Slots:
        """Those of the slots whose context is longer than so many tokens."""
        return frozen(np.array([s for s in slots.tolist() if self._context_tokens(s) > tokens], dtype=np.intp))

    def span(self, slots: Slots) -> slice | None:
        """The slots as a slice, where they are neighbours, as those of one model mostly are. The last result is cached:
        decisions come for the same pool again and again.
        """
        if slots is not self._spanned[0]:
            ends = slots[[0, -1]].tolist() if len(slots) else (0, -2)  # slots ascend
            near = ends[1] - ends[0] == len(slots) - 1
            self._spanned = slots, slice(ends[0], ends[1] + 1) if near else None
            self.first = int(ends[0])
        return self._spanned[1]

    def longest(self, model: str) -> float:
        """The longest context of any backend, up or not, that serves this model, in tokens (inf: one takes any)."""
        serving = (slot for slot, b in enumerate(self.backends) if b and model in b.models)
        return max(map(self._context_tokens, serving), default=0.0)

    def _context_tokens(self, slot: int) -> float:
        backend = self.backends[slot]
        return float(backend.context_tokens_max or _INF) if backend else 0.0


def _count(counts: dict[str, int], names: Sequence[str], by: int) -> None:
    """Add to the count of each name; one that is 0 is left out."""
    for name in names:
        left = counts.get(name, 0) + by
        if left:
            counts[name] = left
        else:
            counts.pop(name, None)
