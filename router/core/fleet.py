"""What one decision sees of the ledger: the backends that may take this request, as arrays.

Must not depend on policies. Reading changes nothing.
"""

from math import inf
from typing import Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from router.core import loops
from router.core.arrays import Floats, Slots, frozen
from router.core.columns import (
    CHUNK_TOKENS,
    CONTEXT_TOKENS,
    DECODING,
    E2E_TPOT_BOUND_S,
    KV_TOKENS_MAX,
    KV_USAGE,
    LAST_SENT,
    LOAD,
    NETWORK_S,
    PREFILL_TOKENS,
    PREFILLING,
    PREFIX_HIT_RATE,
    PRICE_PER_S,
    SEQS_MAX,
    TPOT_BOUND_S,
    TURN,
    WEIGHT,
)
from router.core.ledger import Ledger
from router.core.metering import RATE_TAU_S
from router.core.signals import row_of
from router.core.types import Backend, Request

NONE_UNREPORTED: Final = np.empty((0, 0))
_Number = TypeVar("_Number", bound=np.generic)


class Fleet:
    """What one decision sees: the backends that may take this request, as arrays aligned with ``slots``.

    Arrays are made when first read, so a policy pays only for the facts it reads. ``held`` is the number of other
    requests that wait at the gateway for one of these backends, whichever of their models they are for, ``held_rank``
    the rank of the one to be served next (empty when none is held), ``ahead`` how many of them have the same model and
    SLO and go before this request, ``hold_s`` for how long the admission policy lets this request wait from now.

    Every array is read-only, most of them views of the ledger's memory: writing one raises ValueError.
    """

    __slots__ = (
        "_first",
        "_gathered",
        "_ledger",
        "_span",
        "_table",
        "ahead",
        "held",
        "held_rank",
        "hold_s",
        "now_s",
        "slots",
    )

    def __init__(
        self,
        ledger: Ledger,
        slots: Slots,
        now_s: float,
        held: int = 0,
        held_rank: tuple[float, ...] = (),
        hold_s: float = inf,
    ) -> None:
        self._ledger = ledger
        self._table = ledger.table
        self._gathered: Floats | None = None
        self.slots = slots
        self._span = ledger.roster.span(slots)
        self._first = ledger.roster.first  # of the span
        self.now_s = now_s
        self.held = held
        self.held_rank = held_rank
        self.ahead = 0
        self.hold_s = hold_s

    def among(self, slots: Slots) -> "Fleet":
        """The same for some of its candidates."""
        fleet = Fleet(self._ledger, slots, self.now_s, self.held, self.held_rank, self.hold_s)
        fleet.ahead = self.ahead
        return fleet

    def __len__(self) -> int:
        return len(self.slots)

    def index(self, slot: int) -> int:
        """The position of a slot among the candidates; -1 when it is none."""
        if self._span is not None:
            at = slot - self._first
            return at if 0 <= at < len(self.slots) else -1
        at = int(self.slots.searchsorted(slot))
        return at if at < len(self.slots) and self.slots[at] == slot else -1

    def of(self, columns: NDArray[_Number]) -> NDArray[_Number]:
        """The candidates' part of columns whose last axis is slots, to be read at once and not stored: where slots are
        neighbours, as those of one model mostly are, it is a view (read-only if *columns* are), else a read-only copy.
        """
        return columns[..., self._span] if self._span else frozen(columns.take(self.slots, axis=-1))

    @property
    def columns(self) -> Floats:
        """Every fact of every slot (facts x slots, read-only), in the rows that ``router.core`` names (SEQS_MAX, ...):
        for compiled loops, for which one matrix is cheaper than many arrays. A candidate's column is its slot.
        """
        return self._table.shown

    @property
    def prompt_tokens_per_s_each(self) -> float:
        """Prompt tokens a second that each request of others brings, by this router's own traffic."""
        return self._ledger.metering.prompt_tokens_per_s_each

    def _row(self, row: int) -> Floats:
        facts: Floats = self.load[row]
        return facts

    @property
    def load(self) -> Floats:
        """Rows prefilling, prefill_tokens, decoding, context_tokens, one column a backend: own + peers + unattributed,
        and what peers should have sent since their last messages.
        """
        if self._gathered is None:
            load, unreported = np.empty((LOAD, len(self.slots))), self.unreported_peer_load
            loops.loads(self.columns, self.slots, NONE_UNREPORTED if unreported is None else unreported, load)
            self._gathered = frozen(load)
        return self._gathered

    @property
    def unreported_peer_load(self) -> Floats | None:
        """Of the candidates; see ``Peers.unreported_load``."""
        return self._ledger.peers.unreported_load(self.slots)

    @property
    def prefilling(self) -> Floats:
        """Requests sent that have no first token yet."""
        return self._row(PREFILLING)

    @property
    def prefill_tokens(self) -> Floats:
        """Prompt tokens of those."""
        return self._row(PREFILL_TOKENS)

    @property
    def decoding(self) -> Floats:
        """Requests past their first token."""
        return self._row(DECODING)

    @property
    def context_tokens(self) -> Floats:
        """Tokens those hold in the KV cache, at the middle of their expected lives."""
        return self._row(CONTEXT_TOKENS)

    @property
    def requests(self) -> Floats:
        """Requests in flight, of any phase."""
        return frozen(self._row(PREFILLING) + self._row(DECODING))

    def cached_tokens(self, request: Request) -> Floats:
        """Leading tokens of this prompt that each backend should have in its prefix cache, by what it was sent."""
        return self._ledger.cached_tokens(self.slots, request)

    def adapter_load_s(self, request: Request) -> Floats | None:
        """What each backend takes to load the adapter that the request is for; None: none takes any time."""
        return self._ledger.adapter_load_s(self.slots, request.model)

    @property
    def last_sent(self) -> Floats:
        """Sequence number of this router's last send to each; -1 before the first."""
        return self.of(self._table.shown_rows[LAST_SENT])

    @property
    def turn(self) -> Floats:
        """When each is next in turn by weight: the lowest is."""
        return self.of(self._table.shown_rows[TURN])

    @property
    def seqs_max(self) -> Floats:
        """Sequences each engine runs at once."""
        return self.of(self._table.shown_rows[SEQS_MAX])

    @property
    def kv_tokens_max(self) -> Floats:
        """Tokens each KV cache holds."""
        return self.of(self._table.shown_rows[KV_TOKENS_MAX])

    @property
    def chunk_tokens(self) -> Floats:
        """Tokens each engine takes into one step."""
        return self.of(self._table.shown_rows[CHUNK_TOKENS])

    @property
    def price_per_s(self) -> Floats:
        """USD per second of each backend's cards."""
        return self.of(self._table.shown_rows[PRICE_PER_S])

    @property
    def network_s(self) -> Floats:
        """One way out and back between the router and each backend."""
        return self.of(self._table.shown_rows[NETWORK_S])

    @property
    def weight(self) -> Floats:
        """The operator's weight of each, for weighted baselines."""
        return self.of(self._table.shown_rows[WEIGHT])

    @property
    def tpot_bound_s(self) -> Floats:
        """The tightest TPOT SLO of the requests running there, this router's and its peers' (inf: none)."""
        return self.of(self._table.shown_rows[TPOT_BOUND_S])

    @property
    def e2e_tpot_bound_s(self) -> Floats:
        """The least time per token that E2E SLOs leave to replies running there, this router's and its peers'
        (inf: none).
        """
        return self.of(self._table.shown_rows[E2E_TPOT_BOUND_S])

    @property
    def kv_usage(self) -> Floats:
        """Share of each KV cache in use, 0 to 1, as the engine last reported it (nan: it never did)."""
        return self.of(self._table.shown_rows[KV_USAGE])

    @property
    def prefix_hit_rate(self) -> Floats:
        """Share of the prompt tokens that each engine lately found in its prefix cache, as it last reported it (nan: it
        never did, or took in no prompt since its last report).
        """
        return self.of(self._table.shown_rows[PREFIX_HIT_RATE])

    def signal(self, name: str) -> Floats:
        """What each engine last reported of the signal of that name (``router.core.signals``), or its ``absent`` value:
        nan for most. Raises KeyError for a name that is not registered.
        """
        return self.of(self._table.shown_rows[row_of(name)])

    @property
    def prefill_tokens_per_s(self) -> Floats:
        """Prompt tokens sent to each per second, lately: this router's own, and for what others have in flight there
        the rate at which this router's own traffic brings prompts.
        """
        rates = np.empty(len(self.slots))
        loops.prefill_rates(self.columns, self.slots, self.now_s, RATE_TAU_S, self.prompt_tokens_per_s_each, rates)
        return frozen(rates)

    @property
    def name_hashes(self) -> NDArray[np.uint64]:
        """``hash64`` of each backend's name: the same on every router, whatever slot the backend has there."""
        return self.of(self._ledger.roster.shown_name_hashes)

    def backend(self, index: int) -> Backend:
        """The facts of the candidate at ``index`` (a position in ``slots``, not a slot)."""
        backend = self._ledger.roster.backends[int(self.slots[index])]
        assert backend is not None
        return backend
