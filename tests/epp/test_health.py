"""The health checks of gRPC that proxies and Kubernetes make."""

import grpc
import pytest
from grpc import aio

from router.gateway.epp.health import Health
from router.gateway.epp.messages import (
    HEALTH,
    NOT_SERVING,
    PROCESSOR,
    SERVICE_UNKNOWN,
    SERVING,
    HealthCheckRequest,
    HealthCheckResponse,
)


async def test_readiness_is_the_routers_and_liveness_its_own() -> None:
    """The names that the endpoint picker protocol has; another one is not found."""
    ready = [False]
    server = aio.server()
    server.add_generic_rpc_handlers((Health(lambda: ready[0]).handler(),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        forms = HealthCheckRequest.SerializeToString, HealthCheckResponse.FromString
        check = channel.unary_unary(f"/{HEALTH}/Check", *forms)

        async def status(service: str) -> int:
            return int((await check(HealthCheckRequest(service=service))).status)

        for now, expected in ((False, NOT_SERVING), (True, SERVING)):
            ready[0] = now
            assert [await status(name) for name in ("", "liveness")] == [SERVING, SERVING]
            assert [await status(name) for name in ("readiness", PROCESSOR)] == [expected, expected]
        with pytest.raises(aio.AioRpcError) as refused:
            await status("another")
        assert refused.value.code() is grpc.StatusCode.NOT_FOUND
        watch = channel.unary_stream(f"/{HEALTH}/Watch", *forms)
        for service, expected in ((PROCESSOR, SERVING), ("another", SERVICE_UNKNOWN)):
            call = watch(HealthCheckRequest(service=service))
            assert (await call.read()).status == expected
            call.cancel()
    await server.stop(0.0)
