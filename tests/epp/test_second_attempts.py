"""A backend that fails before the first token: the picker itself sends the request to the next one."""

import json
from typing import Any, Final

import pytest

from router.core.decisions import EndState
from router.core.flight import DispatchLimits
from router.engines.triton import KIND as TRITON
from router.gateway.protocols.target import Target
from tests.epp.proxy import EVENT_STREAM, proxy
from tests.fakes_wire import LAST, STREAM_HEAD, ScriptedEngine, chunked, event, reply, stream, token
from tests.waiting import until

GONE: Final = Target("gone", "10.0.0.1", 9001)
TEXT, JSON = {"content-type": "text/plain", "server": "envoy"}, {"content-type": "application/json"}
DONE: Final = event("[DONE]")
LIMITS: Final = DispatchLimits(late_final=True)
FAILURES: Final = {
    "the proxy cannot reach it": (503, TEXT, b"upstream connect error or disconnect/reset before headers"),
    "an answer of its own": (500, JSON, b'{"error": {"message": "CUDA error", "code": 500}}'),
    "it is full": (429, JSON, b'{"error": {"message": "too many requests", "code": 429}}'),
    "an error in the stream": (200, EVENT_STREAM, event({"error": {"message": "worker died", "code": 500}})),
    "no event at all": (200, EVENT_STREAM, b""),
}


@pytest.mark.parametrize("failure", FAILURES)
async def test_the_next_backend_serves_it(failure: str) -> None:
    """Head and body are the second engine's, and so are load and record; the first has the failure."""
    status, fields, body = FAILURES[failure]
    async with (
        ScriptedEngine([stream("a", "b")]) as engine,
        proxy(targets=[GONE, engine.target("next")], core_limits=LIMITS) as gate,
    ):
        one = gate.exchange()
        await one.chat()
        assert (await one.destination())[0] == "10.0.0.1:9001"
        await one.reply_head(status, fields)
        await one.reply_body(body, ends=True)
        head, came = await one.reply()
        assert head["x-headroom-backend"] == "next"
        assert head.get(":status", "200") == "200"
        assert came == event(token("a")) + event(token("b")) + DONE
        await until(lambda: gate.seen.outcomes)
        (log,) = gate.seen.outcomes
        assert (log.record.outcome, log.record.backend, log.record.attempts) == (EndState.SERVED, "next", 2)
        assert gate.core.failures["gone"].counts
        assert gate.core.in_flight == 0


async def test_no_more_backends_are_tried_than_the_limit_allows() -> None:
    """The error of the last one is the client's."""
    limits = DispatchLimits(attempts_max=1, late_final=True)
    async with ScriptedEngine([stream("a")]) as engine:
        async with proxy(targets=[GONE, engine.target("next")], core_limits=limits) as gate:
            one = gate.exchange()
            await one.chat()
            await one.destination()
            await one.reply_head(500, JSON)
            await one.reply_body(FAILURES["an answer of its own"][2], ends=True)
            assert (await one.immediate())[0] == 500
        assert not engine.requests


async def test_a_backend_that_says_nothing_is_not_replaced() -> None:
    """The proxy still waits for its answer, in whose place alone another can be: 504, and no other is asked."""
    limits = DispatchLimits(first_byte_s_max=1.0, late_final=True)
    async with ScriptedEngine([stream("a")]) as engine:
        async with proxy(targets=[GONE, engine.target("next")], core_limits=limits) as gate:
            one = gate.exchange()
            await one.chat()
            await one.destination()
            assert (await one.immediate())[0] == 504
        assert not engine.requests


async def test_a_backend_that_is_removed_before_it_has_answered_is_not_replaced() -> None:
    """For the same reason; nobody is to blame."""
    async with ScriptedEngine([stream("a")]) as engine:
        async with proxy(targets=[GONE, engine.target("next")], core_limits=LIMITS) as gate:
            one = gate.exchange()
            await one.chat()
            await one.destination()
            gate.picker.driver.perform(gate.core.backend_left("gone", gate.picker.driver.clock()))
            gate.picker.driver.leave("gone")
            assert (await one.immediate())[0] == 502
            assert gate.core.failures["next"].in_a_row == 0
        assert not engine.requests


async def test_an_error_without_a_body_is_not_replaced() -> None:
    """The proxy takes no body after such a head: the client gets that error."""
    async with ScriptedEngine([stream("a")]) as engine:
        async with proxy(targets=[GONE, engine.target("next")], core_limits=LIMITS) as gate:
            one = gate.exchange()
            await one.chat()
            await one.destination()
            await one.reply_head(503, TEXT, ends=True)
            assert (await one.immediate())[0] == 503
            assert gate.core.failures["next"].in_a_row == 0
        assert not engine.requests


async def test_a_whole_reply_takes_the_place_of_an_error() -> None:
    """With its own status and type, and none of the error's fields."""
    whole: dict[str, Any] = {"choices": [{"message": {"content": "hi"}}], "usage": {"completion_tokens": 2}}
    async with (
        ScriptedEngine([reply(json.dumps(whole).encode())]) as engine,
        proxy(targets=[GONE, engine.target("next")], core_limits=LIMITS) as gate,
    ):
        one = gate.exchange()
        await one.chat(stream=False)
        await one.destination()
        await one.reply_head(503, {**TEXT, "retry-after": "5"})
        await one.reply_body(b"no healthy upstream", ends=True)
        message = await one.next()
        mutation = message.response_headers.response.header_mutation
        assert {"retry-after", "server"} <= set(mutation.remove_headers)
        assert {option.header.key: option.header.raw_value for option in mutation.set_headers}[":status"] == b"200"
        assert json.loads(await one._pieces("response_body")) == whole


async def test_a_reply_of_another_protocol_takes_its_place_too() -> None:
    """Translated as ever."""
    script = STREAM_HEAD + chunked(event({"text_output": "hi"})) + LAST
    async with (
        ScriptedEngine([script]) as engine,
        proxy(targets=[GONE, engine.target("next", engine=TRITON)], core_limits=LIMITS) as gate,
    ):
        one = gate.exchange()
        await one.chat()
        await one.destination()
        await one.reply_head(503, TEXT)
        await one.reply_body(b"no healthy upstream", ends=True)
        head, came = await one.reply()
        assert (head[":status"], head["content-type"].partition(";")[0]) == ("200", "text/event-stream")
        assert b'"content":"hi"' in came
        assert came.endswith(DONE)


async def test_a_client_that_leaves_meanwhile_closes_the_second_connection() -> None:
    """And both loads are released."""
    async with (
        ScriptedEngine([STREAM_HEAD + chunked(event(token("a")))]) as engine,
        proxy(targets=[GONE, engine.target("next")], core_limits=LIMITS) as gate,
    ):
        one = gate.exchange()
        await one.chat()
        await one.destination()
        await one.reply_head(503, TEXT)
        await one.reply_body(b"", ends=True)
        assert (await one.next()).HasField("response_headers")
        assert (await one.piece()).body == event(token("a"))
        one.cancel()
        await until(lambda: gate.core.in_flight == 0 and not gate.picker.calls and not engine.open)
        assert gate.seen.endings == [EndState.LEFT]
