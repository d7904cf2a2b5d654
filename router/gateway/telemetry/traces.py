"""OpenTelemetry traces: a span a sampled request, with children for its hold, decisions and attempts.

Imported only where ``tracing`` is configured. Spans are made when a request has ended, of what was noted meanwhile, and
exported by a thread of the official SDK: no request waits, and a collector that is away costs spans alone. Attributes
are those of the GenAI semantic conventions, and ``headroom.*`` for what they have no name for. No span has text of a
prompt.
"""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from math import inf, isfinite, isnan
from time import time
from typing import Any, Final

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags, TraceState

from router.core.decisions import EndState, RequestRecord, Send
from router.core.explain import Candidate, Explanation
from router.core.slo_metrics import SLO_METRICS
from router.gateway.telemetry.genai import PROVIDER, operation
from router.gateway.traffic.request_log import RequestLog
from router.gateway.traffic.request_trace import OTHER, RequestTrace, TracedAttempt
from router.version import VERSION

QUEUE_MAX: Final = 8_192  # spans that wait for the collector
BATCH_MAX: Final = 512
PERIOD_S: Final = 5.0  # an export costs as much as a few spans
TIMEOUT_S: Final = 5.0  # of one export
FLUSH_S: Final = 3.0  # how long the end waits for the collector
_SERVER_ERROR: Final = 500
_HOLD: Final = 1  # numbers of children that are no attempts
_DECISION: Final = 2
_SAMPLED: Final = TraceFlags(TraceFlags.SAMPLED)
_UNSET: Final = Status()

Attributes = dict[str, str | int | float | bool]
Explain = Callable[[str], Explanation | None]


class Traces:
    """A RequestObserver that writes spans."""

    def __init__(
        self,
        endpoint: str,
        service: str,
        router: str,
        explain: Explain,
        clock: Callable[[], float],
        wall: Callable[[], float] = time,
    ) -> None:
        """*endpoint*: the URL that takes OTLP over HTTP; *explain*: the core's explanation of a request's last choice;
        *clock*: of the records; *wall*: seconds since the epoch.
        """
        self._explain, self._clock, self._wall = explain, clock, wall
        self._exporter = _Counted(OTLPSpanExporter(endpoint=endpoint, timeout=TIMEOUT_S))
        names = {"service.name": service, "service.version": VERSION, "service.instance.id": router}
        self._resource = Resource.create(names)
        self._scope = InstrumentationScope("headroom", VERSION)
        self._processor = BatchSpanProcessor(
            self._exporter,
            max_queue_size=QUEUE_MAX,
            schedule_delay_millis=PERIOD_S * 1e3,
            max_export_batch_size=BATCH_MAX,
        )

    def rejected(self, path: str, status: int, peer: tuple[str, int] | None) -> None:
        """A request that no core saw has no trace: it took no time but its own reading."""

    def ended(self, log: RequestLog) -> None:
        """A request has ended: write its spans if it is sampled."""
        trace = log.trace
        if trace is not None and trace.sampled:
            _Writer(self, log, trace, self._wall() - self._clock()).write()

    def add(
        self, name: str, context: SpanContext, parent: SpanContext | None, at: tuple[int, int], **facts: Any
    ) -> None:
        """A span from begin to end (nanoseconds since the epoch).

        Not made by the SDK's tracer: that gives a span its id when it begins, and these had theirs long before; and it
        costs three times as much.
        """
        scope, resource = self._scope, self._resource
        self._processor.on_end(
            ReadableSpan(
                name, context, parent, resource, start_time=at[0], end_time=at[1], instrumentation_scope=scope, **facts
            )
        )

    @property
    def exported(self) -> int:
        """Spans that the collector took."""
        return self._exporter.exported

    @property
    def failed(self) -> int:
        """Spans that the collector did not take."""
        return self._exporter.failed

    def explained(self, request_id: str) -> Explanation | None:
        """The core's explanation of a request's last choice."""
        return self._explain(request_id)

    def close(self) -> None:
        """Export what is left, unless that takes too long."""
        ending = threading.Thread(target=self._processor.shutdown, name="traces end", daemon=True)
        ending.start()
        ending.join(FLUSH_S)


class _Counted(SpanExporter):
    """An exporter that counts spans by whether the collector took them."""

    def __init__(self, inner: SpanExporter) -> None:
        self._inner = inner
        self.exported = self.failed = 0

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        result = SpanExportResult.FAILURE
        try:
            result = self._inner.export(spans)
        finally:
            if result is SpanExportResult.SUCCESS:
                self.exported += len(spans)
            else:
                self.failed += len(spans)
        return result

    def shutdown(self) -> None:
        self._inner.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        return self._inner.force_flush(timeout_millis)


class _Writer:
    """Writes the spans of one request. ``since_s``: seconds since the epoch at which the records' clock was 0."""

    def __init__(self, traces: Traces, log: RequestLog, trace: RequestTrace, since_s: float) -> None:
        self._traces, self._log, self._trace, self._since_s = traces, log, trace, since_s
        self._record = log.record
        self._begin, self._end = self._ns(log.record.request.arrived_s), self._ns(log.record.ended_s)

    def _ns(self, at_s: float) -> int:
        return round((at_s + self._since_s) * 1e9)

    def _context(self, span_id: int) -> SpanContext:
        return SpanContext(self._trace.trace_id, span_id, False, _SAMPLED, self._state)

    def write(self) -> None:
        trace, log = self._trace, self._log
        self._state = TraceState.from_header([trace.state]) if trace.state else TraceState()
        self._root = self._context(trace.span_id)
        self._children()
        failed = log.status >= _SERVER_ERROR or self._record.outcome is EndState.BROKEN
        why = self._record.reason or self._record.outcome
        self._traces.add(
            f"{operation(log.path)} {log.record.request.model}",
            self._root,
            SpanContext(trace.trace_id, trace.parent_id, True, _SAMPLED, self._state) if trace.parent_id else None,
            (self._begin, self._end),
            kind=SpanKind.SERVER,
            attributes=_request_attributes(log),
            status=Status(StatusCode.ERROR, why) if failed else _UNSET,
        )

    def _children(self) -> None:
        attempts, record = self._trace.attempts, self._record
        first_s = attempts[0].sent_s if attempts else record.ended_s
        if record.held_s > 0.0:
            begin_s = max(record.request.arrived_s, first_s - record.held_s)
            self._child(
                "hold", self._trace.id_of(_HOLD, OTHER), begin_s, first_s, {"headroom.held_ms": _ms(record.held_s)}
            )
        self._decisions()
        for attempt in attempts:
            self._attempt(attempt)

    def _decisions(self) -> None:
        log, record = self._log, self._record
        sent_s = {attempt.number: attempt.sent_s for attempt in self._trace.attempts}
        last = max(sent_s, default=None)
        for number, decision in enumerate(log.decisions):
            span_id = self._trace.id_of(_DECISION + number, OTHER)
            if isinstance(decision, Send):
                at_s = sent_s.get(decision.attempt, record.ended_s)
                attributes: Attributes = {"headroom.backend": decision.backend, "headroom.why": decision.why}
                if decision.attempt == last:
                    attributes |= self._choice(decision.backend)
            else:
                at_s = record.ended_s
                attributes = {"headroom.refused": decision.reason.value, "headroom.why": decision.why}
            first = number == 0 and not record.held_s
            self._child("decision", span_id, record.request.arrived_s if first else at_s, at_s, attributes)

    def _choice(self, backend: str) -> Attributes:
        """Forecast and headroom of the chosen backend and of the best of the others, as they were at the choice."""
        choice = self._traces.explained(self._record.request.id)
        if choice is None:
            return {}
        used_s = choice.decided_s - self._record.request.arrived_s
        room = {each.backend: _headroom(each, self._record, used_s) for each in choice.candidates}
        found: Attributes = {"headroom.candidates": choice.compared}
        by_name = {each.backend: each for each in choice.candidates}
        others = [name for name in room if name != backend]
        second = max(others, key=lambda name: room[name], default="")
        for prefix, name in (("headroom", backend), ("headroom.runner_up", second)):
            if name in by_name:
                found |= _forecast(prefix, by_name[name], room[name])
        if second:
            found["headroom.runner_up.backend"] = second
        return found

    def _attempt(self, attempt: TracedAttempt) -> None:
        target, record, failure = attempt.target, self._record, attempt.failure
        end_s = record.ended_s if isnan(attempt.ended_s) else attempt.ended_s
        attributes: Attributes = {
            "headroom.backend": target.name,
            "headroom.attempt": attempt.number,
            "server.address": target.host,
            "server.port": target.port,
            "gen_ai.provider.name": target.engine.name,
            "gen_ai.request.model": target.models.get(record.served_model, record.served_model),
        }
        if failure is not None:
            attributes["error.type"] = failure.kind.value
        elif attempt.aborted:
            attributes["headroom.aborted"] = True
        got = attempt.sent_s <= record.first_token_s <= end_s
        first = (Event("first_token", timestamp=self._ns(record.first_token_s)),) if got else ()
        self._traces.add(
            f"attempt {target.name}",
            self._context(self._trace.id_of(attempt.number)),
            self._root,
            (self._ns(attempt.sent_s), self._ns(end_s)),
            kind=SpanKind.CLIENT,
            attributes=attributes,
            events=first,
            status=Status(StatusCode.ERROR, failure.why) if failure is not None else _UNSET,
        )

    def _child(self, name: str, span_id: int, begin_s: float, end_s: float, attributes: Attributes) -> None:
        at = self._ns(begin_s), self._ns(end_s)
        self._traces.add(name, self._context(span_id), self._root, at, attributes=attributes)


def _request_attributes(log: RequestLog) -> Attributes:
    record = log.record
    request, usage = record.request, record.usage
    given: Mapping[str, str | float | None] = {
        "gen_ai.operation.name": operation(log.path),
        "gen_ai.provider.name": PROVIDER,
        "gen_ai.request.model": request.requested_model or request.model,
        "gen_ai.response.model": record.served_model if record.backend else None,
        "headroom.fallback_why": record.fallback_why or None,
        "gen_ai.request.stream": request.streamed,
        "gen_ai.request.max_tokens": request.output_tokens_max or None,
        "gen_ai.request.choice.count": request.sequences if request.sequences > 1 else None,
        "gen_ai.conversation.id": request.session or None,
        "gen_ai.usage.input_tokens": usage.prompt_tokens or request.prompt_tokens,
        "gen_ai.usage.output_tokens": usage.output_tokens,
        "gen_ai.usage.cache_read.input_tokens": usage.cached_tokens or None,
        "gen_ai.response.time_to_first_chunk": record.ttft_s if isfinite(record.ttft_s) else None,
        "url.path": log.path,
        "http.response.status_code": log.status or None,
        "client.address": log.peer[0] if log.peer else None,
        "error.type": _error(record),
        "headroom.request_id": log.wire_id,
        "headroom.id": request.id,
        "headroom.tenant": request.tenant or None,
        "headroom.slo_class": request.slo_class,
        "headroom.slo_source": log.slo_source,
        "headroom.slo_met": record.slo_met if record.judged else None,
        "headroom.outcome": record.outcome.value,
        "headroom.backend": record.backend or None,
        "headroom.attempts": record.attempts,
        "headroom.held_ms": _ms(record.held_s) if record.held_s else None,
        "headroom.connect_ms": _ms(log.connect_s) if log.connect_s else None,
    }
    found = {name: value for name, value in given.items() if value is not None}
    return found | dict(_times(record))


def _error(record: RequestRecord) -> str | None:
    """Why a request was not served; None where it was, or where its client left."""
    if record.reason is not None:
        return record.reason.value
    return record.outcome.value if record.outcome is EndState.BROKEN else None


def _times(record: RequestRecord) -> Iterator[tuple[str, float]]:
    """What was measured, allowed and predicted, where there is such a time."""
    predicted = (record.predicted_ttft_s, record.predicted_tpot_s, record.predicted_e2e_s)
    bounds_s = record.request.slo.bounds_s()
    for metric, value_s, bound_s in zip(SLO_METRICS, record.latencies_s(), bounds_s, strict=True):
        for name, seconds in ((metric.name, value_s), (f"{metric.name}_slo", bound_s)):
            if isfinite(seconds):
                yield f"headroom.{name}_ms", _ms(seconds)
    for metric, seconds in zip(SLO_METRICS, predicted, strict=False):
        if isfinite(seconds):
            yield f"headroom.predicted.{metric.name}_ms", _ms(seconds)


def _headroom(candidate: Candidate, record: RequestRecord, used_s: float) -> float:
    """The least share of a bound that a backend's forecast leaves at the SLO's quantile; -inf where none was made."""
    slo = record.request.slo
    rooms = [
        1.0 - (tail_s + spent_s) / bound_s
        for tail_s, bound_s, spent_s in (
            (candidate.ttft_tail_s, slo.ttft_s, used_s),
            (candidate.tpot_tail_s, slo.tpot_s, 0.0),
            (candidate.e2e_tail_s, slo.e2e_s, used_s),
        )
        if bound_s < inf
    ]
    return min((room for room in rooms if not isnan(room)), default=-inf)


def _forecast(prefix: str, candidate: Candidate, room: float) -> Attributes:
    times = {"ttft": candidate.ttft_s, "tpot": candidate.tpot_s, "e2e": candidate.e2e_s}
    found: Attributes = {f"{prefix}.predicted.{name}_ms": _ms(at_s) for name, at_s in times.items() if isfinite(at_s)}
    return found | ({f"{prefix}.headroom_ratio": round(room, 4)} if isfinite(room) else {})


def _ms(seconds: float) -> float:
    return round(seconds * 1e3, 3)
