"""Counting what passes, wherever the reads are cut."""

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.core.types import Usage
from router.gateway.traffic.event_stream import EventStream
from router.gateway.traffic.frames import LAST_TYPES
from router.gateway.traffic.http import dechunked, parse_head
from router.gateway.traffic.meter import GAP_EDGES_S, Gaps, Meter, ends_reply, opening_of
from router.gateway.traffic.usage import TextDensity
from tests.fakes_wire import chunked, event, token


@pytest.mark.parametrize("framed", [True, False])
def test_usage_of_each_protocol_is_understood(framed: bool) -> None:
    """OpenAI's, Responses' and Anthropic's names; cached tokens where they are said, and whether they were."""
    said = {
        b'"usage":{"prompt_tokens":9,"completion_tokens":4,"prompt_tokens_details":{"cached_tokens":8}}': Usage(
            4, 9, 8, True
        ),
        b'"usage":{"prompt_tokens":9,"completion_tokens":4,"prompt_tokens_details":null}': Usage(4, 9),
        b'"usage":{"input_tokens":9,"input_tokens_details":{"cached_tokens":0},"output_tokens":4}': Usage(
            4, 9, 0, True
        ),
        b'"usage" : {"input_tokens": 9, "cache_read_input_tokens": 5, "output_tokens": 4}': Usage(4, 14, 5, True),
        b'"model_name":"m","sequence_length":6,"text_output":"x"': Usage(6),
        b'"usage":{"prompt_tokens":9,"total_tokens":9}': Usage(0, 9),
        b'"text":"usage"': Usage(0),
    }
    for text, usage in said.items():
        for body in (b"{%b}" % text, b'{%b,"choices":[{"text":"%b"}]}' % (text, rb"usage\": " * 600)):
            if b"sequence_length" in text and len(body) > 4096:  # that is looked for at the end alone
                continue
            for size in (1, 7, 64, len(body)):
                meter = Meter(Gaps())
                pieces = [body[i : i + size] for i in range(0, len(body), size)]
                for piece in pieces:
                    meter.continues(chunked(piece) if framed and size > 64 else piece, 0.0)
                assert meter.usage(4.0, whole=True, generates=False) == usage


def test_gaps_fall_into_their_buckets() -> None:
    """Several tokens of one read have no gap between them; the longest counts; what is no event has none."""
    meter = Meter(Gaps())
    meter.begins(0.0, b"", event(token()), 2, framed=False)
    assert meter.passes(event(token()), 0.012)
    assert meter.passes(event(token()) + event(token()), 0.512)
    assert meter.passes(b": ping\n\n", 9.0)
    filled = {GAP_EDGES_S[i]: count for i, count in enumerate(meter.gaps.counts) if count}
    assert filled == {0.001: 1, 0.015: 1, 0.5: 1}
    assert meter.gap_max_s == pytest.approx(0.5)
    assert (meter.last_s, meter.heard_s) == (0.512, 9.0)


_OPENING = re.compile(  # what ``opening_of`` finds, as one expression, which goes over the event byte by byte
    rb"event: ?[\w.]*delta\r?\ndata: ?"
    rb'|data: ?\{[^\n]{0,512}?(?:"choices"\s*:\s*\[\s*\{|"type"\s*:\s*"[\w.]*delta")'
)
_PIECES = st.sampled_from(
    [
        b"data:", b"data: ", b"{", b"event: ", b"content_block_delta", b"\n", b"\r\n", b'"choices"', b": [ {", b":[{",
        b'"type"', b'"type": "', b"response.delta", b'"', b"x" * 250, b"y" * 11, b" ", b'"id":"chatcmpl-1",',
    ]
)  # fmt: skip


@given(st.lists(_PIECES, max_size=14).map(b"".join), st.integers(0, 9))
def test_how_an_event_with_a_token_opens_is_found_as_by_one_expression(data: bytes, at: int) -> None:
    """The first of the keys within 512 bytes and in the same line, or the name of the event."""
    found = _OPENING.match(data, at)
    assert opening_of(data, at) == (found[0] if found is not None else b"")


@given(
    st.lists(st.sampled_from([" token", "", "two words", '"', "\n"]), min_size=1, max_size=5),
    st.sampled_from([None, "stop", "length"]),
    st.booleans(),
    st.integers(0, 6),
)
def test_what_was_read_of_the_first_token_is_not_read_again(
    texts: list[str], finish: str | None, framed: bool, cap: int
) -> None:
    """An estimate of a short reply is the same whether its first event is parsed again or not."""
    events = [event(token(text)) for text in texts]
    if finish is not None:
        events.append(event({"choices": [{"index": 0, "delta": {}, "finish_reason": finish}]}))
    meters = []
    for known in (True, False):
        meter = Meter(Gaps())
        stream = EventStream(meter, framed=framed, sized=False, must_end=False, strips_usage=False, several=False)
        for each in [*events, event("[DONE]")]:
            stream.feed(chunked(each) if framed else each, 0.0, done=False)
        if not known:
            meter._first = 0
        meters.append(meter)
    one, other = (each.usage(0.0, cap=cap) for each in meters)
    assert one == other
    assert meters[0].text_bytes == meters[1].text_bytes


@given(st.lists(st.binary(min_size=1, max_size=50), max_size=5), st.binary(min_size=1, max_size=50))
def test_dechunked_gives_back_what_was_chunked(pieces: list[bytes], half: bytes) -> None:
    """And what is there of an incomplete chunk."""
    raw = chunked(*pieces)
    assert dechunked(raw + b"0\r\n\r\n") == b"".join(pieces)
    assert dechunked(raw + b"ff;x=1\r\n" + half) == b"".join(pieces) + half


def test_a_head_is_read_into_facts() -> None:
    """What stops at the hop is gone from the fields."""
    head = parse_head(
        b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: X-A\r\nX-A: 1\r\nX-B: 2\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n"
    )
    assert head.fields == b"Content-Type: text/event-stream\r\nX-B: 2\r\n"
    assert (head.status, head.chunked, head.length, head.event_stream, head.until_close) == (200, True, -1, True, False)


@pytest.mark.parametrize("name", [b"completion_tokens", b"sequence_length"])
def test_a_count_of_thousands_of_digits_is_none(name: bytes) -> None:
    """Python refuses to read such a number, and that must not end the request."""
    meter = Meter(Gaps())
    meter.continues(b'{"usage": {"prompt_tokens": 7, "' + name + b'": ' + b"9" * 3000, 0.0)
    meter.continues(b"9" * 3000 + b"}}", 0.1)
    assert meter.usage(4.0, whole=True, generates=False).output_tokens == 0


def test_the_ratio_of_text_to_tokens_is_learnt_by_model() -> None:
    """From replies that state their tokens; what cannot be is not learnt, and the models are bounded."""
    density = TextDensity()
    assert density.bytes_per_token("m") == 0.0
    for _ in range(200):
        density.learn("m", 900, 300)
    assert density.bytes_per_token("m") == pytest.approx(3.0)
    density.learn("few", 900, 1)
    density.learn("none", 0, 100)
    density.learn("hidden", 10, 10_000)
    assert [density.bytes_per_token(name) for name in ("few", "none", "hidden")] == [0.0, 0.0, 0.5]
    for index in range(1000):
        density.learn(str(index), 700, 100)
    assert density.bytes_per_token("999") == 0.0


@pytest.mark.parametrize(
    "form", ["event: {}\ndata: {{}}\n\n", 'data: {{"type":"{}"}}\n\n', 'data: {{"type" : "{}"}}\n\n']
)
@pytest.mark.parametrize("name", sorted(LAST_TYPES))
def test_what_ends_a_reply_is_found_in_text_that_is_not_parsed(name: str, form: str) -> None:
    """The words that are looked for first are in each of them; the same in generated text has its quotes escaped."""
    text = form.format(name)
    assert ends_reply(text.encode())
    assert ends_reply(b"data: {}\n\n" + text.encode())
    assert not ends_reply(b'data: {"x": %b}\n\n' % json.dumps(text).encode())
