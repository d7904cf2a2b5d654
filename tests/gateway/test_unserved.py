"""What a request that was not served shows of itself: its tokens, how long it waited, how long it was here."""

import asyncio
import json
from math import inf
from random import Random
from typing import Any

import pytest

import policies
from router.core import Choice, Fleet, Forecast, Hold, Request, Rng
from router.core.decisions import EndState, RequestRecord
from router.core.dispatcher import Dispatcher
from router.core.errors import Reason
from router.core.types import Slo, Usage
from router.gateway.telemetry.journal import explained
from router.gateway.telemetry.metrics import Metrics
from router.gateway.traffic.request_log import RequestLog
from tests import fakes
from tests import fakes_wire as wire
from tests.fakes_wire import Act, Gateway, chat, chunked, event, gateway, pair, token
from tests.waiting import until

FIRST = wire.STREAM_HEAD + chunked(event(token("a")))
MORE = chunked(b"".join(event(token(text)) for text in "bcd"))


def ended(gate: Gateway) -> tuple[RequestRecord, dict[str, Any], str]:
    """The record of the one request, its explanation, and the metrics page with it alone."""
    (log,) = gate.seen.outcomes
    metrics = Metrics(lambda: 0.0)
    metrics.ended(log)
    return log.record, explained(log), metrics.text().decode()


def has_its_reply(gate: Gateway, outcome: EndState) -> None:
    """Four tokens of it, and the times of what happened, everywhere."""
    record, told, page = ended(gate)
    assert (record.outcome, record.usage.output_tokens) == (outcome, 4)
    assert told["output_tokens"] == 4
    actual = told["actual"]
    assert 0 < actual["ttft_ms"] <= actual["e2e_ms"]
    assert (actual["held_ms"], actual["queue_ms"] >= 0) == (0, True)
    least_ms, most_ms = actual["tpot_range_ms"]
    assert (actual["tpot_ms"], least_ms) == (None, 0)  # no count came, and the client set no cap
    assert most_ms > 0
    assert 'headroom_tokens_total{backend="a",kind="output",model="m"} 4.0' in page
    assert f'headroom_unserved_seconds_count{{model="m",outcome="{outcome}",slo_class="default"}} 1.0' in page


async def test_a_client_that_leaves_in_mid_stream_is_shown_with_what_it_got() -> None:
    """The engine generated four tokens for it."""
    more = asyncio.Event()
    async with pair([FIRST, more, MORE, Act.UNTIL_LEFT]) as (gate, engine):
        client = await gate.client()
        client.send(chat())
        await client.head()
        more.set()
        await client.reader.readuntil(json.dumps(token("d")).encode())
        client.close()
        await until(lambda: engine.left == 1 and gate.seen.outcomes)
        has_its_reply(gate, EndState.LEFT)


async def test_a_stream_that_breaks_is_shown_with_what_came_of_it() -> None:
    """Cut after four tokens."""
    more = asyncio.Event()
    async with pair([FIRST, more, MORE, Act.RESET]) as (gate, _):
        client = await gate.client()
        client.send(chat())
        await client.head()
        more.set()
        await client.ended()
        has_its_reply(gate, EndState.BROKEN)


class Closed:
    """A routing policy that holds every request."""

    def choose(self, request: Request, fleet: Fleet, _: Forecast, __: Rng) -> Choice:
        return Hold(inf, "closed")


def holding(hold_s_max: float) -> Dispatcher:
    """A core with one backend to which nobody is sent."""
    core = Dispatcher(Closed(), policies.find("admission", "deadline", {"hold_s_max": hold_s_max}), Random(7))
    core.backend_joined(fakes.backend("a"), 0.0)
    return core


async def test_a_hold_that_ends_in_a_refusal_states_how_long_it_was() -> None:
    """In the record, the explanation and the metrics."""
    async with gateway(core=holding(0.05)) as gate:
        assert (await gate.chat()).status == 429
        record, told, page = ended(gate)
    assert (record.outcome, record.reason, record.usage) == (EndState.REFUSED, Reason.HOLD_EXPIRED, Usage(0))
    assert 0.05 <= record.held_s <= record.queue_s == record.e2e_s
    assert told["actual"]["held_ms"] == round(record.held_s * 1e3, 3)
    assert told["actual"]["queue_ms"] == told["actual"]["e2e_ms"]
    assert 'headroom_held_seconds_count{model="m",outcome="refused",slo_class="default"} 1.0' in page
    assert 'headroom_unserved_seconds_count{model="m",outcome="refused",slo_class="default"} 1.0' in page


async def test_a_client_that_leaves_while_it_is_held_states_how_long_it_waited() -> None:
    """It was sent nowhere."""
    async with gateway(core=holding(60.0)) as gate:
        client = await gate.client()
        client.send(chat())
        await until(lambda: gate.core.in_flight == 1)
        client.close()
        await until(lambda: gate.seen.outcomes)
        record, told, page = ended(gate)
    assert (record.outcome, record.backend) == (EndState.LEFT, "")
    assert 0.0 < record.held_s <= record.e2e_s
    assert told["actual"]["held_ms"] > 0
    assert 'headroom_held_seconds_count{model="m",outcome="left",slo_class="default"} 1.0' in page


def test_estimated_tokens_are_shown_as_such() -> None:
    """They count as output, and no TPOT is stated from them."""
    asked = fakes.request("r")
    core = fakes.core(fakes.backend())
    core.arrived(asked, 0.0)
    core.first_token("r", 1, 0.5)
    record = fakes.account(core.ended("r", 1, Usage(11, estimated=True), 1.5))
    metrics = Metrics(lambda: 0.0)
    metrics.recorded(record)
    page = metrics.text().decode()
    assert 'headroom_tokens_total{backend="a",kind="output",model="m"} 11.0' in page
    assert 'headroom_tokens_total{backend="a",kind="estimated",model="m"} 11.0' in page
    assert 'headroom_tpot_seconds_count{backend="a",model="m",slo_class="default"} 0.0' in page


@pytest.mark.parametrize(("cap", "met"), [(0, "true"), (11, "false")])
def test_a_bound_that_cannot_be_judged_is_shown_as_such(cap: int, met: str) -> None:
    """Two tokens an event and no count: inside TPOT's bound by the fewest tokens that there can have been, or not."""
    asked = fakes.request("r", slo=Slo(tpot_s=0.05), output_tokens_max=cap)
    core = fakes.core(fakes.backend())
    core.arrived(asked, 0.0)
    core.first_token("r", 1, 0.5)
    usage = Usage(6, estimated=True, output_tokens_least=6)
    record = fakes.account(core.ended("r", 1, usage, 1.5, 1.5))
    log = RequestLog(record, "/v1/chat/completions", "r", True, 200, 8, 0.2, 0.0)
    metrics = Metrics(lambda: 0.0)
    metrics.recorded(record)
    page = metrics.text().decode()
    told = explained(log)
    unjudged = [] if cap else ["tpot"]
    assert (told["slo"]["met"], told["slo"]["unjudged"]) == (met == "true", unjudged)
    assert (told["actual"]["tpot_ms"], told["actual"]["tpot_range_ms"]) == (None, [100.0 if cap else 0.0, 200.0])
    assert f'headroom_slo_requests_total{{met="{met}",model="m",slo_class="default",source="class"}} 1.0' in page
    count = f'headroom_slo_unjudged_requests_total{{model="m",slo_class="default"}} {float(len(unjudged))}'
    assert count in page
