"""The last requests with their decisions and measurements: what /explain and the fleet page show.

Must not depend on the core. Bounded: the oldest is dropped.
"""

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from math import isfinite, nan
from typing import Any, Final

from router.core.columns import TPOT
from router.core.decisions import EndState, Refuse, RequestRecord, Send
from router.core.explain import Candidate, Explanation
from router.core.slo_metrics import BASE, SLO_METRICS
from router.gateway.traffic.request_log import RequestLog

LINES_MAX: Final = 1_000
FAILED_MAX: Final = 200
RUNNING: Final = "running"  # in place of the outcome of a request that is not over


class Journal:
    """The last ``LINES_MAX`` requests. Found by a linear search: many are added, few are looked up."""

    def __init__(self, lines_max: int = LINES_MAX) -> None:
        self._ring: deque[RequestLog] = deque(maxlen=lines_max)
        self._failed: deque[RequestLog] = deque(maxlen=FAILED_MAX)

    def ended(self, log: RequestLog) -> None:
        """A request has ended."""
        self._ring.append(log)
        if log.record.outcome is not EndState.SERVED and log.record.outcome is not EndState.LEFT:
            self._failed.append(log)

    def find(self, request_id: str) -> list[RequestLog]:
        """The request whose own id this is, else all to which clients gave this id, newest first.

        An own id is unique and no client's choice, so that no other request can stand before it.
        """
        given: list[RequestLog] = []
        recent = set(map(id, self._ring))
        for log in (*reversed(self._ring), *(each for each in reversed(self._failed) if id(each) not in recent)):
            if log.record.request.id == request_id:
                return [log]
            if log.wire_id == request_id:
                given.append(log)
        return given

    def recent(self) -> Iterator[RequestLog]:
        """Newest first."""
        return reversed(self._ring)

    def failed(self) -> Iterator[RequestLog]:
        """Those that were not served, newest first; successes do not displace them."""
        return reversed(self._failed)


def listed(logs: Sequence[RequestLog]) -> list[dict[str, Any]]:
    """Requests that share an id, each with its own, by which it is found alone."""
    return [
        {"id": log.record.request.id, "tenant": log.record.request.tenant, "path": log.path, "status": log.status}
        for log in logs
    ]


def explained(log: RequestLog, choice: Explanation | None = None, *, running: bool = False) -> dict[str, Any]:
    """One request as plain values, times in milliseconds. ``choice``: the core's explanation of it; ``running``: it is
    not over, and its times end now.
    """
    record = log.record
    request, slo = record.request, record.request.slo
    return {
        "request_id": log.wire_id,
        "id": request.id,
        "model": request.requested_model or request.model,
        "served_model": record.served_model,
        "fallback_why": record.fallback_why or None,
        "path": log.path,
        "stream": log.stream,
        "tenant": request.tenant,
        "slo": {
            "class": request.slo_class,
            **_by_metric(slo.bounds_s()),
            "quantile": slo.quantile,
            "source": log.slo_source,
            "infeasible": "refuse" if slo.refuse_infeasible else "best_effort",
            "met": None if running or record.outcome is EndState.CLIENT_ERROR else record.slo_met,
            "unjudged": list(record.unjudged()),
        },
        "prompt_tokens": record.usage.prompt_tokens or request.prompt_tokens,
        "output_tokens": record.usage.output_tokens,
        "sequences": request.sequences,
        "output_tokens_estimated": record.usage.estimated,
        "decisions": [_decision(decision) for decision in log.decisions],
        "candidates": [_candidate(each, choice, record) for each in choice.candidates] if choice else None,
        "compared": choice.compared if choice else None,
        "outcome": RUNNING if running else record.outcome.value,
        "reason": record.reason.value if record.reason else None,
        "status": log.status,
        "backend": record.backend or None,
        "attempts": record.attempts,
        "predicted": {
            "ttft_ms": _ms(record.predicted_ttft_s),
            "tpot_ms": _ms(record.predicted_tpot_s),
            "e2e_ms": _ms(record.predicted_e2e_s),
        },
        "timeline": _timeline(record),
        "actual": {
            "held_ms": _ms(record.held_s),
            "queue_ms": _ms(record.queue_s),
            "ttft_from_send_ms": _ms(record.first_token_s - record.sent_s),
            **_by_metric(_latencies_s(record)),
            "tpot_range_ms": [_ms(bound_s) for bound_s in record.tpot_range_s()] if record.usage.estimated else None,
            "gap_max_ms": _ms(log.gap_max_s),
        },
    }


def _by_metric(values_s: Sequence[float]) -> dict[str, float | None]:
    """A value of each metric that an SLO can bound."""
    return {metric.milliseconds: _ms(value_s) for metric, value_s in zip(SLO_METRICS, values_s, strict=True)}


def _latencies_s(record: RequestRecord) -> list[float]:
    """Of each metric; a reply of one token, or one that its client left before a second, has no TPOT."""
    values_s = list(record.latencies_s())
    if record.usage.output_tokens <= record.request.sequences:
        values_s[TPOT] = nan
    return values_s


def _timeline(record: RequestRecord) -> list[dict[str, Any]]:
    """What happened when, in milliseconds since the arrival; ``held`` comes with how long in all."""
    arrived_s = record.request.arrived_s
    events: list[dict[str, Any]] = [{"event": "arrived", "at_ms": 0.0}]
    if record.held_s > 0.0:
        events.append({"event": "held", "at_ms": 0.0, "for_ms": _ms(record.held_s)})
    times = (("sent", record.sent_s), ("first token", record.first_token_s), ("end", record.ended_s))
    return events + [{"event": event, "at_ms": _ms(at_s - arrived_s)} for event, at_s in times if isfinite(at_s)]


def _candidate(candidate: Candidate, choice: Explanation, record: RequestRecord) -> dict[str, Any]:
    """The forecast for one backend when the choice was made; None where the policy did not read it. ``headroom``: what
    each bound allows beyond the forecast at the SLO's quantile; ``why``: it was chosen, or not.
    """
    values = {name: value for name, value in asdict(candidate).items() if name != "backend"}
    headroom_s = _headroom_s(candidate, record)
    chosen = candidate.backend == choice.chosen
    return {
        "backend": candidate.backend,
        **{f"{name.removesuffix('_s')}_ms": _ms(value) for name, value in values.items()},
        "headroom_ms": {name: _ms(value) for name, value in headroom_s.items()},
        "chosen": chosen,
        "why": f"chosen: {choice.why}" if chosen else _why_not(headroom_s, choice.quantile),
    }


def _headroom_s(candidate: Candidate, record: RequestRecord) -> dict[str, float]:
    """By metric with a bound and a forecast: the bound minus the forecast at the SLO's quantile."""
    size = record.usage.prompt_tokens or record.request.prompt_tokens, max(1, record.usage.output_tokens)
    bounds_s = record.request.slo.in_base(float(size[0]), float(size[1])).bounds_s()[:BASE]
    tails_s = (candidate.ttft_tail_s, candidate.tpot_tail_s, candidate.e2e_tail_s)
    pairs = zip(SLO_METRICS[:BASE], bounds_s, tails_s, strict=True)
    return {m.name: bound_s - tail_s for m, bound_s, tail_s in pairs if isfinite(bound_s) and isfinite(tail_s)}


def _why_not(headroom_s: Mapping[str, float], quantile: float) -> str:
    missed = [f"{name.upper()} by {-1e3 * each_s:,.1f} ms" for name, each_s in headroom_s.items() if each_s < 0.0]
    if missed:
        return f"forecast at quantile {quantile:g} exceeds the bound of {', '.join(missed)}"
    if not headroom_s:
        return "the policy read no forecast for a bound"
    return "would meet the SLO; the policy preferred the chosen one"


def _decision(decision: Send | Refuse) -> dict[str, Any]:
    if isinstance(decision, Send):
        sent = {"send_to": decision.backend, "attempt": decision.attempt, "why": decision.why}
        return {**sent, "predicted_ttft_ms": _ms(decision.predicted_ttft_s)}
    return {"refuse": decision.reason.value, "why": decision.why}


def _ms(seconds: float) -> float | None:
    """Milliseconds with three digits; None for a time that never came or a bound that is not set."""
    return round(seconds * 1e3, 3) if isfinite(seconds) else None
