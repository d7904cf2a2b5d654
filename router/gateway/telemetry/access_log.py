"""One line a request that has ended: who sent what, where it went, how long each part took, beside what was forecast.

No line has text of a prompt or of a reply. Must not depend on sockets. deploy/docs/pages/howto/telemetry.md lists the
fields; the simulator reads the JSON form as a trace (simulator/traces/formats/access_log.py).
"""

import re
from collections.abc import Callable
from datetime import UTC, datetime
from math import isnan
from time import time
from typing import Any, Final

import orjson

from router.core.columns import E2E, TPOT, TTFT
from router.core.decisions import EndState, RequestRecord
from router.core.errors import Reason
from router.core.slo_metrics import BASE, SLO_METRICS
from router.gateway.telemetry.line_sink import LineSink
from router.gateway.traffic.request_log import RequestLog

VERSION: Final = 1
_ENGINES_FAULT: Final = {Reason.BACKEND_FAILED, Reason.FIRST_BYTE_LATE}
_PLAIN: Final = re.compile(r"[-+\w./:@%#*,;()\[\]]+")  # stands in a line of text without quotes

Peer = tuple[str, int] | None
Fields = dict[str, Any]


class AccessLog:
    """A RequestObserver."""

    def __init__(
        self,
        sink: LineSink,
        form: str,
        router: str,
        clock: Callable[[], float],
        wall: Callable[[], float] = time,
    ) -> None:
        """*form*: ``json`` or ``text``; *clock*: of the records; *wall*: seconds since the epoch."""
        self._sink, self._router, self._clock, self._wall = sink, router, clock, wall
        self._line: Callable[[Fields], bytes] = _json if form == "json" else _text
        self._second, self._second_text = -1, ""

    @property
    def dropped(self) -> int:
        """Lines that were not written."""
        return self._sink.dropped

    def ended(self, log: RequestLog) -> None:
        """A request that the core routed has ended."""
        arrived_s = self._wall() - (self._clock() - log.record.request.arrived_s)
        self._sink.write(self._line(_fields(self._stamp(arrived_s), self._router, log)))

    def rejected(self, path: str, status: int, peer: Peer) -> None:
        """A request was answered with an error before it reached the core."""
        fields: Fields = {
            "access_log": VERSION,
            "time": self._stamp(self._wall()),
            "router": self._router,
            "client": _address(peer),
            "path": path,
            "status": status,
            "termination": "PR",
            "outcome": "rejected",
        }
        self._sink.write(self._line(fields))

    def _stamp(self, at_s: float) -> str:
        """A time in UTC, to the millisecond. The part up to the second is made once a second."""
        milliseconds = int(at_s * 1e3)
        second = milliseconds // 1_000
        if second != self._second:
            self._second = second
            self._second_text = datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S.")
        return f"{self._second_text}{milliseconds % 1_000:03d}Z"

    def close(self) -> None:
        """Write what is left."""
        self._sink.close()


def termination(record: RequestRecord) -> str:
    """Two letters, as HAProxy has them: who ended the request, and during what; ``--``: it was served.

    C: the client left, S: the engine failed, P: the router refused it; Q: it was held or being routed, H: it was sent
    and no token had come, D: the reply had begun.
    """
    if record.outcome is EndState.SERVED:
        return "--"
    if record.outcome is EndState.LEFT:
        cause = "C"
    else:
        cause = "S" if record.outcome is EndState.BROKEN or record.reason in _ENGINES_FAULT else "P"
    return cause + ("Q" if not record.attempts else "H" if isnan(record.first_token_s) else "D")


def _fields(stamp: str, router: str, log: RequestLog) -> Fields:
    record = log.record
    request, usage, slo = record.request, record.usage, record.request.slo
    values_s = record.latencies_s()
    fields: Fields = {
        "access_log": VERSION,
        "time": stamp,
        "router": router,
        "client": _address(log.peer),
        "path": log.path,
        "status": log.status,
        "termination": termination(record),
        "outcome": record.outcome,
        "reason": record.reason,
        "request_id": log.wire_id,
        "id": request.id,
        "trace_id": f"{log.trace.trace_id:032x}" if log.trace is not None else None,
        "tenant": request.tenant,
        "session": request.session,
        "model": request.requested_model or request.model,
        "served_model": record.served_model if record.backend else None,
        "fallback": request.fallback or None,
        "fallback_why": record.fallback_why or None,
        "slo_class": request.slo_class,
        "priority": request.priority,
        "stream": log.stream,
        "backend": record.backend or None,
        "attempts": record.attempts,
        "held_ms": _ms(record.held_s),
        "queue_ms": _ms(record.queue_s),
        "connect_ms": _ms(log.connect_s),
        "first_token_ms": _ms(record.first_token_s - record.sent_s),
        "ttft_ms": _ms(values_s[TTFT]),
        "tpot_ms": _ms(values_s[TPOT]),
        "e2e_ms": _ms(values_s[E2E]),
        "ttft_slo_ms": _ms(slo.ttft_s),
        "tpot_slo_ms": _ms(slo.tpot_s),
        "e2e_slo_ms": _ms(slo.e2e_s),
        "predicted_ttft_ms": _ms(record.predicted_ttft_s),
        "predicted_tpot_ms": _ms(record.predicted_tpot_s),
        "predicted_e2e_ms": _ms(record.predicted_e2e_s),
        "gap_max_ms": _ms(log.gap_max_s),
        "slo_met": record.slo_met if record.judged else None,
        "slo_source": log.slo_source,
        "prompt_tokens": usage.prompt_tokens or request.prompt_tokens,
        "output_tokens": usage.output_tokens,
        "cached_tokens": usage.cached_tokens,
        "output_tokens_estimated": usage.estimated,
        "output_tokens_max": request.output_tokens_max,
        "sequences": request.sequences,
        "request_bytes": log.request_bytes,
        "reply_bytes": log.reply_bytes,
    }
    if len(SLO_METRICS) > BASE:
        _derived(fields, record)
    return fields


def _derived(fields: Fields, record: RequestRecord) -> None:
    """Metrics beside TTFT, TPOT and E2E that an SLO can bound."""
    values_s, bounds_s = record.latencies_s()[BASE:], record.request.slo.bounds_s()[BASE:]
    for metric, value_s, bound_s in zip(SLO_METRICS[BASE:], values_s, bounds_s, strict=True):
        fields[metric.milliseconds], fields[f"{metric.name}_slo_ms"] = _ms(value_s), _ms(bound_s)


def _address(peer: Peer) -> str:
    return f"{peer[0]}:{peer[1]}" if peer is not None else ""


def _ms(seconds: float) -> float | None:
    """Milliseconds with three digits; None for a time that never came or a bound that is not set."""
    if seconds - seconds != 0.0:  # nan or inf
        return None
    return int(seconds * 1e6 + 0.5) / 1e3  # round() to digits costs twice as much


def _json(fields: Fields) -> bytes:
    return orjson.dumps(fields, option=orjson.OPT_APPEND_NEWLINE)


def _text(fields: Fields) -> bytes:
    """Time, client, path, status and termination; then ``name=value`` for what there is of the rest."""
    named = dict(fields)
    del named["access_log"]
    begin = " ".join(str(named.pop(name)) or "-" for name in ("time", "client", "path", "status", "termination"))
    rest = " ".join(f"{name}={_quoted(value)}" for name, value in named.items() if value is not None and value != "")
    return f"{begin} {rest}\n".encode("utf-8", "replace")


def _quoted(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    text = str(value)
    return text if _PLAIN.fullmatch(text) else orjson.dumps(text).decode()
