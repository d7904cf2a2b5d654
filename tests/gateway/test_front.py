"""What a server owes its clients: strict heads, bounds, keep-alive, pipelines, errors in the words of each protocol."""

import asyncio
import gzip
import json

import pytest

from router.core.decisions import EndState as Ending
from router.core.types import Slo
from router.engines.triton import KIND as TRITON
from router.gateway.protocols.ingress import Caller, Ingress, SloClass
from router.gateway.traffic.client_connection import ClientConnection, ConnectionLimits
from router.gateway.traffic.driver import StreamLimits
from tests import fakes_wire as wire
from tests.fakes_wire import Act, chat, chunked, event, pair, post, reply, stream, token
from tests.waiting import until

HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nhost: g\r\n"
BODY = json.dumps({"model": "m", "messages": [{"role": "user", "content": "x"}]}).encode()


@pytest.mark.parametrize(
    "head",
    [
        HEAD + b"content-length: 2\r\ncontent-length: 2\r\n\r\n{}",
        HEAD + b"content-length: 2\r\ncontent-length: 3\r\n\r\n{}",
        HEAD + b"content-length: 2\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        HEAD + b"transfer-encoding: chunked\r\ncontent-length: 2\r\n\r\n0\r\n\r\n",
        HEAD + b"transfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        HEAD + b"transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        HEAD + b"transfer-encoding: xchunked\r\n\r\n0\r\n\r\n",
        HEAD + b"transfer-encoding: identity\r\ncontent-length: 2\r\n\r\n{}",
        HEAD + b"transfer-encoding : chunked\r\n\r\n0\r\n\r\n",
        HEAD + b"transfer-encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n",
        HEAD + b"transfer-encoding: chunked\r\n\r\n2\n{}\n0\n\n",
        HEAD + b"transfer-encoding: chunked\r\n\r\n-2\r\n{}\r\n0\r\n\r\n",
        HEAD + b"content-length: +2\r\n\r\n{}",
        HEAD + b"content-length: 2, 2\r\n\r\n{}",
        HEAD + b"content-length: 0x2\r\n\r\n{}",
        HEAD + b"x-folded: a\r\n b\r\ncontent-length: 2\r\n\r\n{}",
        HEAD + b"x-nul: a\0b\r\ncontent-length: 2\r\n\r\n{}",
        HEAD + b"x-cr: a\rb\r\ncontent-length: 2\r\n\r\n{}",
        HEAD + b"x-lf: a\ncontent-length: 2\r\n\r\n{}",
        HEAD + b"host: other\r\ncontent-length: 2\r\n\r\n{}",
        b"POST /v1/chat/completions HTTP/1.1\r\ncontent-length: 2\r\n\r\n{}",
        b"POST /v1/chat/completions HTTP/1.0\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    ],
)
async def test_a_request_that_two_servers_could_read_differently_is_refused(head: bytes) -> None:
    """400, the connection closes, and nothing of it reaches the engine."""
    async with pair([reply(b"{}")]) as (gate, engine):
        client = await gate.client()
        client.send(head + HEAD + b"content-length: 2\r\n\r\n{}")
        got = await client.reply()
        assert (got.status, got.headers["connection"]) == (400, "close")
        assert got.json()["error"]["type"] == "invalid_request_error"
        assert await client.ended() == b""
        assert engine.requests == []


async def test_an_unknown_version_is_refused() -> None:
    """505 for what is not HTTP/1."""
    async with pair([reply(b"{}")]) as (gate, _):
        assert (await gate.ask(b"POST /v1/chat/completions HTTP/3.7\r\nhost: g\r\n\r\n")).status in {400, 505}


async def test_requests_of_one_connection_are_answered_one_after_another() -> None:
    """Keep-alive, with nothing opened anew on either side."""
    async with pair([stream("a")]) as (gate, engine):
        client = await gate.client()
        for _ in range(3):
            client.send(chat())
            assert (await client.reply()).events()[-1] == "[DONE]"
        assert engine.connections == 1


async def test_pipelined_requests_are_answered_in_order() -> None:
    """All sent at once, ours and the app's mixed; the engine never sees two at a time."""
    async with pair([stream("a")], [reply(b'{"b":1}')], [stream("c")]) as (gate, _):
        client = await gate.client()
        get = b"GET /healthz HTTP/1.1\r\nhost: g\r\n\r\n"
        client.send(chat() + get + chat(stream=False) + post("/v1/chat/completions", b"{") + chat() + get)
        got = [await client.reply() for _ in range(6)]
        assert got[0].events()[0] == json.dumps(token("a"))
        assert got[1].body == b"/healthz"
        assert got[2].body == b'{"b":1}'
        assert got[3].status == 400
        assert got[4].events()[0] == json.dumps(token("c"))
        assert got[5].body == b"/healthz"


async def test_a_request_that_comes_in_parts_behind_another_is_served() -> None:
    """Its first half waits its turn, its second half still comes in."""
    async with pair([stream("a")]) as (gate, _):
        client = await gate.client()
        second = chat()
        client.send(chat() + second[:-10])
        assert (await client.reply()).complete
        client.send(second[-10:])
        assert (await client.reply()).complete


async def test_a_client_that_leaves_with_a_request_in_line_frees_the_engine() -> None:
    """The pipeline does not hide that it left."""
    async with pair([Act.UNTIL_LEFT]) as (gate, engine):
        client = await gate.client()
        client.send(chat() * 3)
        await until(lambda: engine.requests)
        client.close()
        await until(lambda: engine.left == 1)
        assert gate.seen.endings == [Ending.LEFT]


@pytest.mark.parametrize(("version", "more"), [("1.1", ""), ("1.1", "connection: close\r\n"), ("1.0", "")])
async def test_a_path_of_the_app_answers_before_a_long_body_has_come(version: str, more: str) -> None:
    """And no reset takes the answer from the client, which sends on."""
    async with pair([stream("a")]) as (gate, _):
        client = await gate.client()
        head = f"POST /nowhere HTTP/{version}\r\nhost: g\r\ncontent-length: {20 << 20}\r\n{more}\r\n"
        client.send(head.encode())
        for _ in range(20):
            client.send(b"x" * (1 << 20))
            await client.writer.drain()
        got = await client.reply()
        assert (got.status, got.body) == (200, b"/nowhere")
        if version == "1.1" and not more:
            client.send(chat())
            assert (await client.reply()).complete
        else:
            assert await client.ended() == b""


@pytest.mark.parametrize("count", [16, 17, 40, 300])
async def test_a_client_that_leaves_with_more_in_line_than_is_read_frees_the_engine(count: int) -> None:
    """Its close waits in the kernel behind requests that are not read: the sweep sees it."""
    async with pair([Act.UNTIL_LEFT]) as (gate, engine):
        client = await gate.client()
        client.send(chat() * count)
        await until(lambda: engine.requests)
        client.close()

        def left() -> bool:
            for connection in list(gate.state.connections):
                assert isinstance(connection, ClientConnection)
                connection.swept(gate.driver.clock())
            return engine.left == 1

        await until(left)
        assert gate.seen.endings == [Ending.LEFT]
        await until(lambda: not gate.state.connections)


async def test_garbage_behind_a_request_waits_for_its_answer() -> None:
    """The stream ends as it should, then 400 and the end."""
    more = asyncio.Event()
    script = [wire.STREAM_HEAD + chunked(event(token("a"))), more, chunked(event("[DONE]")) + wire.LAST]
    async with pair(script) as (gate, _):
        client = await gate.client()
        client.send(chat() + b"garbage\r\n\r\n")
        await until(lambda: gate.core.in_flight)
        more.set()
        assert (await client.reply()).events()[-1] == "[DONE]"
        assert (await client.reply()).status == 400
        assert await client.ended() == b""


async def test_expect_100_continue_is_answered_before_the_body_comes() -> None:
    """The client waits for it."""
    async with pair([reply(b"{}")]) as (gate, engine):
        client = await gate.client()
        client.send(HEAD + b"expect: 100-continue\r\ncontent-length: %d\r\n\r\n" % len(BODY))
        assert (await client.head())[0] == 100
        client.send(BODY)
        assert (await client.reply()).status == 200
        assert b"expect" not in engine.requests[0].lower()


async def test_expect_100_continue_of_a_body_too_large_is_refused_at_once() -> None:
    """413 before a byte of it is sent."""
    async with pair([reply(b"{}")], front_limits=ConnectionLimits(body_bytes_max=100)) as (gate, _):
        client = await gate.client()
        client.send(HEAD + b"expect: 100-continue\r\ncontent-length: 101\r\n\r\n")
        assert (await client.reply()).status == 413


async def test_a_chunked_request_is_one_body_to_the_engine() -> None:
    """With its length, whatever chunks and trailers it came in."""
    async with pair([reply(b"{}")]) as (gate, engine):
        body = chunked(BODY[:7], BODY[7:]) + b"0\r\nauthorization: Bearer sneaky\r\n\r\n"
        assert (await gate.ask(HEAD + b"transfer-encoding: chunked\r\n\r\n" + body)).status == 200
        assert engine.requests[0].endswith(b"\r\n\r\n" + BODY)
        assert b"content-length: %d\r\n" % len(BODY) in engine.requests[0]
        assert b"sneaky" not in engine.requests[0]


async def test_a_client_of_http_1_0_gets_a_plain_body_and_the_end() -> None:
    """No chunks, the connection closes."""
    async with pair([stream("a", "b")]) as (gate, _):
        got = await gate.ask(chat(version="1.0"))
        assert got.events() == [json.dumps(token("a")), json.dumps(token("b")), "[DONE]"]
        assert "transfer-encoding" not in got.headers
        assert gate.seen.outcomes[0].record.usage.output_tokens == 2


async def test_a_broken_stream_never_ends_cleanly_for_http_1_0() -> None:
    """Its body has no end but the connection's: an error event stands there."""
    async with pair([wire.STREAM_HEAD + chunked(event(token("a"))), Act.CLOSE]) as (gate, _):
        got = await gate.ask(chat(version="1.0"))
        assert "error" in json.loads(got.events()[-1])


async def test_connection_close_is_honoured() -> None:
    """Said by the client, done and said by us."""
    async with pair([reply(b"{}")]) as (gate, _):
        client = await gate.client()
        client.send(chat(stream=False, more="connection: close\r\n"))
        assert (await client.reply()).headers["connection"] == "close"
        assert await client.ended() == b""


async def test_20_mb_get_a_clean_413() -> None:
    """The client sends it all before it reads, and still reads the answer."""
    async with pair([reply(b"{}")]) as (gate, engine):
        client = await gate.client()
        client.send(post("/v1/chat/completions", b"x" * 20_000_000))
        await client.writer.drain()
        got = await client.reply()
        assert (got.status, got.json()["error"]["type"]) == (413, "invalid_request_error")
        assert await client.ended() == b""
        assert engine.requests == []


async def test_a_chunked_body_is_bounded_too() -> None:
    """It does not say its length, so it is counted."""
    async with pair([reply(b"{}")], front_limits=ConnectionLimits(body_bytes_max=1000)) as (gate, _):
        client = await gate.client()
        client.send(HEAD + b"transfer-encoding: chunked\r\n\r\n" + chunked(*[b"x" * 100] * 11))
        assert (await client.reply()).status == 413


async def test_a_head_too_large_is_431() -> None:
    """Bounded before it is complete, and when it comes at once."""
    async with pair([reply(b"{}")]) as (gate, _):
        for more in (b"x: " + b"y" * 70_000, b"x: " + b"y" * 70_000 + b"\r\n\r\n"):
            assert (await gate.ask(HEAD + more)).status == 431


async def test_a_slow_sender_gets_408() -> None:
    """Half a request does not hold a connection for ever; an idle one closes without a word."""
    async with pair([reply(b"{}")], front_limits=ConnectionLimits(request_s=5.0)) as (gate, _):
        slow, silent = await gate.client(), await gate.client()
        slow.send(HEAD + b"content-length: 10\r\n\r\n{")
        await until(lambda: any(c._reading for c in gate.state.connections) and len(gate.state.connections) == 2)
        for connection in list(gate.state.connections):
            connection.swept(gate.driver.clock() + 6.0)
        got = await slow.reply()
        assert (got.status, got.headers["connection"]) == (408, "close")
        assert await silent.ended() == b""


async def test_head_is_answered_without_a_body() -> None:
    """Where GET is routed, HEAD is."""
    length = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n"
    async with wire.ScriptedEngine([length]) as engine, wire.gateway(engine.target(engine=TRITON)) as gate:
        client = await gate.client()
        for _ in range(2):
            client.send(b"HEAD /v2/models/m/ready HTTP/1.1\r\nhost: g\r\n\r\n")
            got = await client.reply(head_only=True)
            assert (got.status, got.headers["content-length"]) == (200, "5")
        assert engine.connections == 1


async def test_a_wrong_method_is_405_with_those_allowed() -> None:
    """On a routed path."""
    async with pair([reply(b"{}")]) as (gate, _):
        got = await gate.ask(b"GET /v1/chat/completions HTTP/1.1\r\nhost: g\r\n\r\n")
        assert (got.status, got.headers["allow"]) == (405, "POST")


@pytest.mark.parametrize(
    ("path", "document", "param"),
    [
        ("/v1/chat/completions", b"{", None),
        ("/v1/chat/completions", b"[]", None),
        ("/v1/chat/completions", b"\xff\xfe", None),
        ("/v1/chat/completions", b'{"messages":[{"role":"user","content":"x"}]}', "model"),
        ("/v1/chat/completions", b'{"model":7,"messages":[{"role":"user","content":"x"}]}', "model"),
        ("/v1/chat/completions", b'{"model":"m"}', "messages"),
        ("/v1/chat/completions", b'{"model":"m","messages":"hi"}', "messages"),
        ("/v1/chat/completions", b'{"model":"m","messages":[]}', "messages"),
        ("/v1/chat/completions", b'{"model":"m","messages":["hi"]}', "messages[0]"),
        ("/v1/chat/completions", b'{"model":"m","messages":[{"role":"user","content":7}]}', "messages[0].content"),
        ("/v1/chat/completions", b'{"model":"m","stream":"yes","messages":[{"content":"x"}]}', "stream"),
        ("/v1/chat/completions", b'{"model":"m","max_tokens":"many","messages":[{"content":"x"}]}', "max_tokens"),
        ("/v1/chat/completions", b'{"model":"m","max_tokens":1.5,"messages":[{"content":"x"}]}', "max_tokens"),
        ("/v1/chat/completions", b'{"model":"m","max_tokens":true,"messages":[{"content":"x"}]}', "max_tokens"),
        ("/v1/completions", b'{"model":"m"}', "prompt"),
        ("/v1/completions", b'{"model":"m","prompt":{}}', "prompt"),
        ("/v1/embeddings", b'{"model":"m"}', "input"),
        ("/v1/responses", b'{"model":"m","input":3}', "input"),
    ],
)
async def test_a_bad_body_is_400_naming_the_field(path: str, document: bytes, param: str | None) -> None:
    """The connection stays usable."""
    async with pair([reply(b"{}")]) as (gate, _):
        client = await gate.client()
        client.send(post(path, document))
        got = await client.reply()
        assert (got.status, got.json()["error"]["param"]) == (400, param)
        client.send(chat(stream=False))
        assert (await client.reply()).status == 200
        assert gate.seen.rejections == [(path, 400)]


@pytest.mark.parametrize(("given", "cap"), [("16.0", 16), ('"16"', 16), ("-1", 0), ("0", 0), ("null", 0)])
async def test_a_cap_is_read_as_engines_read_it(given: str, cap: int) -> None:
    """Whole floats and digits too; below 0 it is none to some of them, and others refuse it themselves."""
    body = b'{"model":"m","max_tokens":%b,"messages":[{"role":"user","content":"x"}]}' % given.encode()
    async with pair([reply(b'{"choices":[]}')]) as (gate, engine):
        assert (await gate.ask(post("/v1/chat/completions", body))).status == 200
        assert engine.requests[0].endswith(body)
        assert gate.seen.outcomes[0].record.request.output_tokens_max == cap


async def test_a_byte_order_mark_before_the_body_passes() -> None:
    """As Python's JSON parser, and so most engines, have it; what is changed in the body is written anew."""
    body = b'\xef\xbb\xbf{"model":"m","stream":true,"messages":[{"role":"user","content":"x"}]}'
    async with pair([wire.stream("a", "b")]) as (gate, engine):
        got = await gate.ask(post("/v1/chat/completions", body))
        assert (got.status, got.events()[-1]) == (200, "[DONE]")
        sent = json.loads(engine.requests[0].partition(b"\r\n\r\n")[2].decode("utf-8-sig"))
        assert sent == json.loads(body.decode("utf-8-sig")) | {"stream_options": {"include_usage": True}}


async def test_a_compressed_body_is_415_and_names_the_field() -> None:
    """It cannot be read here, and what engines would make of it is not ours to find out; identity is no coding."""
    body = b'{"model":"m","messages":[{"role":"user","content":"x"}]}'
    async with pair([reply(b'{"choices":[]}')]) as (gate, engine):
        packed = gzip.compress(body)
        got = await gate.ask(post("/v1/chat/completions", packed, "content-encoding: gzip\r\n"))
        assert (got.status, got.headers["accept-encoding"]) == (415, "identity")
        assert "Content-Encoding" in got.json()["error"]["message"]
        assert not engine.requests
        for coding in ("identity", "", "utf-8", "UTF-8, identity"):  # as some clients name the charset
            assert (await gate.ask(post("/v1/chat/completions", body, f"content-encoding: {coding}\r\n"))).status == 200
        for coding in ("GZIP", "identity, br"):
            assert (await gate.ask(post("/v1/chat/completions", body, f"content-encoding: {coding}\r\n"))).status == 415


async def test_an_unknown_model_is_404_naming_those_there_are() -> None:
    """In OpenAI's form, and in Anthropic's and Triton's on their paths."""
    async with pair([reply(b"{}")]) as (gate, _):
        error = (await gate.chat(model="nope")).json()["error"]
        assert (error["code"], error["param"]) == ("model_not_found", "model")
        assert "models: m" in error["message"]
        body = b'{"model":"nope","max_tokens":5,"messages":[{"role":"user","content":"x"}]}'
        anthropic = await gate.ask(post("/v1/messages", body))
        assert (anthropic.status, anthropic.json()["type"]) == (404, "error")
        assert anthropic.json()["error"]["type"] == "not_found_error"
        triton = await gate.ask(post("/v2/models/nope/generate", b'{"text_input":"x"}'))
        assert triton.status == 404
        assert isinstance(triton.json()["error"], str)


async def test_a_key_is_asked_for_and_names_the_tenant() -> None:
    """401 without one; the request carries whose it is."""
    digest = "2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b"  # of "secret"
    ingress = Ingress(keys={digest: Caller("acme")})
    async with pair([reply(b"{}")], ingress=ingress) as (gate, _):
        assert (await gate.chat(stream=False)).status == 401
        assert (await gate.chat(stream=False, more="authorization: Bearer wrong\r\n")).status == 401
        assert (await gate.chat(stream=False, more="authorization: Bearer secret\r\n")).status == 200
        assert (await gate.chat(stream=False, more="x-api-key: secret\r\n")).status == 200
        assert {outcome.record.request.tenant for outcome in gate.seen.outcomes} == {"acme"}


async def test_an_slo_comes_from_headers_else_from_the_class() -> None:
    """Milliseconds in headers, seconds inside; a header overrides one bound of the class."""
    classes = {"default": SloClass(), "fast": SloClass(Slo(ttft_s=1.0, tpot_s=0.05), priority=-1)}
    async with pair([reply(b"{}")], ingress=Ingress(classes=classes)) as (gate, _):
        await gate.chat(stream=False, more="x-slo-class: fast\r\nx-slo-ttft-ms: 250\r\n")
        await gate.chat(stream=False, more="x-llm-d-slo-tpot-ms: 20\r\nx-slo-e2e-ms: 9000\r\n")
        first, second = (outcome.record.request for outcome in gate.seen.outcomes)
        assert (first.slo_class, first.slo, first.priority) == ("fast", Slo(ttft_s=0.25, tpot_s=0.05), -1)
        assert second.slo == Slo(tpot_s=0.02, e2e_s=9.0)


@pytest.mark.parametrize("more", ["x-slo-ttft-ms: soon", "x-slo-tpot-ms: -1", "x-slo-e2e-ms: nan", "x-slo-class: no"])
async def test_a_bad_slo_header_is_400_naming_it(more: str) -> None:
    """And nothing is sent."""
    async with pair([reply(b"{}")]) as (gate, engine):
        got = await gate.chat(more=f"{more}\r\n")
        assert (got.status, got.json()["error"]["param"]) == (400, more.partition(":")[0])
        assert engine.requests == []


async def test_a_long_name_of_a_class_is_repeated_in_part() -> None:
    """An answer is not as long as a header may be."""
    async with pair([reply(b"{}")]) as (gate, _):
        got = await gate.chat(more=f"x-slo-class: {'x' * 5000}\r\n")
        assert (got.status, len(got.body) < 250) == (400, True)


async def test_a_shed_request_says_why_and_when_to_come_back() -> None:
    """Nobody up: 503 with the reason and Retry-After."""
    async with pair([reply(b"{}")]) as (gate, _):
        gate.driver.perform(gate.core.backend_health("a", False, gate.driver.clock()))
        got = await gate.chat()
        assert (got.status, got.headers["x-headroom-dropped-reason"]) == (503, "no-backend")
        assert int(got.headers["retry-after"]) >= 1


async def test_what_is_not_routed_is_the_apps() -> None:
    """With its body, on the same connection."""
    async with pair([reply(b"{}")]) as (gate, _):
        assert (await gate.ask(post("/admin/reload", b"x" * 1000))).body == b"/admin/reload"


async def test_a_client_that_does_not_read_pauses_its_engine() -> None:
    """Memory stays bounded: the engine is read no faster than the client reads."""
    big = event(token("y" * 60_000))
    async with pair([wire.STREAM_HEAD, *[chunked(big)] * 400, chunked(event("[DONE]")) + wire.LAST]) as (gate, _):
        client = await gate.client()
        client.writer.transport.pause_reading()
        client.send(chat())
        await until(lambda: any(e.winner and e.winner.paused for e in gate.driver._in_flight.values()))
        (connection,) = gate.state.connections
        assert connection.transport.get_write_buffer_size() < 500_000
        client.writer.transport.resume_reading()
        got = await client.reply()
        assert got.complete
        assert len(got.events()) == 401
        assert gate.seen.endings == [Ending.SERVED]


async def test_a_client_that_never_reads_is_dropped_in_the_end() -> None:
    """Its engine is freed with it; one that reads again before that is not."""
    big = chunked(event(token("y" * 60_000)))
    async with pair([wire.STREAM_HEAD, *[big] * 400, Act.UNTIL_LEFT]) as (gate, engine):
        client = await gate.client()
        client.writer.transport.pause_reading()
        client.send(chat())
        await until(lambda: any(e.winner and e.winner.paused for e in gate.driver._in_flight.values()))
        gate.driver.sweep(gate.driver.clock() + StreamLimits().reader_s - 1.0)
        assert gate.core.in_flight == 1
        gate.driver.sweep(gate.driver.clock() + StreamLimits().reader_s + 1.0)
        await until(lambda: gate.core.in_flight == 0)
        await until(lambda: engine.open == 0)
        assert gate.seen.endings == [Ending.LEFT]
