"""The service that KEDA calls: how many replicas are advised, as a metric whose target is one for each replica.

KEDA makes an HPA of it, whose number of replicas is the metric over the target: the advised number. Without advice, or
with advice that is old, every call fails, and KEDA leaves the replicas as they are. Must not depend on how advice comes
about.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from time import monotonic
from typing import Any, Final

import grpc

from router.keda.messages import (
    PACKAGE,
    GetMetricSpecResponse,
    GetMetricsRequest,
    GetMetricsResponse,
    IsActiveResponse,
    MetricSpec,
    MetricValue,
    ScaledObjectRef,
)

METRIC: Final = "headroom-replicas"
_STREAMS_MAX: Final = 1_000  # of one connection
_METADATA: Final = ("model", "variant")


class KedaService:
    """The advice of one autoscaler, and the server that gives it out."""

    def __init__(self, stale_s: float, clock: Callable[[], float] = monotonic) -> None:
        """``stale_s``: how old advice may be."""
        self._stale_s, self._clock = stale_s, clock
        self._advised: dict[tuple[str, str], tuple[int, float]] = {}  # by model and variant: replicas, and when
        self._changed = asyncio.Event()
        self._server: Any = None
        self.port = 0

    def advise(self, model: str, variant: str, replicas: int, age_s: float = 0.0) -> bool:
        """Take advice that is so old; whether it is another than before."""
        before, fresh = self._advised.get((model, variant)), self._fresh((model, variant))
        self._advised[model, variant] = replicas, self._clock() - max(age_s, 0.0)
        if fresh != replicas:  # also where the same number had grown old: a stream that began since has nothing yet
            self._changed.set()
            self._changed = asyncio.Event()
        return before is None or before[0] != replicas

    async def start(self, address: str, certificate: tuple[Path, Path] | None) -> None:
        """Listen at ``host:port``; *certificate*: its file and its key's. Raises OSError."""
        if self._server is not None:
            return
        server = grpc.aio.server(options=[("grpc.max_concurrent_streams", _STREAMS_MAX), ("grpc.so_reuseport", 0)])
        server.add_generic_rpc_handlers((self._handlers(),))
        try:
            if certificate is None:
                self.port = server.add_insecure_port(address)
            else:
                file, key = (path.read_bytes() for path in certificate)
                self.port = server.add_secure_port(address, grpc.ssl_server_credentials([(key, file)]))
        except (RuntimeError, ValueError) as error:
            raise OSError(f"cannot listen at {address}: {error}") from None
        await server.start()
        self._server = server

    async def close(self) -> None:
        """Stop listening, and forget what was advised."""
        self._advised.clear()
        if self._server is not None:
            await self._server.stop(0)
            self._server = None

    def _handlers(self) -> Any:
        one, many = grpc.unary_unary_rpc_method_handler, grpc.unary_stream_rpc_method_handler
        ref, request = ScaledObjectRef.FromString, GetMetricsRequest.FromString
        active, spec = IsActiveResponse.SerializeToString, GetMetricSpecResponse.SerializeToString
        return grpc.method_handlers_generic_handler(
            f"{PACKAGE}.ExternalScaler",
            {
                "IsActive": one(self._is_active, ref, active),
                "StreamIsActive": many(self._stream_is_active, ref, active),
                "GetMetricSpec": one(self._metric_spec, ref, spec),
                "StreamMetricSpec": many(self._stream_metric_spec, ref, spec),
                "GetMetrics": one(self._metrics, request, GetMetricsResponse.SerializeToString),
            },
        )

    # -- calls ---------------------------------------------------------------------------------------------------

    async def _is_active(self, ref: Any, context: Any) -> Any:
        return IsActiveResponse(result=await self._replicas(ref, context) > 0)

    async def _stream_is_active(self, ref: Any, context: Any) -> AsyncIterator[Any]:
        """At once, and at every change. Nothing while there is no fresh advice."""
        place, sent = await _place(ref, context), None
        while True:
            changed, found = self._changed, self._fresh(place)
            if found is not None and (found > 0) != sent:
                sent = found > 0
                yield IsActiveResponse(result=sent)
            await changed.wait()

    async def _metric_spec(self, ref: Any, context: Any) -> Any:
        await _place(ref, context)
        return GetMetricSpecResponse(metricSpecs=[MetricSpec(metricName=METRIC, targetSize=1, targetSizeFloat=1.0)])

    async def _stream_metric_spec(self, ref: Any, context: Any) -> AsyncIterator[Any]:
        """The spec at once; it never changes, so nothing follows for as long as KEDA keeps the stream."""
        yield await self._metric_spec(ref, context)
        await asyncio.Event().wait()

    async def _metrics(self, request: Any, context: Any) -> Any:
        replicas = await self._replicas(request.scaledObjectRef, context)
        value = MetricValue(metricName=METRIC, metricValue=replicas, metricValueFloat=replicas)
        return GetMetricsResponse(metricValues=[value])

    async def _replicas(self, ref: Any, context: Any) -> int:
        place = await _place(ref, context)
        found = self._fresh(place)
        if found is None:
            model, variant = place
            why = f"there is no advice of the last {self._stale_s:g} s for model {model!r}, variant {variant!r}"
            await context.abort(grpc.StatusCode.UNAVAILABLE, why)
            raise AssertionError  # abort raises
        return found

    def _fresh(self, place: tuple[str, str]) -> int | None:
        replicas, at_s = self._advised.get(place, (0, float("-inf")))
        return replicas if self._clock() - at_s <= self._stale_s else None


async def _place(ref: Any, context: Any) -> tuple[str, str]:
    """The model and the variant of a scaled object; a call without them fails."""
    found = [str(ref.scalerMetadata.get(key, "")) for key in _METADATA]
    if not all(found):
        missing = _METADATA[found.index("")]
        where = f"{ref.namespace}/{ref.name}"[:300]
        await context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"{where}: metadata: {missing} is missing")
    return found[0], found[1]
