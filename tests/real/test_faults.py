"""Engines that die, freeze, leave or close at a bad moment: what the client sees, and who is asked next.

Tests that kill a vLLM stand last: it takes half a minute to come back.
"""

import asyncio
import json
import signal
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from deploy.local import catalog
from tests.real.conftest import Serve
from tests.real.world import MODEL, Engines, Gateway, backend, connections_to, events_of, long_chat, metric, text_of
from tests.waiting import until, until_async

Have = Callable[..., Engines]
HASTY = {"stall_s": 2.0}
BLIND: dict[str, Any] = {"routing": "round_robin", "limits": {"first_byte_s_max": 3.0, "failures_max": 2}}
AWAY = "far"  # a model that only the engine under test serves, so that a request surely goes there


async def ends_badly(
    gateway: Gateway, prompt: str, model: str, harm: Callable[[], None] | None = None
) -> dict[str, Any]:
    """A stream that *harm* strikes after its third event; the error of its last event, and never a clean end."""
    body = long_chat(prompt) | {"model": model}
    events = []
    async for event in events_of(gateway.url, body):
        events.append(event)
        if len(events) == 3 and harm:
            harm()
    assert "[DONE]" not in events
    error = json.loads(events[-1])["error"]
    assert isinstance(error, dict)
    return error


async def test_a_client_that_leaves_frees_the_engine(have: Have, serve: Serve) -> None:
    """Through the gateway as without it: the engine's sequence ends, the gateway's books are clean."""
    have("vllm-s")
    engine = catalog.ENGINES["vllm-s"].metrics_url

    async def running(count: int) -> bool:
        return await metric(engine, "vllm:num_requests_running") == count

    async with serve(backend("vllm-s")) as gateway:
        streams = [events_of(gateway.url, long_chat(f"{number}: go")) for number in range(6)]
        await asyncio.gather(*map(anext, streams))
        await until_async(lambda: running(6))
        for stream in streams:
            await stream.aclose()
        await until_async(lambda: running(0))
        assert await gateway.metric("headroom_requests_in_flight") == 0
        assert await gateway.metric("headroom_backend_requests", backend="vllm-s") == 0


async def test_a_client_that_leaves_frees_triton(have: Have, serve: Serve) -> None:
    """A translated stream is given up as well."""
    have("triton")
    engine = catalog.ENGINES["triton"].metrics_url

    async def active(count: int) -> bool:
        return await metric(engine, "nv_trt_llm_request_metrics", request_type="active") == count

    async with serve(backend("triton")) as gateway:
        stream = events_of(gateway.url, long_chat())
        await anext(stream)
        await until_async(lambda: active(1))
        await stream.aclose()
        await until_async(lambda: active(0))


async def test_an_engine_that_closes_after_each_reply_costs_no_request(have: Have, serve: Serve) -> None:
    """llama.cpp promises keep-alive and closes: 150 streams one after another, and 120 eight abreast."""
    have("llamacpp")
    async with serve(backend("llamacpp")) as gateway, gateway.client() as client:
        for number in range(150):
            await text_of(client, f"{number}", max_tokens=2)

        async def lane(of: int) -> None:
            for number in range(15):
                await text_of(client, f"{of} {number}", max_tokens=2)

        await asyncio.gather(*map(lane, range(8)))


async def test_a_connection_that_the_engine_closed_while_idle_costs_no_request(have: Have, serve: Serve) -> None:
    """vLLM closes idle connections after 5 s; a gateway told to keep them longer still loses nothing."""
    have("vllm-s")
    rare = {"period_s": 3_600.0}
    async with (
        serve(backend("vllm-s"), upstream={"idle_s": 60.0}, scrape=rare) as gateway,
        gateway.client() as client,
    ):
        for _ in range(2):
            await asyncio.gather(*[text_of(client, f"{number}", max_tokens=2) for number in range(8)])
            assert connections_to(8001)
            await until(lambda: not connections_to(8001))
        await text_of(client, max_tokens=2)


async def test_a_frozen_engine_is_found_by_its_silence(have: Have, serve: Serve) -> None:
    """EngineCore stopped: health and metrics still say 200. The stream is ended, the next requests go elsewhere."""
    engines = have("vllm-s", "llamacpp")
    frozen = backend("vllm-s", models={MODEL: MODEL, AWAY: MODEL})
    try:
        async with serve(frozen, backend("llamacpp"), upstream=HASTY, policy=BLIND) as gateway:
            stop = lambda: engines.send_children("vllm-s", signal.SIGSTOP)  # noqa: E731
            error = await ends_badly(gateway, "Go on.", AWAY, stop)
            assert "vllm-s" in error["message"]
            async with gateway.client() as client:
                await asyncio.gather(*[text_of(client, f"{number}") for number in range(10)])
    finally:
        engines.send_children("vllm-s", signal.SIGCONT)


async def test_a_triton_whose_model_has_died_is_not_believed(have: Have, serve: Serve) -> None:
    """Its process gone, Triton says ready and answers 400: the stream ends in an error, other requests go elsewhere."""
    engines = have("triton", "llamacpp")
    dying = backend("triton", models={MODEL: "ensemble", AWAY: "ensemble"})
    try:
        async with serve(dying, backend("llamacpp"), upstream=HASTY, policy=BLIND) as gateway:
            await ends_badly(gateway, "__crash__", AWAY)
            async with gateway.client() as client:
                for number in range(10):
                    await text_of(client, f"{number}")
    finally:
        engines.stop("triton")


async def test_an_engine_that_comes_back_is_used_again(have: Have, serve: Serve) -> None:
    """Down while its port is closed, up again by itself."""
    engines = have("triton")
    async with serve(backend("triton"), upstream=HASTY, policy=BLIND) as gateway, gateway.client() as client:
        engines.stop("triton")

        async def up(value: int) -> bool:
            return await gateway.metric("headroom_backend_up", backend="triton") == value

        await until_async(lambda: up(0))
        async with httpx.AsyncClient() as plain:
            refused = await plain.post(f"{gateway.url}/v1/chat/completions", json=long_chat())
        assert refused.status_code == 503
        assert int(refused.headers["retry-after"]) >= 1
        engines.ensure("triton")
        await until_async(lambda: up(1))
        await text_of(client)


async def test_redis_may_go_and_come_back_while_serving(have: Have, serve: Serve) -> None:
    """Requests never wait for it: they are answered before, while and after it is gone, and the metric says which."""
    engines = have("redis", "llamacpp")
    state = {"redis_url": f"{catalog.ENGINES['redis'].url}/0"}
    async with serve(backend("llamacpp"), state=state) as gateway, gateway.client() as client:

        async def state_up(value: int) -> bool:
            await text_of(client, max_tokens=2)
            return await gateway.metric("headroom_state_up") == value

        await until_async(lambda: state_up(1))
        engines.stop("redis")
        await until_async(lambda: state_up(0))
        engines.ensure("redis")
        await until_async(lambda: state_up(1))


HARMS: dict[str, Callable[[Engines], None]] = {
    "terminated": lambda engines: engines.send_signal("vllm-s", signal.SIGTERM),  # streams freeze, or end in an error
    "killed": lambda engines: engines.send_signal("vllm-s", signal.SIGKILL),  # streams are cut
    "engine-killed": lambda engines: engines.send_children("vllm-s", signal.SIGKILL),  # an error, and then [DONE]
}


@pytest.mark.parametrize("harm", HARMS)
async def test_a_vllm_that_ends_in_the_middle_of_a_stream_is_told_and_replaced(
    have: Have, serve: Serve, harm: str
) -> None:
    """However it ends, its stream ends with an error and never with [DONE], and the other engine serves."""
    engines = have("vllm-s", "llamacpp")
    ending = backend("vllm-s", models={MODEL: MODEL, AWAY: MODEL})
    try:
        async with serve(ending, backend("llamacpp"), upstream=HASTY, policy=BLIND) as gateway:
            error = await ends_badly(gateway, "Go on.", AWAY, lambda: HARMS[harm](engines))
            assert error["message"]
            async with gateway.client() as client:
                await asyncio.gather(*[text_of(client, f"{number}") for number in range(10)])
            assert await gateway.metric("headroom_requests_in_flight") == 0
    finally:
        engines.stop("vllm-s")
