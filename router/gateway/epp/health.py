"""The health service of gRPC, as endpoint pickers have it: whether the process lives, and whether it decides."""

import asyncio
from collections.abc import Callable
from typing import Any, Final

import grpc

from router.gateway.epp.messages import (
    HEALTH,
    NOT_SERVING,
    PROCESSOR,
    SERVICE_UNKNOWN,
    SERVING,
    HealthCheckRequest,
    HealthCheckResponse,
)

_LIVE: Final = frozenset({"", "liveness"})
_READY: Final = frozenset({"readiness", PROCESSOR})
_WATCH_S: Final = 1.0


class Health:
    """Answers by ``ready``, at each call anew."""

    def __init__(self, ready: Callable[[], bool]) -> None:
        self._ready = ready

    def handler(self) -> grpc.GenericRpcHandler:
        """What a server takes."""
        read, write = HealthCheckRequest.FromString, HealthCheckResponse.SerializeToString
        methods = {
            "Check": grpc.unary_unary_rpc_method_handler(self._check, read, write),
            "Watch": grpc.unary_stream_rpc_method_handler(self._watch, read, write),
        }
        return grpc.method_handlers_generic_handler(HEALTH, methods)

    def _status(self, service: str) -> int:
        if service in _LIVE:
            return SERVING
        if service in _READY:
            return SERVING if self._ready() else NOT_SERVING
        return SERVICE_UNKNOWN

    async def _check(self, request: Any, context: Any) -> Any:
        status = self._status(request.service)
        if status == SERVICE_UNKNOWN:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"no service {request.service[:100]!r}")
        return HealthCheckResponse(status=status)

    async def _watch(self, request: Any, context: Any) -> None:
        shown = -1
        while True:
            status = self._status(request.service)
            if status != shown:
                shown = status
                await context.write(HealthCheckResponse(status=status))
            await asyncio.sleep(_WATCH_S)
