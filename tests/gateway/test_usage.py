"""Token counts of streams: asked of the engine for every client, shown to those who asked, estimated where there are
none.
"""

import asyncio
import json
from dataclasses import replace
from typing import Any

import pytest

from router.core.decisions import EndState
from router.core.types import Usage
from router.engines.openai import KIND
from router.gateway.traffic import attempt
from tests import fakes_wire as wire
from tests.fakes_wire import Act, ScriptedEngine, chunked, event, gateway, pair, post, reply, stream, token

USAGE = {"prompt_tokens": 7, "completion_tokens": 12, "total_tokens": 19}
REFUSALS = [
    reply(b'{"error":{"message":"Unrecognized request argument: stream_options","code":400}}', 400),
    reply(b'{"detail":[{"loc":["body","stream_options"],"msg":"extra fields not permitted"}]}', 422),
    wire.STREAM_HEAD
    + chunked(event({"error": {"message": "stream_options is not supported", "code": 400}}), event("[DONE]"))
    + wire.LAST,
]


def body_of(request: bytes) -> bytes:
    """What an engine got."""
    return request.partition(b"\r\n\r\n")[2]


BODIES: dict[str, tuple[str, str]] = {
    "nothing": (
        '{ "model":"m", "stream" : true,"prompt":"x" }',
        '{"stream_options":{"include_usage":true}, "model":"m", "stream" : true,"prompt":"x" }',
    ),
    "null": (
        '{"model":"m","stream_options": null ,"stream":true,"prompt":""}',
        '{"model":"m","stream_options": {"include_usage":true} ,"stream":true,"prompt":""}',
    ),
    "false": (
        '{"model":"m","stream":true,"prompt":"","stream_options":{ "include_usage" : false, "x": 1e2 }}',
        '{"model":"m","stream":true,"prompt":"","stream_options":{ "include_usage" : true, "x": 1e2 }}',
    ),
    "other": (
        '{"model":"m","stream":true,"prompt":"","stream_options":{ "x":false }}',
        '{"model":"m","stream":true,"prompt":"","stream_options":{"include_usage":true, "x":false }}',
    ),
    "asked": ('{"model":"m","stream":true,"prompt":"","stream_options":{"include_usage":true}}', ""),
    "no stream": ('{"model":"m","prompt":"x"}', ""),
    "nonsense": ('{"model":"m","stream":true,"prompt":"x","stream_options":7}', ""),
}


@pytest.mark.parametrize("name", BODIES)
async def test_engines_are_asked_for_usage_by_a_change_of_that_alone(name: str) -> None:
    """Every other byte is as the client sent it; one who asks, or wants no stream, is not changed at all."""
    body, sent = BODIES[name]
    async with pair([stream("a", usage=USAGE)]) as (gate, engine):
        await gate.ask(post("/v1/completions", body.encode()))
        assert body_of(engine.requests[0]).decode() == (sent or body)


async def test_an_alias_and_the_question_for_usage_change_one_body() -> None:
    """Also one that is nested too deep to be spliced."""
    async with ScriptedEngine([stream("a")]) as engine, gateway(engine.target(models={"m": "org/m"})) as gate:
        for nested in ("[]", "[" * 40 + "]" * 40):
            await gate.ask(post("/v1/completions", f'{{"x":{nested},"model":"m","stream":true,"prompt":""}}'.encode()))
            document = json.loads(body_of(engine.requests[-1]))
            assert document["model"] == "org/m"
            assert document["stream_options"] == {"include_usage": True}


@pytest.mark.parametrize(
    ("choices", "shown"),
    [
        ([{"index": 0, "delta": {}}], False),  # LiteLLM's
        ([{"index": 0, "delta": {}, "finish_reason": "stop"}], True),
        ([{"index": 0, "delta": {"role": "assistant"}}], True),
        ([{"index": 0, "delta": {"content": "b"}}], True),
        ([{"index": 0, "text": ""}], False),
    ],
)
async def test_an_event_of_usage_alone_may_have_a_choice_in_which_nothing_is(
    choices: list[dict[str, Any]], shown: bool
) -> None:
    """It is there for the usage alone; one that says anything else is passed on."""
    with_usage = event({"choices": choices, "usage": USAGE})
    script = [wire.STREAM_HEAD + chunked(event(token("a")), with_usage, event("[DONE]")) + wire.LAST]
    async with pair(script) as (gate, _):
        got = await gate.chat()
    assert got.complete
    assert ("usage" in "".join(got.events())) == shown
    assert gate.seen.outcomes[0].record.usage.output_tokens == 12


@pytest.mark.parametrize("asked", [True, False])
async def test_usage_is_booked_and_shown_to_those_who_asked(asked: bool) -> None:
    """The event of usage alone is not passed on to others."""
    options: dict[str, Any] = {"stream_options": {"include_usage": True}} if asked else {}
    async with pair([stream("a", "b", usage=USAGE)]) as (gate, _):
        got = await gate.chat(**options)
        assert got.complete
        assert gate.seen.outcomes[0].record.usage == Usage(12, 7)
        assert [json.loads(each).get("usage") for each in got.events()[:-1]] == [None, None] + [USAGE] * asked
        assert got.events()[-1] == "[DONE]"


async def test_the_last_of_continuous_usage_counts() -> None:
    """As a client asked for it: each event has it, and none is taken away."""
    events = [event({**token("x"), "usage": {"prompt_tokens": 3, "completion_tokens": 4 * n}}) for n in range(1, 4)]
    script = [wire.STREAM_HEAD, *[chunked(each) for each in events], chunked(event("[DONE]")) + wire.LAST]
    async with pair(script) as (gate, _):
        got = await gate.chat(stream_options={"include_usage": True, "continuous_usage_stats": True})
        assert got.body == b"".join(events) + event("[DONE]")
        assert gate.seen.outcomes[0].record.usage == Usage(12, 3)


@pytest.mark.parametrize("refusal", REFUSALS, ids=["400", "422", "event"])
async def test_an_engine_that_refuses_to_be_asked_is_not_asked_again(refusal: bytes) -> None:
    """No client sees it: the request goes there as it came, and so do all that follow."""
    async with pair([refusal], [stream("a")]) as (gate, engine):
        for _ in range(2):
            got = await gate.chat()
            assert (got.status, got.events()) == (200, [json.dumps(token("a")), "[DONE]"])
        assert [b"stream_options" in each for each in engine.requests] == [True, False, False]
        assert [each.record.attempts for each in gate.seen.outcomes] == [1, 1]


async def test_a_refusal_behind_events_without_a_token_leaves_no_timer_of_its_stream() -> None:
    """Those events were on their way to the client after a moment; the second try has nothing to send yet."""
    role = event({"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]})
    refusal = wire.STREAM_HEAD + chunked(role, event({"error": {"message": "no stream_options here", "code": 400}}))
    again, go = asyncio.Event(), asyncio.Event()
    failed: list[object] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: failed.append(context))
    async with ScriptedEngine([refusal], [go, stream("a")]) as engine, gateway(engine.target()) as gate:
        loop.call_later(2 * attempt._HELD_BACK_S, again.set)
        asked = asyncio.create_task(gate.chat())
        await again.wait()
        go.set()
        assert (await asked).events() == [json.dumps(token("a")), "[DONE]"]
        assert not failed


async def test_a_refusal_that_only_repeats_the_words_proves_nothing() -> None:
    """A client's own error, in whose text they stand, is that client's answer, and the engine is asked again."""
    wrong = reply(b'{"error":{"message":"bad prompt: stream_options","code":400}}', 400)
    async with pair([wrong], [wrong], [stream("a", usage=USAGE)]) as (gate, engine):
        assert (await gate.chat()).status == 400
        await gate.chat()
        assert [b"stream_options" in body_of(each) for each in engine.requests] == [True, False, True]
        assert gate.seen.outcomes[1].record.usage == Usage(12, 7)


async def test_a_kind_that_states_no_usage_is_not_asked() -> None:
    """Its field says so."""
    kind = replace(KIND, states_usage=False)
    async with ScriptedEngine([stream("a")]) as engine, gateway(engine.target(engine=kind)) as gate:
        await gate.chat()
        assert b"stream_options" not in engine.requests[0]


async def test_estimates_use_the_ratio_that_the_backend_showed() -> None:
    """Learnt from the replies with usage; one without is marked as an estimate."""
    long = [token("ab" * 50) for _ in range(4)]
    counted = wire.STREAM_HEAD + chunked(
        *[event(each) for each in long], event({"choices": [], "usage": {"completion_tokens": 200}}), event("[DONE]")
    )
    silent = wire.STREAM_HEAD + chunked(*[event(each) for each in long], event("[DONE]"))
    async with pair([counted + wire.LAST], [silent + wire.LAST]) as (gate, _):
        await gate.chat()
        await gate.chat()
        known, estimate = [each.record.usage for each in gate.seen.outcomes]
        assert known == Usage(200)
        assert estimate.estimated
        assert estimate.output_tokens == pytest.approx(200, rel=0.05)


async def test_what_a_broken_stream_had_is_an_estimate() -> None:
    """The engine worked for it."""
    script = [wire.STREAM_HEAD + chunked(*[event(token("word " * 8))] * 4), Act.CLOSE]
    async with pair(script) as (gate, _):
        await gate.chat()
        (record,) = [each.record for each in gate.seen.outcomes]
        assert record.outcome is EndState.BROKEN
        assert record.usage == Usage(40, estimated=True, output_tokens_least=4)


@pytest.mark.parametrize(
    ("finish", "n", "expected"),
    [("length", 1, 24), ("stop", 1, 12), (None, 1, 12), ("length", 2, 12)],
    ids=["capped", "ended by itself", "no reason", "one of two"],
)
async def test_a_reply_that_its_cap_ended_has_as_many_tokens_as_that(finish: str | None, n: int, expected: int) -> None:
    """FastChat sends two tokens an event and states no usage: twelve events are twenty-four tokens."""
    frames = [event(token("of the ")) for _ in range(12)]
    end = {"choices": [{"index": 0, "delta": {}, "finish_reason": finish}]}
    async with pair([wire.STREAM_HEAD + chunked(*frames, event(end), event("[DONE]")) + wire.LAST]) as (gate, _):
        await gate.chat(max_tokens=24, n=n)
        (record,) = [each.record for each in gate.seen.outcomes]
        assert record.usage == Usage(expected, estimated=True, output_tokens_least=12)


async def test_a_cap_that_the_text_cannot_have_reached_is_not_taken() -> None:
    """It was the context's end: there is no token of less than a byte."""
    end = {"choices": [{"index": 0, "delta": {}, "finish_reason": "length"}]}
    frames = [event(token("ab")), event(token("cd")), event(end), event("[DONE]")]
    async with pair([wire.STREAM_HEAD + chunked(*frames) + wire.LAST]) as (gate, _):
        await gate.chat(max_tokens=1_000)
        assert gate.seen.outcomes[0].record.usage == Usage(2, estimated=True, output_tokens_least=2)


async def test_a_whole_reply_without_usage_is_estimated_by_its_size() -> None:
    """One that generates nothing, such as an embedding, has no output tokens."""
    body = json.dumps({"choices": [{"message": {"content": "word " * 400}}]}).encode()
    async with pair([reply(body)]) as (gate, _):
        await gate.chat(stream=False)
        await gate.ask(post("/v1/embeddings", b'{"model":"m","input":"x"}'))
        chat, embedding = [each.record.usage for each in gate.seen.outcomes]
        assert chat.estimated
        assert chat.output_tokens == pytest.approx(500, rel=0.2)
        assert embedding == Usage(0)


@pytest.mark.parametrize(
    ("asked", "stated"),
    [
        ({"max_tokens": 2}, 33),  # 8 times the cap, and 16
        ({"max_tokens": 2, "n": 2}, 65),
        ({}, 40_000),
        ({}, 1_000_000),
        ({"max_tokens": 32_768}, 1_000_000),
        ({}, 10**15),
        ({}, 0),
    ],
)
async def test_a_count_that_cannot_be_true_gives_way_to_an_estimate(asked: dict[str, int], stated: int) -> None:
    """By the client's cap, or by what came of the reply."""
    usage = {"prompt_tokens": 7, "completion_tokens": stated}
    async with pair([stream("a", "b", "c", usage=usage)]) as (gate, _):
        await gate.chat(**asked)
        assert gate.seen.outcomes[0].record.usage == Usage(3, 7, estimated=True, output_tokens_least=3)


@pytest.mark.parametrize(
    ("asked", "stated"), [({"max_tokens": 2}, 32), ({}, 20_000), ({"max_tokens": 90_000}, 80_000), ({"n": 2}, 6)]
)
async def test_a_count_of_what_is_not_shown_is_believed(asked: dict[str, int], stated: int) -> None:
    """Reasoning that the engine keeps to itself has tokens too."""
    usage = {"prompt_tokens": 7, "completion_tokens": stated}
    async with pair([stream("a", "b", "c", usage=usage)]) as (gate, _):
        await gate.chat(**asked)
        assert gate.seen.outcomes[0].record.usage == Usage(stated, 7)


async def test_a_whole_reply_with_a_count_that_cannot_be_true_is_estimated() -> None:
    """It has as many tokens as its text is long, and no more than the client allowed."""
    usage = {"prompt_tokens": 7, "completion_tokens": 1_000_000}
    body = json.dumps({"choices": [{"message": {"content": "word " * 400}}], "usage": usage}).encode()
    async with pair([reply(body)]) as (gate, _):
        await gate.chat(stream=False)
        await gate.chat(stream=False, max_tokens=20)
        free, capped = (outcome.record.usage for outcome in gate.seen.outcomes)
        assert 400 <= free.output_tokens <= 600
        assert (free.estimated, capped) == (True, Usage(8 * 20 + 16, 7, estimated=True))


@pytest.mark.parametrize("kind", ["chat.completion.chunk", "text_completion"])
@pytest.mark.parametrize("apart", [True, False])
async def test_what_llamacpp_says_beside_the_usage_that_was_asked_for_is_kept(kind: str, apart: bool) -> None:
    """Its timings stand with the finish reason where usage is not asked for: the client gets them in an event."""
    timings = {"prompt_n": 3, "predicted_per_second": 1204.5}
    last = {"choices": [], "id": "c", "object": kind, "usage": USAGE, "timings": timings}
    pieces = [event(token("a")), event({**token(""), "object": kind}), event(last), event("[DONE]")]
    body = chunked(*pieces) if apart else chunked(b"".join(pieces))
    whole = b"".join(pieces)
    sized = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: %d\r\n\r\n" % len(whole)
    async with pair([wire.STREAM_HEAD + body + wire.LAST], [sized + whole]) as (gate, _):
        for _ in range(2):
            got = await gate.chat()
            assert got.complete
            shown = json.loads(got.events()[-2])
            assert (shown["timings"], "usage" in shown) == (timings, False)
            (choice,) = shown["choices"]
            assert choice["finish_reason"] is None
            assert choice.get("text", choice.get("delta")) in ("", {})
        own = await gate.chat(stream_options={"include_usage": True})
        assert json.loads(own.events()[-2]) == last
        assert [outcome.record.usage.output_tokens for outcome in gate.seen.outcomes] == [12, 12, 12]
