"""After a pause of our own process nobody is blamed before the reads that wait in the sockets are done.

The clock of these gateways stands until a test moves it: a jump is what the process sees of having been stopped.
"""

import asyncio
import logging
from collections.abc import Callable

import pytest

from router.core.columns import EJECTED
from router.core.decisions import EndState
from router.core.errors import DownReason, Unanswered
from router.core.flight import DispatchLimits
from router.gateway.monitoring.probe import ProbeClient
from router.gateway.pauses import CATCH_UP_S, PAUSE_S, paused_s
from router.gateway.protocols.target import Target
from router.gateway.traffic.driver import StreamLimits
from router.gateway.traffic.upstream import PoolLimits, Upstream
from tests import fakes_wire as wire
from tests.fakes_wire import Act, ScriptedEngine, chunked, event, gateway, stream, token
from tests.waiting import until

ONE_FAULT = DispatchLimits(failures_max=1, first_byte_s_max=0.05)


class Clock:
    """Stands still until it is moved."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def noticed(caplog: pytest.LogCaptureFixture) -> Callable[[], bool]:
    """Whether a pause has been noticed."""
    caplog.set_level(logging.WARNING, "headroom")
    return lambda: "this process stood still" in caplog.text


def test_a_timer_that_is_late_by_far_shows_a_pause() -> None:
    """A loaded loop does not."""
    assert [paused_s(10.0, now_s) for now_s in (10.0, 10.0 + PAUSE_S, 13.0)] == [0.0, 0.0, 3.0]


async def test_a_stream_is_no_frozen_one_because_we_were(noticed: Callable[[], bool]) -> None:
    """The sweep after the pause judges nothing, the next one by what was read since."""
    clock, more = Clock(), asyncio.Event()
    first = wire.STREAM_HEAD + chunked(event(token("a")))
    script = [first, more, chunked(event(token("b")), event("[DONE]")) + wire.LAST]
    limits = StreamLimits(stall_s=60.0, sweep_s=0.01)
    async with (
        ScriptedEngine(script) as engine,
        gateway(engine.target(), core_limits=ONE_FAULT, clock=clock, limits=limits) as gate,
    ):
        gate.driver.start()
        client = await gate.client()
        client.send(wire.chat())
        await client.head()
        clock.now_s += 1000.0
        await until(noticed)
        swept: list[float] = []
        gate.driver.on_sweep.append(swept.append)
        await until(lambda: len(swept) > 1)
        more.set()
        assert b"[DONE]" in await client.reader.readuntil(b"0\r\n\r\n")
        await until(lambda: gate.seen.endings == [EndState.SERVED])
        assert not gate.core.ledger.table.columns[EJECTED].any()
        gate.driver.stop()


async def test_a_stream_that_stays_silent_after_a_pause_has_stalled(noticed: Callable[[], bool]) -> None:
    """For as long as any other: the pause does not count, what passes after it does."""
    clock, swept = Clock(), list[float]()
    script = [wire.STREAM_HEAD + chunked(event(token("a"))), Act.UNTIL_LEFT]
    async with (
        ScriptedEngine(script) as engine,
        gateway(engine.target(), clock=clock, limits=StreamLimits(stall_s=9.5, sweep_s=0.01)) as gate,
    ):
        gate.driver.start()
        gate.driver.on_sweep.append(swept.append)
        client = await gate.client()
        client.send(wire.chat())
        await client.head()
        clock.now_s += 1000.0
        await until(noticed)
        for step in range(12):
            assert bool(gate.seen.endings) == (step > 10)
            count = len(swept)
            clock.now_s += 0.9
            await until(lambda seen=count: len(swept) > seen + 1)
        assert gate.seen.endings == [EndState.BROKEN]
        gate.driver.stop()


async def test_a_first_byte_is_not_late_because_we_were(noticed: Callable[[], bool]) -> None:
    """The deadline moves on by the pause; after it the engine is as late as any."""
    clock, more = Clock(), asyncio.Event()
    async with (
        ScriptedEngine([more, stream("a")]) as engine,
        ScriptedEngine([stream("b")]) as other,
        gateway(engine.target("a"), other.target("b"), core_limits=ONE_FAULT, clock=clock) as gate,
    ):
        asking = asyncio.create_task(gate.chat())
        await until(lambda: bool(engine.requests))
        clock.now_s += 1000.0
        await until(noticed)
        more.set()
        assert (await asking).headers["x-headroom-backend"] == "a"
        assert not gate.core.ledger.table.columns[EJECTED].any()


async def test_who_stays_silent_after_a_pause_is_late(noticed: Callable[[], bool]) -> None:
    """A pause is an excuse once, and for its own length."""
    clock = Clock()
    async with (
        ScriptedEngine([Act.UNTIL_LEFT]) as silent,
        ScriptedEngine([stream("b")]) as other,
        gateway(silent.target("a"), other.target("b"), core_limits=ONE_FAULT, clock=clock) as gate,
    ):
        asking = asyncio.create_task(gate.chat())
        await until(lambda: bool(silent.requests))
        clock.now_s += 1000.0
        await until(noticed)
        clock.now_s += CATCH_UP_S + 0.1
        assert (await asking).headers["x-headroom-backend"] == "b"


async def test_a_client_is_not_slow_because_we_were(noticed: Callable[[], bool]) -> None:
    """The rest of its request lay there unread: no 408."""
    clock, half = Clock(), len(wire.chat()) // 2
    async with (
        ScriptedEngine([stream("a")]) as engine,
        gateway(engine.target(), clock=clock, limits=StreamLimits(sweep_s=0.01)) as gate,
    ):
        gate.driver.start()
        client = await gate.client()
        client.send(wire.chat()[:half])
        await until(lambda: any(connection._waiting for connection in gate.state.connections))
        clock.now_s += 1000.0
        await until(noticed)
        for connection in list(gate.state.connections):
            connection.swept(clock())
        client.send(wire.chat()[half:])
        assert (await client.reply()).status == 200
        gate.driver.stop()


async def test_a_connection_has_its_time_again_after_a_pause() -> None:
    """It may have been accepted long ago. Here the first is silent in its TLS handshake, the second is closed."""
    clock, accepted = Clock(), 0
    failed: asyncio.Queue[str] = asyncio.Queue()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal accepted
        accepted += 1
        if accepted == 1:
            clock.now_s += 1000.0
            await reader.read()
        writer.close()

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    upstream = Upstream(Target("a", "127.0.0.1", port, tls=True), clock, PoolLimits(connect_s=0.05))
    upstream.dial(lambda _: None, failed.put_nowait)
    assert "did not accept" not in await failed.get()
    assert accepted == 2
    server.close()


@pytest.mark.parametrize("still_s", [0.0, 1000.0])
async def test_a_health_check_is_repeated_after_a_pause(still_s: float) -> None:
    """Its answer lay there unread; without a pause it is too late."""
    clock = Clock()
    async with ScriptedEngine([Act.UNTIL_LEFT], [wire.reply(b"fine")]) as engine:
        client = ProbeClient(0.05, clock)
        asking = asyncio.create_task(client.get(f"http://127.0.0.1:{engine.port}/health"))
        await until(lambda: bool(engine.requests))
        clock.now_s += still_s
        if still_s:
            assert (await asking).body == b"fine"
        else:
            with pytest.raises(Unanswered) as late:
                await asking
            assert late.value.reason is DownReason.TIMEOUT
        client.close()
