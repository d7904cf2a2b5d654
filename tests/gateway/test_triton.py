"""Triton's engines: native paths routed, OpenAI's requests translated there and back."""

import asyncio
import json
from typing import Any

import pytest

from router.core.decisions import EndState as Ending
from router.core.types import Usage
from router.engines import OpenAICall, Translation
from router.engines.triton import KIND as TRITON
from router.engines.triton import translate
from tests import fakes_wire as wire
from tests.fakes_wire import Act, ScriptedEngine, chat, chunked, event, gateway, post, reply, stream
from tests.waiting import until


def frame(text: str) -> bytes:
    """One event of generate_stream."""
    return event({"model_name": "m", "model_version": "1", "sequence_length": 1, "text_output": text})


def generated(*texts: str) -> bytes:
    """A whole generate_stream reply: no ``[DONE]``, the last chunk ends it."""
    return wire.STREAM_HEAD + chunked(*map(frame, texts)) + wire.LAST


def sent(engine: ScriptedEngine) -> tuple[str, Any]:
    """Request line and document of the last request to the engine."""
    head, _, body = engine.requests[-1].partition(b"\r\n\r\n")
    return head.split(b"\r\n")[0].decode(), json.loads(body)


def completion(**body: Any) -> bytes:
    """A legacy completion request."""
    return post("/v1/completions", json.dumps({"model": "m", "prompt": "say", **body}).encode())


async def test_a_chat_stream_of_triton_reads_as_openais() -> None:
    """Role first, a chunk a token, the reason it ended, usage when requested, and ``[DONE]``."""
    async with (
        ScriptedEngine([generated("was", " in", " at")]) as engine,
        gateway(engine.target(engine=TRITON, models={"m": "ensemble"})) as gate,
    ):
        got = await gate.chat(
            max_tokens=3,
            temperature=0.5,
            stop=["X"],
            stream_options={"include_usage": True},
            more="x-request-id: r1\r\n",
        )
        *events, done = got.events()
        frames = [json.loads(each) for each in events]
        assert (got.status, done) == (200, "[DONE]")
        assert got.headers["content-type"].startswith("text/event-stream")
        assert frames[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
        assert [f["choices"][0]["delta"]["content"] for f in frames[1:4]] == ["was", " in", " at"]
        assert frames[4]["choices"][0]["finish_reason"] == "length"
        assert frames[5]["choices"] == []
        assert frames[5]["usage"]["completion_tokens"] == 3
        assert {f["id"] for f in frames} == {"chatcmpl-r1"}
        assert {f["object"] for f in frames} == {"chat.completion.chunk"}
        line, asked = sent(engine)
        assert line == "POST /v2/models/ensemble/generate_stream HTTP/1.1"
        assert asked["text_input"] == "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"
        assert (asked["max_tokens"], asked["temperature"], asked["stop_words"]) == (3, 0.5, ["X"])
        assert gate.seen.outcomes[0].record.usage.output_tokens == 3


async def test_a_stream_does_not_keep_the_request_as_translated() -> None:
    """It has the whole prompt, like the body that the client sent."""
    more = asyncio.Event()
    begun = wire.STREAM_HEAD + chunked(frame("a"))
    async with (
        ScriptedEngine([begun, more, chunked(frame("b")) + wire.LAST]) as engine,
        gateway(engine.target(engine=TRITON)) as gate,
    ):
        client = await gate.client()
        client.send(chat())
        await client.head()
        (request,) = gate.driver._in_flight.values()
        assert request.winner is not None
        assert request.winner._translation is not None
        assert request.winner._translation.body == b""
        more.set()
        await client.reader.readuntil(wire.LAST)
        assert gate.seen.outcomes[0].record.usage.output_tokens == 2


LENGTHS: dict[str, tuple[list[tuple[str, object]], Usage]] = {
    "of each frame": ([("a", 1), ("b", 1), ("c", 1)], Usage(3)),
    "of each frame, some of which have several": ([("a", 1), ("b", 2), ("c", 1)], Usage(4)),
    "so far": ([("a", 1), ("b c", 3), ("d", 4)], Usage(4)),
    "so far, with a last frame of no text": ([("a", 1), ("b", 2), ("", 2)], Usage(2)),
    "by beam": ([("a", [[1]]), ("b", [[2]])], Usage(2)),
    "not stated": ([("a", None), ("b", None), ("", None)], Usage(2, estimated=True, output_tokens_least=2)),
    "not stated any more": ([("a", 1), ("b", 2), ("c", None)], Usage(3, estimated=True, output_tokens_least=3)),
    "none that can be one": ([("a", 10**12), ("b", -1), ("c", "9")], Usage(3, estimated=True, output_tokens_least=3)),
}


@pytest.mark.parametrize("name", LENGTHS)
async def test_tokens_are_those_that_the_ensemble_states_and_else_an_estimate(name: str) -> None:
    """A frame may have several tokens or none."""
    frames, usage = LENGTHS[name]
    documents = [{"text_output": text} | ({} if n is None else {"sequence_length": n}) for text, n in frames]
    script = wire.STREAM_HEAD + chunked(*map(event, documents)) + wire.LAST
    async with ScriptedEngine([script]) as engine, gateway(engine.target(engine=TRITON)) as gate:
        got = await gate.chat(stream_options={"include_usage": True})
        assert gate.seen.outcomes[0].record.usage == usage
        assert json.loads(got.events()[-2])["usage"]["completion_tokens"] == usage.output_tokens


@pytest.mark.parametrize(
    ("lengths", "expected"),
    [
        ([1, 1, 1], Usage(3)),
        ([1, 1, 1, 1], Usage(4)),
        ([1, 2, 3, 4, 5], Usage(5)),  # so far
        ([*range(1, 101)], Usage(100)),
        ([1, 3, 5], Usage(3, estimated=True, output_tokens_least=3)),
        ([1, 2, 1], Usage(3, estimated=True, output_tokens_least=3)),
        ([None, None], Usage(2, estimated=True, output_tokens_least=2)),
    ],
)
async def test_frames_that_state_one_token_each_are_counted_for_triton_clients(
    lengths: list[int | None], expected: Usage
) -> None:
    """A client of Triton's own protocol gets its frames as they are, and their tokens are no estimate."""
    documents = [{"text_output": "a word"} | ({} if n is None else {"sequence_length": n}) for n in lengths]
    script = wire.STREAM_HEAD + chunked(*map(event, documents)) + wire.LAST
    async with ScriptedEngine([script]) as engine, gateway(engine.target(engine=TRITON)) as gate:
        got = await gate.ask(post("/v2/models/m/generate_stream", b'{"text_input":"x","stream":true}'))
        assert got.complete
        assert gate.seen.outcomes[0].record.usage == expected


async def test_a_whole_reply_without_a_length_is_an_estimate() -> None:
    """By its text."""
    script = [reply(json.dumps({"text_output": "word " * 40}).encode())]
    async with ScriptedEngine(script) as engine, gateway(engine.target(engine=TRITON)) as gate:
        await gate.chat(stream=False)
        usage = gate.seen.outcomes[0].record.usage
        assert usage.estimated
        assert usage.output_tokens == pytest.approx(50, rel=0.2)


async def test_a_frame_without_a_token_is_no_first_token() -> None:
    """An error behind it can still be tried elsewhere, and frames of that kind are not held without bound."""
    empty = chunked(event({"text_output": ""}))
    broken = [wire.STREAM_HEAD + empty, chunked(event({"error": "the model instance died"}))]
    endless = [wire.STREAM_HEAD + empty * 20_000, Act.UNTIL_LEFT]
    for script in (broken, endless):
        async with (
            ScriptedEngine(script) as bad,
            ScriptedEngine([generated("good")]) as good,
            gateway(bad.target("a", engine=TRITON), good.target("b", engine=TRITON)) as gate,
        ):
            got = await gate.chat()
            assert (got.status, got.headers["x-headroom-backend"]) == (200, "b")


async def test_a_stream_below_its_cap_has_stopped() -> None:
    """The engine does not say why it ended."""
    async with ScriptedEngine([generated("a")]) as engine, gateway(engine.target(engine=TRITON)) as gate:
        got = await gate.ask(completion(stream=True, max_tokens=9))
        frames = [json.loads(each) for each in got.events()[:-1]]
        assert [f["choices"][0]["text"] for f in frames] == ["a", ""]
        assert frames[-1]["choices"][0]["finish_reason"] == "stop"
        assert sent(engine)[1]["text_input"] == "say"


async def test_a_whole_reply_of_triton_reads_as_openais() -> None:
    """One JSON document with usage, whatever chunks it came in."""
    body = json.dumps({"sequence_length": 2, "text_output": "was in"}).encode()
    head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n"
    script = [head + chunked(body[:9]), chunked(body[9:]) + wire.LAST]
    async with ScriptedEngine(script) as engine, gateway(engine.target(engine=TRITON)) as gate:
        got = await gate.chat(stream=False, max_tokens=5)
        answer = got.json()
        assert answer["object"] == "chat.completion"
        assert answer["choices"][0]["message"] == {"role": "assistant", "content": "was in"}
        assert answer["choices"][0]["finish_reason"] == "stop"
        assert answer["usage"]["completion_tokens"] == 2
        assert sent(engine)[0] == "POST /v2/models/m/generate HTTP/1.1"
        assert gate.seen.outcomes[0].record.usage.output_tokens == 2


async def test_frames_split_anywhere_translate_the_same() -> None:
    """A token's frame may come in any number of reads and chunks."""
    whole = b"".join(frame(text) for text in ("a", " b", " c"))
    script: wire.Script = [wire.STREAM_HEAD, *[chunked(whole[i : i + 7]) for i in range(0, len(whole), 7)], wire.LAST]
    async with ScriptedEngine(script) as engine, gateway(engine.target(engine=TRITON)) as gate:
        got = await gate.chat()
        texts = [json.loads(each)["choices"][0]["delta"].get("content") for each in got.events()[:-1]]
        assert texts == ["", "a", " b", " c", None]
        assert gate.seen.outcomes[0].record.usage.output_tokens == 3


@pytest.mark.parametrize(
    ("field", "value"),
    [("n", 2), ("tools", [{}]), ("response_format", {"type": "json_object"}), ("logprobs", True)],
)
async def test_what_triton_cannot_give_is_400_naming_it(field: str, value: Any) -> None:
    """The request goes to another engine where there is one."""
    async with (
        ScriptedEngine([generated("a")]) as engine,
        ScriptedEngine([stream("b")]) as other,
        gateway(engine.target(engine=TRITON)) as alone,
        gateway(engine.target("a", engine=TRITON), other.target("b")) as both,
    ):
        got = await alone.chat(**{field: value})
        assert (got.status, engine.requests) == (400, [])
        assert field in got.json()["error"]["message"]
        assert (await both.chat(**{field: value})).headers["x-headroom-backend"] == "b"


async def test_an_error_before_the_first_token_is_an_answer_in_openais_words() -> None:
    """Triton sends 400 with an event for a body."""
    answer = reply(b'data: {"error":"injected"}\n\n', 400, content_type="text/event-stream")
    async with ScriptedEngine([answer]) as engine, gateway(engine.target(engine=TRITON)) as gate:
        got = await gate.chat()
        assert (got.status, got.json()["error"]["message"]) == (400, "injected")


async def test_a_400_from_a_dead_stub_is_the_backends_fault() -> None:
    """It is tried elsewhere."""
    dead = reply(b'data: {"error":"Stub process \'ensemble_0_0\' is not healthy."}\n\n', 400)
    async with (
        ScriptedEngine([dead]) as engine,
        ScriptedEngine([generated("b")]) as good,
        gateway(engine.target("a", engine=TRITON), good.target("b", engine=TRITON)) as gate,
    ):
        assert (await gate.chat()).headers["x-headroom-backend"] == "b"


async def test_an_error_in_the_middle_of_a_translated_stream_ends_it_without_done() -> None:
    """In OpenAI's form."""
    script = [wire.STREAM_HEAD + chunked(frame("a"), event({"error": "injected"})) + wire.LAST]
    more = asyncio.Event()
    slow = [wire.STREAM_HEAD + chunked(frame("a")), more, chunked(event({"error": "injected"})) + wire.LAST]
    more.set()
    for each in (script, slow):
        async with ScriptedEngine(each) as engine, gateway(engine.target(engine=TRITON)) as gate:
            got = await gate.chat()
            assert json.loads(got.events()[-1])["error"]["message"] == "injected"
            assert gate.seen.endings == [Ending.BROKEN]


async def test_a_translated_stream_cut_in_the_middle_ends_with_an_error() -> None:
    """The stub died and the connection with it."""
    async with (
        ScriptedEngine([wire.STREAM_HEAD + chunked(frame("a")), Act.CLOSE]) as engine,
        gateway(engine.target(engine=TRITON)) as gate,
    ):
        got = await gate.chat()
        assert "error" in json.loads(got.events()[-1])
        assert got.complete


@pytest.mark.parametrize("rest", [b'data: {"text_out', b"data:", b"da", frame("b").rstrip()])
async def test_a_translated_stream_that_ends_inside_of_a_frame_is_broken(rest: bytes) -> None:
    """However clean its framing ends; before the first token another backend serves the request."""
    whole, begun = (wire.STREAM_HEAD + chunked(*frames, rest) + wire.LAST for frames in ((frame("a"),), ()))
    scripts = [whole], [begun if rest != frame("b").rstrip() else wire.STREAM_HEAD + wire.LAST]
    async with (
        ScriptedEngine(*scripts) as engine,
        ScriptedEngine([stream("good")]) as good,
        gateway(engine.target(engine=TRITON)) as alone,
        gateway(engine.target("a", engine=TRITON), good.target("b")) as gate,
    ):
        got = await alone.chat()
        assert "error" in json.loads(got.events()[-1])
        assert alone.seen.endings == [Ending.BROKEN]
        while not any(outcome.record.attempts == 2 for outcome in gate.seen.outcomes):
            answer = await gate.chat()
            assert (answer.status, answer.headers["x-headroom-backend"]) == (200, "b")


@pytest.mark.parametrize("nonsense", ["[1]", "7", "null", '{"text_output": 7}', '{"text_output": null}', "{"])
async def test_what_is_not_of_tritons_protocol_is_the_backends_fault(
    nonsense: str, caplog: pytest.LogCaptureFixture
) -> None:
    """In a whole reply and in a stream, before and after the first token; no exception reaches the event loop."""
    line, more = f"data: {nonsense}\n\n".encode(), asyncio.Event()
    scripts = [
        [wire.reply(nonsense.encode())],
        [wire.STREAM_HEAD + chunked(line) + wire.LAST],
        [wire.STREAM_HEAD + chunked(frame("a")), more, chunked(line) + wire.LAST],
    ]
    async with (
        ScriptedEngine(*scripts) as engine,
        gateway(engine.target(engine=TRITON, models={"m": "ensemble"})) as gate,
    ):
        for answer in (await gate.chat(stream=False), await gate.chat()):
            assert answer.status == 500
            assert "a sent what is not of its protocol" in answer.json()["error"]["message"]
        client = await gate.client()
        client.send(wire.chat())
        await client.head()
        more.set()
        assert b"a sent what is not of its protocol" in await client.ended()
        assert not [each for each in caplog.records if each.name == "asyncio"]


async def test_an_error_in_a_whole_reply_of_200_is_no_success() -> None:
    """Triton answers 200 with an error for a model that sends several responses."""
    async with (
        ScriptedEngine([reply(b'{"error":"generate expects model to produce exactly 1 response"}')]) as engine,
        gateway(engine.target(engine=TRITON)) as gate,
    ):
        assert (await gate.chat(stream=False)).status == 500
        assert gate.seen.endings == [Ending.REFUSED]


async def test_native_paths_are_routed_by_the_model_in_them() -> None:
    """As they came, with the engine's name for the model."""
    async with (
        ScriptedEngine([generated("a", "b")]) as engine,
        gateway(engine.target(engine=TRITON, models={"m": "ensemble"})) as gate,
    ):
        body = b'{"text_input":"hi","max_tokens":2,"stream":true}'
        got = await gate.ask(post("/v2/models/m/versions/1/generate_stream", body))
        assert got.body == frame("a") + frame("b")
        assert sent(engine)[0] == "POST /v2/models/ensemble/versions/1/generate_stream HTTP/1.1"
        assert gate.seen.outcomes[0].record.usage.output_tokens == 2


async def test_a_native_error_keeps_tritons_form() -> None:
    """The engine's own words and status, and ours in the same form."""
    answer = reply(b'data: {"error":"injected"}\n\n', 400, content_type="text/event-stream")
    async with ScriptedEngine([answer]) as engine, gateway(engine.target(engine=TRITON)) as gate:
        got = await gate.ask(post("/v2/models/m/generate_stream", b'{"text_input":"x"}'))
        assert (got.status, got.body) == (400, b'data: {"error":"injected"}\n\n')
        bad = await gate.ask(post("/v2/models/m/generate", b'{"text_input":7}'))
        assert (bad.status, bad.json()) == (400, {"error": "text_input: expected text"})


async def test_a_native_request_goes_to_an_engine_that_speaks_it() -> None:
    """Of two that serve the model, the one with Triton's protocol."""
    async with (
        ScriptedEngine([stream("x")]) as vllm,
        ScriptedEngine([reply(b'{"text_output":"y"}')]) as triton,
        gateway(vllm.target("a"), triton.target("b", engine=TRITON)) as gate,
    ):
        for _ in range(2):
            got = await gate.ask(post("/v2/models/m/generate", b'{"text_input":"x"}'))
            assert got.json() == {"text_output": "y"}
        assert vllm.requests == []


async def test_tensors_pass_as_they_are() -> None:
    """``infer`` with a binary body."""
    async with (
        ScriptedEngine([reply(b"\x00\x01")]) as engine,
        gateway(engine.target(engine=TRITON)) as gate,
    ):
        got = await gate.ask(post("/v2/models/m/infer", b"{}\x00\xff", "inference-header-content-length: 2\r\n"))
        assert got.body == b"\x00\x01"
        assert engine.requests[0].endswith(b"\r\n\r\n{}\x00\xff")
        assert b"inference-header-content-length: 2" in engine.requests[0]


async def test_a_translated_client_that_leaves_frees_the_engine() -> None:
    """The connection is aborted, which tells Triton to stop."""
    async with (
        ScriptedEngine([wire.STREAM_HEAD + chunked(frame("a")), Act.UNTIL_LEFT]) as engine,
        gateway(engine.target(engine=TRITON)) as gate,
    ):
        client = await gate.client()
        client.send(chat())
        await client.head()
        client.close()
        await until(lambda: engine.left == 1)
        assert gate.seen.endings == [Ending.LEFT]


def translation() -> Translation:
    """One streamed chat on its way to Triton."""
    return translate(
        OpenAICall(
            backend="a",
            path="/v1/chat/completions",
            document={"messages": [{"role": "user", "content": "x"}]},
            model="m",
            engine_model="m",
            stream=True,
            output_tokens_max=0,
            prompt_tokens=1,
            request_id="r",
            chat_template="{content}",
            chat_opening="",
        )
    )


def test_a_large_frame_in_very_many_reads_translates_as_one() -> None:
    """Each read costs what it holds: 300,000 of three bytes are no more work than one of a megabyte."""
    text = "x" * 900_000
    data, it = frame(text), translation()
    pieces = [data[at : at + 3] for at in range(0, len(data), 3)]
    out = b"".join(map(it.feed, pieces))
    assert json.loads(out.split(b"\n\n")[1][6:])["choices"][0]["delta"]["content"] == text
    assert it.feed(frame("y")[:-1] + b"\n") != b""
    assert it.tokens == 2


async def test_a_frame_without_an_end_is_the_backends_fault() -> None:
    """50 MB of one are not taken in: the engine is left after the first of them."""
    flood = chunked(b'data: {"text_output": "' + b"x" * 1_000_000, *[b"x" * 1_000_000] * 49)
    async with (
        ScriptedEngine([wire.STREAM_HEAD + chunked(frame("a")), flood, Act.UNTIL_LEFT]) as engine,
        gateway(engine.target(engine=TRITON)) as gate,
    ):
        got = await gate.chat()
        assert "a frame over 1048576 bytes" in json.loads(got.events()[-1])["error"]["message"]
        assert gate.seen.endings == [Ending.BROKEN]
        await until(lambda: engine.open == 0)
