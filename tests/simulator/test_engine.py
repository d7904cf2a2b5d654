"""Emulated engines over real sockets: vLLM's and Triton's protocols, errors and metrics; times as in a replay."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import httpx
import pytest

from router.engines import find
from simulator.emulator.engine import Dialect, EmulatedEngine, Serving, listen
from simulator.emulator.serving import DIALECTS
from simulator.pool import Member
from simulator.replica.truth import EXACT
from tests.commands import simulator_command
from tests.waiting import WITHIN_S, until

MEMBER = Member("one", "h100", model="qwen2.5-0.5b", seqs_max=4, chunk_tokens=512, model_tokens_max=2048)
SERVING = Serving(MEMBER, "m", EXACT, speedup=50.0, mean_output_tokens=20.0, reports_cached_tokens=True)
MESSAGES = [{"role": "user", "content": "Tell me of the sea"}]


class Client(httpx.AsyncClient):
    """A client, and the engine it talks to."""

    engine: EmulatedEngine


@asynccontextmanager
async def serving(protocol: str = "vllm", started: Serving = SERVING) -> AsyncIterator[Client]:
    made: list[EmulatedEngine] = []

    def dialect(engine: EmulatedEngine):
        made.append(engine)
        return DIALECTS[find(protocol).protocol](engine)

    kept: Dialect = dialect
    server, connections = await listen(started, kept, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with Client(base_url=f"http://127.0.0.1:{port}", timeout=20) as client:
        client.engine = made[0]
        try:
            yield client
        finally:
            server.close()
            for connection in list(connections):
                connection.close()
            await server.wait_closed()


def frames(text: str) -> list[str]:
    return [line.removeprefix("data: ") for line in text.split("\n\n") if line]


async def test_a_streamed_chat_is_a_role_frame_tokens_usage_and_done() -> None:
    """Exactly vLLM's order: role, one frame a token, finish_reason on the last, usage alone, [DONE]."""
    async with serving() as client:
        body = {"model": "m", "messages": MESSAGES, "stream": True, "max_tokens": 4, "ignore_eos": True}
        answer = await client.post("/v1/chat/completions", json={**body, "stream_options": {"include_usage": True}})
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    *told, done = frames(answer.text)
    role, *tokens, usage = [json.loads(frame) for frame in told]
    assert done == "[DONE]"
    assert role["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert [token["choices"][0]["finish_reason"] for token in tokens] == [None, None, None, "length"]
    assert all(token["choices"][0]["delta"]["content"] for token in tokens)
    assert usage["choices"] == []
    assert usage["usage"]["completion_tokens"] == 4
    assert len({frame["id"] for frame in (role, *tokens, usage)}) == 1


@pytest.mark.parametrize("length", [1, 2, 7])
async def test_a_whole_reply_says_what_the_stream_says(length: int) -> None:
    """The same count of tokens, streamed or not, chat or completion."""
    async with serving() as client:
        for path, asked in (("chat/completions", {"messages": MESSAGES}), ("completions", {"prompt": "The sea"})):
            body = {"model": "m", **asked, "max_tokens": length, "ignore_eos": True}
            whole = (await client.post(f"/v1/{path}", json=body)).json()
            stream = await client.post(f"/v1/{path}", json={**body, "stream": True})
            told = [json.loads(frame)["choices"][0] for frame in frames(stream.text)[:-1]]
            words = [c.get("text") or c.get("delta", {}).get("content") for c in told]
            assert sum(1 for word in words if word) == length
            assert whole["usage"]["completion_tokens"] == length
            assert whole["choices"][0]["finish_reason"] == "length"


@pytest.mark.parametrize(
    ("path", "asked"), [("chat/completions", {"messages": MESSAGES}), ("completions", {"prompt": "a"})]
)
async def test_several_choices_are_as_many_sequences(path: str, asked: dict[str, object]) -> None:
    """Each with its index and its end, under one id, and usage of all of them; the prompt counts once."""
    async with serving() as client:
        body = {"model": "m", **asked, "n": 3, "max_tokens": 4, "ignore_eos": True}
        whole = (await client.post(f"/v1/{path}", json=body)).json()
        options = {"stream": True, "stream_options": {"include_usage": True}}
        stream = await client.post(f"/v1/{path}", json={**body, **options})
    assert [choice["index"] for choice in whole["choices"]] == [0, 1, 2]
    assert whole["usage"]["completion_tokens"] == 12
    *told, usage = [json.loads(frame) for frame in frames(stream.text)[:-1]]
    assert usage["usage"] == whole["usage"]
    assert len({frame["id"] for frame in (*told, usage)}) == 1
    for index in range(3):
        own = [frame["choices"][0] for frame in told if frame["choices"][0]["index"] == index]
        words = [each.get("text") or each.get("delta", {}).get("content") for each in own]
        assert sum(1 for word in words if word) == 4
        assert [each["finish_reason"] for each in own if each["finish_reason"]] == ["length"]


async def test_a_client_that_leaves_frees_every_choice() -> None:
    """Nothing of its request runs on."""
    async with serving() as client:
        body = {"model": "m", "messages": MESSAGES, "n": 3, "stream": True, "max_tokens": 2000, "ignore_eos": True}
        async with client.stream("POST", "/v1/chat/completions", json=body) as answer:
            await anext(answer.aiter_raw())
        aborted = 0.0
        async with asyncio.timeout(WITHIN_S):
            while not aborted:
                page = (await client.get("/metrics")).text
                aborted = sum(float(line.split()[-1]) for line in page.splitlines() if '"abort"' in line)
    assert aborted == 3


async def test_usage_in_every_frame_when_asked() -> None:
    """continuous_usage_stats counts up from the role frame."""
    async with serving() as client:
        options = {"include_usage": True, "continuous_usage_stats": True}
        body = {"model": "m", "messages": MESSAGES, "stream": True, "max_tokens": 3, "ignore_eos": True}
        answer = await client.post("/v1/chat/completions", json={**body, "stream_options": options})
    counts = [json.loads(frame)["usage"]["completion_tokens"] for frame in frames(answer.text)[:-1]]
    assert counts == [0, 1, 2, 3, 3]


@pytest.mark.parametrize(
    ("path", "body", "status", "words"),
    [
        ("/v1/chat/completions", b'{"model": "m",', 400, "JSON decode error"),
        ("/v1/chat/completions", b"[]", 400, "valid dictionary"),
        ("/v1/chat/completions", b'{"model": "m"}', 400, "Field required"),
        ("/v1/chat/completions", b'{"model": "x", "messages": [{}]}', 404, "does not exist. Valid aliases: m."),
        ("/v1/chat/completions", b'{"messages": [{}], "max_tokens": 0}', 400, "max_tokens must be at least 1, got 0"),
        ("/v1/chat/completions", b'{"messages": [{}], "max_tokens": "a"}', 400, "valid integer"),
        ("/v1/chat/completions", b'{"messages": [{}], "max_tokens": 99999}', 400, "cannot be greater than"),
        ("/v1/chat/completions", b'{"messages": [{}], "n": 129}', 400, "n must be at most 128"),
        ("/v1/chat/completions", b'{"messages": [{}], "n": 0}', 400, "n must be at least 1, got 0"),
        ("/v1/chat/completions", b'{"messages": [{}], "stream_options": {"a": 1}}', 400, "Stream options can only"),
        ("/v1/chat/completions", b'{"messages": [{"content": "' + b"x" * 9000 + b'"}]}', 400, "maximum context length"),
        ("/v1/completions", b'{"prompt": ["a", "b"]}', 400, "one string or one list"),
        ("/v1/nothing", b"{}", 404, "Not Found"),
    ],
)
async def test_vllm_says_no_as_the_real_one(path: str, body: bytes, status: int, words: str) -> None:
    """Status and words of the captures."""
    async with serving() as client:
        answer = await client.post(path, content=body)
    assert (answer.status_code, words in answer.text) == (status, True)


async def test_the_wrong_method_is_refused_with_the_right_one() -> None:
    """405 and an allow header."""
    async with serving() as client:
        answer = await client.get("/v1/chat/completions")
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")


async def test_models_health_and_metrics_are_there() -> None:
    """What a gateway asks an engine before and while it sends."""
    async with serving() as client:
        assert (await client.get("/health")).status_code == 200
        model = (await client.get("/v1/models")).json()["data"][0]
        assert (model["id"], model["max_model_len"]) == ("m", 2048)
        await client.post("/v1/completions", json={"prompt": "a b c", "max_tokens": 5, "ignore_eos": True})
        metrics = (await client.get("/metrics")).text
    assert 'vllm:generation_tokens_total{engine="0",model_name="m"} 5.0' in metrics
    assert 'vllm:num_requests_running{engine="0",model_name="m"} 0.0' in metrics
    assert 'vllm:time_to_first_token_seconds_count{engine="0",model_name="m"} 1.0' in metrics


async def test_a_full_queue_refuses_as_vllm() -> None:
    """With one that runs and one that waits, of two: 503; on a streamed completion 200 with the error first."""
    slow = replace(SERVING, speedup=1.0, member=replace(MEMBER, seqs_max=1, queue_max=2))
    async with serving(started=slow) as client:
        long = {"prompt": "a", "max_tokens": 2000, "ignore_eos": True, "stream": True}
        first = asyncio.ensure_future(client.post("/v1/completions", json=long))
        await until(lambda: client.engine.replica.running == 1)
        second = asyncio.ensure_future(client.post("/v1/completions", json=long))
        await until(lambda: client.engine.replica.waiting == 1)
        chat = await client.post("/v1/chat/completions", json={"messages": MESSAGES, "stream": True})
        completion = await client.post("/v1/completions", json=long)
        metrics = (await client.get("/metrics")).text
        for task in (first, second):
            task.cancel()
    assert (chat.status_code, chat.json()["error"]["code"]) == (503, 503)
    assert completion.status_code == 200
    assert [json.loads(frames(completion.text)[0])["error"]["code"], frames(completion.text)[1]] == [503, "[DONE]"]
    assert 'vllm:admission_rejections_total{reason="max_num_queued_reqs"} 2.0' in metrics


@pytest.mark.parametrize("protocol", ["vllm", "triton"])
async def test_a_client_that_leaves_frees_its_sequence(protocol: str) -> None:
    """The connection is gone, the batch is empty soon after, and its blocks are back."""
    async with serving(protocol, replace(SERVING, speedup=1.0)) as client:
        paths = {"vllm": "/v1/completions", "triton": "/v2/models/m/generate_stream"}
        body = {"prompt": "a", "text_input": "a", "max_tokens": 2000, "ignore_eos": True, "stream": True}
        async with client.stream("POST", paths[protocol], json=body) as answer:
            await anext(answer.aiter_raw())
            assert client.engine.replica.running == 1
        await until(lambda: client.engine.replica.running == 0)
        assert client.engine.replica.kv_usage() == 0


async def test_a_prompt_seen_before_is_found_in_the_cache() -> None:
    """The second time usage says how much was cached."""
    async with serving() as client:
        body = {"prompt": "word " * 1000, "max_tokens": 1}
        told = [(await client.post("/v1/completions", json=body)).json()["usage"] for _ in range(2)]
    cached = [usage["prompt_tokens_details"]["cached_tokens"] for usage in told]
    assert cached[0] == 0
    assert cached[1] > 1000


async def test_token_ids_count_exactly() -> None:
    """A prompt in ids is as long as the list."""
    async with serving() as client:
        answer = await client.post("/v1/completions", json={"prompt": list(range(321)), "max_tokens": 1})
    assert answer.json()["usage"]["prompt_tokens"] == 321


async def test_triton_streams_frames_without_done() -> None:
    """One frame a token with the tensor names of the ensemble, then the end of the body."""
    async with serving("triton") as client:
        body = {"text_input": "The sea", "max_tokens": 3, "ignore_eos": True, "stream": True}
        answer = await client.post("/v2/models/m/generate_stream", json=body)
        whole = await client.post("/v2/models/m/generate", json=body)
    told = [json.loads(frame) for frame in frames(answer.text)]
    assert [frame["sequence_length"] for frame in told] == [1, 2, 3]
    assert {frame["model_name"] for frame in told} == {"m"}
    assert whole.json()["sequence_length"] == 3


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "words"),
    [
        ("POST", "/v2/models/m/generate_stream", b'{"text_input":', 500, "failed to parse the request JSON buffer"),
        ("POST", "/v2/models/m/generate_stream", b"{}", 400, "text_input"),
        ("POST", "/v2/models/m/generate_stream", b'{"text_input":"a","max_tokens":"b"}', 500, "Unable to parse 'data'"),
        ("POST", "/v2/models/x/generate_stream", b'{"text_input":"a"}', 404, "Request for unknown model: 'x'"),
        ("GET", "/v2/models/m/generate_stream", b"", 405, "Method Not Allowed"),
        ("GET", "/v2/models/x/ready", b"", 400, "Model version not ready"),
        ("GET", "/v2/models/m/ready", b"", 200, ""),
        ("GET", "/v2/models/m/versions/1/ready", b"", 200, ""),
        ("GET", "/v2/health/ready", b"", 200, ""),
        ("GET", "/v1/models", b"", 404, "Not Found"),
    ],
)
async def test_triton_says_no_as_the_real_one(method: str, path: str, body: bytes, status: int, words: str) -> None:
    """Status and words of the captures."""
    async with serving("triton") as client:
        answer = await client.request(method, path, content=body)
    assert (answer.status_code, words in answer.text) == (status, True)


async def test_triton_refuses_a_long_prompt_in_an_event_stream() -> None:
    """400 with an event-stream body, as every error before the first token of a stream."""
    async with serving("triton") as client:
        answer = await client.post("/v2/models/m/generate_stream", json={"text_input": "x" * 9000})
    assert (answer.status_code, answer.headers["content-type"]) == (400, "text/event-stream; charset=utf-8")
    assert "exceeds maximum input length" in json.loads(frames(answer.text)[0])["error"]


async def test_triton_tells_of_its_queue_and_its_blocks() -> None:
    """The names of the TensorRT-LLM backend."""
    async with serving("triton") as client:
        metrics = (await client.get("/metrics")).text
    assert 'nv_trt_llm_request_metrics{model="m",version="1",request_type="max"} 4.0' in metrics
    assert 'kv_cache_block_type="tokens_per"} 16.0' in metrics


async def test_requests_on_one_connection_are_answered_in_order() -> None:
    """Two sent at once, without waiting: two answers, the first one first."""
    async with serving() as client:
        reader, writer = await asyncio.open_connection("127.0.0.1", client.base_url.port)
        one = b"GET /version HTTP/1.1\r\nhost: x\r\n\r\n"
        two = b"GET /nothing HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
        writer.write(one + two)
        text = await asyncio.wait_for(reader.read(), 10)
        writer.close()
    assert text.index(b"200 OK") < text.index(b"404 Not Found")


async def test_what_is_not_http_is_refused() -> None:
    """400, and the connection is closed."""
    async with serving() as client:
        reader, writer = await asyncio.open_connection("127.0.0.1", client.base_url.port)
        writer.write(b"hello there\r\n\r\n")
        text = await asyncio.wait_for(reader.read(), 10)
        writer.close()
    assert text.startswith(b"HTTP/1.1 400")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--card", "a11"], "a10"),
        (["--card", "t4", "--model", "llama-3-70b"], "left for KV"),
        (["--card", "a10", "--protocol", "grpc"], "unknown engine"),
        (["--card", "a10", "--kv-precision", "fp7"], "no precision named 'fp7'"),
        (["--card", "a10", "--tp", "2", "--speedup", "0"], "--speedup must be above 0"),
    ],
)
def test_an_engine_that_cannot_be_is_not_started(options: list[str], expected: str) -> None:
    """Said at once, in one line."""
    result = simulator_command(["serve", "--port", "0", *options])
    assert (result.exit_code, expected in result.stderr) == (2, True)
