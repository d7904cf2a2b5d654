"""A reply names the model that the client asked for, and no other byte of it changes."""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.gateway.protocols import model_name
from router.gateway.protocols.answers import Dialect
from router.gateway.protocols.model_name import ModelName
from tests.fakes_wire import LAST, STREAM_HEAD, Act, Gateway, ScriptedEngine, chat, chunked, event, gateway, post, reply

TEXT = r'say \"model\":\"engine-x\" and {\"model\": 1}, "'.rstrip(', "')
CHAT = b'{"id":"c" , "model" : "engine-x","choices":[{"delta":{"content":"' + TEXT.encode() + b'","model":"y"}}]}'
RESPONSES = b'{"type":"response.created","response":{"id":"r","model":"engine-x","output":[{"model":"in"}]}}'
DELTA = b'{"type":"response.output_text.delta","delta":"\\"model\\":\\"engine-x\\""}'
ANTHROPIC = b'{"type":"message_start","message":{"id":"m","role":"assistant","model":"engine-x","content":[]}}'
TRITON = b'{"model_name":"engine-x","model_version":"1","text_output":"\\"model_name\\":\\"engine-x\\""}'


@pytest.mark.parametrize(
    ("dialect", "body", "old", "new"),
    [
        (Dialect.OPENAI, CHAT, b'"model" : "engine-x"', b'"model" : "mine"'),
        (Dialect.RESPONSES, RESPONSES, b'"r","model":"engine-x"', b'"r","model":"mine"'),
        (Dialect.RESPONSES, b'{"id":"r","model":"engine-x"}', b"engine-x", b"mine"),
        (Dialect.RESPONSES, DELTA, b"", b""),
        (Dialect.ANTHROPIC, ANTHROPIC, b'"model":"engine-x"', b'"model":"mine"'),
        (Dialect.ANTHROPIC, b'{"type":"message","model":"engine-x"}', b"engine-x", b"mine"),
        (Dialect.TRITON, TRITON, b'"model_name":"engine-x",', b'"model_name":"mine",'),
        (Dialect.OPENAI, b'{"object":"list","model":null}', b"", b""),
        (Dialect.OPENAI, b'["model", "engine-x"]', b"", b""),
        (Dialect.OPENAI, b"model: text", b"", b""),
        (Dialect.OPENAI, b'{"model":"engine-x"', b"", b""),
        (Dialect.OPENAI, b'{"message":{"model":"engine-x"}}', b"", b""),
    ],
)
def test_only_the_member_that_names_the_model_changes(dialect: Dialect, body: bytes, old: bytes, new: bytes) -> None:
    """In whole replies and in streams; text that looks like it is text."""
    expected = body.replace(old, new, 1) if old else body
    assert ModelName("mine", dialect).whole(body) == expected
    stream = ModelName("mine", dialect)
    lines = b"event: x\r\ndata: %b\r\n\r\n:ping\n\ndata:%b\n\ndata: [DONE]\n\n"
    assert stream.feed(lines % (body, body)) + stream.finish() == lines % (expected, expected)


@given(st.lists(st.integers(0, 400), max_size=6))
def test_frames_split_over_reads_come_out_the_same(cuts: list[int]) -> None:
    """Wherever they are split; what is complete is not held back."""
    sent = b"event: message_start\ndata: %b\n\ndata: {}\n\n" % ANTHROPIC * 2
    at = sorted({0, len(sent), *(cut for cut in cuts if cut < len(sent))})
    stream, out = ModelName("mine", Dialect.ANTHROPIC), b""
    for begin, end in pairwise(at):
        out += stream.feed(sent[begin:end])
        held = len(sent[:end]) - sent[:end].rfind(b"\n") - 1
        assert len(out) == end - held - 4 * sent[: end - held].count(b"message_start\ndata: {")
    assert out + stream.finish() == sent.replace(b"engine-x", b"mine")


def test_a_name_is_written_as_json_is() -> None:
    """Quotes and other letters too."""
    assert json.loads(ModelName('a "b" ü', Dialect.OPENAI).whole(b'{"model":"x"}')) == {"model": 'a "b" ü'}


def test_lines_that_end_with_a_carriage_return_alone_are_lines() -> None:
    """As streams may have them: none is held until the reply is over."""
    stream = ModelName("mine", Dialect.OPENAI)
    assert stream.feed(b'data: {"model":"x"}\r\rdata: {"mo') == b'data: {"model":"mine"}\r\r'
    assert stream.feed(b'del":"x"}\r') == b'data: {"model":"mine"}\r'
    assert stream.feed(b"\n") + stream.finish() == b"\n"


def test_a_line_without_an_end_is_not_held_without_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """It passes as it is, and the next one is renamed again."""
    monkeypatch.setattr(model_name, "_LINE_BYTES_MAX", 100)
    stream, long = ModelName("mine", Dialect.OPENAI), b'data: {"x":"' + b"a" * 200
    assert stream.feed(long[:90]) == b""
    assert stream.held_bytes == 90
    assert stream.feed(long[90:]) == long
    assert stream.held_bytes == 0
    assert stream.feed(b"more") == b"more"
    assert stream.feed(b'","model":"x"}\ndata: {"model":"x"}\n') == b'","model":"x"}\ndata: {"model":"mine"}\n'


# -- through the gateway ---------------------------------------------------------------------------------------------


@asynccontextmanager
async def aliased(*scripts: Sequence[bytes | asyncio.Event | Act], name: str = "mine") -> AsyncIterator[Gateway]:
    """A gateway in front of an engine that calls the model ``engine-x``."""
    async with ScriptedEngine(*scripts) as engine:
        target = engine.target(models={name: "engine-x"})
        async with gateway(target, models=(name,)) as made:
            yield made


SPACED = b'{ "id":"c","model": "engine-x","n": 1.50, "text":"\\u00e4 \\"model\\":\\"engine-x\\""}'
FRAMES = [
    b'data: {"id":"c", "model":"engine-x","choices":[{"delta":{"role":"assistant","content":""}}]}\n\n',
    b'data: {"id":"c", "model":"engine-x","choices":[{"delta":{"content":"\\"model\\":\\"engine-x\\""}}]}\n\n',
    b'data: {"id":"c", "model":"engine-x","choices":[{"delta":{},"finish_reason":"stop"}]}\n\n',
    b"data: [DONE]\n\n",
]
NAMED = b"".join(FRAMES).replace(b'"model":"engine-x"', b'"model":"mine"')


@pytest.mark.parametrize("http", ["1.1", "1.0"])
async def test_a_whole_reply_names_the_clients_model_and_has_its_own_length(http: str) -> None:
    """Whether the engine states a length, sends chunks, or closes; the next request follows on the connection."""
    late = asyncio.Event()
    late.set()
    head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"
    scripts: list[list[bytes | asyncio.Event | Act]] = [
        [reply(SPACED)[:-30], late, reply(SPACED)[-30:]],
        [head + b"transfer-encoding: chunked\r\n\r\n" + chunked(SPACED[:20], SPACED[20:]) + LAST],
        [head + b"connection: close\r\n\r\n" + SPACED, Act.CLOSE],
    ]
    async with aliased(*scripts) as made:
        for _ in scripts:
            answer = await made.ask(chat(model="mine", stream=False, version=http))
            assert answer.body == SPACED.replace(b'"model": "engine-x"', b'"model": "mine"')
            assert answer.complete
            assert answer.headers["content-length"] == str(len(answer.body))


@pytest.mark.parametrize("http", ["1.1", "1.0"])
async def test_a_stream_names_the_clients_model_in_every_frame(http: str) -> None:
    """Read by read, split anywhere, or without chunks; each token goes on when it has come."""
    go_on = asyncio.Event()
    whole = STREAM_HEAD + chunked(*FRAMES) + LAST
    plain = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n" + b"".join(FRAMES)
    parts = b"".join(FRAMES)
    split = STREAM_HEAD + chunked(*(parts[at : at + 7] for at in range(0, len(parts), 7))) + LAST
    first = len(STREAM_HEAD) + len(chunked(*FRAMES[:2]))
    async with aliased([whole], [split], [plain, Act.CLOSE], [whole[:first], go_on, whole[first:]]) as made:
        for _ in range(3):
            answer = await made.ask(chat(model="mine", version=http))
            assert answer.complete
            assert answer.body == NAMED
        client = await made.client()
        client.send(chat(model="mine", version=http))
        await client.head()
        got = await client.reader.readuntil(b"}]}\n\n") + await client.reader.readuntil(b"}]}\n\n")
        assert got.count(b'"model":"mine"') == 2
        go_on.set()
        assert b"[DONE]" in await client.reader.readuntil(b"[DONE]\n\n")


async def test_events_of_responses_and_messages_name_it_where_they_hold_the_reply() -> None:
    """Deltas have no model, and their text is text."""
    responses = [
        event({"type": "response.created", "response": {"id": "r", "model": "engine-x", "status": "in_progress"}}),
        event({"type": "response.output_text.delta", "delta": '"model":"engine-x"'}),
        event({"type": "response.completed", "response": {"id": "r", "model": "engine-x", "status": "completed"}}),
    ]
    messages = [
        b"event: message_start\n" + event({"type": "message_start", "message": {"id": "m", "model": "engine-x"}}),
        b"event: content_block_delta\n"
        + event({"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "engine-x"}}),
        b"event: message_stop\n" + event({"type": "message_stop"}),
    ]
    scripts = [[STREAM_HEAD + chunked(*each) + LAST] for each in (responses, messages)]
    async with aliased(*scripts) as made:
        asked = {"model": "mine", "stream": True, "input": "x", "max_tokens": 5}
        asked["messages"] = [{"role": "user", "content": "x"}]
        for path, sent in (("/v1/responses", responses), ("/v1/messages", messages)):
            answer = await made.ask(post(path, json.dumps(asked).encode()))
            assert answer.complete
            assert answer.body == b"".join(sent).replace(b'"model": "engine-x"', b'"model": "mine"')


async def test_an_error_in_a_renamed_stream_still_ends_it_honestly() -> None:
    """With an error event and without [DONE]."""
    script = STREAM_HEAD + chunked(*FRAMES[:2], event({"error": {"message": "out of memory", "code": 500}})) + LAST
    async with aliased([script]) as made:
        answer = await made.ask(chat(model="mine"))
        assert answer.body.startswith(NAMED[: len(b"".join(FRAMES[:2])) - 8])
        assert "out of memory" in answer.events()[-1]
        assert b"[DONE]" not in answer.body


async def test_a_reply_too_large_to_hold_passes_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the engine's framing in effect."""
    monkeypatch.setattr("router.gateway.traffic.attempt._NAMED_BYTES_MAX", 100)
    large = b'{"model":"engine-x","x":"' + b"a" * 200_000 + b'"}'
    head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n"
    pieces = chunked(*(large[at : at + 30_000] for at in range(0, len(large), 30_000)))
    async with aliased([reply(large)], [head + pieces + LAST]) as made:
        for _ in range(2):
            answer = await made.ask(chat(model="mine", stream=False))
            assert answer.complete
            assert answer.body in {large, large.replace(b"engine-x", b"mine")}
