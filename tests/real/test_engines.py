"""What we believe of real engines' wire and pages, asked of the engines themselves. No gateway is involved."""

from collections.abc import Callable

import httpx
import pytest

from deploy.local import catalog
from router.engines import read_metrics
from tests.real.world import MODEL, Engines, events_of, long_chat, metric
from tests.waiting import until_async

Have = Callable[..., Engines]
VLLM, LLAMACPP, TRITON = (catalog.ENGINES[name] for name in ("vllm-s", "llamacpp", "triton"))
GENERATE = f"{TRITON.url}/v2/models/ensemble/generate_stream"


@pytest.mark.parametrize("name", ["llamacpp", "triton", "vllm-s", "vllm-l"])
async def test_an_engines_metrics_page_is_read_as_its_own(have: Have, name: str) -> None:
    """The names that the gateway scrapes are on the real page, with numbers."""
    have(name)
    async with httpx.AsyncClient() as client:
        page = (await client.get(catalog.ENGINES[name].metrics_url)).content
    found = read_metrics(page, ["ensemble" if name == "triton" else MODEL])
    assert found is not None
    assert found.engine == name.partition("-")[0]
    assert (found.running, found.waiting) == (0, 0)


@pytest.mark.parametrize(("name", "tokens"), [("vllm-s", 512 * 32), ("vllm-l", 64 * 128), ("triton", 1000 * 64)])
async def test_the_size_of_the_kv_cache_is_on_the_page(have: Have, name: str, tokens: int) -> None:
    """vLLM and TensorRT-LLM say how many tokens they can hold."""
    have(name)
    async with httpx.AsyncClient() as client:
        page = (await client.get(catalog.ENGINES[name].metrics_url)).content
    found = read_metrics(page)
    assert found is not None
    assert found.kv_tokens_max == tokens


@pytest.mark.parametrize("engine", [LLAMACPP, VLLM], ids=lambda engine: engine.name)
async def test_a_stream_of_an_openai_engine_ends_with_done(have: Have, engine: catalog.Engine) -> None:
    """So a stream without it was cut."""
    have(engine.name)
    events = [event async for event in events_of(engine.url, long_chat(tokens=8))]
    assert events[-1] == "[DONE]"
    assert len(events) >= 8


async def test_a_stream_of_triton_ends_without_done(have: Have) -> None:
    """One frame a token with what is new in it, then the end of the body."""
    have("triton")
    body = {"text_input": "hello", "max_tokens": 3, "stream": True}
    async with httpx.AsyncClient() as client:
        answer = await client.post(GENERATE, json=body)
    frames = [line for line in answer.text.splitlines() if line]
    assert len(frames) == 3
    assert all(frame.startswith('data: {"cum_log_probs"') and "text_output" in frame for frame in frames)


@pytest.mark.parametrize(("prompt", "status", "words"), [("__error__", 400, 0), ("__error_mid__", 200, 3)])
async def test_triton_sends_an_error_as_a_frame(have: Have, prompt: str, status: int, words: int) -> None:
    """Before the first word the status is 400, after it nothing but the frame tells."""
    have("triton")
    async with httpx.AsyncClient() as client:
        answer = await client.post(GENERATE, json={"text_input": prompt, "max_tokens": 9, "stream": True})
    assert answer.status_code == status
    assert answer.text.count("text_output") == words
    assert 'data: {"error":"made to fail' in answer.text


async def test_a_client_that_leaves_frees_vllm(have: Have) -> None:
    """vLLM ends a sequence when its connection goes: the gateway need only close it."""
    have("vllm-s")
    events = events_of(VLLM.url, long_chat())
    await anext(events)
    assert await metric(VLLM.metrics_url, "vllm:num_requests_running") == 1
    await events.aclose()

    async def idle() -> bool:
        return await metric(VLLM.metrics_url, "vllm:num_requests_running") == 0

    await until_async(idle)
