"""What this router has in flight on each backend: one reservation an attempt, from its send to its end.

Loads count sequences, as engines do: a request for several choices is several in the batch, from one prompt.

A reservation is made once and released once, and it belongs to the generation of its slot: one that outlives its
backend releases nothing. Must not depend on peers or reports, which say what others have there, nor on how a backend
was chosen.
"""

from typing import Final

from router.core.columns import (
    CONTEXT_TOKENS,
    DECODING,
    FIRST_TOKEN_S,
    LAST_SENT,
    OWN_E2E_TPOT_BOUND_S,
    OWN_TPOT_BOUND_S,
    PREFILL_TOKENS,
    PREFILLED_TOKENS,
    PREFILLING,
    SENT_TOKENS,
    TURN,
    WEIGHT,
)
from router.core.metering import Metering
from router.core.slot_table import SlotTable

WEIGHT_MIN: Final = 1e-6  # a weight of 0 has its turn once in a million of weight 1
_RELEASED: Final = -1
_INF: Final = float("inf")


class Reservation:
    """One attempt's place on one backend; ``Loads`` alone changes it. ``phase``: PREFILLING, DECODING or released."""

    __slots__ = (
        "context_tokens",
        "e2e_tpot_bound_s",
        "generation",
        "phase",
        "prompt_tokens",
        "sequences",
        "slot",
        "tpot_bound_s",
    )

    def __init__(
        self,
        slot: int,
        generation: int,
        prompt_tokens: float,
        context_tokens: float,
        tpot_bound_s: float,
        e2e_tpot_bound_s: float,
        sequences: float,
    ) -> None:
        self.slot = slot
        self.generation = generation
        self.prompt_tokens = prompt_tokens
        self.context_tokens = context_tokens
        self.tpot_bound_s = tpot_bound_s
        self.e2e_tpot_bound_s = e2e_tpot_bound_s
        self.sequences = sequences
        self.phase = PREFILLING


class _Bounds:
    """Bounds in force at once: how many have each value, so that the least is known when one goes."""

    __slots__ = ("_count",)

    def __init__(self) -> None:
        self._count: dict[float, int] = {}

    def add(self, bound_s: float) -> None:
        """One more."""
        self._count[bound_s] = self._count.get(bound_s, 0) + 1

    def remove(self, bound_s: float, least_s: float) -> float:
        """The least that is left (inf: none); ``least_s``: the least before."""
        count = self._count
        count[bound_s] -= 1
        if count[bound_s]:
            return least_s
        del count[bound_s]
        return min(count, default=_INF) if bound_s == least_s else least_s


class _Prefill:
    """What is prefilling in one slot, in plain numbers, and the bounds of all that is in flight there."""

    __slots__ = ("e2e_tpot_bounds", "prefilling", "tokens", "tpot_bounds")

    def __init__(self) -> None:
        self.prefilling = self.tokens = 0.0
        self.tpot_bounds = _Bounds()
        self.e2e_tpot_bounds = _Bounds()

    def end(self, prompt_tokens: float, sequences: float) -> None:
        """So many are over. Sums of floats drift; with none left the sum is 0."""
        self.prefilling -= sequences
        self.tokens = self.tokens - prompt_tokens if self.prefilling else 0.0


class Loads:
    """This router's own rows of the table: load, prefill rate, tightest bounds, turns."""

    def __init__(self, table: SlotTable, metering: Metering) -> None:
        self._table = table
        self._metering = metering
        self._prefills: list[_Prefill] = []
        self._sends = 0
        self._turn = 0.0

    def start(self, slot: int) -> None:
        """Nothing is in flight on what is now in the slot; its turn comes with those who are there."""
        if slot == len(self._prefills):
            self._prefills.append(_Prefill())
        else:
            self._prefills[slot] = _Prefill()
        self._table.cells[TURN][slot] = self._turn

    def reserve(
        self,
        slot: int,
        prompt_tokens: float,
        context_tokens: float,
        tpot_bound_s: float,
        now_s: float,
        e2e_tpot_bound_s: float = float("inf"),
        sequences: float = 1.0,
    ) -> Reservation:
        """Count an attempt from now on: ``prompt_tokens`` to prefill, ``context_tokens`` that its ``sequences`` will
        hold while decoding; the bounds are those that later requests have to leave it (inf: none).
        """
        there, cells = self._prefills[slot], self._table.cells
        self._metering.integrate(slot, now_s)
        there.prefilling += sequences
        there.tokens += prompt_tokens
        cells[PREFILLING][slot], cells[PREFILL_TOKENS][slot] = there.prefilling, there.tokens
        cells[SENT_TOKENS][slot] += prompt_tokens
        self._metering.prompt_sent(slot, prompt_tokens, now_s)
        cells[LAST_SENT][slot] = self._sends
        self._sends += 1
        # Stride scheduling (Waldspurger 1995); a backend that was away starts at the others' position.
        self._turn = max(self._turn, cells[TURN][slot])
        cells[TURN][slot] = self._turn + 1.0 / max(cells[WEIGHT][slot], WEIGHT_MIN)
        if tpot_bound_s != _INF:
            there.tpot_bounds.add(tpot_bound_s)
            self._tighten(OWN_TPOT_BOUND_S, slot, tpot_bound_s)
        if e2e_tpot_bound_s != _INF:
            there.e2e_tpot_bounds.add(e2e_tpot_bound_s)
            self._tighten(OWN_E2E_TPOT_BOUND_S, slot, e2e_tpot_bound_s)
        generation = self._table.generation[slot]
        return Reservation(slot, generation, prompt_tokens, context_tokens, tpot_bound_s, e2e_tpot_bound_s, sequences)

    def prefilled(self, held: Reservation, now_s: float) -> None:
        """The first token came: prefill load becomes decode load."""
        slot = held.slot
        if held.generation != self._table.generation[slot] or held.phase != PREFILLING:
            return
        meter, cells = self._metering.meters[slot], self._table.cells
        self._metering.integrate(slot, now_s)
        self._end_prefill(held, slot)
        meter.decoding += held.sequences
        meter.context_tokens += held.context_tokens
        meter.prefilled_tokens += held.prompt_tokens
        cells[DECODING][slot], cells[CONTEXT_TOKENS][slot] = meter.decoding, meter.context_tokens
        cells[PREFILLED_TOKENS][slot] += held.prompt_tokens
        cells[FIRST_TOKEN_S][slot] = now_s
        held.phase = DECODING

    def release(self, held: Reservation, now_s: float) -> None:
        """The attempt is over, whatever phase it was in; a second release does nothing."""
        slot, phase = held.slot, held.phase
        held.phase = _RELEASED
        if phase == _RELEASED or held.generation != self._table.generation[slot]:
            return
        meter, cells, there = self._metering.meters[slot], self._table.cells, self._prefills[slot]
        self._metering.integrate(slot, now_s)
        if phase == PREFILLING:
            self._end_prefill(held, slot)
        else:
            meter.decoding -= held.sequences
            meter.context_tokens = meter.context_tokens - held.context_tokens if meter.decoding else 0.0
            cells[DECODING][slot], cells[CONTEXT_TOKENS][slot] = meter.decoding, meter.context_tokens
        if held.tpot_bound_s != _INF:
            self._loosen(OWN_TPOT_BOUND_S, slot, there.tpot_bounds, held.tpot_bound_s)
        if held.e2e_tpot_bound_s != _INF:
            self._loosen(OWN_E2E_TPOT_BOUND_S, slot, there.e2e_tpot_bounds, held.e2e_tpot_bound_s)

    def _tighten(self, row: int, slot: int, bound_s: float) -> None:
        own = self._table.cells[row]
        if bound_s < own[slot]:
            own[slot] = bound_s
            self._table.combine_bounds(slot)

    def _loosen(self, row: int, slot: int, bounds: _Bounds, bound_s: float) -> None:
        own = self._table.cells[row]
        least_s = own[slot]
        left_s = bounds.remove(bound_s, least_s)
        if left_s != least_s:
            own[slot] = left_s
            self._table.combine_bounds(slot)

    def _end_prefill(self, held: Reservation, slot: int) -> None:
        there, cells = self._prefills[slot], self._table.cells
        there.end(held.prompt_tokens, held.sequences)
        cells[PREFILLING][slot], cells[PREFILL_TOKENS][slot] = there.prefilling, there.tokens
