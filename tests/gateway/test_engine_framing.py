"""Answers of engines whose framing is unusual or wrong, and the connections they came on: never passed on wrongly."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from router.core.decisions import EndState as Ending
from router.engines.triton import KIND as TRITON
from tests import fakes_wire as wire
from tests.fakes_wire import (
    Act,
    Client,
    Gateway,
    ScriptedEngine,
    chat,
    chunked,
    event,
    gateway,
    pair,
    reply,
    stream,
    token,
)
from tests.waiting import until

HEAD_READY = b"HEAD /v2/models/m/ready HTTP/1.0\r\nhost: g\r\n\r\n"
SIZED = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n"


@asynccontextmanager
async def behind(*scripts: wire.Script) -> AsyncIterator[tuple[Gateway, ScriptedEngine, Client, asyncio.Transport]]:
    """A client that has not read its first reply, and the gateway's side of its connection, where that reply waits."""
    async with pair([reply(b'{"x":"' + b"x" * 8_000_000 + b'"}')], *scripts) as (gate, engine):
        client = await gate.client()
        await until(lambda: gate.state.connections)
        (connection,) = gate.state.connections
        connection.transport.set_write_buffer_limits(high=16_000_000)
        client.writer.transport.pause_reading()
        client.send(chat(stream=False))
        await until(lambda: gate.seen.outcomes)
        yield gate, engine, client, connection.transport


async def test_a_connection_paused_at_the_end_of_a_reply_is_read_again_when_it_is_reused() -> None:
    """The reply's last bytes put the client behind; the next request on the engine's connection is answered."""
    async with behind([stream("a")], [stream("b")]) as (gate, engine, client, transport):
        transport.set_write_buffer_limits(high=transport.get_write_buffer_size() + 10)
        client.send(chat())
        await until(lambda: len(gate.seen.outcomes) == 2)
        assert (await gate.chat()).events()[0] == json.dumps(token("b"))
        assert engine.connections == 1


async def test_a_client_that_is_behind_with_one_reply_pauses_the_engine_of_the_next() -> None:
    """Its connection's buffer was full before, which is not reported anew."""
    endless = [wire.STREAM_HEAD, *[chunked(event(token("y" * 60_000)))] * 400, Act.UNTIL_LEFT]
    async with behind(endless) as (gate, _, client, transport):
        transport.set_write_buffer_limits(high=65_536)
        before = transport.get_write_buffer_size()
        assert before > 65_536
        client.send(chat())
        await until(lambda: any(e.winner and e.winner.paused for e in gate.driver._in_flight.values()))
        assert transport.get_write_buffer_size() < before + 500_000


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 204 No Content\r\ncontent-length: 5\r\n\r\nhello",
        b"HTTP/1.1 204 No Content\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 204 No Content\r\ncontent-length: 5\r\n\r\n",
    ],
)
@pytest.mark.parametrize("version", ["1.0", "1.1"])
async def test_an_answer_that_has_no_body_gets_none_whatever_its_engine_states(answer: bytes, version: str) -> None:
    """Nor is its connection used again: the body that must not be there would be read as the next answer."""
    async with pair([answer], [reply(b"{}")]) as (gate, engine):
        client = await gate.client()
        client.send(chat(stream=False, version=version))
        status, headers = await client.head()
        assert status == 204
        assert headers.keys().isdisjoint({"content-length", "transfer-encoding"})
        if version == "1.0":
            assert await client.ended() == b""
        else:
            client.send(chat(stream=False))
            assert (await client.reply()).body == b"{}"
        assert (await gate.chat(stream=False)).body == b"{}"
        assert engine.connections == 2


@pytest.mark.parametrize("body", [b"", b"hello"])
async def test_a_304_is_no_answer_to_a_call(body: bytes) -> None:
    """The client gets an error of the gateway's own, with its body, and no 304 with one."""
    async with pair([b"HTTP/1.1 304 Not Modified\r\ncontent-length: 5\r\n\r\n" + body], [reply(b"{}")]) as (
        gate,
        engine,
    ):
        client = await gate.client()
        client.send(chat(stream=False))
        assert (await client.reply()).status == 502
        client.send(chat(stream=False))
        assert (await client.reply()).body == b"{}"
        assert engine.connections == 2


async def test_a_body_behind_an_interim_answer_is_the_engines_failure() -> None:
    """1xx has none, so those bytes are no answer."""
    async with pair([b"HTTP/1.1 103 Early Hints\r\ncontent-length: 5\r\n\r\nhello" + reply(b"{}")]) as (gate, _):
        assert (await gate.chat(stream=False)).status == 502


@pytest.mark.parametrize(
    "codings",
    [
        b"transfer-encoding: gzip, chunked\r\n",
        b"transfer-encoding: gzip\r\n",
        b"transfer-encoding: chunked, chunked\r\n",
        b"transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n",
        b"transfer-encoding: gzip\r\ntransfer-encoding: chunked\r\n",
    ],
)
async def test_a_transfer_coding_that_cannot_be_passed_on_is_the_engines_failure(codings: bytes) -> None:
    """Its bytes, framed anew, would be taken for the body."""
    answer = b"HTTP/1.1 200 OK\r\n" + codings + b"\r\n" + chunked(b"{}") + wire.LAST
    async with pair([answer]) as (gate, _):
        got = await gate.chat(stream=False)
        assert (got.status, "a sent a head that cannot be read" in got.json()["error"]["message"]) == (502, True)


@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
async def test_a_body_behind_the_answer_to_head_reaches_nobody(version: bytes) -> None:
    """Some engines send one."""
    request = HEAD_READY.replace(b"1.0", version)
    async with ScriptedEngine([SIZED + b"hello"]) as engine, gateway(engine.target(engine=TRITON)) as gate:
        client = await gate.client()
        client.send(request + request)
        for _ in range(2 if version == b"1.1" else 1):
            status, headers = await client.head()
            assert (status, headers["content-length"]) == (200, "5")
        if version == b"1.0":
            assert await client.ended() == b""


async def test_a_connection_serves_other_requests_after_head_over_http_1_0() -> None:
    """The parser that a client of HTTP/1.0 needs had waited for the body that HEAD's answer does not have."""
    async with (
        ScriptedEngine([SIZED], [SIZED + b"hello"], [SIZED], [SIZED + b"world"]) as engine,
        gateway(engine.target(engine=TRITON)) as gate,
    ):
        for body in (b"hello", b"world"):
            assert (await gate.ask(HEAD_READY, head_only=True)).status == 200
            assert (await gate.ask(HEAD_READY.replace(b"HEAD", b"GET"))).body == body
        assert engine.connections == 1
        assert set(gate.seen.endings) == {Ending.SERVED}


@pytest.mark.parametrize(
    ("begin", "more"),
    [
        (chunked(event("[DONE]")) + b"0\r\n", b"x-trailer: 123456789012345678901234\r\n" * 3_000),
        (chunked(event("[DONE]")) + b"0\r\nx-trailer: ", b"y" * 100_000),
        (b"5;", b"e" * 100_000),
        (b"fffffff\r\ndata: ", b"d" * 100_000),
    ],
)
async def test_a_stream_in_which_no_event_ends_any_more_is_broken(begin: bytes, more: bytes) -> None:
    """Trailers, a chunk extension or an event of any length: bounded, and no clean end for the client."""
    script = [wire.STREAM_HEAD + chunked(event(token("a"))), begin, *[more] * 250, Act.UNTIL_LEFT]
    async with pair(script) as (gate, engine):
        client = await gate.client()
        client.send(chat())
        got, _ = await client._rest()  # however long a busy machine takes
        assert len(got) < 24_000_000
        assert not got.endswith(wire.LAST)
        assert gate.seen.endings == [Ending.BROKEN]
        await until(lambda: engine.open == 0)
