"""What the data plane costs in CPU: a token, a short request, a thousand streams' memory. `make bench` prints them.

The wire is in memory here, so the figures are the gateway's own Python and llhttp, without the kernel's share, and hold
on a noisy machine. Whole processes side by side with other gateways are measured by tests/bench/side_by_side.py.
"""

import asyncio
import gc
import tracemalloc
from collections.abc import Callable
from time import monotonic, process_time

import pytest

from tests.fakes_wire import LAST, STREAM_HEAD, Act, chat, chunked, event, pair, token
from tests.gateway.test_wire_fuzz import Bench

pytestmark = pytest.mark.benchmark

TOKEN = chunked(event(token(" token") | {"created": 1790000000, "model": "m", "usage": None}))
END = chunked(event("[DONE]")) + LAST


def us_each(count: int, act: Callable[[], None]) -> float:
    """CPU microseconds of one *act*: the best of five rounds."""
    gc.collect()
    gc.freeze()  # as the server does: what the test runner has loaded is not looked through again
    rounds = []
    for _ in range(5):
        began_s = process_time()
        for _ in range(count):
            act()
        rounds.append((process_time() - began_s) / count * 1e6)
    gc.unfreeze()
    return min(rounds)


async def test_a_token_costs_under_four_microseconds() -> None:
    """Counted, stamped, its gap in the histogram, and written on."""
    bench = Bench()
    bench.client.write = lambda data: None  # type: ignore[method-assign, assignment]
    bench.sends(chat())
    bench.answers(STREAM_HEAD + TOKEN)
    (connection,) = bench.busy()
    cost_us = us_each(20_000, lambda: connection.data_received(TOKEN))
    print(f"\na token: {cost_us:.2f} us")
    assert cost_us < 4.0
    bench.ends()


async def test_a_short_request_costs_what_it_costs() -> None:
    """Read, decided, sent, answered, accounted, with two kilobytes of prompt."""
    bench = Bench()
    request = chat(messages=[{"role": "user", "content": "hello world " * 160}])

    def one() -> None:
        bench.sends(request)
        bench.answers(STREAM_HEAD + TOKEN)
        bench.answers(END)
        bench.client.written = b""
        for connection in bench.upstream.open:
            connection.transport.written = b""  # type: ignore[attr-defined]

    one()
    cost_us = us_each(500, one)
    print(f"\na short request, round robin over one backend: {cost_us:.0f} us")
    assert cost_us < 200.0
    bench.ends()


async def test_a_stream_costs_under_twenty_kilobytes_of_python() -> None:
    """Exchange, attempt, both parsers and the core's books; sockets come on top."""
    benches = [Bench() for _ in range(200)]
    gc.collect()
    tracemalloc.start()
    for bench in benches:
        bench.sends(chat())
        bench.answers(STREAM_HEAD + TOKEN)
    gc.collect()
    held = tracemalloc.get_traced_memory()[0] / len(benches)
    tracemalloc.stop()
    print(f"\na stream: {held / 1024:.1f} KiB of Python objects")
    assert held < 20 * 1024
    for bench in benches:
        bench.ends()


async def test_an_engine_is_rid_of_a_client_that_left_within_fifty_milliseconds() -> None:
    """From the client's close to the engine's end of connection, over real sockets."""
    took_ms = []
    async with pair([STREAM_HEAD + TOKEN, Act.UNTIL_LEFT]) as (gate, engine):
        for number in range(1, 101):
            client = await gate.client()
            client.send(chat())
            await client.head()
            began_s = monotonic()
            client.reset()
            while engine.left < number:  # noqa: ASYNC110 - the moment itself is what is measured
                await asyncio.sleep(0)
            took_ms.append((monotonic() - began_s) * 1e3)
        assert gate.core.in_flight == 0
    took_ms.sort()
    print(
        f"\na client that leaves: its engine hears of it after p50 {took_ms[50]:.2f} and at most {took_ms[-1]:.2f} ms"
    )
    assert took_ms[-1] < 50.0
