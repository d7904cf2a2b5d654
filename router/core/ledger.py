"""Who is in flight where: the ledger.

Rule 1: every fact a policy sees is made here. Rule 2: this file never chooses.
Facts are columns: one numpy array a fact, one slot a backend, so that a forecast over a thousand backends is a handful
of vector operations. A reservation is made once, released once, and belongs to the generation of its slot: one that
outlives its backend releases nothing.

Three sources add up to the load of a backend. ``own``: what this router sent, exact. ``peers``: what its peers
publish. ``unattributed``: what the engine itself reports beyond those two at the moment it was asked. So a stale
report can never hide what was sent since, and traffic that no router knows of still counts.
"""

from collections.abc import Iterable, Mapping, MutableSequence, Sequence
from dataclasses import dataclass
from math import exp
from typing import Final, cast

import numpy as np
from numpy.typing import NDArray

from router.core.columns import (
    CHUNK_TOKENS,
    CONTEXT_TOKENS,
    DECODING,
    DRAINING,
    E2E_TPOT_BOUND_S,
    EJECTED,
    FIRST_TOKEN_S,
    KV_TOKENS_MAX,
    KV_USAGE,
    LAST_SENT,
    LEDGER,
    LOAD,
    NETWORK_S,
    PEERS,
    PEERS_E2E_TPOT_BOUND_S,
    PEERS_TPOT_BOUND_S,
    PREFILL_RATE,
    PREFILL_TOKENS,
    PREFILLING,
    PREFIX_HIT_RATE,
    PRICE_PER_S,
    RATE_AT_S,
    REPORTED_S,
    SEQS_MAX,
    TPOT_BOUND_S,
    TURN,
    UNATTRIBUTED,
    UP,
    WEIGHT,
)
from router.core.hashing import hash64
from router.core.prefix import PrefixIndex
from router.core.readonly import frozen, view_of
from router.core.types import Backend, EngineReport, Load, Request

Floats = NDArray[np.float64]
Slots = NDArray[np.intp]

RATE_TAU_S: Final = 5.0  # memory of the prefill rate: a few requests' lives, so that it follows a burst
UNATTRIBUTED_TTL_S: Final = 30.0  # a report older than this says nothing of now


class Reservation:
    """One attempt's place on one backend; the ledger alone changes it."""

    __slots__ = ("context_tokens", "e2e_tpot_bound_s", "generation", "phase", "prompt_tokens", "slot", "tpot_bound_s")

    def __init__(
        self,
        slot: int,
        generation: int,
        prompt_tokens: float,
        context_tokens: float,
        bound_s: float,
        e2e_tpot_bound_s: float,
    ) -> None:
        self.slot = slot
        self.generation = generation
        self.prompt_tokens = prompt_tokens
        self.context_tokens = context_tokens
        self.tpot_bound_s = bound_s
        self.e2e_tpot_bound_s = e2e_tpot_bound_s
        self.phase = PREFILLING


class _Place:
    """What is counted of one slot for every attempt, in plain numbers: an array's are made anew at each look.

    The first four are the slot's of ``Ledger.own``, which follows them. ``decoding_s`` to ``prefilled_tokens`` are what
    a ``WorkSnapshot`` tells, as of ``integrated_s``. ``peers`` and ``unattributed``: sequences that decode there, and
    their tokens.
    """

    __slots__ = (
        "context_s",
        "context_tokens",
        "decoding",
        "decoding_s",
        "integrated_s",
        "peers",
        "peers_tokens",
        "prefill_tokens",
        "prefilled_tokens",
        "prefilling",
        "unattributed",
        "unattributed_tokens",
    )

    def __init__(self, now_s: float) -> None:
        self.prefilling = self.prefill_tokens = self.decoding = self.context_tokens = 0.0
        self.peers = self.peers_tokens = self.unattributed = self.unattributed_tokens = 0.0
        self.decoding_s = self.context_s = self.prefilled_tokens = 0.0
        self.integrated_s = now_s

    def integrate(self, now_s: float, prompt_tokens_per_s_each: float) -> None:
        """Bring the integrals up to now."""
        passed_s = now_s - self.integrated_s
        if passed_s > 0.0:
            beside = self.peers + self.unattributed
            self.decoding_s += (self.decoding + beside) * passed_s
            self.context_s += (self.context_tokens + (self.peers_tokens + self.unattributed_tokens)) * passed_s
            self.prefilled_tokens += beside * passed_s * prompt_tokens_per_s_each
            self.integrated_s = now_s


@dataclass(init=False, slots=True, unsafe_hash=True)
class WorkSnapshot:
    """What a backend had done up to one moment; the difference of two marks is what a stream lived through.

    ``decoding_s`` and ``context_s`` are time integrals (sequences x s, tokens x s); ``prefilled_tokens`` a counter.
    All count whoever's load was there, for a step does not ask who sent it: our own exactly, that of others as we were
    told it, their prompts at the rate at which our own traffic brings them.
    """

    at_s: Final[float]
    decoding_s: Final[float]
    context_s: Final[float]
    prefilled_tokens: Final[float]

    def __init__(
        self,
        at_s: float,
        decoding_s: float,
        context_s: float,
        prefilled_tokens: float,
    ) -> None:
        self.at_s = at_s
        self.decoding_s = decoding_s
        self.context_s = context_s
        self.prefilled_tokens = prefilled_tokens


class Ledger:
    """The fleet's columns. Grows by doubling; a slot is re-used after its backend left, under a new generation."""

    def __init__(self, capacity: int = 16) -> None:
        self._slot_of: dict[str, int] = {}
        self.backends: list[Backend | None] = []
        self.prefixes = PrefixIndex()
        self.generation: list[int] = []
        self._places: list[_Place] = []
        self._bounds: list[dict[float, int]] = []  # by slot: how many replies have each TPOT bound
        self._paces: list[dict[float, int]] = []  # the same of what E2E bounds leave to a token
        self._peer_loads: dict[str, dict[int, Load]] = {}
        self._asked: dict[int, tuple[float, float, float]] = {}
        self._pools: dict[str, Slots] = {}
        self._shortest: dict[str, float] = {}  # context in each pool
        self._spanned: tuple[Slots | None, slice | None] = (None, None)
        self._known: dict[str, int] = {}
        self._sends = 0
        self._turn = 0.0
        self._own_when_heard: dict[str, Floats] = {}
        self._own_told: Floats | None = None
        self._peer_ratio = 0.0
        self.prompt_tokens_per_s_each = 0.0  # that each request in flight brings, by our own traffic
        self._allocate(capacity)

    shown: Floats  # ``columns``, read-only: what policies see, renewed with them
    shown_rows: tuple[Floats, ...]  # its rows
    name_hashes: NDArray[np.uint64]  # by slot, of the backend's name; a policy sees ``shown_name_hashes``
    shown_name_hashes: NDArray[np.uint64]
    columns: Floats  # all of them, as ``columns.py`` names them; these are its rows:
    own: Floats  # rows as Load's fields: what this router sent
    peers: Floats  # the same, of its peers
    unattributed: Floats  # the same, of no router that we know
    seqs_max: Floats
    kv_tokens_max: Floats
    chunk_tokens: Floats
    price_per_s: Floats
    network_s: Floats
    weight: Floats
    last_sent: Floats
    up: Floats
    draining: Floats
    ejected: Floats
    reported_s: Floats
    prefill_rate: Floats
    rate_at_s: Floats
    tpot_bound_s: Floats
    peers_tpot_bound_s: Floats  # the same, of what peers have there
    e2e_tpot_bound_s: Floats  # the least time per token that E2E bounds leave to replies running there
    peers_e2e_tpot_bound_s: Floats  # the same, of what peers have there
    first_token_s: Floats  # when the last one came, of what this router sent (-inf: never)
    turn: Floats  # when each is next, on a clock that a send moves on by 1 / weight
    kv_usage: Floats
    prefix_hit_rate: Floats

    # -- columns -----------------------------------------------------------------------------------------------

    def _allocate(self, capacity: int) -> None:
        old = getattr(self, "columns", None)
        columns = np.zeros((LEDGER, capacity))
        if old is not None:
            columns[:, : old.shape[1]] = old
        self.columns = columns
        self.own = columns[:LOAD]
        self.peers = columns[PEERS : PEERS + LOAD]
        self.unattributed = columns[UNATTRIBUTED : UNATTRIBUTED + LOAD]
        self.seqs_max, self.kv_tokens_max = columns[SEQS_MAX], columns[KV_TOKENS_MAX]
        self.chunk_tokens, self.price_per_s = columns[CHUNK_TOKENS], columns[PRICE_PER_S]
        self.network_s, self.weight = columns[NETWORK_S], columns[WEIGHT]
        self.last_sent, self.turn = columns[LAST_SENT], columns[TURN]
        self.up, self.draining, self.ejected = columns[UP], columns[DRAINING], columns[EJECTED]
        self.reported_s, self.first_token_s = columns[REPORTED_S], columns[FIRST_TOKEN_S]
        self.prefill_rate, self.rate_at_s = columns[PREFILL_RATE], columns[RATE_AT_S]
        self.kv_usage, self.prefix_hit_rate = columns[KV_USAGE], columns[PREFIX_HIT_RATE]
        self.tpot_bound_s, self.peers_tpot_bound_s = columns[TPOT_BOUND_S], columns[PEERS_TPOT_BOUND_S]
        self.e2e_tpot_bound_s = columns[E2E_TPOT_BOUND_S]
        self.peers_e2e_tpot_bound_s = columns[PEERS_E2E_TPOT_BOUND_S]
        self.shown = view_of(columns)
        self.shown_rows = tuple(self.shown)
        hashes, known = np.zeros(capacity, dtype=np.uint64), getattr(self, "name_hashes", None)
        if known is not None:
            hashes[: len(known)] = known
        self.name_hashes, self.shown_name_hashes = hashes, view_of(hashes)
        # Scalar updates go through memoryviews: a third of the cost of indexing the array.
        self._m = cast("tuple[MutableSequence[float], ...]", tuple(row.data for row in columns))

    @property
    def capacity(self) -> int:
        """Slots there are room for before the columns grow."""
        return int(self.columns.shape[1])

    # -- topology ----------------------------------------------------------------------------------------------

    def join(self, backend: Backend, now_s: float) -> int:
        """Give a backend a slot; joining again under the same name replaces its facts and keeps its load."""
        slot = self._slot_of.get(backend.name)
        if slot is None:
            slot = self._free_slot()
            self._slot_of[backend.name] = slot
            self._reset(slot, now_s)
        self.backends[slot] = backend
        self.name_hashes[slot] = hash64(backend.name)
        facts = (backend.seqs_max, backend.kv_tokens_max, backend.chunk_tokens)
        self.seqs_max[slot], self.kv_tokens_max[slot], self.chunk_tokens[slot] = facts
        self.price_per_s[slot] = backend.price_per_hour / 3600
        self.network_s[slot], self.weight[slot] = backend.network_s, backend.weight
        self._pools.clear()
        self._count_models()
        return slot

    def leave(self, name: str) -> int | None:
        """Forget a backend and everything in flight there; its slot may be re-used."""
        slot = self._slot_of.pop(name, None)
        if slot is None:
            return None
        self.backends[slot] = None
        self.generation[slot] += 1
        self.columns[:, slot] = 0.0
        self._places[slot] = _Place(0.0)
        self._bounds[slot].clear()
        self._paces[slot].clear()
        self.prefixes.forget(slot)
        self._asked.pop(slot, None)
        for loads in self._peer_loads.values():
            loads.pop(slot, None)
        self._pools.clear()
        self._count_models()
        return slot

    def _free_slot(self) -> int:
        for slot, backend in enumerate(self.backends):
            if backend is None:
                return slot
        if len(self.backends) == self.capacity:
            self._allocate(self.capacity * 2)
        self.backends.append(None)
        self.generation.append(0)
        self._places.append(_Place(0.0))
        self._bounds.append({})
        self._paces.append({})
        return len(self.backends) - 1

    def _reset(self, slot: int, now_s: float) -> None:
        self.columns[:, slot] = 0.0
        self._places[slot] = _Place(now_s)
        self.turn[slot] = self._turn
        self.up[slot] = 1.0
        self.last_sent[slot] = -1.0
        self.first_token_s[slot] = -np.inf
        self.reported_s[slot] = -np.inf
        self.rate_at_s[slot] = now_s
        self.tpot_bound_s[slot] = self.peers_tpot_bound_s[slot] = np.inf
        self.e2e_tpot_bound_s[slot] = self.peers_e2e_tpot_bound_s[slot] = np.inf
        self.kv_usage[slot] = self.prefix_hit_rate[slot] = np.nan

    def _count_models(self) -> None:
        self._known = {}
        for backend in self.backends:
            for model in backend.models if backend else ():
                self._known[model] = self._known.get(model, 0) + 1

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
        """Every model somebody serves, up or not."""
        return sorted(self._known)

    def serves(self, model: str) -> bool:
        """Whether any backend, up or not, answers to this model name."""
        return model in self._known

    def pool(self, model: str) -> Slots:
        """Slots, ascending, of the backends that may be sent this model's requests now: up, not draining, not ejected.

        When all that are up were ejected, all of them are tried again: a guess beats a certain refusal.
        """
        slots = self._pools.get(model)
        if slots is None:
            serving = [s for s, b in enumerate(self.backends) if b and model in b.models]
            there = [s for s in serving if self.up[s] and not self.draining[s]]
            chosen = [s for s in there if not self.ejected[s]] or there
            slots = self._pools[model] = frozen(np.array(chosen, dtype=np.intp))
            self._shortest[model] = min(map(self._context_tokens, chosen), default=_INF)
        return slots

    def holding(self, request: Request) -> Slots:
        """Those of the pool that take a prompt so long, with its whole reply where there are such. Empty: too long."""
        slots = self.pool(request.model)
        reply = max(request.output_tokens_max, 1)
        if request.prompt_tokens + reply <= self._shortest[request.model]:
            return slots
        most = np.array([self._context_tokens(slot) for slot in slots.tolist()])
        whole = slots[most >= request.prompt_tokens + reply]
        return frozen(whole if len(whole) else slots[most > request.prompt_tokens])

    def span(self, slots: Slots) -> slice | None:
        """The slots as a slice, where they are neighbours as those of one model mostly are; asked of the same again and
        again.
        """
        if slots is not self._spanned[0]:
            ends = slots[[0, -1]].tolist() if len(slots) else (0, -2)  # slots ascend
            near = ends[1] - ends[0] == len(slots) - 1
            self._spanned = slots, slice(ends[0], ends[1] + 1) if near else None
        return self._spanned[1]

    def longest(self, model: str) -> float:
        """The longest context of any backend, up or not, that serves this model, in tokens (inf: one takes any)."""
        serving = (slot for slot, b in enumerate(self.backends) if b and model in b.models)
        return max(map(self._context_tokens, serving), default=0.0)

    def _context_tokens(self, slot: int) -> float:
        backend = self.backends[slot]
        return float(backend.context_tokens_max or _INF) if backend else 0.0

    def mark_state(
        self, slot: int, *, up: bool | None = None, draining: bool | None = None, ejected: bool | None = None
    ) -> None:
        """Change who may be sent requests; what is in flight there stays."""
        for column, value in ((self.up, up), (self.draining, draining), (self.ejected, ejected)):
            if value is not None:
                column[slot] = value
        if up is False:
            self.prefixes.forget(slot)  # whoever comes back may have been restarted
        self._pools.clear()

    def cached_tokens(self, slots: Slots, request: Request) -> Floats:
        """Leading prompt tokens that each slot was sent before and should still hold.

        At least one token is always computed: an engine needs the last one's output to go on from.
        """
        blocks = self.prefixes.matched(request.prefix, self.capacity) if request.prefix else None
        if blocks is None:
            return frozen(np.zeros(len(slots)))
        tokens: Floats = blocks[slots]
        tokens *= request.prefix_block_tokens
        np.minimum(tokens, max(request.prompt_tokens - 1.0, 0.0), out=tokens)
        return frozen(tokens)

    def remember_prefix(self, slot: int, request: Request) -> None:
        """The slot is being sent this prompt: what its KV cache can hold of it will be there for the next."""
        if request.prefix and request.prefix_block_tokens > 0:
            blocks_max = int(self.kv_tokens_max[slot] // request.prefix_block_tokens)
            self.prefixes.sent(slot, request.prefix, blocks_max)

    # -- one attempt -------------------------------------------------------------------------------------------

    def reserve(
        self,
        slot: int,
        prompt_tokens: float,
        context_tokens: float,
        tpot_bound_s: float,
        now_s: float,
        e2e_tpot_bound_s: float = float("inf"),
    ) -> Reservation:
        """Put an attempt on the books: ``prompt_tokens`` to prefill, ``context_tokens`` it will hold while decoding."""
        place, m = self._places[slot], self._m
        place.integrate(now_s, self.prompt_tokens_per_s_each)
        place.prefilling += 1.0
        place.prefill_tokens += prompt_tokens
        m[PREFILLING][slot], m[PREFILL_TOKENS][slot] = place.prefilling, place.prefill_tokens
        m[PREFILL_RATE][slot] = (
            m[PREFILL_RATE][slot] * exp((m[RATE_AT_S][slot] - now_s) / RATE_TAU_S) + prompt_tokens / RATE_TAU_S
        )
        m[RATE_AT_S][slot] = now_s
        m[LAST_SENT][slot] = self._sends
        self._sends += 1
        # Stride scheduling (Waldspurger 1995); whoever was away starts from where the others are.
        self._turn = max(self._turn, m[TURN][slot])
        m[TURN][slot] = self._turn + 1.0 / max(m[WEIGHT][slot], WEIGHT_MIN)
        if tpot_bound_s != _INF:
            bounds = self._bounds[slot]
            bounds[tpot_bound_s] = bounds.get(tpot_bound_s, 0) + 1
            m[TPOT_BOUND_S][slot] = min(tpot_bound_s, m[TPOT_BOUND_S][slot])
        if e2e_tpot_bound_s != _INF:
            paces = self._paces[slot]
            paces[e2e_tpot_bound_s] = paces.get(e2e_tpot_bound_s, 0) + 1
            m[E2E_TPOT_BOUND_S][slot] = min(e2e_tpot_bound_s, m[E2E_TPOT_BOUND_S][slot])
        return Reservation(slot, self.generation[slot], prompt_tokens, context_tokens, tpot_bound_s, e2e_tpot_bound_s)

    def prefilled(self, held: Reservation, now_s: float) -> None:
        """The first token came: prefill load becomes decode load."""
        slot = held.slot
        if held.generation != self.generation[slot] or held.phase != PREFILLING:
            return
        place, m = self._places[slot], self._m
        place.integrate(now_s, self.prompt_tokens_per_s_each)
        self._prefill_over(place, held, slot)
        place.decoding += 1.0
        place.context_tokens += held.context_tokens
        place.prefilled_tokens += held.prompt_tokens
        m[DECODING][slot], m[CONTEXT_TOKENS][slot] = place.decoding, place.context_tokens
        m[FIRST_TOKEN_S][slot] = now_s
        held.phase = DECODING

    def release(self, held: Reservation, now_s: float) -> None:
        """Take an attempt off the books, whatever phase it was in; a second release does nothing."""
        slot, phase = held.slot, held.phase
        held.phase = _RELEASED
        if phase == _RELEASED or held.generation != self.generation[slot]:
            return
        place, m = self._places[slot], self._m
        place.integrate(now_s, self.prompt_tokens_per_s_each)
        if phase == PREFILLING:
            self._prefill_over(place, held, slot)
        else:
            place.decoding -= 1.0
            place.context_tokens = place.context_tokens - held.context_tokens if place.decoding else 0.0
            m[DECODING][slot], m[CONTEXT_TOKENS][slot] = place.decoding, place.context_tokens
        if held.tpot_bound_s != _INF:
            self.tpot_bound_s[slot] = _without(self._bounds[slot], held.tpot_bound_s, self.tpot_bound_s.item(slot))
        if held.e2e_tpot_bound_s != _INF:
            self.e2e_tpot_bound_s[slot] = _without(
                self._paces[slot], held.e2e_tpot_bound_s, self.e2e_tpot_bound_s.item(slot)
            )

    def _prefill_over(self, place: _Place, held: Reservation, slot: int) -> None:
        """Sums of floats drift; with nobody there the truth is known."""
        place.prefilling -= 1.0
        place.prefill_tokens = place.prefill_tokens - held.prompt_tokens if place.prefilling else 0.0
        self._m[PREFILLING][slot], self._m[PREFILL_TOKENS][slot] = place.prefilling, place.prefill_tokens

    def meter(self, now_s: float) -> None:
        """What others have somewhere is about to change: bring the integrals up to now, and see anew what a request in
        flight brings in prompts.
        """
        for place in self._places:
            place.integrate(now_s, self.prompt_tokens_per_s_each)
        decoding = float(self.own[DECODING].sum())
        rate = float(self.prefill_rate @ np.exp(np.minimum(self.rate_at_s - now_s, 0.0) / RATE_TAU_S))
        self.prompt_tokens_per_s_each = rate / decoding if decoding >= 1.0 else 0.0

    def mark(self, slot: int, now_s: float) -> WorkSnapshot:
        """What the backend has done so far, by our own books."""
        place = self._places[slot]
        place.integrate(now_s, self.prompt_tokens_per_s_each)
        return WorkSnapshot(now_s, place.decoding_s, place.context_s, place.prefilled_tokens)

    # -- what others say ---------------------------------------------------------------------------------------

    def probe_started(self, slot: int, now_s: float) -> None:
        """A scrape starts: remember what we and our peers had in flight, for its answer speaks of this moment."""
        requests, tokens = self._carried(slot)
        self._asked[slot] = (now_s, requests, tokens)

    def reported(self, slot: int, report: EngineReport, now_s: float) -> None:
        """Fold in an engine's own report; what it shows beyond what the routers knew then is unattributed load."""
        m = self._m
        if report.asked_s <= m[REPORTED_S][slot]:
            return
        requests, tokens = self._known_at(slot, report.asked_s)
        m[REPORTED_S][slot] = report.asked_s
        m[KV_USAGE][slot], m[PREFIX_HIT_RATE][slot] = report.kv_usage, report.prefix_hit_rate
        if report.kv_tokens_max > 0:
            m[KV_TOKENS_MAX][slot] = report.kv_tokens_max
        running, waiting = _said(report.running), _said(report.waiting)
        extra = max(0.0, running + waiting - requests)
        queued = min(extra, waiting)
        held = max(0.0, _said(report.kv_usage) * m[KV_TOKENS_MAX][slot] - tokens) if extra else 0.0
        each = min(held / (extra - queued), m[KV_TOKENS_MAX][slot]) if extra > queued else 0.0
        unattributed = (queued, queued * each, extra - queued, held)
        place = self._places[slot]
        prefilling, prefill_tokens = m[UNATTRIBUTED + PREFILLING][slot], m[UNATTRIBUTED + PREFILL_TOKENS][slot]
        if unattributed != (prefilling, prefill_tokens, place.unattributed, place.unattributed_tokens):
            self.meter(now_s)
            self.unattributed[:, slot] = unattributed
            self._beside_changed(slot)

    def _known_at(self, slot: int, asked_s: float) -> tuple[float, float]:
        asked = self._asked.get(slot)
        if asked is not None and asked[0] >= asked_s - 1e-9:
            return asked[1], asked[2]
        return self._carried(slot)

    def _carried(self, slot: int) -> tuple[float, float]:
        """Requests of ours and of our peers there, and their tokens."""
        place, m = self._places[slot], self._m
        theirs = m[PEERS + PREFILLING][slot] + place.peers
        mine_tokens = place.prefill_tokens + place.context_tokens
        tokens = mine_tokens + m[PEERS + PREFILL_TOKENS][slot] + place.peers_tokens
        return place.prefilling + place.decoding + theirs, tokens

    def forget_stale(self, now_s: float) -> None:
        """Drop unattributed load whose report is too old to speak of now."""
        stale = now_s - self.reported_s > UNATTRIBUTED_TTL_S
        self.unattributed[:, stale] = 0.0
        for slot, place in enumerate(self._places):
            if place.unattributed or place.unattributed_tokens:
                self._beside_changed(slot)

    def _beside_changed(self, slot: int) -> None:
        """What others decode there is another from now on."""
        place, m = self._places[slot], self._m
        place.peers, place.peers_tokens = m[PEERS + DECODING][slot], m[PEERS + CONTEXT_TOKENS][slot]
        place.unattributed, place.unattributed_tokens = (
            m[UNATTRIBUTED + DECODING][slot],
            m[UNATTRIBUTED + CONTEXT_TOKENS][slot],
        )

    def on_peer_load(self, peer: str, loads: Mapping[str, Load]) -> None:
        """Replace what a peer has in flight; an empty mapping forgets it."""
        before = self._peer_loads.get(peer, {})
        after = {self._slot_of[name]: load for name, load in loads.items() if name in self._slot_of}
        self._peer_loads[peer] = after
        if not loads:
            del self._peer_loads[peer]
        for slot in before.keys() | after.keys():
            parts = [part[slot] for part in self._peer_loads.values() if slot in part]
            self.peers[PREFILLING, slot] = sum(p.prefilling for p in parts)
            self.peers[PREFILL_TOKENS, slot] = sum(p.prefill_tokens for p in parts)
            self.peers[DECODING, slot] = sum(p.decoding for p in parts)
            self.peers[CONTEXT_TOKENS, slot] = sum(p.context_tokens for p in parts)
            self._beside_changed(slot)
            self.peers_tpot_bound_s[slot] = min((p.tpot_bound_s or _INF for p in parts), default=_INF)
            self.peers_e2e_tpot_bound_s[slot] = min((p.e2e_tpot_bound_s or _INF for p in parts), default=_INF)
        self._compare_with_peers(peer, bool(loads))

    def _compare_with_peers(self, peer: str, there: bool) -> None:
        """Remember what we had in flight when a peer last spoke, and how its traffic and ours compare."""
        self._own_when_heard.pop(peer, None)
        if there:
            self._own_when_heard[peer] = self.own.copy()
        told = [own for own in self._own_when_heard.values() if own.shape == self.own.shape]
        self._own_told = np.mean(told, axis=0) if told else None
        ours, theirs = (float(load[PREFILLING].sum() + load[DECODING].sum()) for load in (self.own, self.peers))
        self._peer_ratio = min(theirs / ours, len(told)) if ours else 0.0

    def unreported_peer_load(self, slots: Slots) -> Floats | None:
        """What peers should have sent since they spoke: they see what we see, so as much more as we, in proportion.

        Without it a burst that meets several routers at once goes to one backend, for none sees the others' part.
        """
        if self._own_told is None or self._own_told.shape != self.own.shape:
            return None
        grown = self.own.take(slots, axis=1) - self._own_told.take(slots, axis=1)
        return frozen(np.maximum(grown, 0.0) * self._peer_ratio)

    def own_loads(self) -> dict[str, Load]:
        """What this router has in flight, by backend name, to be published to its peers."""
        bounds = np.vstack((self.tpot_bound_s, self.e2e_tpot_bound_s))
        rows = np.vstack((self.own, np.where(bounds < _INF, bounds, 0.0))).T.tolist()
        return {name: Load(*rows[slot]) if any(rows[slot]) else _IDLE for name, slot in self._slot_of.items()}


def _without(bounds: dict[float, int], bound_s: float, least_s: float) -> float:
    """The least of the bounds once one is taken off; ``least_s``: the least with it."""
    bounds[bound_s] -= 1
    if bounds[bound_s]:
        return least_s
    del bounds[bound_s]
    return min(bounds, default=_INF) if bound_s == least_s else least_s


def _said(number: float) -> float:
    """A number of a report; 0 where the engine did not say."""
    return number if -_INF < number < _INF else 0.0


_INF: Final = float("inf")
_IDLE: Final = Load()
_RELEASED: Final = -1
WEIGHT_MIN: Final = 1e-6  # a weight of 0 has its turn once in a million of weight 1
