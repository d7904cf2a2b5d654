"""One line a request that has ended: who sent what, where it went, how long each part took, beside what was forecast.

No line has text of a prompt or of a reply. Must not depend on sockets. deploy/README.md lists the fields; the
simulator reads the JSON form as a trace (simulator/traces/formats/access_log.py).
"""

import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from math import isfinite, isnan
from time import time
from typing import Any, Final

import orjson

from router.core.decisions import EndState, RequestRecord
from router.core.errors import Reason
from router.core.slo_metrics import SLO_METRICS
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
        self._line = _json if form == "json" else _text

    @property
    def dropped(self) -> int:
        """Lines that were not written."""
        return self._sink.dropped

    def ended(self, log: RequestLog) -> None:
        """A request that the core routed has ended."""
        arrived_s = self._wall() - (self._clock() - log.record.request.arrived_s)
        head = _head(arrived_s, self._router, log.peer, log.path, log.status)
        self._sink.write(self._line(head | _fields(log)))

    def rejected(self, path: str, status: int, peer: Peer) -> None:
        """A request was answered with an error before it reached the core."""
        head = _head(self._wall(), self._router, peer, path, status)
        self._sink.write(self._line(head | {"termination": "PR", "outcome": "rejected"}))

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


def _head(at_s: float, router: str, peer: Peer, path: str, status: int) -> Fields:
    stamp = datetime.fromtimestamp(at_s, UTC).isoformat(timespec="milliseconds")
    return {
        "access_log": VERSION,
        "time": stamp[:-6] + "Z",
        "router": router,
        "client": f"{peer[0]}:{peer[1]}" if peer else "",
        "path": path,
        "status": status,
    }


def _fields(log: RequestLog) -> Fields:
    record = log.record
    request, usage = record.request, record.usage
    fields: Fields = {
        "termination": termination(record),
        "outcome": record.outcome.value,
        "reason": record.reason.value if record.reason else None,
        "request_id": log.wire_id,
        "id": request.id,
        "trace_id": f"{log.trace.trace_id:032x}" if log.trace is not None else None,
        "tenant": request.tenant,
        "session": request.session,
        "model": request.model,
        "slo_class": request.slo_class,
        "priority": request.priority,
        "stream": log.stream,
        "backend": record.backend or None,
        "attempts": record.attempts,
        "held_ms": _ms(record.held_s),
        "queue_ms": _ms(record.queue_s),
        "connect_ms": _ms(log.connect_s),
        "first_token_ms": _ms(record.first_token_s - record.sent_s),
    }
    for metric, value_s, bound_s in zip(SLO_METRICS, record.latencies_s(), request.slo.bounds_s(), strict=True):
        fields[metric.milliseconds] = _ms(value_s)
        if isfinite(bound_s):
            fields[f"{metric.name}_slo_ms"] = _ms(bound_s)
    return fields | {
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


def _ms(seconds: float) -> float | None:
    return round(seconds * 1e3, 3) if isfinite(seconds) else None


def _json(fields: Fields) -> bytes:
    return orjson.dumps(fields, option=orjson.OPT_APPEND_NEWLINE)


def _text(fields: Mapping[str, Any]) -> bytes:
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
