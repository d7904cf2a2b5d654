"""An OpenTelemetry collector on a real socket: takes OTLP over HTTP and keeps what it decodes."""

import asyncio
import gzip
from typing import Any, Self

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

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


class Collector:
    """The collector; ``spans``: all that came. ``status``: of its answers; ``bodies``: the requests as they came."""

    def __init__(self, status: int = 200) -> None:
        self.spans: list[Span] = []
        self.bodies: list[bytes] = []
        self.paths: list[str] = []
        self.status = status
        self.port = 0
        self._server: asyncio.Server | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def named(self, name: str) -> list[Span]:
        """The spans whose name begins so."""
        return [span for span in self.spans if span.name.startswith(name)]

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := (await reader.readuntil(b"\r\n\r\n")).lower():
                fields = dict(line.split(b": ", 1) for line in head.split(b"\r\n")[1:] if line)
                body = await reader.readexactly(int(fields[b"content-length"]))
                self.paths.append(head.split(b" ")[1].decode())
                self._take(gzip.decompress(body) if fields.get(b"content-encoding") == b"gzip" else body)
                writer.write(b"HTTP/1.1 %d X\r\ncontent-length: 0\r\n\r\n" % self.status)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    def _take(self, body: bytes) -> None:
        self.bodies.append(body)
        if self.status != 200:
            return
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            of = plain(resource.resource.attributes)
            self.spans += [Span(span, of) for scope in resource.scope_spans for span in scope.spans]
