"""Every path that engines have, routed by the body's model; and the official client over all of it."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from typing import Any

import openai
import pytest

from router.core.decisions import EndState as Ending
from tests import fakes_wire as wire
from tests.fakes_wire import ScriptedEngine, chunked, event, gateway, pair, post, reply, stream, token
from tests.waiting import until

CHAT: dict[str, Any] = {
    "messages": [{"role": "user", "content": [{"type": "text", "text": "x" * 400}, {"type": "image"}]}]
}


@pytest.mark.parametrize(
    ("path", "body", "tokens"),
    [
        ("/v1/chat/completions", CHAT, 100),
        ("/v1/completions", {"prompt": "y" * 40}, 10),
        ("/v1/completions", {"prompt": [1, 2, 3]}, 3),
        ("/v1/completions", {"prompt": [[1, 2], [3, 4, 5]]}, 5),
        ("/v1/embeddings", {"input": ["a" * 20, "b" * 20]}, 10),
        ("/v1/embeddings", CHAT, 100),
        ("/v1/responses", {"input": "c" * 40, "instructions": "d" * 4}, 11),
        ("/v1/responses", {"input": [{"role": "user", "content": [{"type": "input_text", "text": "c" * 40}]}]}, 10),
        ("/v1/messages", {"system": "s" * 8, "max_tokens": 5, **CHAT}, 102),
        ("/v1/messages/count_tokens", CHAT, 100),
        ("/v1/rerank", {"query": "q" * 4, "documents": ["d" * 36]}, 10),
        ("/rerank", {"query": "q" * 4, "documents": ["d" * 36]}, 10),
        ("/score", {"text_1": "q" * 4, "text_2": ["d" * 36]}, 10),
        ("/v1/score", {"text_1": "q" * 4, "text_2": "d" * 36}, 10),
        ("/tokenize", {"prompt": "p" * 40}, 10),
        ("/detokenize", {"tokens": [1, 2, 3]}, 3),
    ],
)
async def test_every_surface_passes_and_is_accounted(path: str, body: dict[str, Any], tokens: int) -> None:
    """The body reaches the engine as it was, on the same path with its query, and the prompt is estimated."""
    raw = json.dumps({"model": "m", **body}).encode()
    async with pair([reply(b'{"answer":1}')]) as (gate, engine):
        got = await gate.ask(post(path + "?a=b", raw))
        assert (got.status, got.body) == (200, b'{"answer":1}')
        assert engine.requests[0].startswith(f"POST {path}?a=b HTTP/1.1\r\n".encode())
        assert engine.requests[0].endswith(b"\r\n\r\n" + raw)
        account = gate.seen.outcomes[0].record
        assert (account.outcome, account.request.prompt_tokens) == (Ending.SERVED, tokens)


async def test_an_anthropic_stream_is_counted_and_broken_in_its_own_words() -> None:
    """Typed events; usage from ``message_delta``; an error event of Anthropic's form when the engine dies."""
    delta = b'event: content_block_delta\ndata: {"type":"content_block_delta","delta":{"text":"a"}}\n\n'
    usage = b'event: message_delta\ndata: {"type":"message_delta","usage":{"input_tokens":7,"output_tokens":12}}\n\n'
    end = b'event: message_stop\ndata: {"type":"message_stop"}\n\n'
    whole = wire.STREAM_HEAD + chunked(delta, usage, end) + wire.LAST
    body = json.dumps({"model": "m", "stream": True, "max_tokens": 9, **CHAT}).encode()
    async with pair([whole], [wire.STREAM_HEAD + chunked(delta), wire.Act.CLOSE]) as (gate, _):
        assert (await gate.ask(post("/v1/messages", body))).body == delta + usage + end
        broken = await gate.ask(post("/v1/messages", body))
        said = json.loads(broken.events()[-1])
        assert (said["type"], said["error"]["type"]) == ("error", "api_error")
        assert broken.body.endswith(b"\n\n")
        assert b"event: error\n" in broken.body
        assert gate.seen.outcomes[0].record.usage.output_tokens == 12


async def test_prompts_are_estimated_by_one_rule() -> None:
    """Four characters a token, whatever the engine said before: by how much that is off is the core's to learn."""
    body = json.dumps({"usage": {"prompt_tokens": 200, "completion_tokens": 1}}).encode()
    async with pair([reply(body)]) as (gate, _):
        for _ in range(2):
            await gate.chat(stream=False, messages=[{"role": "user", "content": "x" * 400}])
        assert [outcome.record.request.prompt_tokens for outcome in gate.seen.outcomes] == [100, 100]


async def test_the_official_client_streams_and_does_not() -> None:
    """Chunks, a whole reply, a refusal, and an error in mid-stream, each as its own type."""
    whole = {
        "id": "c",
        "object": "chat.completion",
        "created": 1,
        "model": "m",
        "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "hi"}}],
    }
    scripts: list[wire.Script] = [
        [stream("a", "b")],
        [reply(json.dumps(whole).encode())],
        [wire.STREAM_HEAD + chunked(event(token("a"))), wire.Act.CLOSE],
        [stream("z")],
    ]
    async with pair(*scripts) as (gate, _):
        client = openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{gate.port}/v1", api_key="k", max_retries=0)
        ask: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "x"}]}
        async with client:
            streamed = [each async for each in await client.chat.completions.create(**ask, stream=True)]
            assert [each.choices[0].delta.content for each in streamed] == ["a", "b"]
            assert (await client.chat.completions.create(**ask)).choices[0].message.content == "hi"
            cut = await client.chat.completions.create(**ask, stream=True)
            assert (await anext(cut)).choices[0].delta.content == "a"
            with pytest.raises(openai.APIError, match="closed the connection"):
                await anext(cut)
            with pytest.raises(openai.NotFoundError):
                await client.chat.completions.create(**{**ask, "model": "nope"})
            with pytest.raises(openai.BadRequestError):
                await client.chat.completions.create(**ask, extra_headers={"x-slo-ttft-ms": "soon"})


async def test_sigterm_lets_streams_end_and_then_exits() -> None:
    """A real process: the stream in flight ends, the exit is clean."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    more = asyncio.Event()
    script = [wire.STREAM_HEAD + chunked(event(token("a"))), more, chunked(event("[DONE]")) + wire.LAST]
    async with ScriptedEngine(script) as engine:
        command = [sys.executable, "-m", "tests.bench.bare_gateway", str(port), str(engine.port)]
        process = subprocess.Popen(command, env={**os.environ, "ROUTING": "round_robin"})  # noqa: ASYNC220 - does not wait
        try:
            await until(lambda: _listens(port))
            client = wire.Client(*await asyncio.open_connection("127.0.0.1", port))
            client.send(wire.chat())
            await client.head()
            process.send_signal(signal.SIGTERM)
            await until(lambda: not _listens(port))
            more.set()
            body, complete = await client._chunks()
            assert complete
            assert b"[DONE]" in body
            client.close()
            await client.writer.wait_closed()
            await until(lambda: process.poll() is not None)
            assert process.returncode in {0, -signal.SIGTERM}
        finally:
            process.kill()
            process.wait()


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


async def test_gateways_of_several_targets_know_where_each_is() -> None:
    """A backend that moves keeps its name and its histogram."""
    async with (
        ScriptedEngine([stream("a")]) as old,
        ScriptedEngine([stream("b")]) as new,
        gateway(old.target()) as gate,
    ):
        await gate.chat()
        gaps = gate.driver.upstreams["a"].gaps
        gate.driver.join(new.target())
        assert (await gate.chat()).events()[0] == json.dumps(token("b"))
        assert gate.driver.upstreams["a"].gaps is gaps
