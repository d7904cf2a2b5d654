"""Why a request went where it went: what was predicted for each backend, the choice, and what happened.

Believes: the forecast that stood at the choice; its arrays are kept, not copied, and read only when somebody asks.
Must not know: how a prediction or a choice is made. Bounded: the oldest choice is forgotten for the newest.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import nan
from typing import Final

from router.core.decisions import Account
from router.core.fleet import Floats, Slots
from router.core.forecast import Forecast
from router.core.types import Backend, RequestId

KEPT: Final = 512  # choices remembered: a minute of a busy router; 25 MB over a thousand backends


@dataclass(frozen=True, slots=True)
class Candidate:
    """One backend as it looked when the choice was made; seconds from then, nan for what the policy did not ask.

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
    """``chosen``: the backend of the last attempt ("": nobody); ``why``: the policy's own words; ``account``: how the
    request ended (None: it runs).
    """

    request_id: RequestId
    decided_s: float
    chosen: str
    why: str
    quantile: float
    candidates: tuple[Candidate, ...]
    account: Account | None


@dataclass(slots=True)
class _Note:
    decided_s: float
    chosen: str
    why: str
    quantile: float
    names: Sequence[Backend | None]
    slots: Slots
    answers: Mapping[str, Floats]
    account: Account | None = None


class Explanations:
    """The last ``KEPT`` choices by request."""

    def __init__(self) -> None:
        self._notes: dict[RequestId, _Note] = {}
        self._names: tuple[Backend | None, ...] | None = None

    def fleet_changed(self) -> None:
        """A slot may stand for another backend from now on."""
        self._names = None

    def note(
        self,
        request_id: RequestId,
        chosen: str,
        why: str,
        quantile: float,
        forecast: Forecast,
        backends: Sequence[Backend | None],
        now_s: float,
    ) -> None:
        """A choice was made; a later one about the same request takes its place."""
        if self._names is None:
            self._names = tuple(backends)
        notes = self._notes
        notes.pop(request_id, None)
        if len(notes) >= KEPT:
            del notes[next(iter(notes))]
        notes[request_id] = _Note(now_s, chosen, why, quantile, self._names, forecast.slots, forecast.answers(quantile))

    def ended(self, account: Account) -> None:
        """The request is over."""
        note = self._notes.get(account.request.id)
        if note is not None:
            note.account = account

    def of(self, request_id: RequestId) -> Explanation | None:
        """Everything kept about a request; None when it was never sent or is forgotten."""
        note = self._notes.get(request_id)
        if note is None:
            return None
        candidates = tuple(_candidate(note, index) for index in range(len(note.slots)))
        return Explanation(request_id, note.decided_s, note.chosen, note.why, note.quantile, candidates, note.account)


def _candidate(note: _Note, index: int) -> Candidate:
    backend = note.names[int(note.slots[index])]
    answers = note.answers
    ttft, tpot, e2e, ttft_tail, tpot_tail, e2e_tail = (
        float(answers[name][index]) if name in answers else nan for name in ANSWERS
    )
    return Candidate(backend.name if backend else "", ttft, tpot, e2e, ttft_tail, tpot_tail, e2e_tail)


ANSWERS: Final = ("ttft", "tpot", "e2e", "ttft_tail", "tpot_tail", "e2e_tail")
