"""A backend that changes its address while a connection to it is being opened."""

import asyncio
import socket
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress

from router.engines.triton import KIND as TRITON
from router.gateway.protocols.target import Target
from router.gateway.traffic.upstream import PoolLimits
from tests.fakes_wire import Gateway, ScriptedEngine, gateway, stream
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
