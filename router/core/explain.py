"""Why a request went where it went: what was predicted for each backend, the choice, and what happened.

Believes: the forecast that stood at the choice; its arrays are kept, not copied, and read only when somebody asks.
Must not know: how a prediction or a choice is made. Bounded: the oldest choice is forgotten for the newest.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import repeat
from math import nan
from typing import Final

from router.core.decisions import Account
from router.core.forecast import Forecast
from router.core.kernels import METRICS
from router.core.types import Backend, RequestId

_Backends = tuple[Backend | None, ...]
KEPT: Final = 512  # choices remembered: a minute of a busy router; 30 MB over a thousand backends
_NOT_ASKED: Final = (nan,) * METRICS


@dataclass(frozen=True, slots=True)
class Candidate:
    """One backend as it looked when the choice was made; seconds from then, nan where the policy asked no forecast.

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


class _Note:
    """A choice, by reference."""

    __slots__ = ("account", "answers", "backends", "chosen", "decided_s", "quantile", "slots", "why")

    def __init__(
        self, decided_s: float, chosen: str, why: str, quantile: float, backends: _Backends, forecast: Forecast
    ) -> None:
        self.decided_s, self.chosen, self.why, self.quantile = decided_s, chosen, why, quantile
        self.backends, self.slots, self.answers = backends, forecast.slots, forecast.answers
        self.account: Account | None = None

    def candidates(self) -> tuple[Candidate, ...]:
        """Every candidate's part of what was asked."""
        means, tails = self.answers
        mean, tail = (
            repeat(_NOT_ASKED) if rows is None else rows[:METRICS].T.tolist()
            for rows in (means, tails.get(self.quantile))
        )
        named = zip(self.slots.tolist(), mean, tail, strict=False)
        return tuple(Candidate(self._name(slot), *seconds, *late) for slot, seconds, late in named)

    def _name(self, slot: int) -> str:
        backend = self.backends[slot]
        return backend.name if backend else ""


class Explanations:
    """The last ``kept`` choices by request."""

    def __init__(self, kept: int = KEPT) -> None:
        self._kept = kept
        self._notes: dict[RequestId, _Note] = {}
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
    ) -> None:
        """A choice was made; a later one about the same request takes its place."""
        if not self._kept:
            return
        if self._backends is None:
            self._backends = tuple(backends)
        notes = self._notes
        notes.pop(request_id, None)
        if len(notes) >= self._kept:
            del notes[next(iter(notes))]
        notes[request_id] = _Note(now_s, chosen, why, quantile, self._backends, forecast)

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
        return Explanation(
            request_id, note.decided_s, note.chosen, note.why, note.quantile, note.candidates(), note.account
        )
