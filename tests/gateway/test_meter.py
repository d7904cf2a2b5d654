"""Counting what passes, wherever the reads are cut."""

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.core.types import Usage
from router.gateway.protocols.answers import Dialect, error_mark
from router.gateway.traffic.http import dechunked, parse_head
from router.gateway.traffic.meter import GAP_EDGES_S, Gaps, Meter, first_event
from tests.fakes_wire import chunked, event, token

TEXTS = st.lists(
    st.sampled_from([" a", "data: ", "\ndata: x\n\n", '"usage": {"completion_tokens": 9}', "[DONE]"]), min_size=1
)


def cut(data: bytes, at: list[int]) -> list[bytes]:
    """*data* in pieces."""
    places = [0, *sorted({place % len(data) for place in at} - {0}), len(data)]
    return [data[a:b] for a, b in pairwise(places)]


MARK = error_mark(Dialect.OPENAI)


def metered(reads: list[bytes]) -> Meter:
    """A meter that these reads passed, a millisecond apart."""
    meter = Meter(Gaps(), MARK)
    meter.begins(reads[0], 1.0)
    for index, read in enumerate(reads[1:]):
        meter.passes(read, 1.001 + index / 1000)
    return meter


@given(TEXTS, st.lists(st.integers(0, 5000)), st.booleans())
def test_events_are_counted_the_same_however_reads_are_cut(texts: list[str], at: list[int], framed: bool) -> None:
    """Neither twice nor not at all; text that looks like an event is none."""
    events = [event(token(text)) for text in texts] + [event("[DONE]")]
    body = chunked(*events) + b"0\r\n\r\n" if framed else b"".join(events)
    meter = metered(cut(body, at))
    assert meter.events == len(events)
    assert sum(meter.gaps.counts) <= meter.events


def test_every_byte_alone_counts_the_same() -> None:
    """The extreme of the above."""
    body = chunked(*[event(token(text)) for text in "abc"], event("[DONE]")) + b"0\r\n\r\n"
    assert metered([body[i : i + 1] for i in range(len(body))]).events == 4


@pytest.mark.parametrize("framed", [True, False])
def test_usage_is_read_from_the_end_of_the_stream(framed: bool) -> None:
    """Wherever chunks are cut within it."""
    frame = event({"choices": [], "usage": {"prompt_tokens": 19, "completion_tokens": 512, "total_tokens": 531}})
    for place in range(1, len(frame)):
        pieces = [event(token()), frame[:place], frame[place:], event("[DONE]")]
        body = chunked(*pieces) if framed else b"".join(pieces)
        assert metered([body]).usage() == Usage(512, 19)


def test_usage_of_each_protocol_is_understood() -> None:
    """OpenAI's, Responses' and Anthropic's names; cached tokens where they are said, and whether they were."""
    said = {
        b'"usage":{"prompt_tokens":9,"completion_tokens":4,"prompt_tokens_details":{"cached_tokens":8}}': Usage(
            4, 9, 8, True
        ),
        b'"usage":{"prompt_tokens":9,"completion_tokens":4,"prompt_tokens_details":null}': Usage(4, 9),
        b'"usage":{"input_tokens":9,"input_tokens_details":{"cached_tokens":0},"output_tokens":4}': Usage(
            4, 9, 0, True
        ),
        b'"usage": {"input_tokens": 9, "cache_read_input_tokens": 5, "output_tokens": 4}': Usage(4, 9, 5, True),
        b'"model_name":"m","sequence_length":6,"text_output":"x"': Usage(6),
        b'"nothing":1': Usage(0),
    }
    for text, usage in said.items():
        meter = Meter(Gaps(), MARK)
        meter.begins(b"{" + text + b"}", 0.0)
        assert meter.usage() == usage


def test_a_role_without_text_is_no_token() -> None:
    """vLLM and llama.cpp open a chat with one."""
    for content in ("", None):
        role = event({"choices": [{"index": 0, "delta": {"role": "assistant", "content": content}}]})
        assert metered([role, event(token()), event("[DONE]")]).usage() == Usage(1)


def test_gaps_fall_into_their_buckets() -> None:
    """Several tokens of one read have no gap between them; the longest counts."""
    meter = Meter(Gaps(), MARK)
    meter.begins(event(token()), 0.0)
    meter.passes(event(token()), 0.012)
    meter.passes(event(token()) + event(token()), 0.512)
    filled = {GAP_EDGES_S[i]: count for i, count in enumerate(meter.gaps.counts) if count}
    assert filled == {0.001: 1, 0.015: 1, 0.5: 1}
    assert meter.gap_max_s == pytest.approx(0.5)


def test_a_first_event_is_judged_as_soon_as_it_can_be() -> None:
    """Not before its payload is known, which comments and event names do not contain."""
    error = json.dumps({"error": {"message": "busy", "code": 503}}).encode()
    whole = b": ping\n\nevent: error\ndata: " + error + b"\n\n"
    verdicts = [first_event(whole[:n], chunked=False, complete=False) for n in range(len(whole))]
    assert not any(verdict is True for verdict in verdicts)
    assert first_event(whole, chunked=False, complete=False) == error
    assert (
        first_event(chunked(*[whole[i : i + 3] for i in range(0, len(whole), 3)]), chunked=True, complete=False)
        == error
    )
    assert first_event(b'data: {"type": "error", "error": {}}\n', chunked=False, complete=False) is not True
    assert first_event(event(token()), chunked=False, complete=False) is True
    assert first_event(b"", chunked=False, complete=True) is True


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
    meter = Meter(Gaps(), MARK)
    meter.begins(b'{"usage": {"prompt_tokens": 7, "' + name + b'": ' + b"9" * 3000, 0.0)
    meter.continues(b"9" * 3000 + b"}}", 0.1)
    assert meter.usage().output_tokens == 0
