"""What an engine generates before it notices that its client has left: read for a moment, and counted."""

import asyncio
import json

import pytest

from router.core.decisions import EndState
from router.gateway.telemetry.metrics import Metrics
from tests import fakes
from tests.fakes_wire import LAST, STREAM_HEAD, Act, Gateway, chat, chunked, event, pair, token
from tests.waiting import until

FIRST = STREAM_HEAD + chunked(event(token("a")), event(token("b")))
MORE = chunked(event(token("c")), event(token("d")), event(token("e")))
REST = MORE + chunked(event({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}), event("[DONE]")) + LAST


async def leaves(gate: Gateway) -> None:
    """A client that goes away after two tokens; returns when its request is over."""
    client = await gate.client()
    client.send(chat())
    await client.reader.readuntil(json.dumps(token("b")).encode())
    client.close()
    await until(lambda: gate.seen.outcomes)
    assert gate.seen.outcomes[0].record.usage.output_tokens == 2


async def test_tokens_that_were_on_the_way_are_counted() -> None:
    """The request's own count is what had come; the rest is its backend's."""
    async with pair([FIRST, Act.NOTICES, MORE, Act.CLOSE]) as (gate, engine):
        await leaves(gate)
        await until(lambda: gate.seen.late)
        request = gate.seen.outcomes[0].record.request
        assert gate.seen.late == [(request.id, "a", 3, True)]
        await until(lambda: engine.open == 0)


async def test_a_client_that_left_before_the_first_token_made_the_engine_work_too() -> None:
    """Not even the head had come; its request has no token, and the backend generated five."""
    asked = asyncio.Event()
    async with pair([asked, Act.NOTICES, FIRST, MORE, Act.CLOSE]) as (gate, engine):
        client = await gate.client()
        client.send(chat())
        await until(lambda: engine.requests)
        asked.set()
        client.reset()
        await until(lambda: gate.seen.late)
        record = gate.seen.outcomes[0].record
        assert (record.outcome, record.usage.output_tokens) == (EndState.LEFT, 0)
        assert gate.seen.late == [(record.request.id, "a", 5, True)]


@pytest.mark.parametrize("tokens", [0, 2])
async def test_a_stream_that_an_engine_cut_short_has_no_late_tokens(tokens: int) -> None:
    """Its body ends in good order, without what ends a reply: what came is its request's, and counts once."""
    events = [event(token("a"))] * tokens
    async with pair([STREAM_HEAD + chunked(*events) + LAST]) as (gate, _):
        await gate.chat()
        await until(lambda: gate.seen.outcomes)
        assert gate.seen.outcomes[0].record.outcome is not EndState.SERVED
        assert gate.seen.late == []


async def test_an_engine_that_does_not_notice_is_cut_off() -> None:
    """One that goes on for a connection whose other half is closed."""
    never = asyncio.Event()
    async with pair([FIRST, never]) as (gate, _):
        await leaves(gate)
        await until(lambda: not gate.driver.upstreams["a"].open)
        assert gate.seen.late == []


async def test_the_connection_of_a_client_that_left_is_not_used_again() -> None:
    """Though the engine ended its reply in good order: nothing more can be sent on it."""
    async with pair([FIRST, Act.NOTICES, REST], [FIRST, REST]) as (gate, engine):
        await leaves(gate)
        await until(lambda: gate.seen.late)
        assert (await gate.chat()).complete
        assert engine.connections == 2


async def test_a_reply_that_was_paused_for_a_slow_client_is_read_on_when_that_leaves() -> None:
    """Else the engine's tokens, and its end of the connection, would not be seen."""
    much = chunked(event(token("x" * 60_000)))
    async with pair([FIRST, *[much] * 400, Act.UNTIL_LEFT]) as (gate, _):
        client = await gate.client()
        client.send(chat())
        await client.reader.readuntil(json.dumps(token("b")).encode())
        client.writer.transport.pause_reading()  # type: ignore[attr-defined]
        (connection,) = gate.driver.upstreams["a"].open
        await until(lambda: not connection.transport.is_reading())
        client.reset()
        await until(lambda: gate.seen.outcomes)
        assert connection.transport.is_reading() or connection.transport.is_closing()


@pytest.mark.parametrize("estimated", [False, True])
def test_they_are_in_the_sum_of_the_backend(estimated: bool) -> None:
    """With what its requests had."""
    metrics = Metrics(lambda: 0.0)
    metrics.late_tokens(fakes.request("r"), "a", 3, estimated=estimated)
    metrics.late_tokens(fakes.request("s"), "a", 1, estimated=estimated)
    page = metrics.text().decode()
    assert 'headroom_tokens_total{backend="a",kind="output",model="m"} 4.0' in page
    assert f'headroom_tokens_total{{backend="a",kind="estimated",model="m"}} {4.0 if estimated else 0.0}' in page
