"""The picker as Envoy calls it, message by message over a real socket."""

import asyncio
import json
from typing import Any

import grpc
import pytest

from router.core.decisions import EndState as Ending
from router.core.flight import DispatchLimits
from router.core.types import Load, Slo
from router.engines.triton import KIND as TRITON
from router.gateway.protocols.ingress import Caller, Ingress, SloClass
from router.gateway.protocols.target import Target
from router.gateway.traffic.client_connection import ConnectionLimits
from router.gateway.traffic.driver import StreamLimits
from tests import fakes
from tests.epp.proxy import CHAT, EVENT_STREAM, Exchange, Proxy, proxy
from tests.fakes_wire import Act, ScriptedEngine, event, stream, token
from tests.fakes_wire import reply as wire_reply
from tests.waiting import until

USAGE = {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9}
JSON = {"content-type": "application/json"}
DONE = event("[DONE]")


async def ended(gate: Proxy) -> Any:
    """The log of the one request that there was, once it has ended and nothing of it is left."""
    await until(lambda: gate.seen.outcomes)
    (outcome,) = gate.seen.outcomes
    assert gate.core.in_flight == 0
    await until(lambda: len(gate.picker.links.owners) <= len(gate.picker.calls))
    return outcome


async def answer(one: Exchange, *events: bytes) -> bytes:
    """The body that the client gets of an event stream."""
    await one.reply_head()
    await one.reply_body(*events, ends=True)
    return (await one.reply())[1]


async def test_a_streamed_reply_is_read_and_passes() -> None:
    """The destination is a header and metadata alike; usage is asked for on the client's behalf, read and taken out."""
    async with proxy("a") as gate:
        one = gate.exchange()
        await one.chat({"x-request-id": "mine"})
        endpoint, changes, body = await one.destination()
        assert (endpoint, changes) == ("10.0.0.1:9001", {})
        assert json.loads(body) == {**CHAT, "stream_options": {"include_usage": True}}
        await one.reply_head()
        await one.reply_body(event(token("a")), event(token("b")), event({"id": "c", "choices": [], "usage": USAGE}))
        await one.reply_body(DONE, ends=True)
        fields, reply = await one.reply()
        assert fields == {"x-request-id": "mine", "x-headroom-backend": "a"}
        assert reply == event(token("a")) + event(token("b")) + DONE
        outcome = await ended(gate)
        assert outcome.record.outcome is Ending.SERVED
        assert (outcome.record.usage.output_tokens, outcome.record.usage.prompt_tokens) == (2, 7)
        assert (outcome.status, outcome.wire_id, outcome.events) == (200, "mine", 3)
        assert await one.status() is grpc.StatusCode.OK


async def test_each_token_passes_as_it_comes() -> None:
    """A token waits for no later one, and the first ends the prefill load."""
    async with proxy("a") as gate:
        one = gate.exchange()
        await one.chat()
        await one.destination()
        await one.reply_head()
        for text in ("a", "b"):
            await one.reply_body(event(token(text)))
            if text == "a":
                assert (await one.next()).HasField("response_headers")
            assert (await one.piece()).body == event(token(text))
        assert gate.core.loads()["a"].prefilling == 0
        assert gate.core.loads()["a"].decoding == 1
        await one.reply_body(DONE, ends=True)
        assert (await one.piece()).end_of_stream
        await ended(gate)


async def test_a_body_that_needs_no_change_passes_as_it_came() -> None:
    """A client that asks for usage gets it, and its request goes on byte for byte, however large."""
    body = json.dumps({**CHAT, "stream_options": {"include_usage": True}, "user": "x" * 200_000}).encode()
    async with proxy("a") as gate:
        one = gate.exchange()
        await one.head()
        await one.body(*(body[at : at + 50_000] for at in range(0, len(body), 50_000)))
        assert (await one.destination())[2] == body
        stated = event({"id": "c", "choices": [], "usage": USAGE})
        assert await answer(one, event(token("a")), stated, DONE) == event(token("a")) + stated + DONE
        await ended(gate)


async def test_a_whole_reply_passes() -> None:
    """A reply that is no stream is read for its usage."""
    reply = json.dumps({"choices": [{"message": {"content": "hi"}}], "usage": USAGE}).encode()
    async with proxy("a") as gate:
        one = gate.exchange()
        await one.chat(stream=False)
        await one.destination()
        await one.reply_head(200, JSON)
        await one.reply_body(reply[:10], reply[10:], ends=True)
        assert (await one.reply())[1] == reply
        assert (await ended(gate)).record.usage.output_tokens == 2


async def test_a_large_reply_comes_in_pieces() -> None:
    """No message holds more than the protocol recommends."""
    reply = json.dumps({"data": ["x" * 300_000]}).encode()
    async with proxy("a") as gate:
        one = gate.exchange()
        await one.chat(stream=False)
        await one.destination()
        await one.reply_head(200, JSON)
        await one.reply_body(reply, ends=True)
        await one.next()
        sizes = []
        while True:
            piece = await one.piece()
            sizes.append(len(piece.body))
            if piece.end_of_stream:
                break
        assert sum(sizes) == len(reply)
        assert max(sizes) <= 65_536


async def test_a_client_that_leaves_frees_its_backend() -> None:
    """A stream that is reset in the middle of a reply, and one before its reply, release what was reserved."""
    async with proxy("a") as gate:
        for tokens in ((), (event(token("a")),)):
            one = gate.exchange()
            await one.chat()
            await one.destination()
            if tokens:
                await one.reply_head()
                await one.reply_body(*tokens)
                await one.next()
                await one.piece()
            one.cancel()
            await until(lambda: gate.core.in_flight == 0 and not gate.picker.calls)
        assert gate.seen.endings == [Ending.LEFT, Ending.LEFT]
        assert gate.core.loads()["a"] == Load()
        assert not gate.picker.links.owners


async def test_a_request_that_is_never_whole_is_forgotten() -> None:
    """A client that leaves while it sends its body was never one of the core's."""
    async with proxy("a") as gate:
        one = gate.exchange()
        await one.head()
        await one.body(b'{"model": ', ends=False)
        await until(lambda: gate.picker.driver.buffers.bodies == 10)
        one.cancel()
        await until(lambda: not gate.picker.calls)
        assert gate.picker.driver.buffers.bodies == 0
        assert not gate.seen.outcomes


async def test_no_backend_is_503() -> None:
    """As the endpoint picker protocol has it, with a time to try again."""
    async with proxy("a") as gate:
        gate.picker.driver.perform(gate.core.backend_health("a", False, 0.0))
        one = gate.exchange()
        await one.chat()
        status, fields, document = await one.immediate()
        assert (status, document["error"]["code"]) == (503, "no-backend")
        assert int(fields["retry-after"]) >= 1
        assert fields["content-type"] == "application/json"


async def test_a_shed_request_is_429() -> None:
    """A queue that is full sheds, and says when to try again and why."""
    async with proxy("a", core=fakes.busy_core(admission={"held_max": 0}), ingress=_within(0.05)) as gate:
        one = gate.exchange()
        await one.chat()
        status, fields, _ = await one.immediate()
        assert status == 429
        assert fields["x-headroom-dropped-reason"] == "queue-full"
        assert int(fields["retry-after"]) >= 1


async def test_a_held_request_is_sent_once_there_is_room() -> None:
    """Nothing is answered while it waits; then the destination comes unasked."""
    async with proxy("a", core=fakes.busy_core(), ingress=_within(0.05)) as gate:
        one = gate.exchange()
        await one.chat()
        await until(lambda: gate.core.held == 1)
        gate.picker.driver.perform(gate.core.on_peer_load("peer", {}, gate.picker.driver.clock()))
        assert (await one.destination())[0] == "10.0.0.1:9001"
        await answer(one, event(token("a")), DONE)
        assert (await ended(gate)).record.outcome is Ending.SERVED


def _within(tpot_s: float) -> Ingress:
    return Ingress(classes={"default": SloClass(Slo(tpot_s=tpot_s))})


@pytest.mark.parametrize(
    ("body", "status"),
    [(b"{", 400), (b'{"model": "m", "stream": 3}', 400), (json.dumps({**CHAT, "model": "other"}).encode(), 404)],
)
async def test_what_cannot_be_served_is_refused(body: bytes, status: int) -> None:
    """As the gateway refuses it; it never reaches an engine."""
    async with proxy("a") as gate:
        one = gate.exchange()
        await one.head()
        await one.body(body)
        assert (await one.immediate())[0] == status


async def test_a_body_over_the_bound_is_refused_while_it_comes() -> None:
    """What is held of it is given back."""
    async with proxy("a", limits=ConnectionLimits(body_bytes_max=100)) as gate:
        one = gate.exchange()
        await one.head()
        await one.body(b"x" * 60, b"x" * 60, ends=False)
        assert (await one.immediate())[0] == 413
        assert gate.picker.driver.buffers.bodies == 0
        assert gate.seen.rejections == [("/v1/chat/completions", 413)]


async def test_a_head_over_the_bound_is_refused() -> None:
    """Before anything of it is read."""
    async with proxy("a", limits=ConnectionLimits(head_bytes_max=100)) as gate:
        one = gate.exchange()
        await one.head({"x-much": "x" * 200})
        assert (await one.immediate())[0] == 431


async def test_a_request_that_takes_too_long_to_come_is_refused() -> None:
    """The sweep finds it."""
    now = [0.0]
    async with proxy("a", limits=ConnectionLimits(request_s=30.0), clock=lambda: now[0]) as gate:
        one = gate.exchange()
        await one.head()
        await until(lambda: gate.picker.calls and all(call.stream.call for call in gate.picker.calls))
        now[0] = 31.0
        gate.picker.driver.sweep(31.0)
        assert (await one.immediate())[0] == 408


async def test_an_engines_error_reaches_the_client() -> None:
    """Status and body as the engine sent them; nothing is sent elsewhere, for the proxy sends a request once."""
    error = {"error": {"message": "max_tokens is too large", "type": "BadRequestError", "param": None, "code": 400}}
    async with proxy("a", "b") as gate:
        one = gate.exchange()
        await one.chat()
        await one.destination()
        await one.reply_head(400, JSON)
        await one.reply_body(json.dumps(error).encode(), ends=True)
        status, fields, document = await one.immediate()
        assert (status, document) == (400, error)
        assert fields["content-type"] == "application/json"
        assert (await ended(gate)).record.outcome is Ending.CLIENT_ERROR


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (503, b"upstream connect error or disconnect/reset before headers"),  # Envoy's own, in place of a reply
        (404, json.dumps({"error": {"message": "The model `m` does not exist.", "code": 404}}).encode()),
    ],
)
async def test_a_failed_backend_is_not_tried_again_for_the_same_request(status: int, body: bytes) -> None:
    """The failure counts against the backend, and the next request goes elsewhere."""
    limits = DispatchLimits(attempts_max=0, failures_max=1, eject_s=60.0)
    async with proxy("a", "b", core_limits=limits) as gate:
        one = gate.exchange()
        await one.chat()
        first, _, _ = await one.destination()
        await one.reply_head(status, {"content-type": "text/plain"})
        await one.reply_body(body, ends=True)
        assert (await one.immediate())[0] == status
        assert (await ended(gate)).record.attempts == 1
        for _ in range(2):
            again = gate.exchange()
            await again.chat()
            assert (await again.destination())[0] != first


REFUSALS = {
    "answer": (400, JSON, json.dumps({"error": {"message": "stream_options is not supported", "code": 400}}).encode()),
    "of a field": (422, JSON, b'{"detail":[{"loc":["body","stream_options"],"msg":"extra fields not permitted"}]}'),
    "in the stream": (200, EVENT_STREAM, event({"error": {"message": "no stream_options here", "code": 400}})),
    "as a success": (200, JSON, json.dumps({"error": {"message": "no include_usage here", "code": 400}}).encode()),
}


@pytest.mark.parametrize("refusal", REFUSALS)
async def test_an_engine_that_cannot_state_usage_costs_no_client_anything(refusal: str) -> None:
    """The proxy cannot send the request again: the picker does, as it came, and the reply takes the place of the
    refusal. Requests after it go there as they came.
    """
    status, fields, body = REFUSALS[refusal]
    async with ScriptedEngine([stream("a", "b")]) as engine, proxy(targets=[engine.target()]) as gate:
        one = gate.exchange()
        await one.chat()
        endpoint, _, sent = await one.destination()
        assert endpoint == f"127.0.0.1:{engine.port}"
        assert b"stream_options" in sent
        await one.reply_head(status, {**fields, "server": "s", "content-length": str(len(body))})
        await one.reply_body(body, ends=True)
        head, reply = await one.reply()
        assert (head[":status"], head["content-type"]) == ("200", "text/event-stream; charset=utf-8")
        assert head["x-headroom-backend"] == "a"
        assert reply == event(token("a")) + event(token("b")) + DONE
        assert b"stream_options" not in engine.requests[0]
        outcome = await ended(gate)
        assert (outcome.record.outcome, outcome.record.attempts, outcome.status) == (Ending.SERVED, 1, 200)
        assert not gate.core.failures
        again = gate.exchange()
        await again.chat()
        assert json.loads((await again.destination())[2]) == CHAT
        assert len(engine.requests) == 1


async def test_a_request_that_is_sent_again_and_fails_is_answered_with_the_second_answer() -> None:
    """An error in place of the refusal."""
    wrong = json.dumps({"error": {"message": "max_tokens is too large", "code": 400}}).encode()
    async with ScriptedEngine([wire_reply(wrong, 400)]) as engine, proxy(targets=[engine.target()]) as gate:
        one = gate.exchange()
        await one.chat()
        await one.destination()
        status, fields, body = REFUSALS["answer"]
        await one.reply_head(status, fields)
        await one.reply_body(body, ends=True)
        assert (await one.immediate())[::2] == (400, json.loads(wrong))
        assert (await ended(gate)).record.outcome is Ending.CLIENT_ERROR


async def test_a_client_that_leaves_while_its_request_is_sent_again_frees_its_backend() -> None:
    """And the engine, which sees its connection close."""
    async with ScriptedEngine([Act.UNTIL_LEFT]) as engine, proxy(targets=[engine.target()]) as gate:
        one = gate.exchange()
        await one.chat()
        await one.destination()
        status, fields, body = REFUSALS["answer"]
        await one.reply_head(status, fields)
        await one.reply_body(body, ends=True)
        await until(lambda: engine.requests)
        one.cancel()
        await until(lambda: gate.core.in_flight == 0 and not gate.picker.calls and not engine.open)
        assert gate.seen.endings == [Ending.LEFT]


async def test_a_name_is_looked_up_at_its_first_request() -> None:
    """Where no config has had it looked up before."""
    async with proxy(targets=[Target("a", "localhost", 9001)]) as gate:
        one = gate.exchange()
        await one.chat()
        assert (await one.destination())[0] in {"127.0.0.1:9001", "[::1]:9001"}
        assert await answer(one, event(token("a")), DONE)
        assert (await ended(gate)).record.outcome is Ending.SERVED


async def test_a_name_whose_address_is_gone_is_looked_up_at_once() -> None:
    """A pod that is another machine now has the next request."""
    async with proxy(targets=[Target("a", "localhost", 9001)]) as gate:
        addresses = gate.picker.links.addresses
        addresses._by_host["localhost"] = "10.9.9.9"
        one = gate.exchange()
        await one.chat()
        assert (await one.destination())[0] == "10.9.9.9:9001"
        await one.reply_head(503, {"content-type": "text/plain"})
        await one.reply_body(b"upstream connect error", ends=True)
        assert (await one.immediate())[0] == 503
        await until(lambda: addresses._by_host["localhost"] != "10.9.9.9")


async def test_a_name_without_an_address_counts_against_its_backend() -> None:
    """Another backend is chosen, and the nameless one is ejected as if it refused connections; alone, it gets 503."""
    nameless = Target("a", "nobody.invalid", 9001)
    async with proxy(targets=[nameless, Target("b", "10.0.0.1", 9002)]) as gate:
        for _ in range(6):
            one = gate.exchange()
            await one.chat()
            assert (await one.destination())[0] == "10.0.0.1:9002"
        assert gate.core.failures["a"].ejected
    async with proxy(targets=[nameless]) as gate:
        for _ in range(4):
            one = gate.exchange()
            await one.chat()
            status, _, document = await one.immediate()
            assert (status, document["error"]["code"]) == (503, "no-backend")
        assert gate.core.failures["a"].in_a_row > 0


async def test_a_backend_that_has_no_form_for_a_request_leaves_it_to_another() -> None:
    """Nothing was sent there, so the proxy may still be given an endpoint."""
    tools = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    triton = Target("a", "10.0.0.1", 9001, engine=TRITON)
    async with proxy(targets=[triton, Target("b", "10.0.0.1", 9002)]) as gate:
        for _ in range(2):
            one = gate.exchange()
            await one.chat(tools=tools)
            assert (await one.destination())[0] == "10.0.0.1:9002"


async def test_an_error_in_mid_stream_ends_the_reply_as_a_broken_one() -> None:
    """Nothing of the engine's after it passes, and the client gets an error event."""
    async with proxy("a") as gate:
        one = gate.exchange()
        await one.chat()
        await one.destination()
        error = event({"error": {"message": "worker died", "code": 500}})
        reply = await answer(one, event(token("a")), error, event(token("b")))
        assert reply.startswith(event(token("a")) + b"data: ")
        assert b"worker died" in reply
        assert event(token("b")) not in reply
        assert (await ended(gate)).record.outcome is Ending.BROKEN


async def test_a_stream_without_its_end_is_a_broken_one() -> None:
    """A clean end of the body is none of the reply's."""
    async with proxy("a") as gate:
        one = gate.exchange()
        await one.chat()
        await one.destination()
        assert b"error" in await answer(one, event(token("a")))
        assert (await ended(gate)).record.outcome is Ending.BROKEN


async def test_a_stall_ends_the_reply_unasked() -> None:
    """The engine has sent nothing for too long: the client gets an error event, and the proxy is done with it."""
    now = [0.0]
    async with proxy("a", clock=lambda: now[0], limits=ConnectionLimits(), **_stalls(5.0)) as gate:
        one = gate.exchange()
        await one.chat()
        await one.destination()
        await one.reply_head()
        await one.reply_body(event(token("a")))
        await one.next()
        await one.piece()
        now[0] = 6.0
        gate.picker.driver.sweep(6.0)
        assert b"sent nothing for" in (await one.piece()).body
        assert (await ended(gate)).record.outcome is Ending.BROKEN


async def test_half_an_event_is_ended_by_a_reset() -> None:
    """Where no event may follow, the client must not take the reply for whole."""
    now = [0.0]
    async with proxy("a", clock=lambda: now[0], **_stalls(5.0)) as gate:
        one = gate.exchange()
        await one.chat(stream=False)
        await one.destination()
        await one.reply_head(200, {"content-type": "application/json"})
        await one.reply_body(b'{"choices": [{"half of ')
        await one.next()
        await one.piece()
        now[0] = 6.0
        gate.picker.driver.sweep(6.0)
        assert await one.status() is not grpc.StatusCode.OK
        assert (await ended(gate)).record.outcome is Ending.BROKEN


def _stalls(stall_s: float) -> dict[str, StreamLimits]:
    return {"limits_of_streams": StreamLimits(stall_s=stall_s)}


async def test_a_first_byte_that_does_not_come_is_504() -> None:
    """The core's own deadline: the proxy gets the answer in the middle of its waiting."""
    limits = DispatchLimits(attempts_max=0, first_byte_s_max=0.05)
    async with proxy("a", "b", core_limits=limits) as gate:
        one = gate.exchange()
        await one.chat()
        await one.destination()
        assert (await one.immediate())[0] == 504
        assert (await ended(gate)).record.attempts == 1


async def test_keys_are_the_gateways_own() -> None:
    """A client's key is checked and withheld; the engine gets the one that the config has for it."""
    keys = {"a1b70a7aa4eb2c3c4a4ad2ee1d6b1f2d41f9c4d5e0d2c9f1a5b5e2b4f6a0c3d7": Caller("t")}
    target = Target("a", "10.0.0.1", 9001, api_key="engines")
    async with proxy(targets=[target], ingress=Ingress(keys=keys)) as gate:
        one = gate.exchange()
        await one.head({"authorization": "Bearer wrong"})
        assert (await one.immediate())[0] == 401
        gate.picker.driver.ingress = Ingress()
        again = gate.exchange()
        await again.chat({"authorization": "Bearer mine", "x-api-key": "mine", "accept-encoding": "gzip"})
        _, changes, _ = await again.destination()
        del changes["x-request-id"]
        assert changes == {"authorization": "Bearer engines", "x-api-key": "", "accept-encoding": ""}


async def test_a_model_has_its_name_at_the_engine() -> None:
    """An alias is replaced in the request, and in the reply back."""
    target = Target("a", "10.0.0.1", 9001, models={"m": "qwen"})
    async with proxy(targets=[target]) as gate:
        one = gate.exchange()
        await one.chat()
        assert json.loads((await one.destination())[2])["model"] == "qwen"
        theirs, ours = (event({"model": name, **token("a")}) for name in ("qwen", "m"))
        assert await answer(one, theirs, DONE) == ours + DONE


async def test_an_engine_of_another_protocol_is_translated_for() -> None:
    """Path and body become Triton's, the reply OpenAI's."""
    target = Target("a", "10.0.0.1", 9001, engine=TRITON, models={"m": "ensemble"})
    async with proxy(targets=[target]) as gate:
        one = gate.exchange()
        await one.chat()
        _, changes, body = await one.destination()
        assert changes[":path"] == "/v2/models/ensemble/generate_stream"
        assert "text_input" in json.loads(body)
        await one.reply_head()
        await one.reply_body(event({"text_output": "hi"}), ends=True)
        fields, reply = await one.reply()
        assert fields["content-type"].startswith("text/event-stream")
        assert b'"content":"hi"' in reply
        assert reply.endswith(DONE)


async def test_trailers_end_a_request_and_a_reply() -> None:
    """Then no piece of a body bears an end."""
    async with proxy("a") as gate:
        one = gate.exchange()
        await one.head()
        await one.body(json.dumps(CHAT).encode(), ends=False)
        await one.trailers("request_trailers")
        assert (await one.next()).HasField("request_headers")
        assert not (await one.piece("request_body")).end_of_stream
        assert (await one.next()).HasField("request_trailers")
        await one.reply_head()
        await one.reply_body(event(token("a")), DONE)
        await one.trailers("response_trailers")
        assert (await one.next()).HasField("response_headers")
        assert [(await one.piece()).end_of_stream for _ in range(2)] == [False, False]
        assert (await one.next()).HasField("response_trailers")
        assert (await ended(gate)).record.outcome is Ending.SERVED


async def test_a_path_that_is_not_routed_goes_to_a_backend_that_is_up() -> None:
    """As it came, both ways, and uncounted."""
    async with proxy("a") as gate:
        one = gate.exchange()
        await one.head(path="/v1/models", method="GET", ends=True)
        head = await one.next()
        assert head.dynamic_metadata["envoy.lb"]["x-gateway-destination-endpoint"] == "10.0.0.1:9001"
        await one.reply_head(200, JSON)
        await one.reply_body(b"[1, ", b"2]", ends=True)
        assert await one.reply() == ({}, b"[1, 2]")
        assert not gate.seen.outcomes


async def test_an_answer_of_the_proxys_own_passes() -> None:
    """One that comes before the request may be sent: the request is over."""
    async with proxy("a", core=fakes.busy_core(), ingress=_within(0.05)) as gate:
        one = gate.exchange()
        await one.chat()
        await until(lambda: gate.core.held == 1)
        await one.reply_head(504, {"content-type": "text/plain"})
        await one.reply_body(b"upstream request timeout", ends=True)
        assert (await one.reply())[1] == b"upstream request timeout"
        assert (await ended(gate)).record.outcome is Ending.LEFT


@pytest.mark.parametrize(
    ("subset", "endpoint"),
    [
        (["10.0.0.1:9002"], "10.0.0.1:9002"),
        ("10.0.0.7:9002, 10.0.0.1:9003", "10.0.0.1:9003"),
        (["10.0.0.1:9003", "10.0.0.9:1"], "10.0.0.1:9003"),
    ],
)
async def test_only_allowed_endpoints_are_picked(subset: Any, endpoint: str) -> None:
    """The metadata that a data plane may send, as a list or as one text; each time, whatever the policy prefers."""
    async with proxy("a", "b", "c") as gate:
        for _ in range(3):
            one = gate.exchange()
            await one.head(subset=subset)
            await one.body(json.dumps(CHAT).encode())
            assert (await one.destination())[0] == endpoint


@pytest.mark.parametrize("subset", [[], "", ["10.0.0.9:9001"], ["10.0.0.1:9002"]])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/models"])
async def test_no_allowed_endpoint_is_503(subset: Any, path: str) -> None:
    """None is named, none of them is a backend, or none of those is up."""
    async with proxy("a", "b") as gate:
        gate.picker.driver.perform(gate.core.backend_health("b", False, 0.0))
        one = gate.exchange()
        await one.head(subset=subset, path=path)
        await one.body(json.dumps(CHAT).encode())
        assert (await one.immediate())[0] == 503


async def test_another_mode_is_refused_by_its_name() -> None:
    """A body that is sent in another mode cannot be answered as the picker answers."""
    async with proxy("a") as gate:
        one = gate.exchange()
        await one.head(mode=2)
        status, _, document = await one.immediate()
        assert status == 500
        assert "FULL_DUPLEX_STREAMED" in document["error"]["message"]


async def test_garbage_ends_its_stream_and_no_other() -> None:
    """What no proxy sends."""
    async with proxy("a") as gate:
        good = gate.exchange()
        await good.chat()
        raw = gate.raw()
        await raw.write(b"\xff\xff\xff")
        assert await raw.code() is grpc.StatusCode.INVALID_ARGUMENT
        early = gate.exchange()
        await early.reply_head()
        assert await early.status() is grpc.StatusCode.INVALID_ARGUMENT
        split = gate.exchange()
        await split.head({"x-a": "b\r\nx-injected: 1"})
        assert await split.status() is grpc.StatusCode.INVALID_ARGUMENT
        for bad in ("", "99", "2OO", "-5"):
            one = gate.exchange()
            await one.chat()
            await one.destination()
            await one.reply_head(200, {":status": bad})
            assert await one.status() is grpc.StatusCode.INVALID_ARGUMENT
        await good.destination()
        assert await answer(good, event(token("a")), DONE) == event(token("a")) + DONE
        await until(lambda: gate.core.in_flight == 0)


async def test_a_body_that_goes_on_after_its_end_ends_the_stream_and_its_request() -> None:
    """It would begin the same request twice, and the first would be in flight for ever."""
    async with proxy("a") as gate:
        for more in ("body", "trailers"):
            one = gate.exchange()
            await one.chat()
            await one.destination()
            await (one.body(b"{}") if more == "body" else one.trailers("request_trailers"))
            assert await one.status() is grpc.StatusCode.INVALID_ARGUMENT
        await until(lambda: len(gate.seen.outcomes) == 2 and gate.core.in_flight == 0)
        await until(lambda: not gate.picker.links.owners)


class Stuck:
    """A call whose proxy reads nothing but where the request goes."""

    def __init__(self) -> None:
        self.messages: asyncio.Queue[bytes] = asyncio.Queue()
        self.written: list[bytes] = []

    async def read(self) -> bytes:
        return await self.messages.get()

    async def write(self, message: Any) -> None:
        if isinstance(message, bytes):
            self.written.append(message)
            if len(self.written) > 2:
                await asyncio.Event().wait()
        else:  # from the tests' proxy
            self.messages.put_nowait(message.SerializeToString())

    async def abort(self, code: Any, details: str) -> None:
        raise AssertionError(f"{code} waits behind what is being written: {details}")


async def test_a_proxy_that_reads_no_more_holds_no_request() -> None:
    """After the time that a client may not read, its call ends without a word, and its load with it."""
    async with proxy("a", limits_of_streams=StreamLimits(stall_s=5.0, reader_s=9.0)) as gate:
        stuck = Stuck()
        call = asyncio.create_task(gate.picker._process(None, stuck))
        one = Exchange(stuck)
        await one.chat()
        await until(lambda: len(stuck.written) == 2)
        await one.reply_head()
        await one.reply_body(event(token("a")))
        await until(lambda: len(stuck.written) == 3)
        now_s = gate.picker.driver.clock()
        for after_s in (2.0, 6.0):  # it is paused by then, and no engine's silence ends it
            gate.picker.driver.sweep(now_s + after_s)
        assert gate.core.in_flight == 1
        for after_s in (12.0, 13.0, 20.0):
            gate.picker.driver.sweep(now_s + after_s)
        with pytest.raises(asyncio.CancelledError):
            await call
        assert gate.core.in_flight == 0
        assert not gate.picker.calls


async def test_a_fault_of_the_picker_is_500_for_its_client_alone(caplog: pytest.LogCaptureFixture) -> None:
    """And a log line with its traceback."""
    async with proxy("a") as gate:
        one = gate.exchange()
        await one.head({"content-length": "no number"})
        assert (await one.immediate())[0] == 500
        assert "exception in the endpoint picker" in caplog.text


async def test_a_picker_that_stops_lets_streams_end() -> None:
    """New ones are refused, those that are open go on."""
    async with proxy("a") as gate:
        one = gate.exchange()
        await one.chat()
        await one.destination()
        stopping = asyncio.create_task(gate.picker.stop(30.0))
        assert await answer(one, event(token("a")), DONE) == event(token("a")) + DONE
        await stopping
        assert (await ended(gate)).record.outcome is Ending.SERVED
