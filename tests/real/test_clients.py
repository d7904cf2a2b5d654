"""Clients that nobody here wrote, through the gateway, against real engines: nothing they ask for fails."""

import asyncio
import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import openai
import pytest
import yaml

from deploy.local import catalog
from tests.real.conftest import Serve
from tests.real.world import CONFIG, MODEL, Engines, backend, long_chat, metric, text_of
from tests.waiting import until_async

Have = Callable[..., Engines]
EVERY_ENGINE = pytest.mark.parametrize("name", ["llamacpp", "triton", "vllm-s"])
USAGE = {"include_usage": True}


@EVERY_ENGINE
async def test_the_openai_client_gets_a_chat(have: Have, serve: Serve, name: str) -> None:
    """Not streamed: a message, why it ended, how many tokens, and which engine it was."""
    have(name)
    async with serve(backend(name)) as gateway, gateway.client() as client:
        raw = await client.chat.completions.with_raw_response.create(
            model=MODEL, messages=[{"role": "user", "content": "hello"}], max_tokens=12
        )
    answer = raw.parse()
    assert raw.headers["x-headroom-backend"] == name
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].finish_reason in {"stop", "length"}
    assert answer.usage is not None
    assert 0 < answer.usage.completion_tokens <= 12


@EVERY_ENGINE
async def test_the_openai_client_gets_a_streamed_chat_with_usage(have: Have, serve: Serve, name: str) -> None:
    """Streamed: the role first, then text, the reason, and the usage in a last chunk of its own."""
    have(name)
    async with serve(backend(name)) as gateway, gateway.client() as client:
        stream = await client.chat.completions.create(
            model=MODEL,
            messages=[{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hello"}],
            max_tokens=12,
            stream=True,
            stream_options=USAGE,
        )
        chunks = [chunk async for chunk in stream]
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].usage is not None
    assert 0 < chunks[-1].usage.completion_tokens <= 12
    reasons = [choice.finish_reason for chunk in chunks for choice in chunk.choices if choice.finish_reason]
    assert len(reasons) == 1
    assert {chunk.model for chunk in chunks} == {MODEL}


@EVERY_ENGINE
async def test_the_openai_client_gets_completions(have: Have, serve: Serve, name: str) -> None:
    """The older interface, whole and streamed."""
    have(name)
    async with serve(backend(name)) as gateway, gateway.client() as client:
        whole = await client.completions.create(model=MODEL, prompt="once upon", max_tokens=8, temperature=0.5)
        stream = await client.completions.create(model=MODEL, prompt="once upon", max_tokens=8, stream=True)
        parts = [choice.text async for chunk in stream for choice in chunk.choices]
    assert whole.choices[0].finish_reason in {"stop", "length"}
    assert "".join(parts).strip()


async def test_the_openai_client_lists_models(have: Have, serve: Serve) -> None:
    """Each model once, however many serve it."""
    have("llamacpp", "triton")
    async with serve(backend("llamacpp"), backend("triton")) as gateway, gateway.client() as client:
        assert [model.id async for model in client.models.list()] == [MODEL]


async def test_the_config_that_users_are_shown_names_every_engine(have: Have, serve: Serve) -> None:
    """deploy/local/router.yaml: all its backends come up, Redis is used, each engine is asked by its own address."""
    names = [engine.name for engine in catalog.ALL if engine.name != "redis"]
    have(*names, "redis")
    shown = yaml.safe_load(CONFIG.read_text())
    assert {given["name"]: given["url"] for given in shown["backends"]} == {
        name: catalog.ENGINES[name].url for name in names
    }
    rest = {key: value for key, value in shown.items() if key not in {"listen", "backends"}}
    async with serve(*shown["backends"], **rest) as gateway:

        async def all_up() -> bool:
            up = await gateway.metric("headroom_backend_up") == len(names)
            return up and await gateway.metric("headroom_state_up") == 1

        await until_async(all_up)


async def test_a_burst_over_all_engines_is_answered_whole(have: Have, serve: Serve) -> None:
    """Unequal engines of three kinds, more requests at once than they have slots: every stream ends as it should."""
    names = ("vllm-s", "vllm-l", "triton", "llamacpp")
    have(*names)
    async with serve(*map(backend, names)) as gateway, gateway.client() as client:
        texts = await asyncio.gather(*[text_of(client, f"{number}: go", max_tokens=24) for number in range(80)])
        assert len(texts) == 80
        assert await gateway.metric("headroom_requests_in_flight") == 0
        for name in names:
            assert await gateway.metric("headroom_backend_requests", backend=name) == 0


async def test_an_engine_that_refuses_inside_a_200_is_tried_elsewhere(have: Have, serve: Serve) -> None:
    """vllm-l queues 32 at most and says so in its stream's first event: clients see none of it."""
    have("vllm-s", "vllm-l")
    page, refusals = catalog.ENGINES["vllm-l"].metrics_url, "vllm:admission_rejections_total"
    sends_too_much = backend("vllm-l", seqs_max=256, kv_tokens_max=1_000_000)
    blind = {"routing": "round_robin"}
    before = await metric(page, refusals, default=0.0)
    async with serve(backend("vllm-s"), sends_too_much, policy=blind) as gateway, gateway.client() as client:
        texts = await asyncio.gather(*[text_of(client, f"{number}: go", max_tokens=32) for number in range(120)])
    assert len(texts) == 120
    assert await metric(page, refusals, default=0.0) > before


async def test_curl_reads_a_stream(have: Have, serve: Serve) -> None:
    """`curl -N` gets one event a token and the end."""
    have("vllm-s")
    async with serve(backend("vllm-s")) as gateway:
        body = json.dumps(long_chat(tokens=20))
        command = ["curl", "-sS", "-N", "--fail-with-body", "-H", "content-type: application/json", "-d", body]
        curl = await asyncio.create_subprocess_exec(
            *command, f"{gateway.url}/v1/chat/completions", stdout=subprocess.PIPE
        )
        said, _ = await curl.communicate()
    assert curl.returncode == 0
    events = said.decode().split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    assert len(events) >= 20


@pytest.mark.parametrize(
    "kind", [("openai-chat", "/v1/chat/completions"), ("openai", "/v1/completions")], ids=lambda kind: kind[0]
)
async def test_vllm_bench_serve_counts_no_failed_request(
    have: Have, serve: Serve, tmp_path: Path, kind: tuple[str, str]
) -> None:
    """vLLM's own load generator over two unequal vLLM servers."""
    engines = have("vllm-s", "vllm-l")
    async with serve(backend("vllm-s"), backend("vllm-l")) as gateway:
        home = engines.home
        options = {
            "backend": kind[0],
            "endpoint": kind[1],
            "base-url": gateway.url,
            "model": MODEL,
            "tokenizer": str(home / "models/tiny-s"),
            "dataset-name": "random",
            "random-input-len": "48",
            "random-output-len": "24",
            "num-prompts": "100",
            "max-concurrency": "12",
            "result-dir": str(tmp_path),
            "result-filename": "bench.json",
        }
        command = [str(home / "vllm/bin/vllm"), "bench", "serve", "--ignore-eos", "--save-result", "--disable-tqdm"]
        command += [part for name, value in options.items() for part in (f"--{name}", value)]
        bench = await asyncio.create_subprocess_exec(
            *command, cwd=tmp_path, env={**os.environ, "HF_HUB_OFFLINE": "1"}, stdout=subprocess.PIPE
        )
        await bench.communicate()
    result = json.loads((tmp_path / "bench.json").read_text())
    assert (result["completed"], result["failed"]) == (100, 0)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_prompt_that_is_too_long_is_the_clients_fault(have: Have, serve: Serve, *, stream: bool) -> None:
    """vLLM's 400 comes through with its message, for a stream too, and nobody is blamed for it."""
    have("vllm-s")
    async with serve(backend("vllm-s")) as gateway, gateway.client() as client:
        messages = [{"role": "user", "content": "word " * 4_000}]
        for _ in range(8):
            with pytest.raises(openai.BadRequestError, match="maximum context length"):
                await client.chat.completions.create(model=MODEL, messages=messages, stream=stream)
        assert await text_of(client)


async def test_an_unknown_model_is_answered_with_those_there_are(have: Have, serve: Serve) -> None:
    """404, and the name to use instead."""
    have("llamacpp")
    async with serve(backend("llamacpp")) as gateway, gateway.client() as client:
        with pytest.raises(openai.NotFoundError, match=MODEL):
            await text_of(client, model="huge")


async def test_an_error_of_triton_before_the_first_word_is_an_error_answer(have: Have, serve: Serve) -> None:
    """Triton's 400 with an event for a body becomes OpenAI's error JSON."""
    have("triton")
    async with serve(backend("triton")) as gateway, gateway.client() as client:
        with pytest.raises(openai.BadRequestError, match="made to fail at once"):
            await text_of(client, "__error__")


async def test_an_error_of_triton_in_the_middle_reaches_the_client(have: Have, serve: Serve) -> None:
    """The official client raises: the stream does not end as if all were well."""
    have("triton")
    async with serve(backend("triton")) as gateway, gateway.client() as client:
        with pytest.raises(openai.APIError, match="made to fail in the middle"):
            await text_of(client, "__error_mid__")
