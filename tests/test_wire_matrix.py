"""The references of the matrix of real engines: frames and their times, the relay, the table. No engine is needed."""

import asyncio

import pytest

from tests.fakes_wire import LAST, STREAM_HEAD, ScriptedEngine, chunked, event, reply, stream
from tests.real.matrix.frames import CHAT, GENERATE, MESSAGES, RESPONSES, Dialect, Reply, Usage, frames, pieces_of_body
from tests.real.matrix.relay import Relay
from tests.real.matrix.table import COLUMNS, OK, Matrix, off, skipped

WHOLE = stream("one", "two", usage={"prompt_tokens": 7, "completion_tokens": 2})
ASK = b"POST /v1/chat/completions HTTP/1.1\r\nhost: e\r\ncontent-length: 2\r\n\r\n{}"


def read(dialect: Dialect, *payloads: dict[str, object] | str) -> Reply:
    """A reply with these events, a second each."""
    body = [(float(at_s), event(payload)) for at_s, payload in enumerate(payloads)]
    return Reply(dialect, 200, frames(body))


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64, len(WHOLE)])
def test_a_stream_is_read_the_same_however_it_was_cut(size: int) -> None:
    """Heads, sizes of chunks, events: each may lie across any seam."""
    pieces = [(float(at), WHOLE[at : at + size]) for at in range(0, len(WHOLE), size)]
    status, body = pieces_of_body(pieces)
    found = Reply(CHAT, status, frames(body))
    assert (status, len(found.texts), found.usage, found.ended_clean) == (200, 2, Usage(2, 7), True)


def test_a_frame_is_as_old_as_the_read_that_completed_it() -> None:
    """Its first bytes are no frame yet."""
    first = event({"choices": [{"delta": {"content": "a"}}]})
    assert [frame.at_s for frame in frames([(1.0, first[:9]), (2.0, first[9:] + first[:3]), (3.0, first[3:])])] == [
        2,
        3,
    ]


def test_an_error_event_at_the_end_needs_no_blank_line() -> None:
    """LitServe ends its stream so; half a payload is none."""
    assert Reply(CHAT, 200, frames([(1.0, b'data: {"error": {"message": "x"}}')])).error
    assert frames([(1.0, b'data: {"error": {"mess')]) == []


def test_what_comes_before_any_text_is_no_first_token() -> None:
    """Roles, pings and comments are not; reasoning and tool calls are."""
    role = {"choices": [{"delta": {"role": "assistant", "content": ""}}]}
    tool = {"choices": [{"delta": {"tool_calls": [{"function": {"arguments": "{"}}]}}]}
    assert read(CHAT, role, role).first_text_s is None
    assert read(CHAT, role, tool).first_text_s == 1
    assert read(CHAT, role, {"choices": [{"delta": {"reasoning_content": "hm"}}]}).first_text_s == 1
    assert frames([(1.0, b": ping\n\n")]) == []
    created, delta = {"type": "response.created"}, {"type": "response.output_text.delta", "delta": "a"}
    assert read(RESPONSES, created, delta).first_text_s == 1
    start, text = {"type": "message_start"}, {"type": "content_block_delta", "delta": {"text": "a"}}
    assert read(MESSAGES, start, {"type": "ping"}, text).first_text_s == 2


def test_usage_is_read_wherever_a_dialect_puts_it() -> None:
    """Anthropic states the prompt first and without what a cache had, the output last."""
    start = {"type": "message_start", "message": {"usage": {"input_tokens": 3, "cache_read_input_tokens": 9}}}
    assert read(MESSAGES, start, {"type": "message_delta", "usage": {"output_tokens": 5}}).usage == Usage(5, 12)
    done = {"type": "response.completed", "response": {"usage": {"input_tokens": 4, "output_tokens": 6}}}
    assert read(RESPONSES, done).usage == Usage(6, 4)
    assert read(CHAT, {"choices": [], "usage": {"completion_tokens": 1, "prompt_tokens": 2}}).usage == Usage(1, 2)
    assert read(GENERATE, {"text_output": "a"}).usage is None


@pytest.mark.parametrize(
    "said",
    [
        b"event: error\ndata: {}\n\n",
        b'data:{"error": "x"}\n\n',
        b'event: x\r\ndata: {"type": "response.failed"}\r\n\r\n',
    ],
)
def test_an_error_event_is_no_clean_end(said: bytes) -> None:
    """Not even before [DONE]."""
    found = Reply(CHAT, 200, frames([(0.0, said + b"data: [DONE]\n\n")]))
    assert found.error
    assert not found.ended_clean


async def test_the_relay_passes_on_what_comes_and_tells_replies_apart() -> None:
    """Two requests on one connection are two exchanges, byte for byte."""
    async with ScriptedEngine([WHOLE], [reply(b"{}")]) as engine, Relay(engine.port) as relay:
        reader, writer = await asyncio.open_connection("127.0.0.1", relay.port)
        for said in (WHOLE, reply(b"{}")):
            writer.write(ASK)
            assert await reader.readexactly(len(said)) == said
        writer.close()
        await writer.wait_closed()
    assert [b"".join(data for _, data in each.reply) for each in relay.exchanges] == [WHOLE, reply(b"{}")]
    assert [each.request for each in relay.exchanges] == [ASK, ASK]
    assert len(relay.since(0, "/v1/chat/completions")) == 2
    assert relay.exchanges[0].read(CHAT).usage == Usage(2, 7)


async def test_the_relay_breaks_a_stream_where_it_should() -> None:
    """The connection ends and the body does not."""
    begun = STREAM_HEAD + chunked(*[event({"choices": [{"delta": {"content": "a"}}]})] * 2)
    async with ScriptedEngine([begun, asyncio.Event(), LAST]) as engine, Relay(engine.port) as relay:
        relay.cut = lambda exchange: len(exchange.read(CHAT).texts) == 2
        reader, writer = await asyncio.open_connection("127.0.0.1", relay.port)
        writer.write(ASK)
        assert await reader.read(-1) == begun
        writer.close()
        await writer.wait_closed()


def test_the_table_has_a_line_for_each_row_and_each_note() -> None:
    """Cells with the same note share its line; a row that was never filled is off."""
    cells = {
        **dict.fromkeys(COLUMNS, OK),
        "TPOT": off("2 ms, true 1 ms"),
        "usage": skipped("none"),
        "cancel": skipped("none"),
    }
    head, row, dead, *notes = Matrix({("a", "/x"): cells, ("b", "/y"): {}}).lines()
    assert head.split()[:2] == ["first", "token"]
    assert row.split() == ["a", "/x", "ok", "ok", "skip", "OFF", "ok", "ok", "skip", "ok"]
    assert dead.split()[2:] == ["OFF"] * len(COLUMNS)
    assert notes[:2] == ["skip: a /x: none (usage, cancel)", "OFF: a /x: 2 ms, true 1 ms (TPOT)"]
    assert Matrix().lines() == []


def test_what_cannot_run_is_named() -> None:
    """With the reason, at the end."""
    lines = Matrix({("a", "/x"): dict.fromkeys(COLUMNS, OK)}, {"b": "no package"}).lines()
    assert lines[-1] == "cannot run here: b: no package"


def test_a_reply_of_as_many_tokens_as_were_asked_for_is_known_as_such() -> None:
    """Its finish reason says so."""
    ends = [event({"choices": [{"delta": {}, "finish_reason": reason}]}) for reason in ("length", "stop")]
    assert [Reply(CHAT, 200, frames([(0.0, end)])).capped for end in ends] == [True, False]
