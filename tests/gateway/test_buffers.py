"""The bytes that a router holds in all: counted, bounded, and let go in every end of a request."""

import asyncio
import json
from pathlib import Path

import pytest

from router.gateway.traffic.buffers import Buffers
from router.gateway.traffic.client_connection import ConnectionLimits
from tests import fakes_wire as wire
from tests.fakes_router import HEALTHY, backend, config, router
from tests.fakes_wire import Act, ScriptedEngine, chat, chunked, event, pair, post, reply, stream, token
from tests.pages import Pages
from tests.waiting import until

HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nhost: g\r\n"
HALF = HEAD + b"content-length: 70000\r\n\r\n" + b"x" * 60_000
BIG = json.dumps({"model": "m", "messages": [{"role": "user", "content": "x" * 60_000}]}).encode()


async def test_bodies_beyond_the_bound_of_all_get_503_until_others_are_done() -> None:
    """From the head where it states the length, else when the bound is reached; what is too long for ever gets 413."""
    buffers = Buffers(100_000)
    async with pair([Act.UNTIL_LEFT], [reply(b"{}")], buffers=buffers) as (gate, engine):
        first = await gate.client()
        first.send(post("/v1/chat/completions", BIG))
        await until(lambda: engine.requests)
        assert buffers.bodies == len(BIG)
        got = await gate.ask(post("/v1/chat/completions", BIG))
        assert (got.status, got.headers["retry-after"]) == (503, "1")
        got = await gate.ask(HEAD + b"transfer-encoding: chunked\r\n\r\n" + chunked(BIG) + wire.LAST)
        assert (got.status, got.headers["retry-after"], got.headers["connection"]) == (503, "1", "close")
        assert (await gate.ask(HEAD + b"content-length: 100001\r\n\r\n")).status == 413
        assert buffers.bodies == len(BIG)
        first.close()
        await until(lambda: buffers.bodies == 0)
        assert (await gate.ask(post("/v1/chat/completions", BIG))).status == 200
        assert buffers.bodies == 0
        assert len(engine.requests) == 2


@pytest.mark.parametrize(
    "sent",
    [
        post("/v1/chat/completions", BIG),
        post("/v1/chat/completions", BIG[:-5]),
        post("/v1/chat/completions", BIG, more="authorization: Bearer x\r\nx-slo-ttft-ms: no\r\n"),
        post("/v1/chat/completions", BIG) * 3,
        chat() + HEAD + b"transfer-encoding: chunked\r\n\r\n" + chunked(BIG) + b"zz\r\n",
        HEAD + b"transfer-encoding: chunked\r\n\r\n" + chunked(BIG) + b"zz\r\n",
        HEAD + b"transfer-encoding: chunked\r\n\r\n" + chunked(BIG, BIG, BIG, BIG, BIG),
        HALF,
        post("/v1/chat/completions", BIG, more="connection: close\r\n") + post("/v1/chat/completions", BIG),
        post("/v1/chat/completions", BIG, version="1.0"),
    ],
)
@pytest.mark.parametrize("script", [[stream("a")], [Act.CLOSE], [Act.UNTIL_LEFT], [reply(b"{}", 400)]])
async def test_every_end_of_a_request_lets_its_body_go(sent: bytes, script: wire.Script) -> None:
    """Served, refused, broken off, pipelined behind a fault, or left by its client."""
    buffers = Buffers()
    async with pair(script, buffers=buffers, front_limits=ConnectionLimits(body_bytes_max=200_000)) as (gate, _):
        client = await gate.client()
        client.send(sent)
        await client.writer.drain()
        if script != [Act.UNTIL_LEFT] and sent is not HALF:
            await client.reply()
        client.close()
        await until(lambda: not gate.state.connections)
        assert buffers.bodies == 0
        assert gate.core.in_flight == 0


async def test_an_idle_connection_does_not_keep_its_last_request() -> None:
    """Its body would stay for as long as the client keeps the connection."""
    async with pair([reply(b"{}")]) as (gate, _):
        client = await gate.client()
        client.send(post("/v1/chat/completions", BIG))
        assert (await client.reply()).status == 200
        (connection,) = gate.state.connections
        exchange = connection.cycle
        assert (exchange._call, exchange._bodies, exchange._headers, exchange.fields) == (None, [], (), {})


async def test_a_stream_does_not_keep_the_body_that_it_answers() -> None:
    """From its first token on no other engine is tried: neither the body nor what was parsed of it is held."""
    more, buffers = asyncio.Event(), Buffers()
    script = [
        wire.STREAM_HEAD + chunked(event(token("a"))),
        more,
        chunked(event(token("b")), event("[DONE]")) + wire.LAST,
    ]
    streamed = json.dumps({"model": "m", "stream": True, "messages": [{"role": "user", "content": "x" * 60_000}]})
    async with pair(script, buffers=buffers) as (gate, _):
        client = await gate.client()
        client.send(post("/v1/chat/completions", streamed.encode()))
        await client.reader.readuntil(chunked(event(token("a"))))
        assert buffers.bodies == 0
        (connection,) = gate.state.connections
        call = connection.active._call
        assert (call.body.body, call.body.document, call.forwarded) == (b"", None, b"")
        assert call.body.size_bytes == len(streamed)
        more.set()
        await client.reader.readuntil(wire.LAST)


async def test_a_connection_has_neither_queue_nor_event_before_it_needs_one() -> None:
    """Requests that wait for their turn, and replies that wait for their client."""
    async with pair([stream("a")]) as (gate, _):
        client = await gate.client()
        client.send(chat())
        assert (await client.reply()).status == 200
        (connection,) = gate.state.connections
        other = await gate.client()
        await until(lambda: len(gate.state.connections) == 2)
        (second,) = gate.state.connections - {connection}
        assert connection.pipeline is second.pipeline
        client.send(chat() * 3)
        assert [(await client.reply()).status for _ in range(3)] == [200] * 3
        assert connection.pipeline is not second.pipeline
        assert not second.pipeline
        flow = connection.flow
        flow.pause_writing()
        waiting = asyncio.create_task(flow.drain())
        await asyncio.sleep(0)
        assert not waiting.done()
        flow.resume_writing()
        await waiting
        await flow.drain()
        other.close()


async def test_a_fault_in_the_body_of_a_pipelined_request_is_answered_in_its_turn() -> None:
    """The one before is served; then 400 and the end, and nothing waits for a body that never comes."""
    async with pair([stream("a")]) as (gate, _):
        client = await gate.client()
        client.send(chat() + HEAD + b"transfer-encoding: chunked\r\n\r\n2\r\n{}\r\nzz\r\n")
        assert (await client.reply()).status == 200
        assert (await client.reply()).status == 400
        assert await client.ended() == b""


async def test_replies_that_wait_are_found_by_the_sweep() -> None:
    """Those that their clients do not read, and those whose first token has not come."""
    buffers = Buffers()
    slow = [wire.STREAM_HEAD, *[chunked(event(token("y" * 60_000)))] * 400, Act.UNTIL_LEFT]
    held = [wire.STREAM_HEAD + chunked(b": " + b"c" * 5_000), Act.UNTIL_LEFT]
    async with pair(slow, held, buffers=buffers) as (gate, engine):
        client = await gate.client()
        client.writer.transport.pause_reading()
        client.send(chat())
        await until(lambda: any(e.winner and e.winner.paused for e in gate.driver._in_flight.values()))
        (connection,) = gate.state.connections
        assert connection.unsent_bytes > 60_000
        other = await gate.client()
        other.send(chat())
        await until(lambda: len(engine.requests) == 2)
        await until(lambda: any(e.held_bytes for e in gate.driver._in_flight.values()))
        gate.driver.sweep(gate.driver.clock())
        assert buffers.held_back > 0


async def test_the_bytes_and_their_bound_are_metrics(tmp_path: Path) -> None:
    """The bound is the config's."""
    async with (
        ScriptedEngine([stream("a")]) as engine,
        Pages(dict(HEALTHY)) as pages,
        router(
            tmp_path / "r.yaml",
            config(backend("a", engine, pages)).replace("listen: {", "listen: {buffered_bytes_max: 12345678, "),
        ) as it,
    ):
        page = (await it.client.get("/metrics")).text
        assert "headroom_buffered_bytes_max 1.2345678e+07" in page
        for what in ("bodies", "unsent", "held_back"):
            assert f'headroom_buffered_bytes{{what="{what}"}} 0.0' in page
