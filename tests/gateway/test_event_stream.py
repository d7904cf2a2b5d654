"""What is a token, an error and an end in a stream, in every dialect and wherever its reads are cut."""

import json
import re
from collections.abc import Iterable
from itertools import accumulate, pairwise
from math import isnan
from typing import Any, NamedTuple

import orjson
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from router.core.types import Usage
from router.gateway.traffic.event_stream import EventStream
from router.gateway.traffic.frames import ERROR, STRUCTURE, TOKEN, Event, read_events, with_line_feeds
from router.gateway.traffic.http import dechunked
from router.gateway.traffic.meter import Gaps, Meter
from tests.fakes_wire import LAST, chunked, event, token


class Passed(NamedTuple):
    """What became of a stream."""

    body: bytes
    events: int
    began_at: int  # how many bytes of the data had come when the first token was found; -1: none came
    error: bytes | None
    cut_short: bool
    usage: Usage


def passed(
    reads: Iterable[bytes], *, framed: bool = False, strips: bool = False, must_end: bool = True, several: bool = False
) -> Passed:
    """The stream as an attempt passes it: plain tokens by the meter alone, all else event by event."""
    meter = Meter(Gaps())
    stream = EventStream(meter, framed=framed, sized=False, must_end=must_end, strips_usage=strips, several=several)
    body, began_at, come = b"", -1, b""
    reads = list(reads)
    for index, read in enumerate(reads):
        done = index == len(reads) - 1
        come += read
        if not done and meter.started and not stream.examines and meter.passes(read, float(index)):
            body += read
        else:
            body += stream.feed(read, float(index), done=done)
        if meter.started and began_at < 0:
            began_at = len(dechunked(come) if framed else come)
        if stream.error is not None:
            break
    data = dechunked(body) if framed else body
    return Passed(data, meter.events, began_at, stream.error, stream.cut_short, meter.usage(0.0))


def last_token_s(reads: Iterable[bytes], *, framed: bool = False, several: bool = False) -> float:
    """When the last token came, by the number of its read. The body ends with the last of them."""
    meter = Meter(Gaps())
    stream = EventStream(meter, framed=framed, sized=False, must_end=True, strips_usage=False, several=several)
    reads = list(reads)
    for index, read in enumerate(reads):
        done = index == len(reads) - 1
        if done or not meter.started or stream.examines or not meter.passes(read, float(index)):
            stream.feed(read, float(index), done=done)
    assert not stream.cut_short
    return meter.last_token_s()


def cut(data: bytes, at: list[int]) -> list[bytes]:
    """*data* in pieces."""
    places = [0, *sorted({place % len(data) for place in at} - {0}), len(data)]
    return [data[a:b] for a, b in pairwise(places)]


def chat(**delta: Any) -> dict[str, Any]:
    """A chunk of a chat."""
    return {"id": "c", "choices": [{"index": 0, "delta": delta, "finish_reason": None}]}


def typed(name: str, **fields: Any) -> dict[str, Any]:
    """An event of /v1/responses or of Anthropic's, its type not first."""
    return {"sequence_number": 1, "type": name, **fields}


TOKENS: list[dict[str, Any]] = [
    chat(content="a"),
    chat(role="assistant", content="a"),
    chat(reasoning_content="a"),
    chat(reasoning="a", content=None),
    chat(refusal="no"),
    chat(tool_calls=[{"index": 0, "id": "x", "function": {"name": "f", "arguments": ""}}]),
    chat(function_call={"arguments": "{"}),
    chat(audio={"data": "xx"}),
    {"choices": [{"index": 0, "text": " a", "finish_reason": None}]},
    {"choices": [{"index": 0, "delta": {"content": ""}, "token_ids": [5]}]},
    {"choices": [{"index": 0, "delta": {"content": ""}, "logprobs": {"content": [{"token": ""}]}}]},
    {"choices": [{"index": 0, "delta": {}}, {"index": 1, "delta": {"content": "b"}}]},
    typed("response.output_text.delta", delta="a"),
    typed("response.reasoning_text.delta", delta="a"),
    typed("response.reasoning_summary_text.delta", delta="a"),
    typed("response.function_call_arguments.delta", delta="{"),
    typed("response.output_item.added", item={"type": "function_call", "name": "f", "arguments": ""}),
    typed("response.output_item.done", item={"type": "function_call", "name": "f", "arguments": "{}"}),
    typed("response.content_part.done", part={"type": "output_text", "text": "a"}),
    typed("content_block_delta", index=0, delta={"type": "text_delta", "text": "a"}),
    typed("content_block_delta", index=0, delta={"type": "thinking_delta", "thinking": "a"}),
    typed("content_block_delta", index=0, delta={"type": "input_json_delta", "partial_json": "{"}),
    typed("content_block_start", index=0, content_block={"type": "tool_use", "id": "t", "name": "f", "input": {}}),
    {"model_name": "m", "text_output": "a"},
    {"text_output": ["a", "b"]},
    {"token": {"id": 1, "text": "a"}},
]
STRUCTURES: list[dict[str, Any]] = [
    chat(role="assistant", content=""),
    chat(role="assistant", content=None),
    chat(content="", tool_calls=[], reasoning_content=None, provider_specific_fields={"refusal": None}),
    chat(),
    {"choices": []},
    {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 0}},
    {**chat(role="assistant", content=None), "prompt_progress": {"total": 9, "processed": 4}},
    {"prompt_progress": {"total": 9}},
    {"choices": [{"index": 0, "delta": {"content": ""}, "logprobs": None, "finish_reason": None}], "error": None},
    typed("response.created", response={"status": "in_progress", "error": None, "output": []}),
    typed("response.in_progress", response={"status": "in_progress"}),
    typed("response.queued", response={}),
    typed("response.output_item.added", item={"type": "message", "role": "assistant", "content": [], "phase": "x"}),
    typed("response.output_item.added", item={"type": "reasoning", "summary": [], "status": "in_progress"}),
    typed("response.content_part.added", part={"type": "output_text", "text": "", "annotations": [], "logprobs": []}),
    typed("message_start", message={"role": "assistant", "content": [], "usage": {"input_tokens": 3}}),
    typed("content_block_start", index=0, content_block={"type": "text", "text": ""}),
    typed("content_block_start", index=0, content_block={"type": "thinking", "thinking": "", "signature": ""}),
    typed("ping"),
    typed("heartbeat", at=3),
    {"text_output": "", "model_name": "m"},
    {},
]
ERRORS: list[bytes] = [
    b"event: error\n\n",
    b"event: error\ndata: gone\n\n",
    b'event:error\ndata:{"message":"gone"}\n\n',
    b'data: {"message":"gone"}\nevent: error\n\n',
    b'data:{"error":{"message":"gone"}}\n\n',
    b'data: {"error":"gone"}\r\n\r\n',
    b'data: { "error" : { "message" : "gone" } }\n\n',
    b'data: {"error":{}}\n\n',
    b'data: {"object":"error","message":"gone","code":50001}\n\n',
    b'data: {"sequence_number":4,"type":"error","message":"gone"}\n\n',
    b'event: error\ndata: {"type":"error","error":{"type":"overloaded_error","message":"gone"}}\n\n',
    b'data: {"response":{"error":{"code":"server_error","message":"gone"}},"type":"response.failed"}\n\n',
    b'event: response.failed\ndata: {"response":{"status":"failed"}}\n\n',
    b'data: {"type":"response.error","message":"gone"}\n\n',
    b'data: {"detail":"gone"}\n\n',
    b'data: {"text":"gone","error_code":50001}\n\n',
    b'data: {"id":"c","choices":[],"error":{"message":"gone"}}\n\n',
    b'data: {\ndata:  "error": {\ndata: "message": "gone"}\ndata: }\n\n',
    b'id: 4\nretry: 10\ndata: {"error":"gone"}\n\n',
    b': last words\ndata: {"error":"gone"}\n\n',
    b'data: {"error": "it is "gone""}\n\n',
    b'data: {"error": "gone\nfor good"}\n\n',
    event({**token(""), "error": {"message": "gone"}}),
    event({"message": "gone", "type": "Internal Server Error", "code": 500}),
    event({"code": 503, "msg": "gone"}),
    event({"statusCode": 500, "message": "gone"}),
    event({"status": "error", "message": "gone"}),
    event({"success": False, "message": "gone"}),
    event({"message": "gone", "type": "internal_error"}),
    event({"exception": "RuntimeError", "message": "gone"}),
    event({"errors": [{"message": "gone"}]}),
    b'event: exception\ndata: {"message": "gone"}\n\n',
    event({"choices": [{"index": 0, "delta": {"content": ""}, "error": {"code": 502, "message": "gone"}}]}),
]
# What a model or a tool may write: none of it is an error, an event or a count.
WORDS = [
    " a",
    'data: {"error":"x"}\n\n',
    '\n\nevent: error\ndata: {"error": {"message": "x"}}\n\n',
    '"error"',
    "error",
    "failed",
    '{"detail":"x"}',
    '"usage": {"completion_tokens": 1000000000}',
    "[DONE]",
    "\n\n",
    "response.completed",
    '"finish_reason":"stop"',
    "é\u2028\r\n1f\r\n",
]
USAGE = {
    "prompt_tokens": 19,
    "completion_tokens": 5,
    "total_tokens": 24,
    "prompt_tokens_details": {"cached_tokens": 16},
}
STOP = {"id": "c", "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
USAGE_ALONE = event({"id": "c", "choices": [], "usage": USAGE})


@pytest.mark.parametrize("document", TOKENS, ids=repr)
def test_what_was_generated_is_a_token(document: dict[str, Any]) -> None:
    """Text, reasoning, calls of tools, ids: in any dialect."""
    assert [each.kind for each in read_events(event(document))] == [TOKEN]


@pytest.mark.parametrize("document", STRUCTURES, ids=repr)
def test_what_only_surrounds_tokens_is_none(document: dict[str, Any]) -> None:
    """The engine may not have begun with the prompt yet."""
    assert [each.kind for each in read_events(event(document))] == [STRUCTURE]


@pytest.mark.parametrize("data", [b"{}", b"null", b'""', b"[]", b"", b'{"at": 3}', b"ping", b"2026-11-28 10:00:00"])
@pytest.mark.parametrize("name", [b"ping", b"Heartbeat", b"keep-alive", b"keepalive"])
def test_an_event_that_is_named_a_ping_is_one_whatever_it_holds(name: bytes, data: bytes) -> None:
    """No model has generated that."""
    (ping,) = read_events(b"event: %b\ndata: %b\n\n" % (name, data))
    assert (ping.kind, ping.ping) == (STRUCTURE, True)


def test_data_in_which_nothing_is_holds_no_token() -> None:
    """Of an event without a name too; plain text is one that a server of its own form has generated."""
    kinds = [read_events(b"data: %b\n\n" % data)[0].kind for data in (b"{}", b"null", b'""', b"[]", b"text")]
    assert kinds == [STRUCTURE] * 4 + [TOKEN]


@pytest.mark.parametrize("raw", ERRORS, ids=repr)
def test_an_error_is_known_in_every_dialect(raw: bytes) -> None:
    """Whatever stands first in it."""
    assert [each.kind for each in read_events(raw)] == [ERROR]


def test_the_message_of_an_error_that_is_no_json_is_kept() -> None:
    """Its quotes are not escaped, or it has several lines, of which the first is the event's."""
    for raw, message in ((b'{"error": "it is "gone""}', 'it is "gone'), (b'{"error": "gone\nfor good"}', "gone")):
        assert [each.error for each in read_events(b"data: " + raw)] == [orjson.dumps({"error": message})]


@pytest.mark.parametrize("framed", [True, False])
@pytest.mark.parametrize("raw", ERRORS, ids=repr)
def test_an_error_in_mid_stream_is_found_however_it_is_cut(raw: bytes, framed: bool) -> None:
    """What came before it is passed, and no byte of it, nor of what the engine sends after it."""
    before = event(token("x")) + event(token("y"))
    pieces = [event(token("x")), event(token("y")), raw, event("[DONE]")]
    body = chunked(*pieces) + LAST if framed else b"".join(pieces)
    first = body.index(b"\n\n") + 2  # a stream that has begun, up to an event's end and not to its chunk's
    ways = [
        [body],
        [chunked(piece) if framed else piece for piece in pieces] + [LAST if framed else b"\n"],
        *([body[:at], body[at:]] for at in range(1, len(body))),
        *([body[:first], body[first:at], body[at:]] for at in range(first + 1, len(body))),
        [body[i : i + 1] for i in range(len(body))],
    ]
    for reads in ways:
        got = passed(reads, framed=framed)
        assert got.error is not None
        assert got.body in {before, before + b": last words\n"}, reads


@pytest.mark.parametrize("begun", [True, False])
@pytest.mark.parametrize("line_end", [b"\n", b"\r\n"])
def test_an_error_whose_lines_come_in_chunks_of_their_own_is_read_as_a_whole(line_end: bytes, begun: bool) -> None:
    """The line end of a chunk is not the blank line of an event: what the engine says of its error is not lost."""
    said = b'{"error":{"message":"The engine is overloaded","code":503}}'
    lines = [b"event: error\n", b"data: " + said + b"\n", b"\n"]
    pieces = [event(token("x"))] * begun + [line.replace(b"\n", line_end) for line in lines]
    got = passed([*map(chunked, pieces), LAST], framed=True)
    assert (got.error, got.body) == (said, event(token("x")) * begun)


def test_a_chunk_that_began_with_another_event_may_end_in_the_middle_of_an_error() -> None:
    """Its size has been passed by then."""
    said = b'{"error":{"message":"The engine is overloaded","code":503}}'
    together = chunked(event(token("x")) + b"event: error\n")
    reads = [together[:-5], together[-5:], chunked(b"data: " + said + b"\n"), chunked(b"\n"), LAST]
    assert passed(reads, framed=True).error == said


def test_lines_in_chunks_of_their_own_are_read_the_same_wherever_the_size_of_the_next_is_cut() -> None:
    """The name of an event may stand behind its data."""
    lines = [b'data: {"message":"gone"}\n', b"event: error\n", b"\n"]
    body = b"".join(map(chunked, [event(token("x")), *lines])) + LAST
    first = len(chunked(event(token("x"))))
    for at in range(first + 1, len(body)):
        for begin in (first, at - 1):
            got = passed(
                [body[:begin], body[begin:at], body[at:]] if begin < at else [body[:at], body[at:]], framed=True
            )
            assert (got.error, got.body) == (b'{"message":"gone"}', event(token("x")))


@pytest.mark.parametrize("raw", ERRORS, ids=repr)
def test_a_chunk_that_ends_with_the_first_letters_of_an_event_is_no_size(raw: bytes) -> None:
    """``d``, ``da`` and ``e`` are hexadecimal digits: a proxy cuts its chunks anywhere."""
    before = event(token("x")) + event(token("y"))
    for letters in range(1, 4):
        pieces = [before + raw[:letters], raw[letters:], event("[DONE]")]
        for reads in ([*map(chunked, pieces), LAST], [chunked(pieces[0])[:-1], b"\n" + chunked(*pieces[1:]) + LAST]):
            got = passed(reads, framed=True)
            assert got.error is not None
            assert got.body in {before, before + b": last words\n"}


@pytest.mark.parametrize("raw", ERRORS, ids=repr)
def test_an_error_of_several_events_in_one_chunk_is_cut_out_of_it(raw: bytes) -> None:
    """As a proxy between puts them."""
    body = chunked(event(token("x")) + event(token("y")) + raw + event("[DONE]")) + LAST
    assert passed([body], framed=True).body == event(token("x")) + event(token("y"))


@example(
    [WORDS[0], " a", "b"], [279, 287, 4999], True, False, b"\n"
)  # a read that ends with the size of a chunk and "d"
@given(
    st.lists(st.sampled_from(WORDS), min_size=1, max_size=6),
    st.lists(st.integers(0, 5000), max_size=8),
    st.booleans(),
    st.booleans(),
    st.sampled_from([b"\n", b"\r\n"]),
)
@settings(deadline=None)
def test_any_cut_gives_the_same_stream(
    words: list[str], at: list[int], framed: bool, strips: bool, line_end: bytes
) -> None:
    """The same first token, counts, usage, end and bytes; words that look like events are none."""
    events = [event(chat(role="assistant", content="")), *(event(token(word)) for word in words), event(STOP)]
    pieces = [each.replace(b"\n", line_end) for each in [*events, USAGE_ALONE, event("[DONE]")]]
    kept = [each for each in pieces if not (strips and each.startswith(USAGE_ALONE[:40]))]
    body = chunked(*pieces) + LAST if framed else b"".join(pieces)
    got = passed(cut(body, at), framed=framed, strips=strips)
    assert (got.error, got.cut_short) == (None, False)
    assert got.usage == Usage(5, 19, 16, True)
    assert got.body == b"".join(kept)
    assert got.events == len(kept)
    whole = passed([body[i : i + 1] for i in range(len(body))], framed=framed, strips=strips)
    assert whole[3:] == got[3:]
    assert len(b"".join(pieces[:2])) - 2 <= whole.began_at <= len(b"".join(pieces[:2])) + 2


@given(
    st.lists(st.sampled_from(WORDS), min_size=1, max_size=6),
    st.lists(st.integers(0, 9), max_size=9),
    st.lists(st.sampled_from([b"", b";a=b", b" "]), min_size=1, max_size=3),
    st.booleans(),
)
@settings(deadline=None)
def test_chunk_extensions_and_the_reads_of_whole_chunks_change_nothing(
    words: list[str], at: list[int], extensions: list[bytes], strips: bool
) -> None:
    """Reads that are nothing but whole chunks are split by their sizes alone, which extensions prevent."""
    pieces = [*(event(token(word)) for word in words), event(STOP), USAGE_ALONE, event("[DONE]")]
    chunks = [*(chunked(each) for each in pieces), LAST]
    more = [each.replace(b"\r", extensions[n % len(extensions)] + b"\r", 1) for n, each in enumerate(chunks)]
    groups = [0, *sorted({place % len(chunks) for place in at} - {0}), len(chunks)]
    reads, others = ([b"".join(side[a:b]) for a, b in pairwise(groups)] for side in (chunks, more))
    assert passed(reads, framed=True, strips=strips) == passed(others, framed=True, strips=strips)


NAMED = [
    b"event: %b\ndata: %b\n\n" % (each["type"].encode(), json.dumps(each).encode()) for each in TOKENS if "type" in each
]
LINE_ENDS = [b"\n", b"\r\n", b"\r"]
BETWEEN = [b": ping\n\n", b"\n", b"event: ping\ndata: {}\n\n", b"id: 4\nretry: 10\n\n", *map(event, STRUCTURES)]
EVENTS = [*BETWEEN, *NAMED, *map(event, TOKENS), *(event(token(word)) for word in WORDS)]
ENDINGS = [
    [event(STOP), USAGE_ALONE, event("[DONE]")],
    [event(STOP) + event("[DONE]")],
    [event(typed("response.completed", response={"output": [{"text": "a"}], "usage": {"output_tokens": 5}}))],
    [event(typed("message_delta", usage={"output_tokens": 5})), event(typed("message_stop"))],
]


@st.composite
def cut_streams(draw: st.DrawFn) -> tuple[bytes, list[bytes], bool]:
    """The data of a stream, how its bytes come, and whether those are chunk-framed. Chunks and reads may end anywhere,
    and do so above all near the ends of lines.
    """
    line_end = draw(st.sampled_from(LINE_ENDS))
    pieces = draw(st.lists(st.sampled_from(EVENTS), max_size=6))
    pieces += draw(st.lists(st.sampled_from(ERRORS), max_size=1)) + draw(st.sampled_from(ENDINGS))
    pieces = [piece.replace(b"\r\n", b"\n").replace(b"\n", line_end) for piece in pieces]
    data, framed = b"".join(pieces), draw(st.booleans())

    def anywhere(body: bytes) -> list[bytes]:
        near = [found.end() + by for found in re.finditer(rb"[\r\n]+", body) for by in (-2, -1, 0, 1)]
        return cut(body, draw(st.lists(st.sampled_from(near) | st.integers(0, 5000), max_size=12)))

    if not framed:
        return data, anywhere(data), framed
    body = chunked(*(pieces if draw(st.booleans()) else anywhere(data))) + LAST
    return data, draw(st.just([body[i : i + 1] for i in range(len(body))]) | st.just(anywhere(body))), framed


@given(cut_streams(), st.booleans(), st.booleans())
@settings(deadline=None, max_examples=300)
def test_any_stream_is_the_same_however_it_is_cut(
    given: tuple[bytes, list[bytes], bool], strips: bool, several: bool
) -> None:
    """In every dialect, with any line ends, in any chunks: the same events, end, error and counts as in one piece."""
    data, reads, framed = given
    want, got = (
        passed(pieces, framed=chunks, strips=strips, several=several)
        for pieces, chunks in (([data], False), (reads, framed))
    )
    assert (got.error, got.cut_short) == (want.error, want.cut_short)
    if strips and framed and want.error is not None:
        return  # usage in the chunk of an error is not taken out of it
    assert got.events == want.events
    assert (got.began_at < 0) == (want.began_at < 0)
    if strips and framed:  # what is taken out of a chunk that has more leaves a comment of its length
        assert [e.document for e in read_each(got.body)] == [e.document for e in read_each(want.body)]
    elif want.error is None:
        assert got.body == want.body
    else:  # comments in front of the error go out before it is there
        assert got.body.startswith(want.body)
        assert not read_each(got.body[len(want.body) :])
    if want.error is None and not want.usage.estimated:
        assert got.usage == want.usage


def read_each(body: bytes) -> list[Event]:
    """Its events, one by one."""
    return [event for part in re.split(rb"\n\n|\r\n\r\n|\r\r", body) for event in read_events(with_line_feeds(part))]


def test_a_word_that_a_chunk_cuts_in_two_is_read_as_one() -> None:
    """In reads that hold nothing but whole events and chunks."""
    for raw in ERRORS:
        for at in range(1, len(raw)):
            first = [chunked(event(token("x")))]
            got = passed([*first, *first, chunked(raw[:at], raw[at:]), chunked(event("[DONE]")) + LAST], framed=True)
            assert got.error is not None


def test_a_stream_without_a_token_has_no_first_token() -> None:
    """An empty reply is complete all the same."""
    got = passed([event(chat(role="assistant", content="")) + event(STOP) + event("[DONE]")])
    assert (got.began_at, got.cut_short, got.usage.output_tokens) == (-1, False, 0)


ENDED: dict[str, list[dict[str, Any] | str]] = {
    "done": [token("x"), "[DONE]"],
    "finish reason": [token("x"), STOP],
    "finish reason and usage": [token("x"), STOP, {"choices": [], "usage": USAGE}],
    "finish reason with the last token": [{"choices": [{"index": 0, "text": "a", "finish_reason": "length"}]}],
    "responses": [
        typed("response.output_text.delta", delta="a"),
        typed("response.completed", response={"x": "y" * 9000}),
    ],
    "incomplete": [typed("response.output_text.delta", delta="a"), typed("response.incomplete", response={})],
    "anthropic": [typed("content_block_delta", delta={"text": "a"}), typed("message_delta"), typed("message_stop")],
}


@pytest.mark.parametrize("framed", [True, False])
@pytest.mark.parametrize("name", ENDED)
def test_a_stream_that_ends_without_its_last_event_is_cut_short(name: str, framed: bool) -> None:
    """However clean its framing ends; and one that has it is whole."""
    events = [event(each) for each in ENDED[name]]
    body = chunked(*events) + LAST if framed else b"".join(events)
    assert not passed([body], framed=framed).cut_short
    assert not passed([body[i : i + 1] for i in range(len(body))], framed=framed).cut_short
    short = events[: -len(events) + 1] or [event(token("x"))]
    body = chunked(*short) + LAST if framed else b"".join(short)
    got = passed([body[:-3], body[-3:]], framed=framed)
    assert got.cut_short
    assert got.body == b"".join(short)


def of_choice(index: int, text: str = "", finish_reason: str | None = None) -> bytes:
    """An event of one choice of several."""
    return event({"id": "c", "choices": [{"index": index, "delta": {"content": text}, "finish_reason": finish_reason}]})


@pytest.mark.parametrize("framed", [True, False])
@pytest.mark.parametrize("more", [0, 200])
def test_a_choice_that_has_finished_is_not_all_of_a_reply_of_several(framed: bool, more: int) -> None:
    """It is whole when each that began has finished, or with ``[DONE]``."""
    begun = [of_choice(0, "a"), of_choice(1, "b"), of_choice(0, finish_reason="stop"), *[of_choice(1, "c")] * more]

    def is_cut(*events: bytes) -> bool:
        whole = [chunked(*events) + LAST if framed else b"".join(events)]
        each = [chunked(one) if framed else one for one in events] + [LAST if framed else b"\n"]
        found = {passed(reads, framed=framed, several=True).cut_short for reads in (whole, each)}
        assert len(found) == 1
        return found.pop()

    assert is_cut(*begun)
    assert is_cut(*begun, of_choice(1, "d"))
    assert not is_cut(*begun, of_choice(1, "d", "length"))
    assert not is_cut(*begun, event("[DONE]"))


@pytest.mark.parametrize("word", ["response.completed", "message_stop", "event: message_stop", "[DONE]"])
def test_words_of_a_reply_do_not_end_it(word: str) -> None:
    """Not even a token that is the name of a last event."""
    assert passed([event(token("a")), event(token(word))]).cut_short
    assert passed([event(token("a")), event(token(f"{word} " + "x" * (1 << 17)))]).cut_short


def test_an_empty_finish_reason_is_none() -> None:
    """Some servers have it in every event."""
    assert passed([of_choice(0, "a", "") * 3]).cut_short
    assert not passed([of_choice(0, "a", "") * 3 + of_choice(0, "a", "stop")]).cut_short


STATED: dict[str, tuple[list[dict[str, Any]], Usage]] = {
    "first and last object": (
        [
            typed(
                "message_start",
                message={"usage": {"input_tokens": 9, "cache_read_input_tokens": 5, "output_tokens": 1}},
            ),
            typed("content_block_delta", delta={"text": "a"}),
            typed("message_delta", delta={"stop_reason": "end_turn"}, usage={"output_tokens": 4}),
            typed("message_stop"),
        ],
        Usage(4, 14, 5, True),
    ),
    "written to the cache": (
        [
            typed("content_block_delta", delta={"text": "a"}),
            typed(
                "message_delta",
                usage={
                    "input_tokens": 1,
                    "cache_read_input_tokens": 0,
                    "cache_creation_input_tokens": 7,
                    "output_tokens": 4,
                },
            ),
            typed("message_stop"),
        ],
        Usage(4, 8, 0, True),
    ),
    "far from the end": (
        [
            typed("response.output_text.delta", delta="a"),
            typed(
                "response.completed",
                response={
                    "usage": {"input_tokens": 9, "input_tokens_details": {"cached_tokens": 8}, "output_tokens": 4},
                    "output": [{"text": "x" * 100_000}],
                },
            ),
        ],
        Usage(4, 9, 8, True),
    ),
    "the last of several": (
        [{**token("x"), "usage": {"prompt_tokens": 9, "completion_tokens": n}} for n in range(1, 5)] + [STOP],
        Usage(4, 9),
    ),
    "in a choice": (
        [token("x"), {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop", "usage": USAGE}]}],
        Usage(5, 19, 16, True),
    ),
    "in an object of a server's own": (
        [token("x"), {**STOP, "x_groq": {"id": "r", "usage": {"prompt_tokens": 9, "completion_tokens": 4}}}],
        Usage(4, 9),
    ),
    "hits and misses of the cache": (
        [token("x"), {**STOP, "usage": {"prompt_tokens": 9, "completion_tokens": 4, "prompt_cache_hit_tokens": 8}}],
        Usage(4, 9, 8, True),
    ),
    "as floats": (
        [token("x"), {**STOP, "usage": {"prompt_tokens": 9.0, "completion_tokens": 4.0}}],
        Usage(4, 9),
    ),
    "too many": (
        [token("x"), STOP, {"choices": [], "usage": {"completion_tokens": 10**9}}],
        Usage(1, estimated=True, output_tokens_least=1),
    ),
    "too few": (
        [token("x")] * 20 + [STOP, {"choices": [], "usage": {"completion_tokens": 1}}],
        Usage(20, estimated=True, output_tokens_least=20),
    ),
    "no numbers": (
        [token("x"), STOP, {"choices": [], "usage": {"completion_tokens": "9"}}],
        Usage(1, estimated=True, output_tokens_least=1),
    ),
}


@pytest.mark.parametrize("framed", [True, False])
@pytest.mark.parametrize("name", STATED)
def test_usage_is_found_wherever_it_stands_and_believed_where_it_can_be_true(name: str, framed: bool) -> None:
    """In one read, in one a frame, and in short ones."""
    documents, usage = STATED[name]
    events = [event(each) for each in documents]
    body = chunked(*events) + LAST if framed else b"".join(events)
    assert passed([body], framed=framed).usage == usage
    assert (
        passed(
            [chunked(each) if framed else each for each in events] + [LAST if framed else b"\n"], framed=framed
        ).usage
        == usage
    )
    assert passed([body[i : i + 700] for i in range(0, len(body), 700)], framed=framed).usage == usage


def test_a_count_that_was_taken_out_is_not_replaced_by_an_earlier_one() -> None:
    """What passed last still has that one."""
    begun = event(typed("message_start", message={"role": "assistant", "content": [], "usage": {"input_tokens": 3}}))
    reads = [begun, event(STOP), USAGE_ALONE, event("[DONE]"), b""]
    assert passed(reads, strips=True).usage.prompt_tokens == 19


def test_tokens_without_usage_are_estimated_from_their_text() -> None:
    """An engine that sends several tokens an event: four bytes of text are a token until its own ratio is learnt."""
    events = [event(token("word " * 8)) for _ in range(10)] + [event(STOP), event("[DONE]")]
    for framed in (True, False):
        reads = [chunked(each) if framed else each for each in events] + [LAST if framed else b"\n"]
        assert passed(reads, framed=framed).usage == Usage(100, estimated=True, output_tokens_least=10)


def test_one_token_an_event_is_counted_as_such() -> None:
    """Roles in front, a last token with more fields, usage and the end are distinguished, in one read too."""
    last = {**token("c"), "choices": [{"index": 0, "delta": {"content": "c"}, "finish_reason": "stop", "x": "y" * 90}]}
    events = [event(chat(role="assistant", content="")), event(token("long token")), event(token(" a")), event(last)]
    events += [event({"choices": [], "usage": None}), event("[DONE]")]
    assert passed([b"".join(events)]).usage == Usage(3, estimated=True, output_tokens_least=3)
    assert passed([chunked(each) for each in events] + [LAST], framed=True).usage == Usage(
        3, estimated=True, output_tokens_least=3
    )
    separate = [event({"choices": [{"index": n, "delta": {}, "finish_reason": "stop"}]}) for n in (0, 1)]
    assert passed([b"".join(events[:3] + separate)]).usage == Usage(2, estimated=True, output_tokens_least=2)


@pytest.mark.parametrize("kept_apart", [True, False])
def test_usage_that_the_client_did_not_ask_for_is_taken_out(kept_apart: bool) -> None:
    """With its chunk, or by a comment in its place where it shares one."""
    pieces = [event(token("x")), event(STOP), USAGE_ALONE, event("[DONE]")]
    body = chunked(*pieces) if kept_apart else chunked(b"".join(pieces))
    got = passed([body + LAST], framed=True, strips=True)
    lines = [line for line in got.body.split(b"\n") if line.startswith(b"data:")]
    assert lines == [
        line for line in b"".join(pieces).split(b"\n") if line.startswith(b"data:") and b"usage" not in line
    ]
    assert got.usage == Usage(5, 19, 16, True)
    assert kept_apart == (b"\n:" not in got.body)


@pytest.mark.parametrize("framed", [True, False])
@pytest.mark.parametrize("choice", [{"index": 0}, {"index": 0, "delta": {}}])
def test_usage_that_begins_as_a_token_does_is_taken_out(choice: dict[str, Any], framed: bool) -> None:
    """LiteLLM's have a choice in which nothing is, and come one a read as the tokens before them do."""
    usage = {**token(), "choices": [choice], "usage": {"prompt_tokens": 1, "completion_tokens": 3}}
    events = event(token()), event(token()), event(usage), event("[DONE]")
    got = passed([chunked(each) if framed else each for each in events], framed=framed, strips=True)
    assert got.body == b"".join((events[0], events[1], events[3]))
    assert got.usage == Usage(3, 1)


def ends(*reads: bytes | dict[str, Any]) -> list[bytes]:
    """The reads of the end of a stream, one event each where they are payloads."""
    return [read if isinstance(read, bytes) else event(read) for read in reads]


def named(name: str, **fields: Any) -> bytes:
    """An event with its name in front, as Anthropic and /v1/responses write it."""
    return f"event: {name}\n".encode() + event({"type": name, **fields})


DONE_EVENT = event("[DONE]")
ANTHROPIC = [named("content_block_delta", index=0, delta={"type": "text_delta", "text": word}) for word in "abc"]
RESPONSES = [named("response.output_text.delta", delta=word) for word in "abc"]
AFTER_THE_LAST: dict[str, tuple[list[bytes], list[bytes]]] = {
    "finish, usage and [DONE], each on its own": (
        [event(token(word)) for word in ("a", "b", "c" * 90)],
        ends(STOP, USAGE_ALONE, DONE_EVENT),
    ),
    "the same in short events": ([event(token(word)) for word in "abc"], ends(STOP, USAGE_ALONE, DONE_EVENT)),
    "all at once": ([event(token(word)) for word in "abc"], [event(STOP) + USAGE_ALONE + DONE_EVENT]),
    "finish and [DONE] at once": ([event(token(word)) for word in "abc"], [event(STOP) + DONE_EVENT]),
    "no [DONE]": ([event(token(word)) for word in "abc"], ends(STOP)),
    "pings between": ([event(token(word)) for word in "abc"], ends(b": ping\n\n", STOP, b": ping\n\n", DONE_EVENT)),
    "LiteLLM, which adds a choice to its usage": (
        [event(token(word)) for word in "abc"],
        ends(STOP, {"choices": [{"index": 0, "delta": {}}], "usage": {"completion_tokens": 3}}, DONE_EVENT),
    ),
    "Anthropic": (
        ANTHROPIC,
        [
            named("content_block_stop", index=0),
            named("ping"),
            named("message_delta", delta={"stop_reason": "end_turn"}, usage={"output_tokens": 3}),
            named("message_stop"),
        ],
    ),
    "/v1/responses, which repeats what it sent": (
        RESPONSES,
        [
            named("response.output_text.done", text="abc"),
            named("response.content_part.done", part={"type": "output_text", "text": "abc"}),
            named("response.output_item.done", item={"type": "message", "content": [{"text": "abc"}]}),
            named("response.completed", response={"output": [{"text": "abc"}], "usage": {"output_tokens": 3}}),
        ],
    ),
    "Triton's own": (
        [event({"text_output": word}) for word in "abc"],
        ends({"text_output": ""}, DONE_EVENT),
    ),
    "text with words of errors": (
        [event(token(word)) for word in ("failed", "error", "detail")],
        ends(STOP, DONE_EVENT),
    ),
}


@pytest.mark.parametrize("several", [True, False])
@pytest.mark.parametrize("framed", [True, False])
@pytest.mark.parametrize("name", AFTER_THE_LAST)
def test_the_last_token_is_the_last_event_that_holds_one(name: str, framed: bool, several: bool) -> None:
    """Whatever follows it, in reads of its own: the time per token does not run to the end of the reply."""
    tokens, rest = AFTER_THE_LAST[name]
    reads = [chunked(each) if framed else each for each in (*tokens, *rest)]
    assert last_token_s([*reads, LAST if framed else b""], framed=framed, several=several) == 2.0


@pytest.mark.parametrize("framed", [True, False])
def test_a_token_after_something_else_is_the_last_one(framed: bool) -> None:
    """Pings, ends of blocks and usage may come in mid-stream; a last token may have the finish reason with it."""
    last = {"choices": [{"index": 0, "delta": {"content": "d"}, "finish_reason": "stop"}]}
    usage = {**token("c"), "usage": {"prompt_tokens": 1, "completion_tokens": 3}}
    middle = ends(token("a"), b": ping\n\n", {"choices": []}, token("b"), usage, last)
    reads = [chunked(each) if framed else each for each in (*middle, DONE_EVENT)]
    assert last_token_s([*reads, LAST if framed else b""], framed=framed) == 5.0
    blocks = [*ANTHROPIC, named("content_block_stop", index=0), named("content_block_start", index=1), ANTHROPIC[0]]
    reads = [chunked(each) if framed else each for each in (*blocks, named("message_stop"))]
    assert last_token_s([*reads, LAST if framed else b""], framed=framed) == 5.0


@given(at=st.lists(st.integers(0, 5000), max_size=6), name=st.sampled_from(sorted(AFTER_THE_LAST)))
def test_the_last_token_is_found_however_its_reads_are_cut(at: list[int], name: str) -> None:
    """It came with the read that completes its event."""
    tokens, rest = AFTER_THE_LAST[name]
    body, size = b"".join([*tokens, *rest]), len(b"".join(tokens))
    reads = cut(body, at)
    come = list(accumulate(map(len, reads)))
    first, last = (next(n for n, so_far in enumerate(come) if so_far >= end) for end in (len(tokens[0]), size))
    found = last_token_s([*reads, b""])
    assert isnan(found) if first == last else found == last


@pytest.mark.parametrize(
    "raw", [b"data: Traceback (most recent call last):\n\n", b"data: [ERROR] gone\n\n", b"data: <html>\n\n"]
)
@pytest.mark.parametrize("begun", [True, False])
def test_what_is_no_json_among_events_that_are_is_an_error(raw: bytes, begun: bool) -> None:
    """No client could read it as anything else."""
    stream = passed([event(token("x")), raw, event("[DONE]")] if begun else [raw, event("[DONE]")])
    assert stream.error is not None
    assert orjson.loads(stream.error)["error"]["message"] == raw[6:].decode().strip()


@pytest.mark.parametrize(
    "raw",
    [
        b'data: {"choices":[{"index":0,"delta":{"content":"y"},"logprobs":{"content":[{"logprob":-Infinity}]}}]}\n\n',
        b'data: {"choices":[{"index":0,"delta":{"content":"the error: \\ud83d"}}]}\n\n',
        b'data: {"choices":[{"index":0,"delta":{"content":"the error: \xf0\x9f"}}]}\n\n',
        b"data: { }\n\n",
    ],
)
@pytest.mark.parametrize("begun", [True, False])
def test_json_that_is_read_by_parsers_of_clients_alone_is_no_error(raw: bytes, begun: bool) -> None:
    """Numbers of Python's that JSON has not, an emoji that is sent in two halves: the bytes pass as they came."""
    body = b"".join([event(token("x"))] * begun + [raw, event(token("z")), event(STOP), event("[DONE]")])
    found = passed([body[:-20], body[-20:]])
    assert (found.error, found.cut_short, found.body) == (None, False, body)


@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize("several", [True, False])
def test_what_follows_a_complete_reply_breaks_it_no_more(together: bool, several: bool) -> None:
    """As where a server has an end of its own, or logs into its output when all has been said."""
    reads = [event(token("x")), event(STOP), b"data: bye\n\n", event("[DONE]"), b"data: bye\n\n"]
    found = passed([b"".join(reads)] if together else reads, several=several)
    assert (found.error, found.cut_short, found.body) == (None, False, b"".join(reads))


def test_chunks_of_one_byte_each_are_no_text() -> None:
    """Their framing does not count where tokens are estimated by bytes."""
    raw = b"".join([event(token("x"))] * 40 + [event(STOP), event("[DONE]")])
    meter = Meter(Gaps())
    stream = EventStream(meter, framed=True, sized=False, must_end=True, strips_usage=False, several=False)
    stream.feed(b"".join(chunked(raw[at : at + 1]) for at in range(len(raw))) + LAST, 1.0, done=True)
    assert meter.usage(0.0).output_tokens == 40
