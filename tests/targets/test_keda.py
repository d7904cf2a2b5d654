"""KEDA's external scaler, called over a real connection as KEDA calls it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from time import time
from typing import Any

import pytest
import trustme
import yaml
from pydantic import ValidationError

from router.autoscaler.election import Election
from router.autoscaler.loop import Autoscaler
from router.targets import Advice, Outcome, spec_of
from router.targets.keda import Keda
from tests.autoscaler.worlds import plan
from tests.targets.test_targets import views

grpc = pytest.importorskip("grpc", reason="the extra keda is not installed")
messages = pytest.importorskip("router.keda.messages", reason="the extra keda is not installed")

PLACE = {"model": "m", "variant": "small", "scalerAddress": "headroom-autoscaler:9300"}  # KEDA sends all its metadata


@asynccontextmanager
async def keda(clock: list[float] | None = None, **options: Any) -> AsyncIterator[Keda]:
    spec = spec_of("keda").model_validate({"host": "127.0.0.1", "port": 0, **options})
    made = spec.make({})
    assert isinstance(made, Keda)
    if clock is not None:
        made.service._clock = lambda: clock[0]
    yield made
    await made.close()


def advice(replicas: int, model: str = "m") -> Advice:
    return Advice(model, "small", replicas, 1, "because")


def ref(**metadata: str) -> Any:
    return messages.ScaledObjectRef(name="llama", namespace="llm", scalerMetadata=metadata or PLACE)


def call(channel: Any, method: str, request: Any, answer: Any, *, stream: bool = False) -> Any:
    make = channel.unary_stream if stream else channel.unary_unary
    path = f"/externalscaler.ExternalScaler/{method}"
    return make(path, request_serializer=type(request).SerializeToString, response_deserializer=answer.FromString)(
        request
    )


async def wanted(channel: Any, **metadata: str) -> tuple[bool, float]:
    """What KEDA learns at one poll: whether to be active, and the replicas that its HPA comes to."""
    active = await call(channel, "IsActive", ref(**metadata), messages.IsActiveResponse)
    specs = (await call(channel, "GetMetricSpec", ref(**metadata), messages.GetMetricSpecResponse)).metricSpecs
    request = messages.GetMetricsRequest(scaledObjectRef=ref(**metadata), metricName=specs[0].metricName)
    (value,) = (await call(channel, "GetMetrics", request, messages.GetMetricsResponse)).metricValues
    assert (value.metricName, value.metricValue) == (specs[0].metricName, value.metricValueFloat)
    assert (specs[0].targetSize, specs[0].targetSizeFloat) == (1, 1.0)
    return active.result, value.metricValueFloat / specs[0].targetSizeFloat


async def test_keda_gets_the_advised_number_of_the_variant_that_its_object_names() -> None:
    """Zero is inactive, which lets KEDA scale to none."""
    async with keda() as target:
        assert (await target.apply(advice(3))).outcome is Outcome.APPLIED
        assert (await target.apply(advice(3))).outcome is Outcome.UNCHANGED
        await target.apply(advice(0, "idle"))
        async with grpc.aio.insecure_channel(f"127.0.0.1:{target.service.port}") as channel:
            assert await wanted(channel) == (True, 3.0)
            assert await wanted(channel, model="idle", variant="small") == (False, 0.0)
            await target.apply(advice(5))
            assert await wanted(channel) == (True, 5.0)


async def test_one_that_does_not_apply_answers_with_what_the_one_that_does_has_advised() -> None:
    """KEDA may call any; a decision grows old here as there; where it cannot be read, the port is closed at once."""
    clock = [0.0]
    async with keda(clock, stale_s=60) as target:
        await target.apply(advice(3))
        await target.stand_by([advice(5)], 20.0)
        port = target.service.port
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            assert await wanted(channel) == (True, 5.0)
            clock[0] = 41.0
            with pytest.raises(grpc.aio.AioRpcError):
                await wanted(channel)
        await target.stand_by(None, 0.0)
        with pytest.raises(OSError, match="Connect call failed"):
            await asyncio.open_connection("127.0.0.1", port)
        await target.apply(advice(2))
        async with grpc.aio.insecure_channel(f"127.0.0.1:{target.service.port}") as channel:
            assert await wanted(channel) == (True, 2.0)
            with pytest.raises(grpc.aio.AioRpcError):
                await wanted(channel, model="other", variant="small")


async def test_keda_gets_one_number_from_whichever_autoscaler_it_calls() -> None:
    """Two of them, of which one decides; when it is gone the other answers with its last decision, and then decides."""
    made, leads, shared = plan(), [True, False], Shared()
    async with keda() as first, keda() as second:
        both = [
            Autoscaler(
                made,
                each,
                election=Election(alone=lambda at=at: leads[at]),
                settled_s=0.0,
                keeper=shared,  # type: ignore[misc]
            )
            for at, each in enumerate((first, second))
        ]
        for scaler in both:
            await scaler.round(views)
        ports = [each.service.port for each in (first, second)]
        for port in ports:
            async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
                assert await wanted(channel) == (True, 5.0)
        leads[:] = [False, True]
        await both[1].round(views)
        async with grpc.aio.insecure_channel(f"127.0.0.1:{second.service.port}") as channel:
            assert await wanted(channel) == (True, 5.0)


async def test_a_clock_that_is_ahead_makes_no_decision_of_another_machine_old() -> None:
    """Decisions that follow one another are of now, whatever time they bear."""
    made, shared = plan(), Shared()
    async with keda() as first, keda() as second:
        leader = Autoscaler(made, first, settled_s=0.0, keeper=shared)
        behind = Election(alone=lambda: False)
        other = Autoscaler(made, second, election=behind, keeper=shared, wall_clock=lambda: time() + 600.0)
        for _ in range(2):
            await leader.round(views)
            await other.round(views)
        async with grpc.aio.insecure_channel(f"127.0.0.1:{second.service.port}") as channel:
            assert await wanted(channel) == (True, 5.0)


class Shared:
    """What autoscalers share, as in Redis."""

    shared = True

    def __init__(self) -> None:
        self._values: dict[str, bytes] = {}

    async def keep(self, name: str, value: bytes) -> None:
        self._values[name] = value

    async def kept(self, name: str) -> bytes:
        return self._values.get(name, b"")


async def test_without_fresh_advice_a_call_fails_and_keda_changes_nothing() -> None:
    """A number that is old, a variant of which nothing is known, an object without the metadata."""
    clock = [0.0]
    async with keda(clock, stale_s=60) as target:
        await target.apply(advice(3))
        async with grpc.aio.insecure_channel(f"127.0.0.1:{target.service.port}") as channel:
            clock[0] = 60.0
            assert await wanted(channel) == (True, 3.0)
            clock[0] = 60.1
            for metadata, status in (
                (PLACE, grpc.StatusCode.UNAVAILABLE),
                ({"model": "m", "variant": "other"}, grpc.StatusCode.UNAVAILABLE),
                ({"model": "m"}, grpc.StatusCode.INVALID_ARGUMENT),
            ):
                with pytest.raises(grpc.aio.AioRpcError) as failed:
                    await call(channel, "IsActive", ref(**metadata), messages.IsActiveResponse)
                assert failed.value.code() is status
            await target.apply(advice(3))
            assert await wanted(channel) == (True, 3.0)


async def test_streams_have_what_is_now_at_once_and_each_change() -> None:
    """Both that ``external-push`` opens; the spec stays, so its stream stays open without another message."""
    async with keda() as target:
        await target.apply(advice(1, "other"))
        async with grpc.aio.insecure_channel(f"127.0.0.1:{target.service.port}") as channel:
            active = call(channel, "StreamIsActive", ref(), messages.IsActiveResponse, stream=True)
            specs = call(channel, "StreamMetricSpec", ref(), messages.GetMetricSpecResponse, stream=True)
            assert (await specs.read()).metricSpecs[0].targetSizeFloat == 1.0
            first = asyncio.ensure_future(active.read())
            await target.apply(advice(2))
            assert (await first).result
            await target.apply(advice(3))  # still active
            await target.apply(advice(0))
            assert not (await active.read()).result
            active.cancel()
            specs.cancel()


async def test_a_stream_that_begins_while_advice_is_old_has_the_same_number_once_it_is_given_again() -> None:
    """Not first at the next change, which may be hours away."""
    clock = [0.0]
    async with keda(clock, stale_s=60) as target:
        await target.apply(advice(3))
        async with grpc.aio.insecure_channel(f"127.0.0.1:{target.service.port}") as channel:
            clock[0] = 100.0
            active = call(channel, "StreamIsActive", ref(), messages.IsActiveResponse, stream=True)
            specs = call(channel, "StreamMetricSpec", ref(), messages.GetMetricSpecResponse, stream=True)
            await specs.read()  # so the server has both
            assert (await target.apply(advice(3))).outcome is Outcome.UNCHANGED
            assert (await active.read()).result
            active.cancel()
            specs.cancel()


async def test_over_tls_where_the_config_has_a_certificate(tmp_path: Path) -> None:
    authority = trustme.CA()
    made = authority.issue_cert("localhost")
    made.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    made.private_key_pem.write_to_path(tmp_path / "key.pem")
    async with keda(cert=tmp_path / "cert.pem", key=tmp_path / "key.pem") as target:
        await target.apply(advice(3))
        credentials = grpc.ssl_channel_credentials(authority.cert_pem.bytes())
        async with grpc.aio.secure_channel(f"localhost:{target.service.port}", credentials) as channel:
            assert await wanted(channel) == (True, 3.0)


async def test_a_port_or_a_certificate_that_cannot_be_had_is_a_failure(tmp_path: Path) -> None:
    async with keda() as first:
        await first.apply(advice(3))
        async with keda(port=first.service.port) as second:
            failed = await second.apply(advice(3))
            assert (failed.outcome, "cannot listen at 127.0.0.1" in failed.reason) == (Outcome.FAILED, True)
    async with keda(cert=tmp_path / "no.pem", key=tmp_path / "no.key") as third:
        assert (await third.apply(advice(3))).outcome is Outcome.FAILED
    with pytest.raises(ValidationError, match="cert and key go together"):
        spec_of("keda").model_validate({"cert": "x"})


def test_the_manifest_names_what_the_service_wants() -> None:
    """Its metadata has a model and a variant; the port is the target's."""
    path = Path(__file__).parents[2] / "deploy/kubernetes/keda.yaml"
    (scaled,) = [each for each in yaml.safe_load_all(path.read_text()) if each["kind"] == "ScaledObject"]
    (trigger,) = scaled["spec"]["triggers"]
    assert {"model", "variant", "scalerAddress"} == trigger["metadata"].keys()
    assert trigger["metadata"]["scalerAddress"].endswith(":9300")
    assert spec_of("keda").model_validate({}).port == 9300  # type: ignore[attr-defined]
