"""Traces: what a collector gets of a real gateway's requests, and what an engine gets to put its own spans under."""

import re
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from google.protobuf.json_format import MessageToJson
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from router.core.errors import ConfigError
from router.gateway.config import plan as plans
from router.gateway.config.plan import plan_file
from router.gateway.traffic.request_trace import TraceSource
from router.search_path import environment
from simulator.traces import read_trace
from tests.fakes_otlp import Collector, Span
from tests.fakes_router import HEALTHY, Router, backend, config, router, write
from tests.fakes_wire import ScriptedEngine, reply, stream
from tests.pages import Pages

USAGE = {"prompt_tokens": 12, "completion_tokens": 2, "total_tokens": 14}
TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
CLIENTS = {"traceparent": f"00-{TRACE}-{PARENT}-01", "tracestate": "vendor=x"}
SERVER, CLIENT = 2, 3  # SpanKind in OTLP


def section(url: str, share: float = 1.0) -> str:
    classes = "slo_classes: {default: {ttft_ms: 60000, tpot_ms: 9000}}\n"
    return f"tracing: {{endpoint: '{url}', sample: {share}}}\n{classes}"


@asynccontextmanager
async def traced(
    folder: Path, engines: list[ScriptedEngine], url: str, share: float = 1.0, more: str = ""
) -> AsyncIterator[Router]:
    """A router with these engines that writes traces to *url*; when it has ended they have all been written."""
    async with Pages(dict(HEALTHY)) as pages:
        backends = [backend(f"e{number}", engine, pages) for number, engine in enumerate(engines)]
        async with router(folder / "r.yaml", config(*backends, more=section(url, share) + more)) as made:
            yield made


def header(engine: ScriptedEngine, name: str, number: int = 0) -> list[str]:
    """Each value of a field of an engine's request."""
    return re.findall(rf"(?im)^{name}: (.*?)\r$", engine.requests[number].decode())


async def test_a_request_is_a_span_with_its_decision_and_attempt_under_the_clients(tmp_path: Path) -> None:
    """And the engine gets the attempt's span id, so that its own spans stand under that."""
    async with (
        Collector() as collector,
        ScriptedEngine([stream("a", "b", usage=USAGE)]) as engine,
        traced(tmp_path, [engine], collector.url) as made,
    ):
        await made.chat(headers=CLIENTS | {"x-request-id": "r1", "x-session-id": "s"})
    (root,), (decision,), (attempt,) = (collector.named(name) for name in ("chat m", "decision", "attempt e0"))
    assert len(collector.spans) == 3
    assert collector.paths == ["/v1/traces"]
    assert {span.trace_id for span in collector.spans} == {TRACE}
    assert (root.parent_id, root.kind, root.state) == (PARENT, SERVER, "vendor=x")
    assert {decision.parent_id, attempt.parent_id} == {root.span_id}
    assert header(engine, "traceparent") == [f"00-{TRACE}-{attempt.span_id}-01"]
    assert header(engine, "tracestate") == ["vendor=x"]
    facts = {
        "gen_ai.operation.name": "chat", "gen_ai.provider.name": "headroom",
        "gen_ai.request.model": "m", "gen_ai.request.stream": True,
        "gen_ai.conversation.id": "s", "gen_ai.usage.input_tokens": 12, "gen_ai.usage.output_tokens": 2,
        "http.response.status_code": 200, "url.path": "/v1/chat/completions", "client.address": "127.0.0.1",
        "headroom.request_id": "r1", "headroom.outcome": "served", "headroom.backend": "e0", "headroom.attempts": 1,
        "headroom.slo_met": True, "headroom.slo_class": "default", "headroom.ttft_slo_ms": 60_000.0,
    }  # fmt: skip
    assert {name: root.attributes.get(name) for name in facts} == facts
    assert root.attributes["headroom.predicted.ttft_ms"] > 0
    assert not any("hello" in str(value) for span in collector.spans for value in span.attributes.values())
    assert root.resource["service.name"] == "headroom"
    _nested(root, decision)
    _nested(root, attempt)
    assert attempt.kind == CLIENT
    assert attempt.attributes["server.port"] == engine.port
    ((event, at_ns),) = attempt.events
    assert event == "first_token"
    assert attempt.begin_ns < at_ns <= attempt.end_ns


def _nested(outer: Span, inner: Span) -> None:
    assert outer.begin_ns <= inner.begin_ns <= inner.end_ns <= outer.end_ns


async def test_a_decision_has_its_forecast_its_headroom_and_the_runner_up(tmp_path: Path) -> None:
    """Of two equal backends each leaves nearly all of the SLO."""
    whole = [stream("a", "b", usage=USAGE)]
    async with (
        Collector() as collector,
        ScriptedEngine(whole) as one,
        ScriptedEngine(whole) as two,
        traced(tmp_path, [one, two], collector.url) as made,
    ):
        await made.chat()
    (decision,) = collector.named("decision")
    chosen, other = decision.attributes["headroom.backend"], decision.attributes["headroom.runner_up.backend"]
    assert {chosen, other} == {"e0", "e1"}
    assert decision.attributes["headroom.candidates"] == 2
    assert 0.5 < decision.attributes["headroom.runner_up.headroom_ratio"] <= 1.0
    assert 0.5 < decision.attributes["headroom.headroom_ratio"] <= 1.0
    assert decision.attributes["headroom.predicted.tpot_ms"] > 0.0
    assert decision.attributes["headroom.why"]


async def test_each_attempt_is_a_span_and_a_failed_one_says_why(tmp_path: Path) -> None:
    """The retry has another id, which the second engine gets."""
    bad = [reply(b'{"error": {"message": "no"}}', 500)]
    async with (
        Collector() as collector,
        ScriptedEngine(bad) as first,
        ScriptedEngine([stream("a")]) as second,
        traced(tmp_path, [first, second], collector.url, more="policy: {routing: round_robin}\n") as made,
    ):
        await made.chat()
        await made.chat()
    attempts = collector.named("attempt")
    failed = next(span for span in attempts if span.error is not None)
    trace = [span for span in attempts if span.trace_id == failed.trace_id]
    assert [(span.name, span.attributes["headroom.attempt"]) for span in trace] == [
        ("attempt e0", 1),
        ("attempt e1", 2),
    ]
    assert failed.attributes["error.type"]
    assert failed.error
    assert "500" in failed.error
    assert not failed.events
    ids = {span.span_id for span in attempts}
    assert len(ids) == len(attempts) == len(first.requests) + len(second.requests)
    for engine in (first, second):
        for number in range(len(engine.requests)):
            (field,) = header(engine, "traceparent", number)
            assert field.split("-")[2] in ids


async def test_what_is_refused_is_a_span_with_its_reason(tmp_path: Path) -> None:
    """No backend serves the model: a decision, no attempt."""
    async with (
        Collector() as collector,
        ScriptedEngine([stream("a")]) as engine,
        traced(tmp_path, [engine], collector.url) as made,
    ):
        answer = await made.chat(body={"model": "other"})
    assert answer.status_code == 404
    (root,), (decision,) = collector.named("chat other"), collector.named("decision")
    assert root.attributes["error.type"] == decision.attributes["headroom.refused"] == "unknown-model"
    assert root.error is None  # the client's own error is none of this server's


async def test_a_client_decides_whether_its_trace_is_written(tmp_path: Path) -> None:
    """An engine gets that decision, and never one of its own to make."""
    async with (
        Collector() as collector,
        ScriptedEngine([stream("a")]) as engine,
        traced(tmp_path, [engine], collector.url, 1.0) as made,
    ):
        await made.chat(headers={"traceparent": f"00-{TRACE}-{PARENT}-00"})
    assert collector.spans == []
    ((field,),) = [header(engine, "traceparent")]
    assert field.startswith(f"00-{TRACE}-")
    assert field.endswith("-00")
    assert PARENT not in field


async def test_without_traces_the_clients_header_goes_to_the_engine(tmp_path: Path) -> None:
    """As it came."""
    async with (
        ScriptedEngine([stream("a")]) as engine,
        Pages(dict(HEALTHY)) as pages,
        router(tmp_path / "r.yaml", config(backend("a", engine, pages))) as made,
    ):
        await made.chat(headers=CLIENTS)
    assert header(engine, "traceparent") == [CLIENTS["traceparent"]]
    assert header(engine, "tracestate") == ["vendor=x"]


@pytest.mark.parametrize("status", [500, 0])
async def test_a_collector_that_fails_or_is_away_costs_spans_alone(tmp_path: Path, status: int) -> None:
    """Requests are served, the lost spans are counted once the exporter has given up, and the end is not held up."""
    async with Collector(status) as collector, ScriptedEngine([stream("a")]) as engine:
        url = collector.url if status else "http://127.0.0.1:9"
        async with traced(tmp_path, [engine], url) as made:
            for _ in range(3):
                assert (await made.chat()).status_code == 200
            gateway = made.gateway
            assert b"headroom_trace_spans_total" in (await made.get("/metrics")).content
    assert gateway.traces is not None
    assert gateway.traces.exported == 0


async def test_exported_spans_are_counted_and_are_a_trace_for_the_simulator(tmp_path: Path) -> None:
    """Each request once, although its attempts are spans too."""
    async with (
        Collector() as collector,
        ScriptedEngine([stream("a", "b", usage=USAGE)]) as engine,
        traced(tmp_path, [engine], collector.url) as made,
    ):
        for _ in range(2):
            await made.chat()
        traces = made.gateway.traces
    assert traces is not None
    assert (traces.exported, traces.failed) == (6, 0)
    file = tmp_path / "spans.json"
    (body,) = collector.bodies
    file.write_text(MessageToJson(ExportTraceServiceRequest.FromString(body)))
    reading = read_trace(file)
    assert reading.format == "OpenTelemetry GenAI"
    assert [(each.prompt_tokens, each.output_tokens) for each in reading.entries] == [(12, 2), (12, 2)]


async def test_buckets_of_histograms_name_a_trace(tmp_path: Path) -> None:
    """In OpenMetrics's format, for those who take it; the text format is as it was."""
    accept = {"accept": "application/openmetrics-text;version=1.0.0,text/plain;q=0.5"}
    async with (
        Collector() as collector,
        ScriptedEngine([stream("a", "b", usage=USAGE)]) as engine,
        traced(tmp_path, [engine], collector.url) as made,
    ):
        await made.chat()
        page, plain = await made.get("/metrics", headers=accept), await made.get("/metrics")
    assert page.headers["content-type"].startswith("application/openmetrics-text")
    assert plain.headers["content-type"].startswith("text/plain")
    assert "# {" not in plain.text
    families = {family.name: family for family in text_string_to_metric_families(page.text)}
    trace_id = collector.spans[0].trace_id
    for name in ("headroom_ttft_seconds", "headroom_tpot_seconds", "headroom_e2e_seconds"):
        found = [sample for sample in families[name].samples if sample.exemplar is not None]
        assert [sample.exemplar.labels for sample in found] == [{"trace_id": trace_id}]
        assert found[0].exemplar.value <= float(found[0].labels["le"])


async def test_a_line_of_the_access_log_names_its_trace(tmp_path: Path) -> None:
    """So that one leads to the other."""
    log = tmp_path / "access.log"
    more = f"log: {{access: text, access_file: {log}}}\n"
    async with (
        Collector() as collector,
        ScriptedEngine([stream("a")]) as engine,
        traced(tmp_path, [engine], collector.url, more=more) as made,
    ):
        await made.chat()
    assert f" trace_id={collector.spans[0].trace_id} " in log.read_text()


# ---- ids ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "given",
    [
        b"", b"00", b"00-" + b"0" * 32 + b"-00f067aa0ba902b7-01", b"ff-" + TRACE.encode() + b"-00f067aa0ba902b7-01",
        b"00-" + TRACE.encode() + b"-" + b"0" * 16 + b"-01", b"00-" + TRACE.upper().encode() + b"-00f067aa0ba902b7-01",
        b"00-" + TRACE.encode() + b"-00f067aa0ba902b7-01-more", b"00-" + TRACE.encode() + b"-00f067aa0ba902b7-011",
    ],
)  # fmt: skip
def test_a_traceparent_that_cannot_be_read_begins_a_new_trace(given: bytes) -> None:
    """With the tracestate that came with it left out (W3C Trace Context 3.2)."""
    trace = TraceSource(1.0).begin({b"traceparent": given, b"tracestate": b"vendor=x"})
    assert (trace.parent_id, trace.state, trace.sampled) == (0, "", True)
    assert trace.replaces == {b"traceparent", b"tracestate"}


def test_a_traceparent_of_a_later_version_is_read() -> None:
    """It may have more behind what is known of it."""
    trace = TraceSource(0.0).begin({b"traceparent": f"cc-{TRACE}-{PARENT}-01-more".encode()})
    assert (f"{trace.trace_id:032x}", f"{trace.parent_id:016x}", trace.sampled) == (TRACE, PARENT, True)


def test_clients_that_are_not_trusted_decide_nothing() -> None:
    """Their trace is continued, and sampled as any other: this id is over half of all, so not with a share of 0.1."""
    given = {b"traceparent": CLIENTS["traceparent"].encode(), b"tracestate": b"vendor=x"}
    trusted, other = TraceSource(0.1).begin(given), TraceSource(0.1, clients_decide=False).begin(given)
    assert (trusted.sampled, other.sampled) == (True, False)
    assert (other.trace_id, other.parent_id, other.state) == (trusted.trace_id, trusted.parent_id, "vendor=x")
    assert TraceSource(1.0, clients_decide=False).begin(given).sampled


def test_a_share_is_sampled_by_the_trace_id() -> None:
    """As the SDK's own sampler decides it, so that services with the same share keep the same traces."""
    from opentelemetry.sdk.trace.sampling import Decision, TraceIdRatioBased  # noqa: PLC0415

    source, theirs = TraceSource(0.25), TraceIdRatioBased(0.25)
    traces = [source.begin({}) for _ in range(2_000)]
    for trace in traces:
        decision = theirs.should_sample(None, trace.trace_id, "x").decision
        assert (decision is Decision.RECORD_AND_SAMPLE) == trace.sampled
    assert 300 < sum(trace.sampled for trace in traces) < 700
    assert len({trace.trace_id for trace in traces}) == len(traces)


def test_children_have_ids_of_their_own() -> None:
    """None is 0, which is no id."""
    trace = TraceSource(1.0).begin({})
    ids = {trace.span_id, *(trace.id_of(number, kind) for number in range(1, 9) for kind in (0, 1 << 20))}
    assert len(ids) == 17
    assert 0 not in ids


# ---- config ---------------------------------------------------------------------


GOOD = 'backends: [{name: a, url: "http://127.0.0.1:9", models: [m], card: l4, model: qwen3-4b}]\n'


@pytest.mark.parametrize(
    ("given", "url"),
    [
        ("http://c:4318", "http://c:4318/v1/traces"),
        ("http://c:4318/", "http://c:4318/v1/traces"),
        ("https://c/otlp/v1/traces", "https://c/otlp/v1/traces"),
    ],
)
def test_an_endpoint_without_a_path_has_the_usual_one(tmp_path: Path, given: str, url: str) -> None:
    """As the environment variable of the SDK is read."""
    write(tmp_path / "r.yaml", f"{GOOD}tracing: {{endpoint: '{given}'}}\n")
    tracing = plan_file(tmp_path / "r.yaml").settings.tracing
    assert tracing is not None
    assert tracing.url == url


def test_traces_without_the_package_name_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the config is read, by its line."""
    monkeypatch.setattr(plans, "_EXPORTER", "no_such_package.exporter")
    write(tmp_path / "r.yaml", f"{GOOD}tracing: {{endpoint: 'http://c:4318'}}\n")
    with pytest.raises(ConfigError, match=r"2: tracing: needs .* pip install 'headroom-router\[otel\]'"):
        plan_file(tmp_path / "r.yaml")


def test_without_traces_the_sdk_is_not_imported() -> None:
    """It takes longer than all else of a start. (Its API is imported by redis-py, where it is installed.)"""
    code = "import sys, router.gateway.serving; print([name for name in sys.modules if name in {names}])"
    code = code.format(names={"opentelemetry.sdk.trace", "opentelemetry.exporter.otlp.proto.http"})
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
