"""A stream through the gateway on real sockets: as it came, counted, retried before its first byte, honest after it."""

import asyncio
import gzip
import json
from math import inf

import pytest

from router.core.decisions import EndState as Ending
from router.core.flight import DispatchLimits
from router.core.types import Usage
from router.gateway.traffic.attempt import _HELD_BACK_S
from router.gateway.traffic.driver import StreamLimits
from tests import fakes_wire as wire
from tests.fakes_wire import (
    Act,
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

BUSY = json.dumps({"error": {"message": "busy", "type": "Service Unavailable", "param": None, "code": 503}})


async def test_a_stream_passes_as_it_came() -> None:
    """Every byte of the body reaches the client, and the head names who served it."""
    async with pair([stream("a", "b", "c")]) as (gate, engine):
        got = await gate.chat(more="x-request-id: mine\r\n")
        assert (got.status, got.complete) == (200, True)
        assert got.events() == [*(json.dumps(token(text)) for text in "abc"), "[DONE]"]
        assert got.headers["x-headroom-backend"] == "a"
        assert got.headers["x-request-id"] == "mine"
        assert b"x-request-id: mine\r\n" in engine.requests[0]


async def test_a_request_is_demand_when_it_arrives() -> None:
    """Before anything of it ends."""
    async with pair([stream("a")]) as (gate, _):
        await gate.chat()
        assert (gate.seen.arrivals, len(gate.seen.outcomes)) == (1, 1)


async def test_tokens_are_counted_from_the_events() -> None:
    """Without usage in the stream, each event but ``[DONE]`` is a token: an estimate."""
    async with pair([stream("a", "b", "c")]) as (gate, _):
        await gate.chat()
        (outcome,) = gate.seen.outcomes
        assert outcome.record.usage == Usage(3, estimated=True, output_tokens_least=3)
        assert outcome.record.outcome is Ending.SERVED
        assert (outcome.status, outcome.events, outcome.path) == (200, 4, "/v1/chat/completions")


async def test_the_engines_usage_is_believed_over_the_events() -> None:
    """One event may hold several tokens: the usage frame says how many."""
    usage = {"prompt_tokens": 7, "completion_tokens": 12, "total_tokens": 19}
    async with pair([stream("a", "b", usage=usage)]) as (gate, _):
        await gate.chat()
        stated = gate.seen.outcomes[0].record.usage
        assert (stated.output_tokens, stated.prompt_tokens) == (12, 7)


async def test_the_time_per_token_ends_with_the_last_token() -> None:
    """LiteLLM counts tokens before it sends finish reason, usage and ``[DONE]``: that is no token's time."""
    now, second, third = [0.0], asyncio.Event(), asyncio.Event()
    usage = {"prompt_tokens": 7, "completion_tokens": 2}
    finish = {"id": "c", "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
    ends = [event(finish), event({"id": "c", "choices": [{"index": 0, "delta": {}}], "usage": usage}), event("[DONE]")]
    script: wire.Script = [
        wire.STREAM_HEAD + chunked(event(token("a"))),
        second,
        chunked(event(token("b"))),
        third,
        chunked(*ends) + wire.LAST,
    ]
    async with pair(script, clock=lambda: now[0]) as (gate, _):
        client = await gate.client()
        client.send(chat())
        await client.reader.readuntil(json.dumps(token("a")).encode())
        now[0] = 1.0
        second.set()
        await client.reader.readuntil(json.dumps(token("b")).encode())
        now[0] = 5.0
        third.set()
        await client.reader.readuntil(wire.LAST)
        await until(lambda: gate.seen.outcomes)
        record = gate.seen.outcomes[0].record
        assert (record.tpot_s, record.last_token_s, record.e2e_s) == (1.0, 1.0, 5.0)


async def test_a_reply_that_is_no_stream_passes_with_its_length() -> None:
    """A JSON reply keeps its Content-Length and its usage is read."""
    body = json.dumps({"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 5}}).encode()
    async with pair([reply(body)]) as (gate, _):
        got = await gate.chat(stream=False)
        assert (got.status, got.body) == (200, body)
        assert got.headers["content-length"] == str(len(body))
        assert gate.seen.outcomes[0].record.usage.output_tokens == 5


async def test_connections_to_the_engine_are_used_again() -> None:
    """Requests one after another take one connection."""
    async with pair([stream("a")]) as (gate, engine):
        for _ in range(5):
            assert (await gate.chat()).complete
        assert engine.connections == 1


async def test_a_first_token_goes_out_before_the_second_comes() -> None:
    """Nothing waits for more: what the engine has said the client has."""
    more = asyncio.Event()
    head = wire.STREAM_HEAD + chunked(event(token("a")))
    async with pair([head, more, chunked(event("[DONE]")) + wire.LAST]) as (gate, _):
        client = await gate.client()
        client.send(chat())
        await client.head()
        async with asyncio.timeout(5):
            assert json.dumps(token("a")).encode() in await client.reader.read(1000)
        more.set()
        assert b"[DONE]" in await client.reader.readuntil(b"0\r\n\r\n")


async def test_a_connection_that_died_idle_is_retried_unseen() -> None:
    """A connection closed before the request was sent is replaced, without a report to the core."""
    go = asyncio.Event()
    async with pair([stream("a"), go, Act.CLOSE], [stream("b")]) as (gate, engine):
        assert (await gate.chat()).complete
        (upstream,) = gate.driver.upstreams.values()
        (dead,) = upstream.open
        go.set()
        await until(lambda: not upstream.open)
        upstream._idle.append(dead)  # as if the close had not been heard yet
        assert (await gate.chat()).complete
        assert engine.connections == 2
        assert [outcome.record.attempts for outcome in gate.seen.outcomes] == [1, 1]


async def test_a_connection_that_dies_under_the_request_is_retried_unseen() -> None:
    """The close crossed our request on the wire: sent again on a fresh connection, once."""
    async with pair([stream("a")], [Act.RESET], [stream("b")]) as (gate, engine):
        await gate.chat()
        got = await gate.chat()
        assert got.events()[0] == json.dumps(token("b"))
        assert len(engine.requests) == 3
        assert gate.seen.outcomes[1].record.attempts == 1


async def test_a_fresh_connection_that_dies_is_the_engines_failure() -> None:
    """Without another backend the response is 502, and the core counts the failure of this one."""
    async with pair([Act.RESET]) as (gate, _):
        got = await gate.chat()
        assert got.status == 502
        assert got.json()["error"]["code"] == "backend-failed"
        assert gate.seen.endings == [Ending.REFUSED]


async def served_by_the_second(first: wire.Script) -> tuple[wire.Reply, int]:
    """The reply of a second backend, where the one that is tried before it does *first*; and how many were tried."""
    async with (
        ScriptedEngine(first) as bad,
        ScriptedEngine([stream("good")]) as good,
        gateway(bad.target("a"), good.target("b")) as gate,
    ):
        got = await gate.chat()
        assert (got.status, got.headers["x-headroom-backend"]) == (200, "b")
        return got, gate.seen.outcomes[0].record.attempts


@pytest.mark.parametrize(
    "first",
    [
        [Act.RESET],
        [reply(b'{"error":{"message":"cannot schedule new futures"}}', 500)],
        [reply(BUSY.encode(), 503)],
        [wire.STREAM_HEAD + chunked(event(BUSY), event("[DONE]")) + wire.LAST],
        [wire.STREAM_HEAD + chunked(event(BUSY)[:9]), chunked(event(BUSY)[9:]) + wire.LAST],
        [b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n", Act.CLOSE],
        [b"nonsense\r\n\r\n"],
        [b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nhello"],
        [b"HTTP/1.1 101 Switching\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n"],
    ],
    ids=["reset", "500", "503", "event", "event in two chunks", "head alone", "nonsense", "two lengths", "101"],
)
async def test_a_failure_before_the_first_byte_is_tried_elsewhere(first: wire.Script) -> None:
    """The client sees the second backend's stream and nothing of the first."""
    got, attempts = await served_by_the_second(first)
    assert got.events()[0] == json.dumps(token("good"))
    assert attempts == 2


async def test_an_error_in_a_stream_that_began_as_200_gets_its_true_status() -> None:
    """Without another backend the status is that of the error event."""
    async with pair([wire.STREAM_HEAD + chunked(event(BUSY), event("[DONE]")) + wire.LAST]) as (gate, _):
        got = await gate.chat()
        assert got.status == 503
        assert got.json()["error"]["message"] == "busy"


async def test_the_engines_own_4xx_reaches_the_client_and_is_nobodys_fault() -> None:
    """A prompt that is too long is not tried elsewhere, and does not count against the backend."""
    body = b'{"error":{"message":"too long","type":"BadRequestError","param":"input_tokens","code":400}}'
    async with pair([reply(body, 400)]) as (gate, engine):
        for _ in range(5):
            got = await gate.chat()
            assert (got.status, got.body) == (400, body)
        assert len(engine.requests) == 5


ROLE = event({"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}]})
CREATED = b"".join(
    b'event: response.%b\ndata: {"response":{"error":null},"type":"response.%b"}\n\n' % (name, name)
    for name in (b"created", b"in_progress")
)


@pytest.mark.parametrize(
    "first",
    [
        [wire.STREAM_HEAD + chunked(ROLE), Act.CLOSE],
        [wire.STREAM_HEAD + chunked(ROLE) + wire.LAST],
        [wire.STREAM_HEAD + chunked(ROLE, event("[DONE]"), event(BUSY)) + wire.LAST],
        [wire.STREAM_HEAD + chunked(CREATED), Act.CLOSE],
        [wire.STREAM_HEAD + chunked(CREATED), chunked(b"event: error\n\n") + wire.LAST],
        [wire.STREAM_HEAD + wire.LAST],
    ],
    ids=["cut", "clean end", "error", "cut after created", "error after created", "nothing"],
)
async def test_a_failure_behind_events_without_a_token_is_tried_elsewhere(first: wire.Script) -> None:
    """A full vLLM begins a stream, and then cuts it or sends a refusal: no client has to see that."""
    got, _ = await served_by_the_second(first)
    assert got.events() == [json.dumps(token("good")), "[DONE]"]


async def test_the_first_token_is_the_first_event_that_holds_one() -> None:
    """Events without one go to the client after a moment, with the status; TTFT counts to the token."""
    more = asyncio.Event()
    script = [wire.STREAM_HEAD + chunked(ROLE), more, chunked(event(token("a")), event("[DONE]")) + wire.LAST]
    async with pair(script) as (gate, _):
        client = await gate.client()
        client.send(chat())
        await client.head()
        async with asyncio.timeout(wire.WITHIN_S):
            assert ROLE in await client.reader.readuntil(b"\n\n\r\n")
        now_s = gate.driver.clock()
        more.set()
        assert (await client._chunks())[1]
        (record,) = [outcome.record for outcome in gate.seen.outcomes]
        assert record.first_token_s >= now_s
        assert record.usage.output_tokens == 1


@pytest.mark.parametrize(
    "ping",
    [b": ping\n\n", b":\n", b'event: ping\ndata: {"type": "ping"}\n\n', b"event: keepalive\ndata: {}\n\n"],
)
async def test_pings_go_to_the_client_at_once_and_are_signs_of_life(ping: bytes) -> None:
    """They are neither tokens nor gaps, and the engine is not frozen while they come."""
    again, more = asyncio.Event(), asyncio.Event()
    last = chunked(event(token("a")), event("[DONE]")) + wire.LAST
    script = [wire.STREAM_HEAD + chunked(ping), again, chunked(ping), more, last]
    async with pair(script, limits=StreamLimits(stall_s=5.0)) as (gate, _):
        client = await gate.client()
        client.send(chat())
        await client.head()
        again.set()
        async with asyncio.timeout(wire.WITHIN_S):
            for _ in range(2):
                assert await client.reader.readuntil(b"\r\n")
                assert await client.reader.readexactly(len(ping) + 2) == ping + b"\r\n"
        (request,) = gate.driver._in_flight.values()
        assert request.winner is not None
        gate.driver.sweep(request.winner.meter.heard_s + 4.0)
        more.set()
        body, complete = await client._chunks()
        assert complete
        assert body == event(token("a")) + event("[DONE]")
        assert gate.seen.endings == [Ending.SERVED]
        assert gate.seen.outcomes[0].record.usage.output_tokens == 1
        assert sum(gate.driver.upstreams["a"].gaps.counts) == 0


@pytest.mark.parametrize("framed", [True, False])
async def test_blank_lines_before_a_whole_reply_go_to_the_client(framed: bool) -> None:
    """Servers send them while they work on it, so that nobody takes the connection for dead."""
    more = asyncio.Event()
    body = b'{"choices":[{"message":{"content":"x"}}],"usage":{"prompt_tokens":3,"completion_tokens":7}}'
    head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"
    if framed:
        script = [head + b"transfer-encoding: chunked\r\n\r\n" + chunked(b"\n\n"), more, chunked(body) + wire.LAST]
    else:
        script = [head + b"content-length: %d\r\n\r\n\n\n" % (len(body) + 2), more, body]
    async with pair(script) as (gate, _):
        client = await gate.client()
        client.send(chat(stream=False))
        status, _ = await client.head()
        assert status == 200
        if framed:
            assert await client.reader.readexactly(7) == b"2\r\n\n\n\r\n"
        else:
            assert await client.reader.readexactly(2) == b"\n\n"
        more.set()
        assert (await client._chunks() if framed else await client._exactly(len(body))) == (body, True)
        record = gate.seen.outcomes[0].record
        assert (record.outcome, record.usage.output_tokens) == (Ending.SERVED, 7)


@pytest.mark.parametrize("framing", [b"transfer-encoding: chunked\r\n", b"content-length: 14\r\n"])
async def test_a_head_alone_commits_nothing(framing: bytes) -> None:
    """An engine that sends it long before a whole reply may fail meanwhile, and has more time than one that is silent
    in the middle of a reply.
    """
    head, dies = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n%b\r\n" % framing, asyncio.Event()
    async with (
        ScriptedEngine([head, dies, Act.CLOSE]) as bad,
        ScriptedEngine([reply(b'{"choices":[]}')]) as good,
        gateway(bad.target("a"), good.target("b")) as gate,
    ):
        asyncio.get_running_loop().call_later(1.2 * _HELD_BACK_S, dies.set)
        assert (await gate.chat(stream=False)).headers["x-headroom-backend"] == "b"


async def test_an_error_behind_blank_lines_is_tried_elsewhere() -> None:
    """They are held back for a moment: what comes behind them may be no reply."""
    error = b'\n\n{"error":{"message":"busy","code":503}}'
    async with (
        ScriptedEngine([reply(error)[:-20], reply(error)[-20:]]) as bad,
        ScriptedEngine([reply(b'{"choices":[]}')]) as good,
        wire.gateway(bad.target("a"), good.target("b")) as gate,
    ):
        assert (await gate.chat(stream=False)).headers["x-headroom-backend"] == "b"


@pytest.mark.parametrize("version", ["1.1", "1.0"])
async def test_a_chunked_stream_that_ends_cleanly_in_the_middle_is_broken(version: str) -> None:
    """llama-cpp-python ends its body so on an exception: no finish reason, no ``[DONE]``."""
    async with pair([wire.STREAM_HEAD + chunked(event(token("a"))) + wire.LAST]) as (gate, _):
        got = await gate.ask(chat(version=version))
        assert got.events()[0] == json.dumps(token("a"))
        assert not got.complete or "error" in json.loads(got.events()[-1])
        assert gate.seen.endings == [Ending.BROKEN]
        assert (await gate.chat()).events()[0] == json.dumps(token("a"))  # the connection can be used again


async def test_a_stream_with_a_finish_reason_is_whole_without_done() -> None:
    """Some servers never send it."""
    last = event({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
    async with pair([wire.STREAM_HEAD + chunked(event(token("a")), last) + wire.LAST]) as (gate, _):
        got = await gate.chat()
        assert got.complete
        assert gate.seen.endings == [Ending.SERVED]


@pytest.mark.parametrize("finished", [True, False])
async def test_of_several_choices_each_has_to_finish(finished: bool) -> None:
    """One that stops early says nothing of the others."""

    def of(index: int, reason: str | None) -> bytes:
        return event({"choices": [{"index": index, "delta": {"content": "a"}, "finish_reason": reason}]})

    script = [wire.STREAM_HEAD, *map(chunked, [of(0, "stop"), of(1, None), of(1, "stop" if finished else None)])]
    async with pair([*script, wire.LAST]) as (gate, _):
        got = await gate.chat(n=2)
        assert got.complete
        assert ("error" in json.loads(got.events()[-1])) is not finished
        assert gate.seen.endings == [Ending.SERVED if finished else Ending.BROKEN]


@pytest.mark.parametrize("models", [{}, {"m": "org/m"}])
async def test_a_compressed_stream_passes_though_its_events_cannot_be_read(models: dict[str, str]) -> None:
    """An engine compresses though no one asked for it: that is no reply without an end."""
    body = gzip.compress(event(token("a")) + event("[DONE]"))
    head = wire.STREAM_HEAD.replace(b"\r\n\r\n", b"\r\ncontent-encoding: gzip\r\n\r\n")
    script = [head + chunked(body[:20]), chunked(body[20:]) + wire.LAST]
    async with ScriptedEngine(script) as engine, gateway(engine.target(models=models)) as gate:
        got = await gate.chat()
        assert (got.status, got.complete, got.body) == (200, True, body)
        assert got.headers["content-encoding"] == "gzip"
        assert gate.seen.endings == [Ending.SERVED]


async def test_a_stream_cut_in_the_middle_ends_with_an_error_event_and_no_done() -> None:
    """The client gets an error event in its protocol, and the connection closes."""
    async with pair([wire.STREAM_HEAD + chunked(event(token("a"))), Act.CLOSE]) as (gate, _):
        client = await gate.client()
        client.send(chat())
        got = await client.reply()
        assert got.complete
        assert json.loads(got.events()[-1])["error"]["code"] == "backend-failed"
        assert "[DONE]" not in got.events()
        assert await client.ended() == b""
        assert gate.seen.endings == [Ending.BROKEN]


async def test_a_stream_cut_inside_a_chunk_is_cut_for_the_client_too() -> None:
    """Nothing of ours can follow half a chunk of which a part has been sent: the body has no end."""
    half = b"fff\r\n" + event(token("b"))
    async with pair([wire.STREAM_HEAD + chunked(event(token("a"))) + half, Act.CLOSE]) as (gate, _):
        got = await gate.chat()
        assert not got.complete
        assert gate.seen.endings == [Ending.BROKEN]


async def test_half_an_event_is_no_event() -> None:
    """It waits for its end, and when the engine dies instead the client gets an event that says so."""
    async with pair([wire.STREAM_HEAD + chunked(event(token("a"))) + b"ff\r\ndata: {", Act.CLOSE]) as (gate, _):
        got = await gate.chat()
        assert got.complete
        assert [list(json.loads(each)) for each in got.events()[1:]] == [["error"]]
        assert gate.seen.endings == [Ending.BROKEN]


async def test_an_engines_error_in_mid_stream_ends_it_without_done() -> None:
    """vLLM says error and then ``[DONE]``: the client gets what came before and the error alone."""
    died = event({"error": {"message": "EngineCore died", "type": "InternalServerError", "code": 500}})
    tail = chunked(event(token("b")), died, event("[DONE]")) + wire.LAST
    more = asyncio.Event()
    async with pair([wire.STREAM_HEAD + chunked(event(token("a"))), more, tail]) as (gate, _):
        client = await gate.client()
        client.send(chat())
        await until(lambda: gate.core.in_flight == 1 and gate.driver.upstreams["a"].open)
        more.set()
        got = await client.reply()
        assert got.complete
        *tokens, last = got.events()
        assert tokens == [json.dumps(token("a")), json.dumps(token("b"))]
        assert json.loads(last)["error"]["message"] == "EngineCore died"
        assert gate.seen.endings == [Ending.BROKEN]


async def test_a_frozen_engine_is_seen_by_its_silence() -> None:
    """The sweep ends a stream that has been silent for too long."""
    script = [wire.STREAM_HEAD + chunked(event(token("a"))), Act.UNTIL_LEFT]
    async with pair(script, limits=StreamLimits(stall_s=5.0)) as (gate, engine):
        client = await gate.client()
        client.send(chat())
        await client.head()
        gate.driver.sweep(gate.driver.clock() + 4.0)
        assert gate.core.in_flight == 1
        gate.driver.sweep(gate.driver.clock() + 6.0)
        body, complete = await client._chunks()
        assert complete
        assert b"sent nothing for" in body
        await until(lambda: engine.left == 1)


async def test_no_first_byte_in_time_is_tried_elsewhere() -> None:
    """The core's deadline closes the silent attempt; the next backend serves."""
    async with (
        ScriptedEngine([Act.UNTIL_LEFT]) as silent,
        ScriptedEngine([stream("b")]) as good,
        gateway(silent.target("a"), good.target("b"), core_limits=DispatchLimits(first_byte_s_max=0.05)) as gate,
    ):
        got = await gate.chat()
        assert got.headers["x-headroom-backend"] == "b"
        await until(lambda: silent.left == 1)


async def test_a_deadline_with_nobody_left_is_504() -> None:
    """Gateway Timeout, in OpenAI's form."""
    async with pair([Act.UNTIL_LEFT], core_limits=DispatchLimits(first_byte_s_max=0.05)) as (gate, _):
        got = await gate.chat()
        assert (got.status, got.json()["error"]["code"]) == (504, "first-byte-late")


async def test_a_hedge_that_answers_first_wins_and_the_other_is_closed() -> None:
    """Two attempts at once: one reply reaches the client, the loser's connection is aborted."""
    limits = DispatchLimits(hedge_slo_share=0.01, hedges_max_share=inf)
    async with (
        ScriptedEngine([Act.UNTIL_LEFT]) as slow,
        ScriptedEngine([stream("b")]) as quick,
        gateway(slow.target("a"), quick.target("b"), core_limits=limits) as gate,
    ):
        got = await gate.chat(more="x-slo-ttft-ms: 2000\r\n")
        assert got.events() == [json.dumps(token("b")), "[DONE]"]
        await until(lambda: slow.left == 1)
        assert len(gate.seen.outcomes) == 1


async def test_a_client_that_leaves_frees_the_engine_and_is_counted_once() -> None:
    """The engine's connection is aborted and the ledger released."""
    script = [wire.STREAM_HEAD + chunked(event(token("a"))), Act.UNTIL_LEFT]
    async with pair(script) as (gate, engine):
        client = await gate.client()
        client.send(chat())
        await client.head()
        client.reset()
        await until(lambda: engine.left == 1)
        assert gate.seen.endings == [Ending.LEFT]
        assert gate.core.in_flight == 0


async def test_a_client_that_leaves_before_the_first_byte_frees_the_engine() -> None:
    """No status has gone out, and yet the engine must not work on."""
    async with pair([Act.UNTIL_LEFT]) as (gate, engine):
        client = await gate.client()
        client.send(chat())
        await until(lambda: engine.requests)
        client.close()
        await until(lambda: engine.left == 1)
        assert gate.seen.endings == [Ending.LEFT]
        assert gate.seen.outcomes[0].status == 0


async def test_interim_answers_of_the_engine_are_skipped() -> None:
    """100 and 103 are between the gateway and the engine."""
    interim = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n"
    async with pair([interim + reply(b"{}")]) as (gate, _):
        got = await gate.chat(stream=False)
        assert (got.status, got.body) == (200, b"{}")
        assert "link" not in got.headers


async def test_a_body_that_ends_with_the_connection_is_framed_for_the_client() -> None:
    """HTTP/1.0 engines: the client gets chunks and a clean end."""
    head = b"HTTP/1.0 200 OK\r\ncontent-type: application/json\r\n\r\n"
    async with pair([head + b'{"a":', b"1}", Act.CLOSE]) as (gate, _):
        got = await gate.chat(stream=False)
        assert (got.body, got.complete) == (b'{"a":1}', True)


async def test_a_stream_that_ends_with_the_connection_must_have_said_done() -> None:
    """Without ``[DONE]`` the end of the connection is a cut."""
    head = b"HTTP/1.0 200 OK\r\ncontent-type: text/event-stream\r\n\r\n"
    async with pair([head + event(token("a")), Act.CLOSE], [head + event(token("a")) + event("[DONE]"), Act.CLOSE]) as (
        gate,
        _,
    ):
        cut, whole = await gate.chat(), await gate.chat()
        assert "error" in json.loads(cut.events()[-1])
        assert whole.events()[-1] == "[DONE]"
        assert gate.seen.endings == [Ending.BROKEN, Ending.SERVED]


@pytest.mark.parametrize("version", ["1.1", "1.0"])
@pytest.mark.parametrize("path", ["/v1/messages", "/v1/responses", "/v1/chat/completions"])
async def test_an_error_that_the_close_cuts_short_still_breaks_the_stream(path: str, version: str) -> None:
    """The engine died before the end of its error's line, in a body that ends with the connection."""
    request = {"model": "m", "stream": True, "input": "x", "messages": [{"role": "user", "content": "x"}]}
    died = {"error": {"message": "EngineCore died"}}
    died = died if path.endswith("completions") else {"type": "error", **died}
    last = b"data: " + json.dumps(died, separators=(",", ":")).encode()
    head, more = b"HTTP/1.0 200 OK\r\ncontent-type: text/event-stream\r\n\r\n", asyncio.Event()
    async with pair([head + event(token("a")), more, last, Act.CLOSE]) as (gate, _):
        client = await gate.client()
        client.send(wire.post(path, json.dumps(request).encode(), version=version))
        await client.head()
        more.set()
        assert "EngineCore died" in (await client.ended()).decode()
        assert gate.seen.endings == [Ending.BROKEN]


async def test_bytes_after_the_end_of_an_answer_reach_nobody() -> None:
    """A second answer to one question must not become the answer to the next."""
    async with pair([reply(b"{}") + reply(b'{"evil":1}')], [reply(b'{"good":1}')]) as (gate, engine):
        first = await gate.chat(stream=False)
        assert b"evil" not in first.body
        assert (await gate.chat(stream=False)).body == b'{"good":1}'
        assert engine.connections == 2


async def test_hop_by_hop_fields_stay_on_their_hop() -> None:
    """In both directions, and those that Connection names with them."""
    answer = reply(b"{}", more="connection: x-own, keep-alive\r\nkeep-alive: timeout=5\r\nx-own: 1\r\nx-kept: 1\r\n")
    more = "connection: x-mine\r\nx-mine: 1\r\nte: trailers\r\nauthorization: Bearer k\r\nx-other: 1\r\n"
    async with pair([answer]) as (gate, engine):
        got = await gate.chat(stream=False, more=more)
        assert {"x-own", "keep-alive"}.isdisjoint(got.headers)
        assert "x-kept" in got.headers
        sent = engine.requests[0].lower()
        assert b"x-other: 1" in sent
        assert not any(name in sent for name in (b"x-mine", b"\r\nte:", b"authorization", b"connection"))


async def test_the_engines_key_replaces_the_clients() -> None:
    """A target's own key is what its engine sees."""
    async with ScriptedEngine([reply(b"{}")]) as engine, gateway(engine.target(api_key="inner")) as gate:
        await gate.chat(stream=False, more="authorization: Bearer outer\r\n")
        assert b"authorization: Bearer inner\r\n" in engine.requests[0]
        assert b"outer" not in engine.requests[0]


@pytest.mark.parametrize("nested", ["[ 1e2 ]", "[" * 40 + "]" * 40])
async def test_the_model_goes_by_the_engines_name_for_it(nested: str) -> None:
    """The client's name routes, the engine's name is sent, and no other byte of the body changes where it can be."""
    body = f'{{ "model" : "m",\n"x": {nested}, "prompt": "\\u00e9 \\"model\\":1" }}'
    async with ScriptedEngine([reply(b"{}")]) as engine, gateway(engine.target(models={"m": "org/m-8b"})) as gate:
        await gate.ask(wire.post("/v1/completions", body.encode()))
        sent = engine.requests[0].partition(b"\r\n\r\n")[2].decode()
        expected = body.replace('"m"', '"org/m-8b"')
        assert json.loads(sent) == json.loads(expected)
        assert sent == expected or len(nested) > 40


async def test_a_backend_that_is_removed_fails_its_streams_over() -> None:
    """What had no first byte is served elsewhere."""
    async with (
        ScriptedEngine([Act.UNTIL_LEFT]) as old,
        ScriptedEngine([stream("b")]) as new,
        gateway(old.target("a"), new.target("b")) as gate,
    ):
        client = await gate.client()
        client.send(chat())
        await until(lambda: old.requests)
        gate.driver.perform(gate.core.backend_left("a", gate.driver.clock()))
        gate.driver.leave("a")
        assert (await client.reply()).headers["x-headroom-backend"] == "b"


async def test_draining_lets_streams_end_and_takes_no_more() -> None:
    """A new request gets 503 while the old one ends as if nothing were."""
    more = asyncio.Event()
    script = [wire.STREAM_HEAD + chunked(event(token("a"))), more, chunked(event("[DONE]")) + wire.LAST]
    async with pair(script) as (gate, _):
        client = await gate.client()
        client.send(chat())
        await client.head()
        draining = asyncio.ensure_future(gate.driver.drain(30.0))
        await until(lambda: gate.driver.draining)
        assert (await gate.chat()).status == 503
        more.set()
        await draining
        assert b"[DONE]" in (await client._chunks())[0]


async def test_draining_has_a_bound() -> None:
    """Streams that do not end in time end with an error event."""
    script = [wire.STREAM_HEAD + chunked(event(token("a"))), Act.UNTIL_LEFT]
    async with pair(script) as (gate, _):
        client = await gate.client()
        client.send(chat())
        await client.head()
        await gate.driver.drain(0.01)
        body, complete = await client._chunks()
        assert complete
        assert b"shutting down" in body
        assert gate.core.in_flight == 0
