"""The last requests with what was decided about them and how it went: what /explain and the fleet page show.

Believes: the driver's outcomes as they pass. Must not know the core. Bounded: the oldest goes.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from math import isfinite
from typing import Any, Final

from router.core.decisions import Refuse, Send
from router.core.explain import Candidate, Explanation
from router.gateway.traffic.request_log import RequestLog

KEPT: Final = 1_000


@dataclass(frozen=True, slots=True)
class JournalEntry:
    """One request that is over: every decision about it, in order, and its outcome."""

    decisions: Sequence[Send | Refuse]
    outcome: RequestLog


class Journal:
    """The last ``KEPT`` requests. They are found by looking through them: many are noted, few are asked for."""

    def __init__(self, kept: int = KEPT) -> None:
        self._ring: deque[RequestLog] = deque(maxlen=kept)

    def ended(self, outcome: RequestLog) -> None:
        """The request is over."""
        self._ring.append(outcome)

    def find(self, request_id: str) -> JournalEntry | None:
        """The last request of this id, ours or the client's."""
        for outcome in reversed(self._ring):
            if request_id in (outcome.account.request.id, outcome.wire_id):
                return JournalEntry(outcome.decisions, outcome)
        return None

    def recent(self) -> Iterator[JournalEntry]:
        """Newest first."""
        return (JournalEntry(outcome.decisions, outcome) for outcome in reversed(self._ring))


def explained(entry: JournalEntry, choice: Explanation | None = None) -> dict[str, Any]:
    """One request in words and numbers, milliseconds at this rim. ``choice``: what the core remembers of it."""
    account, outcome = entry.outcome.account, entry.outcome
    request, slo = account.request, account.request.slo
    return {
        "request_id": outcome.wire_id,
        "id": request.id,
        "model": request.model,
        "path": outcome.path,
        "stream": outcome.stream,
        "tenant": request.tenant,
        "slo": {
            "class": request.slo_class,
            "ttft_ms": _ms(slo.ttft_s),
            "tpot_ms": _ms(slo.tpot_s),
            "e2e_ms": _ms(slo.e2e_s),
            "quantile": slo.quantile,
            "source": outcome.slo_source,
            "infeasible": "refuse" if slo.refuse_infeasible else "best_effort",
            "met": account.slo_met,
        },
        "prompt_tokens": account.usage.prompt_tokens or request.prompt_tokens,
        "output_tokens": account.usage.output_tokens,
        "decisions": [_decision(decision) for decision in entry.decisions],
        "candidates": [_candidate(each) for each in choice.candidates] if choice else None,
        "outcome": account.outcome.value,
        "reason": account.reason.value if account.reason else None,
        "status": outcome.status,
        "backend": account.backend or None,
        "attempts": account.attempts,
        "predicted": {
            "ttft_ms": _ms(account.predicted_ttft_s),
            "tpot_ms": _ms(account.predicted_tpot_s),
            "e2e_ms": _ms(account.predicted_e2e_s),
        },
        "actual": {
            "held_ms": _ms(account.sent_s - request.arrived_s),
            "ttft_ms": _ms(account.ttft_s),
            "ttft_from_send_ms": _ms(account.first_byte_s - account.sent_s),
            "tpot_ms": _ms(account.tpot_s),
            "e2e_ms": _ms(account.e2e_s),
            "gap_max_ms": _ms(outcome.gap_max_s),
        },
    }


def _candidate(candidate: Candidate) -> dict[str, Any]:
    """What was predicted of one backend when the choice was made; None where the policy did not ask."""
    told = {name: value for name, value in asdict(candidate).items() if name != "backend"}
    return {"backend": candidate.backend} | {
        f"{name.removesuffix('_s')}_ms": _ms(value) for name, value in told.items()
    }


def _decision(decision: Send | Refuse) -> dict[str, Any]:
    if isinstance(decision, Send):
        sent = {"send_to": decision.backend, "attempt": decision.attempt, "why": decision.why}
        return {**sent, "predicted_ttft_ms": _ms(decision.predicted_ttft_s)}
    return {"refuse": decision.reason.value, "why": decision.why}


def _ms(seconds: float) -> float | None:
    """Milliseconds with three digits; None for what never came or was never bound."""
    return round(seconds * 1e3, 3) if isfinite(seconds) else None
