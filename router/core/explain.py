"""Why a request went where it went: what was predicted for each backend, the choice, and what happened.

Assumes: the forecast that stood at the choice; its arrays are referenced, not copied, and read only for an explanation.
Of more candidates than ``CANDIDATES_KEPT`` only those with the lowest predicted E2E are kept, and the one chosen: what
is stored then depends no more on how many backends there are. Must not depend on: how a prediction or a choice is made.
Bounded: the oldest choice is forgotten for the newest.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import repeat
from math import nan
from typing import Final

import numpy as np

from router.core.arrays import Floats, Slots
from router.core.columns import E2E, METRICS, TAILS, TTFT
from router.core.decisions import RequestRecord
from router.core.forecast import Forecast
from router.core.types import Backend, RequestId

_Backends = tuple[Backend | None, ...]
CHOICES_KEPT: Final = 512  # choices remembered: a minute of a busy router; 2 MB, however many backends there are
CANDIDATES_KEPT: Final = 32  # of each choice: as many as a person reads
_NO_FORECAST: Final = (nan,) * METRICS


@dataclass(frozen=True, slots=True)
class Candidate:
    """One backend as it looked when the choice was made; seconds from then, nan where the policy read no forecast.

    ``*_tail_s``: at the quantile of the request's SLO.
    """

    backend: str
    ttft_s: float
    tpot_s: float
    e2e_s: float
    ttft_tail_s: float
    tpot_tail_s: float
    e2e_tail_s: float


@dataclass(frozen=True, slots=True)
class Explanation:
    """``chosen``: the backend of the last attempt ("": none); ``why``: the policy's own words; ``account``: how the
    request ended (None: it runs); ``model``: the one that the candidates were compared for; ``compared``: how many
    candidates there were, of which ``candidates`` are the nearest.
    """

    request_id: RequestId
    decided_s: float
    chosen: str
    why: str
    quantile: float
    candidates: tuple[Candidate, ...]
    account: RequestRecord | None
    model: str = ""
    compared: int = 0


class Note:
    """A choice, by reference; ``account`` once its request is over."""

    __slots__ = (
        "account", "answer", "backends", "chosen", "compared", "decided_s", "model", "quantile", "request_id", "slots",
        "why",
    )  # fmt: skip

    def __init__(
        self,
        request_id: RequestId,
        decided_s: float,
        chosen: str,
        why: str,
        quantile: float,
        backends: _Backends,
        forecast: Forecast,
        model: str,
        slot: int,
    ) -> None:
        self.request_id, self.model = request_id, model
        self.decided_s, self.chosen, self.why, self.quantile = decided_s, chosen, why, quantile
        self.backends, self.compared = backends, len(forecast.slots)
        self.slots, self.answer = forecast.slots, forecast.answer
        if len(self.slots) > CANDIDATES_KEPT:
            kept = _nearest(self.answer, self.slots, slot)
            self.slots = self.slots.take(kept)
            self.answer = None if self.answer is None else self.answer[: TAILS + METRICS].take(kept, axis=1)
        self.account: RequestRecord | None = None

    def candidates(self) -> tuple[Candidate, ...]:
        """Every candidate's part of the forecast."""
        rows = self.answer
        mean, tail = (
            repeat(_NO_FORECAST) if rows is None else rows[first : first + METRICS].T.tolist()
            for first in (TTFT, TAILS)
        )
        named = zip(self.slots.tolist(), mean, tail, strict=False)
        return tuple(Candidate(self._name(slot), *seconds, *late) for slot, seconds, late in named)

    def _name(self, slot: int) -> str:
        backend = self.backends[slot]
        return backend.name if backend else ""


class Explanations:
    """The last ``most`` choices. They are found by a linear search: many are noted, few are read."""

    def __init__(self, most: int = CHOICES_KEPT) -> None:
        self._notes: deque[Note] = deque(maxlen=most)
        self._backends: _Backends | None = None

    def fleet_changed(self) -> None:
        """A slot may stand for another backend from now on."""
        self._backends = None

    def note(
        self,
        request_id: RequestId,
        chosen: str,
        why: str,
        quantile: float,
        forecast: Forecast,
        backends: Sequence[Backend | None],
        now_s: float,
        model: str = "",
        slot: int = -1,
    ) -> Note | None:
        """A choice was made; a later one about the same request takes its place. None where nothing is stored.
        ``slot``: of the backend chosen (-1: none was).
        """
        if not self._notes.maxlen:
            return None
        if self._backends is None:
            self._backends = tuple(backends)
        made = Note(request_id, now_s, chosen, why, quantile, self._backends, forecast, model, slot)
        self._notes.append(made)
        return made

    def of(self, request_id: RequestId) -> Explanation | None:
        """Everything stored about a request; None when it was never sent or is forgotten."""
        note = next((note for note in reversed(self._notes) if note.request_id == request_id), None)
        if note is None:
            return None
        return Explanation(
            request_id,
            note.decided_s,
            note.chosen,
            note.why,
            note.quantile,
            note.candidates(),
            note.account,
            note.model,
            note.compared,
        )


def _nearest(answer: Floats | None, slots: Slots, chosen: int) -> Slots:
    """The places of the candidates to keep, ascending: of the lowest predicted E2E (of no forecast the first ones), and
    of the slot that was chosen, if one was.
    """
    if answer is None:
        kept = np.arange(CANDIDATES_KEPT)
    else:
        kept = np.sort(np.argpartition(answer[E2E], CANDIDATES_KEPT - 1)[:CANDIDATES_KEPT])
    place = int(slots.searchsorted(chosen)) if chosen >= 0 else -1
    if place >= 0 and place not in kept:
        kept[-1] = place
        kept.sort()
    return kept
