"""The sections of a config about logs and traces, as frozen, validated values. Must not depend on what writes them."""

from pathlib import Path
from typing import Annotated, Any, Final, Literal
from urllib.parse import urlsplit

from pydantic import BeforeValidator, Field, field_validator

from router.config.section import HttpUrl, Name, Section

_GRPC_PORT: Final = 4317


def _off(value: Any) -> Any:
    """YAML reads a bare ``off`` as false."""
    return "off" if value is False else value


class Log(Section):
    """What is logged beside the record.

    ``format``: of the process's own log on standard error; ``access``: one line a request that has ended, in which
    form, to ``access_file`` (left out: standard output).
    """

    format: Literal["text", "json"] = "text"
    access: Annotated[Literal["off", "text", "json"], BeforeValidator(_off)] = "off"
    access_file: Path | None = None


class Tracing(Section):
    """Traces by OpenTelemetry, to ``endpoint``: a collector that takes OTLP over HTTP (port 4318; ``/v1/traces`` unless
    the URL has a path).

    ``sample``: the share of traces that are written where the client's ``traceparent`` has not decided it;
    ``clients_decide``: whether that decision counts (false where clients are not trusted: a trace costs as much as
    several requests); ``service``: the name of this router in them. Headers, certificates and attributes of the
    resource are taken from the environment (``OTEL_EXPORTER_OTLP_HEADERS``, ``OTEL_EXPORTER_OTLP_CERTIFICATE``,
    ``OTEL_RESOURCE_ATTRIBUTES``).
    """

    endpoint: HttpUrl
    sample: Annotated[float, Field(ge=0, le=1)] = 0.01
    clients_decide: bool = True
    service: Name = "headroom"

    @field_validator("endpoint")
    @classmethod
    def _speaks_http(cls, endpoint: str) -> str:
        parts = urlsplit(endpoint)
        if parts.port == _GRPC_PORT and not parts.path.strip("/"):
            raise ValueError(
                f"port {_GRPC_PORT} is a collector's for gRPC; expected that for HTTP, usually 4318 (with a path, such "
                "as /v1/traces, any port is taken)"
            )
        return endpoint

    @property
    def url(self) -> str:
        """Where spans are sent."""
        return self.endpoint if urlsplit(self.endpoint).path.strip("/") else f"{self.endpoint.rstrip('/')}/v1/traces"
