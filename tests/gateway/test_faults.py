"""What an engine's error answer means: for the backend, for the request, and for the client.

The answers are those of real servers, word for word.
"""

import asyncio
import json

import pytest

from router.core.columns import EJECTED
from router.core.decisions import EndState
from router.core.errors import Reason
from router.core.flight import DispatchLimits, FailureKind
from router.engines import ErrorDialect, find
from router.gateway.protocols.target import Target
from router.gateway.traffic import faults
from tests import fakes_wire as wire
from tests.fakes import backend, core
from tests.fakes_wire import ScriptedEngine, chunked, event, gateway, post, reply, stream, token
from tests.waiting import until

OPENAI, TRITON, LLAMACPP = find("openai"), find("triton"), find("llamacpp")
BUSY = (
    '{"error": {"message": "The engine is currently busy and cannot accept new requests. Please try again later or on '
    'a different instance.", "type": "Service Unavailable", "param": null, "code": 503}}'
)
NO_MODEL = (
    '{"error":{"message":"The model `m` does not exist. Valid aliases: tiny-s.","type":"NotFoundError",'
    '"param":"model","code":404}}'
)
FAULT, FULL, CLIENT = FailureKind.FAULT, FailureKind.BUSY, FailureKind.CLIENT_ERROR
MODEL, PATH, KEY = FailureKind.MODEL_MISSING, FailureKind.ENDPOINT_MISSING, FailureKind.KEY_REFUSED
ABSENT = FailureKind.NOT_FOUND
ONCE = DispatchLimits(failures_max=1)


@pytest.mark.parametrize(
    ("kind", "status", "body", "meaning"),
    [
        (OPENAI, 500, '{"error":{"message":"EngineCore encountered an issue.","code":500}}', FAULT),
        (OPENAI, 503, BUSY, FULL),
        (OPENAI, 503, "<html>503 Service Temporarily Unavailable</html>", FAULT),
        (OPENAI, 503, "", FAULT),
        (OPENAI, 503, '{"detail":"The server is not ready."}', FAULT),
        (OPENAI, 503, '{"error":"Model with name m is not ready."}', FAULT),
        (OPENAI, 503, '{"error":"unhealthy","error_type":"healthcheck"}', FAULT),
        (OPENAI, 503, '{"message":"Service temporarily unavailable. All workers are busy, please retry later"}', FULL),
        (OPENAI, 429, '{"error":{"message":"The request queue is full."}}', FULL),
        (OPENAI, 529, '{"type":"error","error":{"type":"overloaded_error","message":"Overloaded"}}', FULL),
        (OPENAI, 424, '{"error":"Request failed during generation: out of memory","error_type":"generation"}', FAULT),
        (OPENAI, 429, '{"error":{"message":"You exceeded your quota","code":"insufficient_quota"}}', KEY),
        (OPENAI, 404, '{"error":{"message":"Could not find model with id m"}}', MODEL),
        (OPENAI, 400, '{"error":{"message":"n must be at least 1, got 0.","code":400}}', CLIENT),
        (OPENAI, 413, "", CLIENT),
        (OPENAI, 422, '{"detail":[{"loc":["body","messages"],"msg":"field required"}]}', CLIENT),
        (OPENAI, 404, NO_MODEL, MODEL),
        (OPENAI, 404, '{"object":"error","message":"The model `m` does not exist.","type":"NotFoundError"}', MODEL),
        (OPENAI, 404, '{"message":"Model not found","type":"Not Found","code":404}', MODEL),
        (OPENAI, 404, '{"error":{"message":"model \\"m\\" not found, try pulling it first","code":null}}', MODEL),
        (OPENAI, 400, '{"object":"error","message":"Only tiny allowed now, your model m","code":40301}', MODEL),
        (OPENAI, 400, '{"object":"error","message":"NETWORK ERROR DUE TO HIGH TRAFFIC.","code":50004}', FAULT),
        (OPENAI, 404, '{"message":"Route not found: POST /v1/responses","type":"Not Found","code":404}', PATH),
        (OPENAI, 404, '{"detail":"Not Found"}', PATH),
        (OPENAI, 404, "404 page not found", PATH),
        (OPENAI, 404, "", PATH),
        (OPENAI, 405, '{"detail":"Method Not Allowed"}', PATH),
        (OPENAI, 307, "", FailureKind.REDIRECT),
        (OPENAI, 404, '{"error":{"message":"Response with id \'resp_1\' not found.","type":"x"}}', ABSENT),
        (OPENAI, 401, '{"error":"Unauthorized"}', KEY),
        (OPENAI, 403, '{"error":{"message":"This key may not use m","code":"403"}}', KEY),
        (LLAMACPP, 503, '{"error":{"code":503,"message":"Loading model","type":"unavailable_error"}}', FAULT),
        (LLAMACPP, 404, '{"error":{"message":"File Not Found","type":"not_found_error","code":404}}', PATH),
        (LLAMACPP, 501, '{"error":{"code":501,"message":"This server does not support embeddings."}}', PATH),
        (TRITON, 400, '{"error":"Stub process \'ensemble_0_0\' is not healthy."}', FAULT),
        (TRITON, 400, "{\"error\":\"in ensemble 'ensemble', Stub process 'pre_0_0' is not healthy.\"}", FAULT),
        (TRITON, 400, 'data: {"error":"Stub process \'ensemble_0_0\' is not healthy."}\n\n', FAULT),
        (TRITON, 503, '{"error":"Exceeds maximum queue size"}', FULL),
        (TRITON, 400, "{\"error\":\"Request for unknown model: 'm' has no available versions\"}", MODEL),
        (TRITON, 404, "{\"error\":\"Request for unknown model: 'm' is not found\"}", MODEL),
        (TRITON, 404, '{"error":"Not Found"}', PATH),
        (TRITON, 500, '{"error":"failed to parse the request JSON buffer: Missing a name at 19"}', CLIENT),
    ],
)  # fmt: skip
def test_an_answer_means_what_its_server_means_by_it(kind, status: int, body: str, meaning: FailureKind) -> None:
    """The status decides, and where one status has several meanings, what the server alone writes."""
    assert faults.engine_error(status, body.encode(), b"", kind.errors).kind is meaning


@pytest.mark.parametrize("words", ["is not healthy", "not ready", "unavailable", "Stub process 'x' is not healthy."])
@pytest.mark.parametrize("kind", [OPENAI, TRITON, LLAMACPP, find("vllm"), find("sglang"), find("tensorrt-llm")])
def test_a_clients_words_in_a_message_decide_nothing(kind, words: str) -> None:
    """An engine that repeats what the client wrote is not sick, however the client words it."""
    for message in (f"The field 'user' has no value {words!r}", f"1 validation error: input: '{words}'", f"{words} x"):
        for status in (400, 413, 422):
            body = json.dumps({"error": {"message": message, "type": "BadRequestError", "code": status}}).encode()
            assert faults.engine_error(status, body, b"", kind.errors).kind is CLIENT
    missing = json.dumps({"error": {"message": f'Response with id "The model {words}" not found.'}}).encode()
    assert faults.engine_error(404, missing, b"", kind.errors).kind is ABSENT


@pytest.mark.parametrize(
    ("payload", "status", "meaning"),
    [
        (BUSY, 503, FULL),
        ('{"error":{"message":"slow down","type":"rate_limit_error"}}', 429, FULL),
        ('{"type":"error","error":{"type":"overloaded_error","message":"Overloaded"}}', 503, FULL),
        ('{"type":"response.failed","response":{"error":{"code":"server_error","message":"oh"}}}', 500, FAULT),
        ('{"type":"error","code":"rate_limit_exceeded","message":"wait","param":null}', 429, FULL),
        ('{"error":{"message":"EngineCore encountered an issue.","code":500}}', 500, FAULT),
        ('{"error":"injected"}', 500, FAULT),
        ('{"text":"NETWORK ERROR","error_code":50002}', 500, FAULT),
        ('{"error":{"message":"n","type":"BadRequestError","code":"400"}}', 400, CLIENT),
        (NO_MODEL, 404, MODEL),
        ('{"error":"Model is overloaded","error_type":"overloaded"}', 429, FULL),
        ('{"error":"Request failed during generation: oom","error_type":"generation"}', 500, FAULT),
        ('{"error":{"message":"busy"},"status_code":503}', 503, FULL),
        ('{"type":"error","error":{"type":"ServiceUnavailableError","message":"The engine is busy"}}', 503, FULL),
        ('{"error":{"error":{"error":{"error":{"error":{"code":503}}}}}}', 500, FAULT),
        ('{"error":{"message":{"code":429},"code":true}}', 500, FAULT),
        ('{"error":', 500, FAULT),
    ],
)
def test_an_error_event_means_what_the_same_answer_would(payload: str, status: int, meaning: FailureKind) -> None:
    """A refusal inside a stream is classified as an HTTP answer with the status that the event names."""
    error = faults.event_error(payload.encode(), ErrorDialect())
    assert (error.status, error.kind) == (status, meaning)


def test_what_a_log_gets_of_an_engines_words_is_one_bounded_line() -> None:
    """Neither length nor line feeds of an engine's answer reach the log."""
    assert faults.short("a\nb\x1b[31m\t" + "x" * 10_000) == "a b[31m " + "x" * 292


@pytest.mark.parametrize(
    "script",
    [
        [wire.STREAM_HEAD + chunked(event(BUSY), event("[DONE]")) + wire.LAST],
        [wire.STREAM_HEAD + chunked(event(token("a"))), chunked(event(BUSY), event("[DONE]")) + wire.LAST],
        [reply(BUSY.encode(), 503)],
        [reply(b'{"error":"wait"}', 429)],
    ],
    ids=["first event", "mid-stream", "503", "429"],
)
async def test_a_busy_answer_is_no_fault_wherever_it_stands(script: wire.Script) -> None:
    """vLLM puts its 503 into the stream as often as into the status."""
    async with ScriptedEngine(script) as engine, gateway(engine.target(), core_limits=ONCE) as gate:
        await gate.chat()
        assert not gate.core.ledger.table.columns[EJECTED].any()


async def test_a_model_that_a_backend_has_not_loaded_is_served_by_another_and_asked_of_it_alone() -> None:
    """The first request finds out; those that follow go to the other at once, and the backend is not ejected."""
    async with (
        ScriptedEngine([reply(NO_MODEL.encode(), 404)]) as without,
        ScriptedEngine([stream("ok")]) as having,
        gateway(without.target("a"), having.target("b"), core_limits=ONCE) as gate,
    ):
        for _ in range(6):
            assert (await gate.chat()).headers["x-headroom-backend"] == "b"
        assert len(without.requests) == 1
        assert not gate.core.ledger.table.columns[EJECTED].any()


async def test_when_no_backend_has_loaded_the_model_the_client_gets_the_engines_404() -> None:
    """Again and again: the backends are tried anew, as if one of them may have loaded it since."""
    async with (
        ScriptedEngine([reply(NO_MODEL.encode(), 404)]) as one,
        ScriptedEngine([reply(NO_MODEL.encode(), 404)]) as other,
        gateway(one.target("a"), other.target("b")) as gate,
    ):
        for _ in range(2):
            got = await gate.chat()
            assert (got.status, got.body.decode()) == (404, NO_MODEL)
        assert len(one.requests) == len(other.requests) == 2


async def test_more_backends_than_attempts_may_lack_the_model() -> None:
    """What nobody could have known costs no attempt: the adapter is on the fifth of five."""
    lacking = [ScriptedEngine([reply(NO_MODEL.encode(), 404)]) for _ in range(4)]
    async with lacking[0], lacking[1], lacking[2], lacking[3], ScriptedEngine([stream("ok")]) as having:
        targets = [engine.target(f"a{n}") for n, engine in enumerate(lacking)]
        async with gateway(*targets, having.target("b"), core_limits=DispatchLimits(attempts_max=2)) as gate:
            assert (await gate.chat()).headers["x-headroom-backend"] == "b"


@pytest.mark.parametrize("lacking_first", [True, False])
async def test_what_one_backend_lacks_is_no_answer_while_one_that_has_it_only_failed(lacking_first: bool) -> None:
    """A 404 would end the client's attempts, and a second one may well succeed."""
    failing = b'{"error":{"message":"CUDA out of memory","code":500}}'
    lacking, having = reply(NO_MODEL.encode(), 404), reply(failing, 500)
    scripts = (lacking, having) if lacking_first else (having, lacking)
    async with (
        ScriptedEngine([scripts[0]]) as one,
        ScriptedEngine([scripts[1]]) as other,
        gateway(one.target("a"), other.target("b")) as gate,
    ):
        got = await gate.chat()
        assert (got.status, got.body, len(other.requests)) == (500, failing, 1)
        assert gate.seen.endings == [EndState.REFUSED]


async def test_what_no_other_backend_can_express_is_no_answer_while_one_that_can_is_unreachable() -> None:
    """Nor is the client's field wrong, though the engine that is left has no such thing."""
    async with (
        ScriptedEngine([wire.Act.RESET]) as gone,
        ScriptedEngine([stream("never")]) as triton,
        gateway(gone.target("a"), triton.target("b", engine=TRITON)) as gate,
    ):
        got = await gate.chat(tools=[{"type": "function", "function": {"name": "f"}}])
        assert (got.status, got.json()["error"]["code"]) == (502, "backend-failed")


async def test_a_backend_whose_name_has_no_address_is_ejected_as_one_that_refuses_connections() -> None:
    """It answers no request either, and seems idle: no health check need fail first. No request fails for it."""
    nowhere = Target("a", "x" * 64, 8000)  # no DNS label is as long
    limits = DispatchLimits(failures_max=3, eject_s=60.0)
    async with ScriptedEngine([stream("ok")]) as good, gateway(nowhere, good.target("b"), core_limits=limits) as gate:
        for _ in range(8):
            assert (await gate.chat()).status == 200
        failures = gate.core.failures["a"]
        assert failures.ejected
        assert failures.counts == {FailureKind.UNRESOLVED: 3}
        assert [outcome.record.attempts for outcome in gate.seen.outcomes].count(2) == 3


@pytest.mark.parametrize("status", [401, 403])
async def test_a_refused_key_of_ours_is_502_and_stays_ours(status: int) -> None:
    """The client's own key was right: neither the status nor a word about the gateway's key reaches it."""
    body = b'{"error":{"message":"Incorrect API key provided: sk-ours","code":"invalid_api_key"}}'
    refusal = reply(body, status, more="www-authenticate: Bearer ours\r\n")
    async with ScriptedEngine([refusal]) as engine, gateway(engine.target(), core_limits=ONCE) as gate:
        got = await gate.chat()
        assert got.status == 502
        assert b"sk-ours" not in got.body
        assert "www-authenticate" not in got.headers
        assert not gate.core.ledger.table.columns[EJECTED].any()


async def test_a_backend_that_refuses_our_key_gets_nothing_while_another_takes_it() -> None:
    """It answers at once and so seems idle: it must not draw the traffic."""
    async with (
        ScriptedEngine([reply(b"{}", 401)]) as closed,
        ScriptedEngine([stream("ok")]) as good,
        gateway(closed.target("a"), good.target("b")) as gate,
    ):
        for _ in range(6):
            assert (await gate.chat()).status == 200
        assert len(closed.requests) == 1


async def test_a_path_that_an_engine_lacks_is_asked_of_another_and_takes_nothing_else_from_it() -> None:
    """Responses go to the other backend alone; chats to both."""
    scripts = [reply(b'{"detail":"Not Found"}', 404)], [stream("a")]
    async with (
        ScriptedEngine(*scripts) as lacking,
        ScriptedEngine([stream("b")]) as having,
        gateway(lacking.target("a"), having.target("b"), core_limits=ONCE) as gate,
    ):
        for _ in range(4):
            got = await gate.ask(post("/v1/responses", b'{"model":"m","input":"hi","stream":true}'))
            assert got.headers["x-headroom-backend"] == "b"
        assert len(lacking.requests) == 1
        chats = {(await gate.chat()).headers["x-headroom-backend"] for _ in range(4)}
        assert chats == {"a", "b"}


async def test_what_no_engine_offers_is_answered_in_the_engines_words() -> None:
    """The last one's status and body."""
    missing = reply(b'{"detail":"Not Found"}', 404)
    async with ScriptedEngine([missing]) as engine, gateway(engine.target()) as gate:
        got = await gate.ask(post("/v1/responses", b'{"model":"m","input":"hi"}'))
        assert (got.status, got.body) == (404, b'{"detail":"Not Found"}')
        assert gate.seen.endings == [EndState.CLIENT_ERROR]


@pytest.mark.parametrize("status", [400, 413, 422])
async def test_an_engines_4xx_is_the_clients_own_outcome(status: int) -> None:
    """In the record that metrics, journal and page are made of: neither refused nor judged."""
    body = b'{"error":{"message":"n must be at least 1, got 0."}}'
    async with ScriptedEngine([reply(body, status)]) as engine, gateway(engine.target()) as gate:
        got = await gate.chat()
        assert (got.status, got.body) == (status, body)
        record = gate.seen.outcomes[0].record
        assert (record.outcome, record.reason, record.judged) == (EndState.CLIENT_ERROR, Reason.CLIENT_ERROR, False)


async def test_a_model_that_no_backend_is_configured_for_is_the_clients_error() -> None:
    """As is a prompt that no context holds."""
    async with ScriptedEngine([stream("a")]) as engine, gateway(engine.target()) as gate:
        assert (await gate.chat(model="x")).status == 404
        assert gate.seen.endings == [EndState.CLIENT_ERROR]


async def test_a_model_that_no_engine_has_loaded_is_the_operators_failure() -> None:
    """It is configured, so that it counts as a refusal and not as a client's error."""
    async with ScriptedEngine([reply(NO_MODEL.encode(), 404)]) as engine, gateway(engine.target()) as gate:
        await gate.chat()
        assert gate.seen.endings == [EndState.REFUSED]


async def test_a_redirect_is_followed_by_nobody() -> None:
    """It would lead the client past the gateway: another backend is tried, else it is 502."""
    moved = reply(b"", 307, more="location: http://inside:8000/v1/chat/completions/\r\n")
    async with ScriptedEngine([moved]) as engine, gateway(engine.target()) as gate:
        got = await gate.chat()
        assert (got.status, "location" in got.headers) == (502, False)
        assert gate.seen.endings == [EndState.REFUSED]


async def test_a_whole_reply_outlives_the_deadline_of_a_streams_first_byte() -> None:
    """It is not cut off, and no other engine is troubled with it."""
    late, body = asyncio.Event(), b'{"choices":[],"usage":{"completion_tokens":5}}'
    async with (
        ScriptedEngine([late, reply(body)]) as slow,
        ScriptedEngine([reply(b"{}")]) as other,
        gateway(slow.target("a"), other.target("b"), core_limits=DispatchLimits(first_byte_s_max=0.001)) as gate,
    ):
        asking = asyncio.create_task(gate.chat(stream=False))
        await until(lambda: bool(slow.requests))
        gate.driver.perform(gate.core.ticked(gate.driver.clock() + 500.0))
        late.set()
        got = await asking
        assert (got.status, got.body, len(other.requests)) == (200, body, 0)


async def test_a_whole_reply_over_its_limit_is_504_of_one_engine() -> None:
    """Not one after another."""
    async with (
        ScriptedEngine([wire.Act.UNTIL_LEFT]) as one,
        ScriptedEngine([wire.Act.UNTIL_LEFT]) as other,
        gateway(one.target("a"), other.target("b"), core_limits=DispatchLimits(whole_reply_s_max=0.05)) as gate,
    ):
        got = await gate.ask(post("/v1/embeddings", b'{"model":"m","input":"hi"}'))
        assert (got.status, len(one.requests) + len(other.requests)) == (504, 1)


async def test_a_prompt_that_is_too_long_for_one_engine_is_answered_by_another() -> None:
    """The 400 of the short context is not for the client while a longer one is there; without one it is, as it was."""
    message = (
        "This model's maximum context length is 4096 tokens. However, your request has 5012 input tokens. Please "
        "reduce the length of the input messages."
    )
    body = json.dumps({"error": {"message": message, "type": "BadRequestError", "code": 400}}).encode()
    contexts = (backend("short", context_tokens_max=4096), backend("long", context_tokens_max=32768))
    async with (
        ScriptedEngine([reply(body, 400)]) as short,
        ScriptedEngine([stream("yes")]) as long,
        gateway(short.target("short"), long.target("long"), core=core(*contexts, routing="round_robin")) as gate,
    ):
        for _ in range(2):
            got = await gate.chat(messages=[{"role": "user", "content": "x" * 4000}])
            assert (got.status, got.headers["x-headroom-backend"]) == (200, "long")
        assert short.requests
        gate.core.backend_health("long", False, gate.driver.clock())
        refused = await gate.chat(messages=[{"role": "user", "content": "x" * 400}])
        assert (refused.status, refused.body) == (400, body)
        assert not gate.core.ledger.table.columns[EJECTED].any()
