"""An OpenTelemetry collector on a real socket: takes OTLP over HTTP and keeps what it decodes."""

import asyncio
import gzip
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.http_server import HttpServer, Received, send

Attributes = dict[str, Any]


class Span:
    """One span as it came, with plain attributes."""

    def __init__(self, message: Any, resource: Attributes) -> None:
        self.name: str = message.name
        self.trace_id, self.span_id = message.trace_id.hex(), message.span_id.hex()
        self.parent_id: str = message.parent_span_id.hex()
        self.kind: int = message.kind
        self.begin_ns, self.end_ns = message.start_time_unix_nano, message.end_time_unix_nano
        self.attributes = plain(message.attributes)
        self.events: list[tuple[str, int]] = [(event.name, event.time_unix_nano) for event in message.events]
        self.error: str | None = message.status.message if message.status.code == 2 else None
        self.state: str = message.trace_state
        self.resource = resource


def plain(attributes: Any) -> Attributes:
    """Attributes as a dict."""
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in attributes}


class Collector(HttpServer):
    """The collector; ``spans``: all that came. ``status``: of its answers; ``bodies``: the requests as they came."""

    def __init__(self, status: int = 200) -> None:
        super().__init__()
        self.spans: list[Span] = []
        self.bodies: list[bytes] = []
        self.paths: list[str] = []
        self.status = status

    def named(self, name: str) -> list[Span]:
        """The spans whose name begins so."""
        return [span for span in self.spans if span.name.startswith(name)]

    async def respond(self, request: Received, writer: asyncio.StreamWriter) -> None:
        self.paths.append(request.target)
        gzipped = request.headers.get("content-encoding") == "gzip"
        self._take(gzip.decompress(request.body) if gzipped else request.body)
        send(writer, self.status)

    def _take(self, body: bytes) -> None:
        self.bodies.append(body)
        if self.status != 200:
            return
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            of = plain(resource.resource.attributes)
            self.spans += [Span(span, of) for scope in resource.scope_spans for span in scope.spans]
