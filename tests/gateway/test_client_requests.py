"""What clients may send: answers from the head alone, bounds on framing, targets, upgrades, half-closed connections."""

import asyncio
import json

import pytest

from router.core.decisions import EndState as Ending
from router.gateway.protocols.ingress import Caller, Ingress
from router.gateway.traffic.client_connection import ConnectionLimits
from tests import fakes_wire as wire
from tests.fakes_wire import Act, Client, Gateway, chat, chunked, pair, post, reply, stream
from tests.waiting import until

HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nhost: g\r\n"
BODY = json.dumps({"model": "m", "messages": [{"role": "user", "content": "x"}]}).encode()
DIGEST = "2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b"  # of "secret"
KEYED = Ingress(keys={DIGEST: Caller("acme")})


# -- answers from the head alone -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (HEAD, 401),
        (HEAD + b"authorization: Bearer wrong\r\n", 401),
        (HEAD + b"authorization: Bearer secret\r\nx-slo-ttft-ms: soon\r\n", 400),
        (HEAD.replace(b"POST", b"PUT"), 405),
    ],
)
@pytest.mark.parametrize(
    "framing", [b"content-length: 1000\r\n", b"content-length: 8000000\r\n", b"transfer-encoding: chunked\r\n"]
)
@pytest.mark.parametrize("expect", [b"", b"expect: 100-continue\r\n"])
async def test_what_the_head_decides_is_answered_before_a_body_comes(
    head: bytes, status: int, framing: bytes, expect: bytes
) -> None:
    """No byte of the body is needed, and none is stored."""
    async with pair([reply(b"{}")], ingress=KEYED) as (gate, engine):
        client = await gate.client()
        client.send(head + framing + expect + b"\r\n")
        assert (await client.reply()).status == status
        assert engine.requests == []
        assert gate.seen.rejections == [("/v1/chat/completions", status)]


async def test_a_short_body_behind_a_refusal_is_discarded_and_the_connection_stays() -> None:
    """A client that mends its key goes on; one that sends megabytes is not waited for."""
    async with pair([reply(b"{}")], ingress=KEYED) as (gate, engine):
        client = await gate.client()
        for _ in range(2):
            client.send(chat(stream=False))
            got = await client.reply()
            assert (got.status, "connection" in got.headers) == (401, False)
        client.send(HEAD + b"content-length: 10\r\n\r\n12345")
        assert (await client.reply()).status == 401
        client.send(b"67890" + chat(stream=False, more="authorization: Bearer secret\r\n"))
        assert (await client.reply()).status == 200
        client.send(post("/v1/chat/completions", b"x" * 200_000))
        got = await client.reply()
        assert (got.status, got.headers["connection"]) == (401, "close")
        assert await client.ended() == b""
        assert len(engine.requests) == 1


async def test_a_refused_body_that_never_comes_closes_the_connection_without_a_second_answer() -> None:
    """A 408 would be taken for the answer to the next request."""
    async with pair([reply(b"{}")], ingress=KEYED) as (gate, _):
        client = await gate.client()
        client.send(HEAD + b"content-length: 10\r\n\r\n123")
        assert (await client.reply()).status == 401
        (connection,) = gate.state.connections
        connection.swept(gate.driver.clock() + ConnectionLimits().request_s + 1.0)
        assert await client.ended() == b""


async def test_a_pipelined_request_is_refused_in_its_turn() -> None:
    """Its body came while the one before it was answered."""
    async with pair([stream("a")], ingress=KEYED) as (gate, _):
        client = await gate.client()
        good = chat(more="authorization: Bearer secret\r\n")
        client.send(good + chat() + good)
        assert [(await client.reply()).status for _ in range(3)] == [200, 401, 200]


async def test_100_continue_is_of_http_1_1_alone() -> None:
    """An older client would take it for the answer."""
    async with pair([reply(b"{}")]) as (gate, _):
        client = await gate.client()
        old = HEAD.replace(b"1.1", b"1.0")
        client.send(old + b"expect: 100-continue\r\ncontent-length: %d\r\n\r\n" % len(BODY) + BODY)
        assert (await client.reply()).status == 200


# -- framing -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "framing",
    [
        b"0\r\n" + b"x-trailer: 12345678901234567890\r\n" * 5_000,
        b"0\r\nx-trailer: " + b"y" * 200_000,
        b"2;" + b"e" * 200_000,
        (b"2;" + b"e" * 20_000 + b"\r\n{}\r\n") * 10,
    ],
)
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/admin/reload"])
async def test_chunk_extensions_and_trailers_are_bounded(framing: bytes, path: str) -> None:
    """As heads are; what is sent beyond the bound reaches nobody."""
    async with pair([reply(b"{}")]) as (gate, engine):
        client = await gate.client()
        client.send(f"POST {path} HTTP/1.1\r\nhost: g\r\ntransfer-encoding: chunked\r\n\r\n".encode())
        await until(lambda: any(not each._in_head for each in gate.state.connections))
        client.send(framing)
        if path == "/v1/chat/completions":
            got = await client.reply()
            assert (got.status, got.headers["connection"]) == (400, "close")
            assert "trailers" in got.json()["error"]["message"]
        await client.ended()
        assert engine.requests == []


async def test_a_body_in_chunks_of_one_byte_is_within_the_bound() -> None:
    """Its framing is five times as long as itself."""
    async with pair([reply(b"{}")]) as (gate, engine):
        body = json.dumps({"model": "m", "messages": [{"role": "user", "content": "x" * 50_000}]}).encode()
        client = await gate.client()
        client.send(HEAD + b"transfer-encoding: chunked\r\n\r\n")
        client.send(chunked(*[body[at : at + 1] for at in range(len(body))]) + b"0\r\nx-trailer: 1\r\n\r\n")
        assert (await client.reply()).status == 200
        assert engine.requests[0].endswith(body)


# -- targets and upgrades ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", [b"http://g", b"HTTP://g:80", b"https://user@other.example"])
async def test_a_target_in_absolute_form_is_its_path(prefix: bytes) -> None:
    """As clients send it that take the gateway for a proxy; for routed paths and for the others."""
    async with pair([reply(b"{}")]) as (gate, engine):
        got = await gate.ask(chat(stream=False).replace(b"/v1/", prefix + b"/v1/", 1))
        assert (got.status, got.body) == (200, b"{}")
        assert engine.requests[0].startswith(b"POST /v1/chat/completions HTTP/1.1\r\n")
        assert (await gate.ask(b"GET %b/healthz?a=b HTTP/1.1\r\nhost: g\r\n\r\n" % prefix)).body == b"/healthz"
        assert (await gate.ask(b"GET %b HTTP/1.1\r\nhost: g\r\n\r\n" % prefix)).body == b"/"
        assert (await gate.ask(b"GET %b?a HTTP/1.1\r\nhost: g\r\n\r\n" % prefix)).body == b"/"


@pytest.mark.parametrize(
    ("line", "status"),
    [(b"CONNECT g:80", 501), (b"GET ftp://g/x", 400), (b"GET http:///x", 400), (b"GET g:80", 400)],
)
async def test_a_target_without_a_path_is_refused(line: bytes, status: int) -> None:
    """It is the client's error, not one of the gateway's."""
    async with pair([reply(b"{}")]) as (gate, _):
        assert (await gate.ask(line + b" HTTP/1.1\r\nhost: g\r\n\r\n")).status == status


@pytest.mark.parametrize("target", [b"/v1/chat/completions", b"/healthz", b"http://g/v1/chat/completions"])
async def test_connect_is_refused_once_whatever_its_target(target: bytes) -> None:
    """Its answer was followed by one to what came behind its head, which is neither a body nor a request."""
    async with pair([reply(b"{}")]) as (gate, engine):
        client = await gate.client()
        client.send(b"CONNECT %b HTTP/1.1\r\nhost: g\r\ncontent-length: 3\r\n\r\nabc" % target + chat())
        assert (await client.reply()).status == 501
        assert await client.ended() == b""
        assert engine.requests == []


@pytest.mark.parametrize("offer", [b"h2c", b"websocket", b"TLS/1.0"])
async def test_an_offer_to_upgrade_is_ignored(offer: bytes) -> None:
    """With a body, counted or in chunks, and pipelined; curl --http2 offers it with every POST."""
    more = b"upgrade: %b\r\nconnection: Upgrade, HTTP2-Settings\r\nhttp2-settings: AAM\r\n" % offer
    counted = HEAD + more + b"content-length: %d\r\n\r\n" % len(BODY) + BODY
    in_chunks = HEAD + more + b"transfer-encoding: chunked\r\n\r\n" + chunked(BODY[:5], BODY[5:]) + wire.LAST
    get = b"GET /healthz HTTP/1.1\r\nhost: g\r\n" + more + b"\r\n"
    async with pair([reply(b"{}")]) as (gate, engine):
        client = await gate.client()
        for data in (counted + in_chunks + get, counted[:100], counted[100:] + get):
            client.send(data)
        got = [await client.reply() for _ in range(5)]
        assert [each.status for each in got] == [200] * 5
        assert [each.body for each in got] == [b"{}", b"{}", b"/healthz", b"{}", b"/healthz"]
        assert all(request.endswith(b"\r\n\r\n" + BODY) for request in engine.requests)
        assert all(b"upgrade" not in request.lower() for request in engine.requests)
        client.send(get.replace(b"Upgrade,", b"close, upgrade,"))
        await client.reply()


# -- half-closed connections ---------------------------------------------------------------------------------------


async def half_closed(gate: Gateway, request: bytes) -> Client:
    """A client that has sent *request* and will send no more."""
    client = await gate.client()
    client.send(request)
    client.writer.write_eof()
    return client


@pytest.mark.parametrize("version", ["1.0", "1.1"])
@pytest.mark.parametrize("streamed", [False, True])
async def test_a_client_that_has_closed_its_half_gets_its_answer(version: str, streamed: bool) -> None:
    """As ``nc -N`` and many tools of HTTP/1.0 do; then the connection is closed."""
    script = [stream("a", "b") if streamed else reply(b"{}")]
    async with pair(script) as (gate, _):
        client = await half_closed(gate, chat(stream=streamed, version=version))
        got = await client.reply()
        assert (got.status, got.complete) == (200, True)
        assert got.events()[-1:] == (["[DONE]"] if streamed else [])
        assert await client.ended() == b""
        assert gate.seen.endings == [Ending.SERVED]


async def test_an_answer_that_takes_long_reaches_a_half_closed_client_whole() -> None:
    """Some bytes of its status line were sent before: they come once."""

    go = asyncio.Event()
    async with pair([go, reply(b"{}")]) as (gate, _):
        client = await half_closed(gate, chat(stream=False))
        async with asyncio.timeout(wire.WITHIN_S):
            early = await client.reader.readexactly(3)
        go.set()
        assert early + await client.reader.readline() == b"HTTP/1.1 200 OK\r\n"
        assert (await client.ended()).endswith(b"\r\n\r\n{}")


async def test_all_requests_of_a_half_closed_pipeline_are_answered() -> None:
    """Ours, the app's, and one that is refused."""
    async with pair([reply(b"{}")]) as (gate, _):
        get = b"GET /healthz HTTP/1.1\r\nhost: g\r\n\r\n"
        client = await half_closed(gate, chat(stream=False) + post("/v1/chat/completions", b"{") + get)
        assert [(await client.reply()).status for _ in range(3)] == [200, 400, 200]
        assert await client.ended() == b""
        client = await half_closed(gate, get)
        assert (await client.reply()).body == b"/healthz"
        assert await client.ended() == b""


async def test_a_half_closed_client_of_http_1_0_gets_one_answer_whatever_it_pipelined() -> None:
    """Its stream ends with the connection: a second answer would be part of the first."""
    async with pair([stream("a")], [stream("b")]) as (gate, engine):
        old = chat(version="1.0", more="connection: keep-alive\r\n")
        client = await half_closed(gate, old + old)
        got = await client.ended()
        assert (got.count(b"HTTP/1.1 "), got.count(b"[DONE]")) == (1, 1)
        assert len(engine.requests) == 1


async def test_a_client_that_leaves_is_not_taken_for_a_half_closed_one() -> None:
    """It closes in the same words; the first bytes of an answer are returned to the sender."""
    async with pair([Act.UNTIL_LEFT]) as (gate, engine):
        client = await gate.client()
        client.send(chat())
        await until(lambda: engine.requests)
        client.close()
        await until(lambda: engine.left == 1)
        assert gate.seen.endings == [Ending.LEFT]
        assert not gate.state.connections


async def test_half_a_request_is_none() -> None:
    """The end of what a client sends in the middle of a request is the end of its connection."""
    async with pair([reply(b"{}")]) as (gate, engine):
        client = await half_closed(gate, chat()[:-5])
        assert await client.ended() == b""
        assert engine.requests == []
