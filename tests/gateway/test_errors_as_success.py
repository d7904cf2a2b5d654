"""A reply with a status of success that is none: an error in JSON, nothing at all, one that the engine gave up."""

import asyncio
import json
from typing import Any

import pytest

from router.core.decisions import EndState
from router.core.errors import Reason
from tests import fakes_wire as wire
from tests.fakes_wire import Act, ScriptedEngine, chunked, event, gateway, pair, post, reply, stream, token
from tests.waiting import until

BUSY = b'{"error":{"message":"busy","type":"Service Unavailable","param":null,"code":503}}'
BAD = b'{"object":"error","message":"n is too large","type":"BadRequestError","code":400}'
CHUNKED = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n"
NO_LENGTH = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\r\n"


def finish(reason: str | None, **delta: Any) -> dict[str, Any]:
    """A chunk of a chat with a finish reason."""
    return {"id": "c", "choices": [{"index": 0, "delta": delta, "finish_reason": reason}]}


def of_stream(*payloads: dict[str, Any] | bytes) -> bytes:
    """A whole event stream."""
    return (
        wire.STREAM_HEAD + chunked(*[each if isinstance(each, bytes) else event(each) for each in payloads]) + wire.LAST
    )


DONE = event("[DONE]")
FAILED: dict[str, wire.Script] = {
    "error in JSON": [reply(BUSY)],
    "in chunks": [CHUNKED + chunked(BUSY[:5], BUSY[5:]) + wire.LAST],
    "in two reads": [reply(BUSY)[:-40], reply(BUSY)[-40:]],
    "to the end of the connection": [NO_LENGTH + BUSY, Act.CLOSE],
    "cut": [reply(BUSY)[:-3], Act.CLOSE],
    "vLLM's older form": [reply(BAD.replace(b"400", b"500"))],
    "FastAPI's": [reply(b'{"detail":"gone"}')],
    "its type": [reply(b'{"id":7,"type":"error","message":"gone"}')],
    "flat, as Dynamo's": [reply(b'{"message":"gone","type":"Internal Server Error","code":500}')],
    "flat in other words": [reply(b'{"code":503,"msg":"gone"}')],
    "a page of a proxy": [reply(b"<html><body>sign in</body></html>", content_type="text/html; charset=utf-8")],
    "a message alone": [reply(b'{"message":"Internal server error"}')],
    "text": [reply(b"Internal Server Error", content_type="text/plain")],
    "null": [reply(b"null")],
    "a list": [reply(b"[]")],
    "DeepSeek's": [of_stream(finish(None, role="assistant"), finish("insufficient_system_resource"), DONE)],
    "empty": [reply(b"")],
    "empty in chunks": [CHUNKED + wire.LAST],
    "empty to the end of the connection": [NO_LENGTH, Act.CLOSE],
    "empty event stream": [wire.STREAM_HEAD + wire.LAST],
    "finish reason without a token": [of_stream(finish(None, role="assistant", content=""), finish("abort"), DONE)],
    "another": [of_stream(finish("error"), DONE)],
}


@pytest.mark.parametrize("name", FAILED)
async def test_what_is_no_reply_is_tried_elsewhere(name: str) -> None:
    """The client sees the second backend's stream and nothing of the first."""
    async with (
        ScriptedEngine(FAILED[name]) as bad,
        ScriptedEngine([stream("good")]) as good,
        gateway(bad.target("a"), good.target("b")) as gate,
    ):
        got = await gate.chat()
        assert (got.status, got.headers["x-headroom-backend"]) == (200, "b")
        assert got.events()[0] == json.dumps(token("good"))
        record = gate.seen.outcomes[0].record
        assert (record.outcome, record.attempts) == (EndState.SERVED, 2)


@pytest.mark.parametrize("content_type", [b"", b"content-type: text/plain\r\n"])
async def test_events_whose_type_is_not_stated_are_events(content_type: bytes) -> None:
    """As where a server was written without a framework: their tokens are counted, and an error is one."""
    head = b"HTTP/1.1 200 OK\r\n%btransfer-encoding: chunked\r\n\r\n" % content_type
    tokens = [b"retry: 3000\n\n", *(event(token(text)) for text in ("a", "b", "c"))]
    whole = head + chunked(*tokens, DONE) + wire.LAST
    cut = len(head) + 5  # in its first word
    later = asyncio.Event()
    error = head + chunked(event(BUSY.decode()), DONE) + wire.LAST
    async with pair([whole], [whole[:cut], later, whole[cut:]], [error]) as (gate, engine):
        for number in range(2):
            asking = asyncio.create_task(gate.chat())
            await until(lambda: len(engine.requests) > number)  # noqa: B023 - waited for here
            if number:
                later.set()
            assert (await asking).body == b"".join(tokens) + DONE
            record = gate.seen.outcomes[number].record
            assert (record.outcome, record.usage.output_tokens) == (EndState.SERVED, 3)
            assert record.first_token_s == record.first_token_s
        assert (await gate.chat()).status == 503


async def test_json_that_is_stated_to_be_html_is_a_reply() -> None:
    """As Flask's default has it."""
    async with pair([reply(b'{"choices":[]}', content_type="text/html; charset=utf-8")]) as (gate, _):
        assert (await gate.chat(stream=False)).body == b'{"choices":[]}'


@pytest.mark.parametrize("cut", [1, 3, 4])
async def test_a_byte_order_mark_may_stand_before_a_reply(cut: int) -> None:
    """As servers on .NET write it: the bytes pass as they came."""
    body = b'\xef\xbb\xbf{"choices":[]}'
    framed = CHUNKED + chunked(body[:cut], body[cut:]) + wire.LAST
    async with pair([reply(body)], [framed]) as (gate, _):
        for _ in range(2):
            assert (await gate.chat(stream=False)).body == body
        assert gate.seen.endings == [EndState.SERVED] * 2


@pytest.mark.parametrize("streamed", [True, False])
async def test_without_another_backend_the_status_is_the_one_that_the_error_names(streamed: bool) -> None:
    """With the engine's own body; one of the client's is the client's."""
    async with pair([reply(BUSY)], [reply(BAD)]) as (gate, _):
        busy, bad = await gate.chat(stream=streamed), await gate.chat(stream=streamed)
        assert (busy.status, busy.body, bad.status, bad.body) == (503, BUSY, 400, BAD)
        assert gate.seen.endings == [EndState.REFUSED, EndState.CLIENT_ERROR]
        assert gate.seen.outcomes[1].record.reason is Reason.CLIENT_ERROR


async def test_an_empty_reply_is_the_engines_failure() -> None:
    """502, and no request was served."""
    async with pair([reply(b"")]) as (gate, _):
        assert (await gate.chat()).status == 502
        assert gate.seen.endings == [EndState.REFUSED]


WHOLE: dict[str, tuple[str, dict[str, Any]]] = {
    "chat": ("chat/completions", {"choices": [{"index": 0, "message": {"content": "a"}, "finish_reason": "abort"}]}),
    "Anthropic": ("messages", {"type": "message", "content": [], "stop_reason": "error"}),
    "responses": ("responses", {"object": "response", "status": "failed", "error": {"message": "gone"}}),
    "cancelled": ("responses", {"object": "response", "status": "cancelled", "error": None}),
    "incomplete": (
        "responses",
        {"object": "response", "status": "incomplete", "incomplete_details": {"reason": "error"}},
    ),
}


@pytest.mark.parametrize("name", WHOLE)
async def test_a_whole_reply_that_the_engine_gave_up_is_tried_elsewhere(name: str) -> None:
    """By each dialect's reason or status of its end."""
    path, document = WHOLE[name]
    good = b'{"good":1}'
    async with (
        ScriptedEngine([reply(json.dumps(document).encode())]) as bad,
        ScriptedEngine([reply(good)]) as other,
        gateway(bad.target("a"), other.target("b")) as gate,
    ):
        got = await gate.ask(
            post(
                f"/v1/{path}", b'{"model":"m","messages":[{"role":"user","content":"hi"}],"input":"hi","max_tokens":9}'
            )
        )
        assert (got.status, got.body) == (200, good)
        assert gate.seen.outcomes[0].record.attempts == 2


MID_STREAM: dict[str, tuple[str, list[bytes]]] = {
    "abort": ("chat/completions", [event(finish("abort")), DONE]),
    "abort, all in one": ("chat/completions", [event(finish("abort")) + DONE]),
    "abort with usage": (
        "chat/completions",
        [event(finish("abort")), event({"choices": [], "usage": {"completion_tokens": 1}}), DONE],
    ),
    "error": ("chat/completions", [event(finish("error")), DONE]),
    "Anthropic": (
        "messages",
        [
            event({"type": "message_delta", "delta": {"stop_reason": "error"}, "usage": {"output_tokens": 1}}),
            event({"type": "message_stop"}),
        ],
    ),
    "cancelled": ("responses", [event({"type": "response.cancelled", "response": {"status": "cancelled"}})]),
    "incomplete": (
        "responses",
        [
            event(
                {
                    "type": "response.incomplete",
                    "response": {"status": "incomplete", "incomplete_details": {"reason": "error"}},
                }
            )
        ],
    ),
}


@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize("name", MID_STREAM)
async def test_a_stream_that_the_engine_gave_up_is_not_served(name: str, together: bool) -> None:
    """However its end is framed; what the client gets never ends as if it were whole."""
    path, ends = MID_STREAM[name]
    first = event(token("a")) if path == "chat/completions" else event({"type": "x.delta", "delta": "a"})
    script: wire.Script = [wire.STREAM_HEAD + chunked(first, first), chunked(*ends) + wire.LAST]
    if not together:
        script = [wire.STREAM_HEAD + chunked(first), *[chunked(each) for each in (first, *ends)], wire.LAST]
    async with pair(script) as (gate, _):
        body = b'{"model":"m","messages":[{"role":"user","content":"hi"}],"input":"hi","max_tokens":9,"stream":true}'
        got = await gate.ask(post(f"/v1/{path}", body))
        assert got.status == 200
        assert b'"error"' in got.body or not got.complete
        assert gate.seen.endings == [EndState.BROKEN]


async def test_words_of_the_client_or_the_model_give_nothing_up() -> None:
    """A stop string that the engine repeats, text, a legitimate end."""
    stop = {"id": "c", "choices": [{"index": 0, "delta": {}, "finish_reason": "stop", "stop_reason": "error"}]}
    text = token('"finish_reason":"abort" {"error": 1}')
    async with pair([of_stream(token("a"), text, stop, DONE)], [reply(json.dumps(text).encode())]) as (gate, _):
        assert (await gate.chat()).complete
        assert (await gate.chat(stream=False)).status == 200
        assert gate.seen.endings == [EndState.SERVED] * 2


async def test_an_engine_that_answers_for_a_stream_with_a_whole_reply_serves_it() -> None:
    """In pieces, too."""
    body = json.dumps(
        {"choices": [{"index": 0, "message": {"content": "x" * 100_000}, "finish_reason": "stop"}]}
    ).encode()
    async with pair([reply(body)], [reply(body[:200]), reply(body)[:-5], reply(body)[-5:]]) as (gate, _):
        assert (await gate.chat()).body == body
        assert gate.seen.endings == [EndState.SERVED]
