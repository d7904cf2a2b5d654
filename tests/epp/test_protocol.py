"""The endpoint picker protocol of the Gateway API's inference extension (v1), statement by statement."""

import json
from collections.abc import Awaitable, Callable
from typing import Any, Final

import pytest

from router.core.types import Slo
from router.gateway.epp.messages import HEALTH, NOT_SERVING, SERVING, HealthCheckRequest, HealthCheckResponse
from router.gateway.protocols.ingress import Ingress, SloClass
from router.gateway.protocols.target import Target
from tests import fakes
from tests.epp.proxy import CHAT, Exchange, Proxy, proxy
from tests.fakes_wire import event, token
from tests.waiting import until

DONE: Final = event("[DONE]")
HEADER: Final = "x-gateway-destination-endpoint"
SUBSET: Final = ["10.0.0.1:9002", "10.0.0.1:9003"]
STATEMENTS: Final[dict[str, Callable[[], Awaitable[None]]]] = {}


def states(text: str) -> Callable[[Callable[[], Awaitable[None]]], Callable[[], Awaitable[None]]]:
    """Add the proof of a statement to the table."""

    def add(proof: Callable[[], Awaitable[None]]) -> Callable[[], Awaitable[None]]:
        STATEMENTS[text] = proof
        return proof

    return add


async def begun(gate: Proxy, fields: dict[str, str] | None = None, subset: Any = None, **more: Any) -> Exchange:
    """A chat completion that has been sent to the picker."""
    one = gate.exchange()
    await one.head(fields, subset=subset)
    await one.body(json.dumps({**CHAT, **more}).encode())
    return one


async def served(one: Exchange, model: str = "m", **where: str) -> bytes:
    """Its reply."""
    await one.reply_head(**where)
    await one.reply_body(event({"model": model, **token("a")}), DONE, ends=True)
    return (await one.reply())[1]


@states("a picker implements ext-proc, and bodies are streamed both ways at once")
async def _streams() -> None:
    async with proxy("a") as gate:
        one = await begun(gate)
        await one.destination()
        await one.reply_head()
        for text in ("a", "b"):
            await one.reply_body(event(token(text)))
            if text == "a":
                assert (await one.next()).HasField("response_headers")
            assert (await one.piece()).body == event(token(text))


@states("where a subset is given, as a list or as one text, no other endpoint is selected")
async def _subset() -> None:
    async with proxy("a", "b", "c") as gate:
        for subset in (SUBSET, ", ".join(SUBSET)):
            for _ in range(4):
                assert (await (await begun(gate, subset=subset)).destination())[0] in SUBSET


@states("the subset holds for every endpoint of a list")
async def _subset_of_fallbacks() -> None:
    async with proxy("a", "b", "c", "d", fallbacks=3) as gate:
        for _ in range(4):
            endpoints, _, _ = await (await begun(gate, subset=SUBSET)).destination()
            assert sorted(endpoints.split(",")) == SUBSET


@states("an empty subset is answered with 503 at once")
async def _empty_subset() -> None:
    async with proxy("a") as gate:
        for subset in ([], ""):
            assert (await (await begun(gate, subset=subset)).immediate())[0] == 503


@states("a subset of which no endpoint is ready is answered with 503 at once")
async def _unready_subset() -> None:
    async with proxy("a", "b", "c") as gate:
        for name in ("b", "c"):
            gate.picker.driver.perform(gate.core.backend_health(name, False, 0.0))
        for subset in (SUBSET, ["10.9.9.9:1"]):
            assert (await (await begun(gate, subset=subset)).immediate())[0] == 503


@states("without a subset, any endpoint of the pool is selected")
async def _whole_pool() -> None:
    async with proxy("a", "b", "c") as gate:
        found = {(await (await begun(gate)).destination())[0] for _ in range(3)}
        assert found == {"10.0.0.1:9001", *SUBSET}


@states("the endpoint is in a header and in the metadata envoy.lb, never two different ones")
async def _header_and_metadata() -> None:
    for fallbacks in (0, 2):
        async with proxy("a", "b", fallbacks=fallbacks) as gate:
            message = await (await begun(gate)).next()
            (option, *_) = message.request_headers.response.header_mutation.set_headers
            assert option.header.key == HEADER
            assert option.header.raw_value.decode() == message.dynamic_metadata["envoy.lb"][HEADER]
            assert message.request_headers.response.clear_route_cache


@states("an endpoint is an IP address and a port, IPv6 in brackets")
async def _form() -> None:
    async with proxy(targets=[Target("a", "10.0.0.1", 80), Target("b", "::1", 81)]) as gate:
        found = {(await (await begun(gate)).destination())[0] for _ in range(2)}
        assert found == {"10.0.0.1:80", "[::1]:81"}


@states("several endpoints are separated by commas, in the order in which they are to be tried")
async def _several() -> None:
    slow = [fakes.backend(name, models=("m",), slower=slower) for name, slower in (("a", 4.0), ("b", 1.0), ("c", 2.0))]
    core = fakes.core(*slow, routing="slo_headroom")
    for most in range(3):
        async with proxy("a", "b", "c", core=core, fallbacks=most, ingress=_within(10.0)) as gate:
            endpoints, _, _ = await (await begun(gate)).destination()
            first, *others = endpoints.split(",")
            in_order = [each for each in ("10.0.0.1:9002", "10.0.0.1:9003", "10.0.0.1:9001") if each != first]
            assert others == in_order[:most]


@states("no endpoint that would have to be sent other bytes is on the list")
async def _same_bytes() -> None:
    targets = [
        Target("a", "10.0.0.1", 1),
        Target("b", "10.0.0.1", 2, api_key="another"),
        Target("c", "10.0.0.1", 3, models={"m": "other"}),
        Target("d", "10.0.0.1", 4, path_prefix="/p"),
        Target("e", "10.0.0.1", 5, tls=True),
        Target("f", "10.0.0.1", 6),
    ]
    async with proxy(targets=targets, fallbacks=5, routing="least_request") as gate:
        assert (await (await begun(gate, subset=["10.0.0.1"])).destination())[0] in {
            *("10.0.0.1:1,10.0.0.1:6", "10.0.0.1:6,10.0.0.1:1"),
            *(f"10.0.0.1:{port}" for port in (2, 3, 4, 5)),
        }


@states("no ready endpoint is 503 at once")
async def _none_ready() -> None:
    async with proxy("a") as gate:
        gate.picker.driver.perform(gate.core.backend_health("a", False, 0.0))
        assert (await (await begun(gate)).immediate())[0] == 503


@states("a request that is dropped under load is 429 at once")
async def _dropped() -> None:
    async with proxy("a", core=fakes.busy_core(admission={"held_max": 0}), ingress=_within(0.05)) as gate:
        assert (await (await begun(gate)).immediate())[0] == 429


@states("the endpoint that has served a request is the one that it counts for")
async def _endpoint_served() -> None:
    for where in ({"served": "10.0.0.1:9002"}, {"address": "10.0.0.1:9002"}):
        core = fakes.core(*(fakes.backend(name, models=("m",)) for name in "ab"), routing="round_robin")
        async with proxy("a", "b", core=core, fallbacks=1) as gate:
            one = await begun(gate)
            assert (await one.destination())[0] == "10.0.0.1:9001,10.0.0.1:9002"
            await one.reply_head(**where)
            await one.reply_body(event(token("a")))
            assert (await one.next()).HasField("response_headers")
            assert [load.decoding for load in core.loads().values()] == [0, 1]
            await one.reply_body(DONE, ends=True)
            await until(lambda gate=gate: gate.seen.outcomes)
            (log,) = gate.seen.outcomes
            assert (log.record.backend, log.record.attempts) == ("b", 2)
            assert (core.failures["a"].in_a_row, core.in_flight) == (1, 0)


@states("a reply that comes from another endpoint has no prediction of the first")
async def _endpoint_unpredicted() -> None:
    core = fakes.core(*(fakes.backend(name, models=("m",)) for name in "ab"), routing="slo_headroom")
    async with proxy("a", "b", core=core, fallbacks=1, ingress=_within(10.0)) as gate:
        for served, predicted in ((0, True), (1, False)):
            one = await begun(gate)
            endpoints = (await one.destination())[0].split(",")
            await one.reply_head(served=endpoints[served])
            await one.reply_body(event(token("a")), DONE, ends=True)
            assert ("x-headroom-predicted-ttft-ms" in (await one.reply())[0]) is predicted


@states("the endpoint chosen, or one that is none of the pool's, changes nothing when it is stated")
async def _endpoint_served_as_chosen() -> None:
    async with proxy("a", "b") as gate:
        for endpoint in ("10.0.0.1:9001", "10.9.9.9:1", "nonsense"):
            gate.picker.driver.perform(gate.core.backend_health("b", False, 0.0))
            one = await begun(gate)
            await one.destination()
            await served(one, served=endpoint)
        await until(lambda: len(gate.seen.outcomes) == 3)
        assert {log.record.backend for log in gate.seen.outcomes} == {"a"}
        assert not gate.core.failures


@states("health is answered for liveness, readiness and the processor, and not for others")
async def _health() -> None:
    async with proxy("a") as gate:
        check = gate.channel.unary_unary(
            f"/{HEALTH}/Check", HealthCheckRequest.SerializeToString, HealthCheckResponse.FromString
        )
        for service in ("", "liveness", "readiness", "envoy.service.ext_proc.v3.ExternalProcessor"):
            assert (await check(HealthCheckRequest(service=service))).status in {SERVING, NOT_SERVING}
        with pytest.raises(Exception, match="NOT_FOUND"):
            await check(HealthCheckRequest(service="other"))


@states("x-gateway-inference-objective names an SLO class; a name that there is none of is the default one")
async def _objective() -> None:
    classes = {"default": SloClass(), "batch": SloClass(Slo(e2e_s=600.0), priority=9)}
    async with proxy("a", ingress=Ingress(classes=classes)) as gate:
        for fields, expected in (
            ({"x-gateway-inference-objective": "batch"}, ("batch", 9)),
            ({"x-gateway-inference-objective": "nobody's"}, ("default", 0)),
            ({"x-gateway-inference-objective": "batch", "x-slo-class": "default"}, ("default", 0)),
        ):
            one = await begun(gate, fields)
            _, changes, _ = await one.destination()
            assert changes["x-gateway-inference-objective"] == ""  # no engine gets it
            await served(one)
            await until(lambda: gate.seen.outcomes)
            request = gate.seen.outcomes.pop().record.request
            assert (request.slo_class, request.priority) == expected


@states("x-gateway-inference-fairness-id is who shares are of")
async def _fairness() -> None:
    async with proxy("a") as gate:
        one = await begun(gate, {"x-gateway-inference-fairness-id": "team"})
        await one.destination()
        await served(one)
        await until(lambda: gate.seen.outcomes)
        assert gate.seen.outcomes[0].record.request.tenant == "team"


@states("x-gateway-model-name-rewrite is the model that serves a request, whose reply has the client's name")
async def _rewrite() -> None:
    backends = [fakes.backend("a", models=("m",)), fakes.backend("b", models=("m-v2",))]
    targets = [Target("a", "10.0.0.1", 9001), Target("b", "10.0.0.1", 9002, models={"m-v2": "theirs"})]
    core = fakes.core(*backends, routing="round_robin")
    async with proxy(targets=targets, core=core) as gate:
        for model, at_engine, endpoint in (("m", "m", "10.0.0.1:9001"), ("m-v2", "theirs", "10.0.0.1:9002")):
            one = await begun(gate, {"x-gateway-model-name-rewrite": model})
            found, changes, body = await one.destination()
            assert (found, json.loads(body)["model"]) == (endpoint, at_engine)
            assert changes["x-gateway-model-name-rewrite"] == ""
            assert await served(one, at_engine) == event({"model": "m", **token("a")}) + DONE
        one = await begun(gate, {"x-gateway-model-name-rewrite": "nobody"})
        assert (await one.immediate())[0] == 404


def _within(tpot_s: float) -> Ingress:
    return Ingress(classes={"default": SloClass(Slo(tpot_s=tpot_s))})


@pytest.mark.parametrize("statement", STATEMENTS)
async def test_the_protocol_is_kept(statement: str) -> None:
    """Each statement by its proof."""
    await STATEMENTS[statement]()
