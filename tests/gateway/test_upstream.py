"""A backend that changes its address while a connection to it is being opened."""

import asyncio
import json
import socket
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress

from router.core.flight import DispatchLimits
from router.engines.triton import KIND as TRITON
from router.gateway.protocols.target import Target
from router.gateway.traffic import keepalive
from router.gateway.traffic.upstream import PoolLimits
from tests.fakes_wire import Act, Gateway, ScriptedEngine, gateway, stream, token
from tests.waiting import until

PATIENT = PoolLimits(connect_s=300.0)


@contextmanager
def deaf() -> Iterator[Target]:
    """A port whose queue of connections is full: who dials it waits."""
    with closing(socket.socket()) as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(0)
        fillers = [socket.socket() for _ in range(4)]
        for filler in fillers:
            filler.setblocking(False)
            with suppress(BlockingIOError):
                filler.connect(listening.getsockname())
        yield Target("a", "127.0.0.1", listening.getsockname()[1])
        for filler in fillers:
            filler.close()


async def dialling(gate: Gateway) -> None:
    """Until the gateway waits for a connection."""
    await until(lambda: bool(gate.driver.upstreams["a"]._dials))


async def test_a_request_that_is_dialling_follows_its_backend_to_a_new_address() -> None:
    """Else it would wait for its first-byte deadline on a connection that is no longer opened."""
    with deaf() as old:
        async with ScriptedEngine([stream("a")]) as engine, gateway(old, pool=PATIENT) as gate:
            asked = asyncio.create_task(gate.chat())
            await dialling(gate)
            gate.driver.join(engine.target())
            reply = await asked
            assert reply.status == 200
            assert reply.body.endswith(b"data: [DONE]\n\n")
            assert gate.core.in_flight == 0


async def test_a_request_that_dials_again_follows_its_backend_too() -> None:
    """Its idle connection was closed by an engine that is gone: nothing answers at the old address any more."""
    async with (
        ScriptedEngine([stream("a")], [Act.UNTIL_LEFT]) as moved,
        ScriptedEngine([stream("b")]) as engine,
        gateway(moved.target(), pool=PATIENT) as gate,
    ):
        await gate.chat()
        upstream = gate.driver.upstreams["a"]
        (idle,) = upstream.open
        upstream._dialler = lambda *_: None  # no connection is refused and none is made
        asked = asyncio.create_task(gate.chat())
        await until(lambda: idle.reader is not None)
        idle.transport.abort()
        await until(lambda: not upstream.open)
        gate.driver.join(engine.target())
        assert (await asked).events()[0] == json.dumps(token("b"))


async def test_a_host_that_cannot_be_looked_up_is_a_failure_at_once() -> None:
    """The name is refused before any look-up, by another exception than a failed one. It counts against the backend."""
    async with gateway(Target("a", "a..b", 1)) as gate:
        for _ in range(4):
            answer = await gate.chat()
            assert answer.status == 503
            assert "'a..b' is no host name" in answer.json()["error"]["message"]
        assert gate.core.failures["a"].in_a_row > 0


async def test_a_host_without_an_address_is_left_to_others() -> None:
    """However many such there are: nothing was sent to them, so they count for no limit. They are ejected."""
    async with ScriptedEngine([stream("a")]) as engine:
        nameless = [Target(name, "nobody.invalid", 1) for name in "abcd"]
        async with gateway(*nameless, engine.target("e"), core_limits=DispatchLimits(attempts_max=1)) as gate:
            for _ in range(5):
                assert (await gate.chat()).status == 200
            assert {name for name, each in gate.core.failures.items() if each.in_a_row} == set("abcd")


async def test_a_request_that_is_dialling_fails_at_once_when_its_backend_changes_protocol() -> None:
    """What was made for one protocol cannot be sent in another; no backend is blamed."""
    with deaf() as old:
        async with ScriptedEngine([stream("a")]) as engine, gateway(old, pool=PATIENT) as gate:
            asked = asyncio.create_task(gate.chat())
            await dialling(gate)
            gate.driver.join(engine.target(engine=TRITON))
            assert (await asked).status == 502
            assert not engine.requests


async def test_a_request_that_is_dialling_fails_at_once_when_its_backend_is_removed() -> None:
    """Nothing is left of it, here or in the ledger."""
    with deaf() as old:
        async with gateway(old, pool=PATIENT) as gate:
            asked = asyncio.create_task(gate.chat())
            await dialling(gate)
            gate.driver.leave("a")
            assert (await asked).status >= 500
            assert gate.core.in_flight == 0


async def test_the_kernel_watches_over_engines_that_may_be_silent_for_minutes() -> None:
    """A host that lost its power ends a whole reply in half a minute, not at the reply's own limit."""
    async with ScriptedEngine([stream("a")]) as engine, gateway(engine.target()) as gate:
        assert (await gate.chat()).complete
        (connection,) = gate.driver.upstreams["a"].open
        connected = connection.transport.get_extra_info("socket")
        assert connected.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        assert connected.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == keepalive.IDLE_S
        assert connected.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL) == keepalive.INTERVAL_S
        assert connected.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT) == keepalive.PROBES
        waits_ms = connected.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)
        assert waits_ms == keepalive.UNACKNOWLEDGED_S * 1000


def test_a_connection_that_is_closed_already_is_no_error() -> None:
    """It ends by itself, as any does."""

    class Closed(asyncio.BaseTransport):
        def get_extra_info(self, name: str, default: object = None) -> socket.socket:
            made = socket.socket()
            made.close()
            return made

    keepalive.keep_alive(Closed())
