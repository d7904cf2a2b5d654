"""Streams that pass in one loop in C: counted as by the meter, and the event loop's again for all that is no token."""

import asyncio
import json
import os
import resource
from math import isnan
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.core.decisions import EndState
from router.core.native import extension
from router.gateway.traffic.attempt import UpstreamAttempt
from router.gateway.traffic.driver import StreamLimits
from router.gateway.traffic.event_stream import EventStream
from router.gateway.traffic.meter import GAP_EDGES_S, Gaps, Meter
from tests import fakes_wire as wire
from tests.fakes_wire import Act, Client, Gateway, chat, chunked, event, pair, stream, token
from tests.waiting import until

BUILT = extension("router.gateway.traffic._fast_path")
pytestmark = pytest.mark.skipif(BUILT is None, reason="the loop in C is not built (make env)")

# -- the same counts -------------------------------------------------------------------------------------------------

CREATED = token("x") | {"created": 1_790_000_000}
DELTA = {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "x"}}
COUNTED = token("x") | {"usage": {"prompt_tokens": 3, "completion_tokens": 9}}
FORMS: list[dict[str, Any]] = [token("x"), CREATED, DELTA, COUNTED]
OTHERS = [
    b": ping\n\n",
    event({"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 9}}),
    event({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}),
    event({"error": {"message": "gone"}}),
    event(token('he said "error"')),
    event(token("an error, _tokens and failed")),
    event(token("short")).replace(b"\n\n", b"\r\n\r\n"),
    event(token("a") | {"usage": {"prompt_tokens": 3, "completion_tokens": 9}}),
    event(token("other") | {"created": 1_790_000_001}),
    event("[DONE]"),
    event(token("two")) + event(token("in one")),
    b"data: x\n",
]


class Side:
    """A stream's counts as one of the two makes them."""

    def __init__(self) -> None:
        self.meter = Meter(Gaps())
        self.events = EventStream(
            self.meter, framed=True, sized=False, must_end=True, strips_usage=False, several=False
        )

    def take(self, read: bytes, now_s: float) -> bool:
        """As an attempt does; whether it passed as plain tokens."""
        if self.meter.started and not self.events.examines and self.meter.passes(read, now_s):
            return True
        self.events.feed(read, now_s, done=False)
        return False

    def state(self) -> tuple[Any, ...]:
        """All that is read of it."""
        meter, last_s = self.meter, self.meter.last_token_s()
        times = (meter.first_s, meter.heard_s, meter.gap_max_s, None if isnan(last_s) else last_s)
        usage = (meter.usage(0.0), meter.usage(3.5), meter.saw_end, meter.at_boundary, meter.text_bytes)
        return (meter.events, meter.passed_bytes, meter.reply_bytes, meter.gaps.counts, times, usage, self.events.error)


class Mixed(Side):
    """The same where C takes what it takes for plain tokens."""

    def __init__(self) -> None:
        super().__init__()
        assert BUILT is not None
        self.fast = BUILT.Stream(BUILT.Streams(GAP_EDGES_S), None, self.meter.gaps.counts)

    def take(self, read: bytes, now_s: float) -> bool:
        self.meter.hand_over(self.fast)
        count = self.fast.events_in(read) if self.events.at_chunk and not self.events.examines else 0
        if count <= 0 or not self.meter.needs_no_look(read):
            return super().take(read, now_s)
        self.fast.count(read, count, now_s)
        self.meter.take_back(self.fast)
        self.events.chunks_passed()
        return True


@settings(max_examples=60, deadline=None)
@given(
    form=st.sampled_from(FORMS),
    crlf=st.booleans(),
    reads=st.lists(
        st.tuples(
            st.lists(st.one_of(st.text(max_size=300), st.sampled_from(OTHERS)), min_size=1, max_size=3),
            st.floats(0.0, 12.0),
        ),
        max_size=12,
    ),
)
def test_what_passes_in_c_is_counted_as_in_python(
    form: dict[str, Any], crlf: bool, reads: list[tuple[list[str | bytes], float]]
) -> None:
    """Whatever else is in the stream: a read that C takes for plain tokens changes the same counts to the same."""

    def made(text: str) -> bytes:
        document = form | ({"delta": {"type": "text_delta", "text": text}} if "delta" in form else token(text))
        return event(document).replace(b"\n\n", b"\r\n\r\n") if crlf else event(document)

    python, mixed = Side(), Mixed()
    now_s = 1.0
    for side in (python, mixed):
        side.take(chunked(made("first")), now_s)
    for parts, gap_s in reads:
        now_s += gap_s
        read = chunked(*[made(part) if isinstance(part, str) else part for part in parts])
        python.take(read, now_s)
        mixed.take(read, now_s)
        assert mixed.state() == python.state()
        if python.events.error is not None:  # nothing after it is passed
            break


def stated(tokens: int) -> bytes:
    """A token of an engine that states usage with each."""
    return event(token("x") | {"usage": {"prompt_tokens": 3, "completion_tokens": tokens}})


@pytest.mark.parametrize(
    "events",
    [
        [stated(5), stated(9), stated(13), event(token("x" * 99)), event(token("y" * 99))],
        [event({"text_output": "a" * 99}), b"\n\n\n" + event({"text_output": "b" * 99})[6:]],
    ],
    ids=["usage with each token", "no known form"],
)
def test_what_the_meter_has_to_look_at_does_not_pass_in_c(events: list[bytes]) -> None:
    """Though it begins and ends as the first token does."""
    python, mixed = Side(), Mixed()
    for number, each in enumerate(events):
        for side in (python, mixed):
            side.take(chunked(each), float(number))
    assert mixed.state() == python.state()  # which looks for usage in the newest reads, so not after each


def framed(*pieces: bytes) -> Any:
    """A stream of the loop that has had its first token, and a read of these chunks."""
    side = Mixed()
    side.take(chunked(event(token("first"))), 1.0)
    side.meter.hand_over(side.fast)
    return side.fast.events_in(b"".join(pieces))


PLAIN = chunked(event(token("next")))


@pytest.mark.parametrize(
    ("read", "count"),
    [
        (PLAIN, 1),
        (PLAIN * 3, 3),
        (PLAIN.replace(b"\r\ndata", b";x=1\r\ndata", 1), -1),
        (b"0" + PLAIN, 1),
        (b"0x" + PLAIN, -1),
        (PLAIN[:-1], -1),
        (PLAIN[:-2] + b"xx", -1),
        (PLAIN + b"0\r\n\r\n", -1),
        (PLAIN + PLAIN[:9], -1),
        (b"\r\n" + PLAIN, -1),
        (b"ffffffffffffffff\r\n" + PLAIN, -1),
        (b"-1\r\n" + PLAIN, -1),
        (chunked(event(token("a"))[:50], event(token("a"))[50:]), 0),
        (chunked(event(token("a")) + event(token("b"))), 0),
        (PLAIN + chunked(b": ping\n\n"), 0),
        (chunked(event("[DONE]")), 0),
        (chunked(event(token("an error"))), 1),
        *((chunked(event(token("a"))) + chunked(event(token(word))), 0) for word in ("error", "failed", "complete")),
        (chunked(event(COUNTED)).replace(b"9}}", b"9}]") * 2, 0),
        (b"", -1),
    ],
)
def test_only_whole_chunks_of_one_event_each_pass(read: bytes, count: int) -> None:
    """Where the next chunk begins is certain then, for the parser that is not fed meanwhile."""
    assert framed(read) == (count if read else 0)


# -- on the wire -----------------------------------------------------------------------------------------------------


class Steps:
    """An engine's script that sends its pieces one at a time."""

    def __init__(self, *pieces: wire.Step) -> None:
        self.next = [asyncio.Event() for _ in pieces]
        self.script: list[wire.Step] = [wire.STREAM_HEAD + chunked(event(token("first")))]
        for go, piece in zip(self.next, pieces, strict=True):
            self.script += [go, piece]

    def go(self) -> None:
        """The next piece."""
        self.next.pop(0).set()


def attempt(gate: Gateway) -> UpstreamAttempt:
    """The one that is open."""
    (connection,) = gate.driver.upstreams["a"].open
    assert isinstance(connection.reader, UpstreamAttempt)
    return connection.reader


def on_it(gate: Gateway) -> bool:
    """Whether the one stream is on the fast path."""
    fast = attempt(gate)._fast
    return fast is not None and fast.here


async def asked(gate: Gateway, **body: Any) -> Client:
    """A client that has the first token."""
    client = await gate.client()
    client.send(chat(**body))
    await client.head()
    await got(client, "first")
    return client


async def got(client: Client, text: str) -> None:
    """It has the token of this text."""
    async with asyncio.timeout(wire.WITHIN_S):
        await client.reader.readuntil(json.dumps(token(text)).encode() + b"\n\n\r\n")


END = chunked(event("[DONE]")) + wire.LAST


async def test_tokens_take_it_and_the_end_does_not() -> None:
    """The transport reads no more meanwhile; afterwards the connection serves the next request."""
    steps = Steps(*[chunked(event(token(text))) for text in "abc"], END)
    async with pair(steps.script, [stream("x")]) as (gate, engine):
        client = await asked(gate)
        for text in "abc":
            steps.go()
            await got(client, text)
            assert on_it(gate)
            assert not next(iter(gate.driver.upstreams["a"].open)).transport.is_reading()
        steps.go()
        body, complete = await client._chunks()
        assert (body, complete) == (event("[DONE]"), True)
        outcome = gate.seen.outcomes[0]
        assert outcome.record.outcome is EndState.SERVED
        assert (outcome.record.usage.output_tokens, outcome.events) == (4, 5)
        assert sum(gate.driver.upstreams["a"].gaps.counts) == 3
        client.send(chat())
        assert (await client.reply()).events()[0] == json.dumps(token("x"))
        assert engine.connections == 1


async def test_without_a_descriptor_for_the_loop_tokens_pass_as_ever() -> None:
    """A later stream finds one."""
    steps, later = (Steps(chunked(event(token("a"))), END) for _ in range(2))
    async with pair(steps.script, later.script) as (gate, _):
        client = await asked(gate)
        bounds = resource.getrlimit(resource.RLIMIT_NOFILE)
        lowest_free = os.open(os.devnull, os.O_RDONLY)
        os.close(lowest_free)
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, bounds[1]))
        try:
            steps.go()
            await got(client, "a")
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, bounds)
        assert not on_it(gate)
        steps.go()
        assert (await client._chunks())[1]
        client.send(chat())
        await client.head()
        later.go()
        await got(client, "a")
        assert on_it(gate)
        later.go()
        assert (await client._chunks())[1]
        assert gate.seen.endings == [EndState.SERVED] * 2


async def test_usage_and_pings_pass_as_ever_and_tokens_take_it_again() -> None:
    """What is no plain token is looked at by Python."""
    usage = {"prompt_tokens": 7, "completion_tokens": 40}
    ping = chunked(b": ping\n\n")
    last = chunked(event({"id": "c", "choices": [], "usage": usage})) + END
    steps = Steps(*[chunked(event(token(text))) for text in "abcdefgh"], ping, chunked(event(token("i"))), last)
    async with pair(steps.script) as (gate, _):
        client = await asked(gate, stream_options={"include_usage": True})
        for text in "abcdefgh":
            steps.go()
            await got(client, text)
        steps.go()
        async with asyncio.timeout(wire.WITHIN_S):
            await client.reader.readuntil(ping)
        assert not on_it(gate)
        steps.go()
        await got(client, "i")
        assert on_it(gate)
        steps.go()
        assert (await client._chunks())[1]
        record = gate.seen.outcomes[0].record
        assert (record.usage.output_tokens, record.usage.prompt_tokens) == (40, 7)


async def test_a_read_that_ends_in_the_middle_of_an_event_waits_for_the_rest() -> None:
    """The whole event passes, and no byte is lost or comes twice."""
    whole = chunked(event(token("b")))
    steps = Steps(chunked(event(token("a"))), whole[:40], whole[40:] + chunked(event(token("c"))) + END)
    async with pair(steps.script) as (gate, _):
        client = await asked(gate)
        steps.go()
        await got(client, "a")
        steps.go()
        await until(lambda: not on_it(gate))
        steps.go()
        body, complete = await client._chunks()
        assert (body, complete) == (event(token("b")) + event(token("c")) + event("[DONE]"), True)


DIED = event({"error": {"message": "EngineCore died", "type": "InternalServerError", "code": 500}})


@pytest.mark.parametrize(
    ("last", "why"),
    [(chunked(DIED), "EngineCore died"), (Act.CLOSE, "closed"), (Act.RESET, "closed"), (wire.LAST, "ended the stream")],
    ids=["error", "close", "reset", "clean end"],
)
async def test_a_stream_that_breaks_there_breaks_as_ever(last: wire.Step, why: str) -> None:
    """An error event, and no ``[DONE]``."""
    steps = Steps(chunked(event(token("a"))), last)
    async with pair(steps.script) as (gate, _):
        client = await asked(gate)
        steps.go()
        await got(client, "a")
        assert on_it(gate)
        steps.go()
        body = await client.ended()
        assert why.encode() in body
        assert b"[DONE]" not in body
        assert gate.seen.endings == [EndState.BROKEN]


async def test_a_client_that_leaves_there_frees_the_engine_and_late_tokens_are_counted() -> None:
    """As from any other stream."""
    steps = Steps(chunked(event(token("a"))), Act.NOTICES, chunked(event(token("b")), event(token("c"))))
    async with pair([*steps.script, Act.CLOSE]) as (gate, _):
        client = await asked(gate)
        steps.go()
        await got(client, "a")
        assert on_it(gate)
        steps.go()
        steps.go()
        client.close()
        await until(lambda: gate.seen.late)
        record = gate.seen.outcomes[0].record
        assert (record.outcome, record.usage.output_tokens) == (EndState.LEFT, 2)
        assert gate.seen.late == [(record.request.id, "a", 2, True)]
        await until(lambda: not gate.driver.upstreams["a"].open)


async def test_a_client_that_reads_slowly_gets_every_byte_and_slows_the_engine() -> None:
    """What its socket does not take is the transport's to send, and the engine is not read meanwhile."""
    much = chunked(event(token("x" * 60_000)))
    count = 330
    steps = Steps(chunked(event(token("a"))), *[much] * count, END)
    async with pair(steps.script) as (gate, _):
        client = await asked(gate)
        steps.go()
        await got(client, "a")
        assert on_it(gate)
        client.writer.transport.pause_reading()  # type: ignore[attr-defined]
        while steps.next:
            steps.go()
        await until(lambda: attempt(gate).paused)
        assert not on_it(gate)
        client.writer.transport.resume_reading()  # type: ignore[attr-defined]
        body, complete = await client._chunks()
        assert complete
        assert body == event(token("x" * 60_000)) * count + event("[DONE]")
        assert gate.seen.endings == [EndState.SERVED]


async def test_a_stream_there_is_no_silent_one_and_a_silent_one_there_is_found() -> None:
    """The sweep reads when its last byte came where the loop keeps it."""
    now = [100.0]
    steps = Steps(chunked(event(token("a"))), chunked(event(token("b"))), Act.UNTIL_LEFT)
    async with pair(steps.script, clock=lambda: now[0], limits=StreamLimits(stall_s=5.0)) as (gate, engine):
        client = await asked(gate)
        for text in "ab":
            now[0] += 4.0
            steps.go()
            await got(client, text)
        steps.go()
        assert on_it(gate)
        assert (gate.driver.last_read_s("a"), attempt(gate).heard_s) == (108.0, 108.0)
        gate.driver.sweep(112.0)
        assert gate.core.in_flight == 1
        gate.driver.sweep(114.0)
        assert b"sent nothing for 6.0 s" in await client.ended()
        await until(lambda: engine.left == 1)


async def test_a_running_request_is_explained_with_its_counts_so_far() -> None:
    """They are the loop's until then; the next token takes the fast path again."""
    steps = Steps(*[chunked(event(token(text))) for text in "abcde"], END)
    async with pair(steps.script) as (gate, _):
        client = await asked(gate, stream=True)
        for text in "abcd":
            steps.go()
            await got(client, text)
        (request,) = gate.driver._in_flight
        (log,) = gate.driver.running(request)
        assert (log.record.usage.output_tokens, log.events) == (5, 5)
        assert not on_it(gate)
        steps.go()
        await got(client, "e")
        assert on_it(gate)
        steps.go()
        assert (await client._chunks())[1]
        assert gate.seen.outcomes[0].record.usage.output_tokens == 6


async def test_a_stream_whose_reads_are_seldom_plain_stays_with_the_event_loop() -> None:
    """To and fro would cost more than it saves."""
    several = chunked(event(token("b")) + event(token("c")))
    plain = chunked(event(token("a")))
    steps = Steps(*[plain, several] * 8, plain, END)
    async with pair(steps.script) as (gate, _):
        client = await asked(gate)
        for turn in range(9):
            steps.go()
            await got(client, "a")
            assert on_it(gate) is (turn < 8)
            if turn < 8:
                steps.go()
                async with asyncio.timeout(wire.WITHIN_S):
                    await client.reader.readuntil(several)
        steps.go()
        assert (await client._chunks())[1]
        assert gate.seen.outcomes[0].record.usage.output_tokens == 1 + 9 + 2 * 8


async def test_a_stream_that_states_usage_with_each_token_stays_with_the_event_loop() -> None:
    """Each statement is read, and may be the last one before the stream breaks."""
    steps = Steps(
        *[chunked(stated(5 * number)) for number in range(1, 10)], chunked(event(token("a" * 99))) * 2, Act.CLOSE
    )
    async with pair([wire.STREAM_HEAD + chunked(stated(1)), *steps.script[1:]]) as (gate, _):
        client = await gate.client()
        client.send(chat())
        await client.head()
        await client.reader.readuntil(b"}}\n\n\r\n")
        while len(steps.next) > 2:
            steps.go()
            async with asyncio.timeout(wire.WITHIN_S):
                await client.reader.readuntil(b"}}\n\n\r\n")
            assert not on_it(gate)
        fast = attempt(gate)._fast
        assert fast is not None
        assert not fast.pays
        steps.go()
        steps.go()
        await client.ended()
        assert gate.seen.outcomes[0].record.usage.output_tokens == 45


async def test_an_exception_while_one_is_returned_closes_its_connection(caplog: pytest.LogCaptureFixture) -> None:
    """As the event loop does it; those that are returned in the same turn are handled too."""
    steps = Steps(chunked(event(token("a"))), END)
    async with pair(steps.script) as (gate, engine):
        client = await asked(gate)
        steps.go()
        await got(client, "a")

        def fails(_: object) -> None:
            raise ZeroDivisionError

        gate.seen.ended = fails  # type: ignore[method-assign]
        steps.go()
        await until(lambda: engine.open == 0)
        assert "ZeroDivisionError" in caplog.text
