"""Bytes cut at every point and bytes that make no sense: no crash, no hang, nothing left in flight, nothing leaked.

The wire here is in memory, so that every read is exactly what the test says.
"""

import asyncio
import gc
import os
import random
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import pairwise
from typing import Any

import pytest
import uvicorn
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from uvicorn.server import ServerState

from router.core.decisions import EndState as Ending
from router.gateway.protocols.target import Target
from router.gateway.traffic.client_connection import ClientConnection, ConnectionLimits, client_connection
from router.gateway.traffic.driver import Driver
from router.gateway.traffic.http import dechunked
from router.gateway.traffic.upstream import Connection, Upstream
from tests import fakes
from tests import fakes_wire as wire
from tests.fakes_wire import Act, Seen, chat, chunked, event, pair, post, reply, stream, token
from tests.waiting import until


class MemoryTransport(asyncio.Transport):
    """Keeps what was written, and says whether it was closed."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.closed = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        assert not self.closed, "written after the end"
        self.written += bytes(data)

    def writelines(self, data: Any) -> None:
        self.write(b"".join(data))

    def write_eof(self) -> None:
        pass

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.closed = True

    def can_write_eof(self) -> bool:
        return True

    def is_reading(self) -> bool:
        return True

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass


def leads_nowhere(upstream: Upstream, ready: Callable[[Connection], None], _: Callable[[str], None]) -> None:
    """Opens a connection to the test."""
    connection = Connection(upstream)
    connection.connection_made(MemoryTransport())
    ready(connection)


class Bench:
    """One client connection of a gateway whose engines are the test itself."""

    def __init__(self) -> None:
        core = fakes.core(fakes.backend("a"), routing="round_robin")
        self.seen = Seen()
        self.driver = Driver(core, [], self.seen)
        self.upstream = Upstream(Target("a", "engine", 80), self.driver.clock)
        self.upstream._dialler = (
            leads_nowhere  # not as given to it, which would be a proxy's, whose connections serve once
        )
        self.driver._upstreams["a"] = self.upstream
        protocol = client_connection(self.driver, ConnectionLimits())
        config = uvicorn.Config(wire.app, http=protocol, ws="none", lifespan="off", log_config=None)
        config.load()
        self.client = MemoryTransport()
        self.client_connection: ClientConnection = protocol(config=config, server_state=ServerState(), app_state={})
        self.client_connection.connection_made(self.client)
        self.lost = False

    def sends(self, data: bytes) -> None:
        """The client's next read."""
        if not self.client.closed:
            self.client_connection.data_received(data)

    def busy(self) -> list[Connection]:
        """Connections with a request on them."""
        return [each for each in self.upstream.open if each.reader is not None and not each.transport.is_closing()]

    def answers(self, data: bytes) -> None:
        """The engine's next read, on the one busy connection."""
        for connection in self.busy()[:1]:
            connection.data_received(data)
            if connection.transport.is_closing():
                connection.connection_lost(None)

    def ends(self) -> None:
        """Everybody goes."""
        if not self.lost:
            self.lost = True
            self.client_connection.connection_lost(None)
        for connection in list(self.upstream.open):
            connection.connection_lost(None)
        assert self.driver.core.in_flight == 0
        assert not self.driver._in_flight
        self.driver.stop()


def cuts(data: bytes) -> Iterator[list[bytes]]:
    """*data* cut once at every point, and into single bytes."""
    yield from ([data[:at], data[at:]] for at in range(1, len(data)))
    yield [data[at : at + 1] for at in range(len(data))]


def bodies(written: bytes) -> list[bytes]:
    """The bodies of chunked and counted answers, in order."""
    found = []
    while written:
        head, _, rest = written.partition(b"\r\n\r\n")
        if b"transfer-encoding: chunked" in head:
            end = rest.index(b"0\r\n\r\n") + 5
            found.append(dechunked(rest[:end]))
        else:
            end = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
            found.append(rest[:end])
        written = rest[end:]
    return found


REQUESTS = (
    chat(stream=False)
    + b"POST /v1/completions HTTP/1.1\r\nhost: g\r\ntransfer-encoding: chunked\r\n\r\n"
    + chunked(b'{"model":"m",', b'"prompt":"x"}')
    + b"0\r\nx-trailer: 1\r\n\r\n"
    + post("/v1/chat/completions", b"{")
)


async def test_requests_cut_at_every_point_are_the_same_requests() -> None:
    """Pipelined, chunked, with a bad one last."""
    for pieces in cuts(REQUESTS):
        bench = Bench()
        for piece in pieces:
            bench.sends(piece)
        for _ in range(2):
            bench.answers(reply(b'{"ok":1}'))
        assert [each[:9] for each in bodies(bench.client.written)] == [b'{"ok":1}', b'{"ok":1}', b'{"error":']
        assert bench.seen.endings == [Ending.SERVED] * 2
        bench.ends()


ANSWERS = {
    "stream": stream("a", "b", usage={"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}),
    "interim": b"HTTP/1.1 100 Continue\r\n\r\n" + reply(b'{"usage":{"completion_tokens":2}}'),
    "chunked": b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n"
    + chunked(b'{"usage":', b'{"completion_tokens":2}}')
    + b"0\r\n\r\n",
}


@pytest.mark.parametrize("name", ANSWERS)
async def test_answers_cut_at_every_point_are_the_same_answers(name: str) -> None:
    """To the client, to the core, and to the pool, which gets its connection back."""
    whole = ANSWERS[name]
    expected: list[bytes] = []
    for pieces in [[whole], *cuts(whole)]:
        bench = Bench()
        bench.sends(chat(stream=name == "stream"))
        for piece in pieces:
            bench.answers(piece)
        expected = expected or bodies(bench.client.written)
        assert bodies(bench.client.written) == expected
        assert bench.seen.endings == [Ending.SERVED]
        assert bench.seen.outcomes[0].record.usage.output_tokens == 2
        assert not bench.busy()
        assert bench.upstream.take() is not None
        bench.ends()


ERROR = event({"error": {"message": "died", "code": 500}})
BROKEN = wire.STREAM_HEAD + chunked(event(token("a")), event(token("b")), ERROR, event("[DONE]")) + wire.LAST


async def test_an_error_in_mid_stream_never_ends_in_done_however_it_is_cut() -> None:
    """Either an error event and a clean frame, or no end at all."""
    for pieces in cuts(BROKEN):
        bench = Bench()
        bench.sends(chat())
        for piece in pieces:
            bench.answers(piece)
        assert b"[DONE]" not in bench.client.written
        assert bench.client.closed
        if bench.client.written.endswith(wire.LAST):
            assert b"died" in bodies(bench.client.written)[0]
        assert bench.seen.endings in ([Ending.BROKEN], [Ending.REFUSED])
        bench.ends()


async def test_a_stream_that_is_cut_anywhere_never_ends_in_done() -> None:
    """The connection dies after any byte: retried, refused or failed in mid-stream, but never a clean end."""
    whole = stream("a", "b")
    for at in range(len(whole)):
        bench = Bench()
        bench.sends(chat())
        if at:
            bench.answers(whole[:at])
        for connection in bench.busy():
            connection.connection_lost(None)
        assert not bench.client.written.endswith(b"[DONE]\n\n\r\n0\r\n\r\n")
        assert bench.seen.endings in ([Ending.BROKEN], [Ending.REFUSED])
        bench.ends()


def mangled(whole: bytes, edits: list[tuple[int, int, bytes]]) -> bytes:
    """*whole* with a few stretches replaced."""
    for at, length, new in edits:
        place = at % (len(whole) + 1)
        whole = whole[:place] + new + whole[place + length :]
    return whole


BYTES = st.binary(max_size=4) | st.sampled_from(
    [b"\r\n", b"\r\n\r\n", b"\n\n", b"0\r\n\r\n", b"data: ", b"\0", b":", b"ffffffffff"]
)
EDITS = st.lists(st.tuples(st.integers(0, 3000), st.integers(0, 5), BYTES), min_size=1, max_size=4)
PLACES = st.lists(st.integers(0, 3000), max_size=5)
FUZZ = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def cut_at(data: bytes, at: list[int]) -> list[bytes]:
    """*data* in pieces."""
    if not data:
        return []
    places = [0, *sorted({place % len(data) for place in at} - {0}), len(data)]
    return [data[a:b] for a, b in pairwise(places)]


@FUZZ
@given(edits=EDITS, places=PLACES)
async def test_mangled_requests_hurt_nobody(edits: list[tuple[int, int, bytes]], places: list[int]) -> None:
    """Refused, or waited for, or served; and all of it over when the client is."""
    bench = Bench()
    for piece in cut_at(mangled(REQUESTS + chat(), edits), places):
        bench.sends(piece)
        bench.answers(stream("a"))
    bench.answers(stream("a"))
    bench.ends()


@FUZZ
@given(edits=EDITS, places=PLACES, name=st.sampled_from(sorted(ANSWERS)), old=st.booleans())
@example(edits=[(1435, 5, b"\r\n")], places=[], name="interim", old=False)  # an end of a head that is none for llhttp
async def test_mangled_answers_hurt_nobody(
    edits: list[tuple[int, int, bytes]], places: list[int], name: str, old: bool
) -> None:
    """The request ends exactly once, and the next one on the connection is served or it is closed."""
    bench = Bench()
    bench.sends(chat(version="1.0" if old else "1.1"))
    for piece in cut_at(mangled(ANSWERS[name], edits), places):
        bench.answers(piece)
    for connection in bench.busy():
        connection.connection_lost(None)
    assert len(bench.seen.outcomes) == 1
    bench.ends()


def sockets() -> int:
    """Open sockets of this process."""
    found = 0
    for descriptor in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):
            found += os.readlink(f"/proc/self/fd/{descriptor}").startswith("socket:")
    return found


async def test_clients_that_leave_at_random_leak_nothing() -> None:
    """In flight back to zero, descriptors back to the start."""
    chance = random.Random(5)
    before = sockets()
    slow = [wire.STREAM_HEAD, *[chunked(event(token("x" * 900)))] * 20, chunked(event("[DONE]")) + wire.LAST]
    scripts: list[wire.Script] = [slow, [stream("a")], [Act.RESET], [reply(b'{"error":{}}', 500)], [slow[0], Act.CLOSE]]
    mixed = [chance.choice(scripts) for _ in range(400)]
    async with pair(*mixed, slow) as (gate, engine):

        async def visit() -> None:
            client = await gate.client()
            for _ in range(chance.randrange(1, 4)):
                request = chat(stream=chance.random() < 0.7)
                client.send(request if chance.random() < 0.8 else request[: chance.randrange(len(request))])
                if chance.random() < 0.5:
                    with suppress(TimeoutError, ConnectionError):
                        async with asyncio.timeout(0.05):
                            await client.reader.read(chance.randrange(1, 5000))
            client.reset() if chance.random() < 0.5 else client.close()

        for _ in range(10):
            await asyncio.gather(*(visit() for _ in range(20)))
        await until(lambda: gate.core.in_flight == 0 and not gate.state.connections)
        assert not gate.driver._in_flight
        assert len(gate.seen.outcomes) == len({outcome.record.request.id for outcome in gate.seen.outcomes})
        for upstream in gate.driver.upstreams.values():  # what an engine sends after an abort is read for a moment
            await until(lambda: all(connection.reader is None for connection in upstream.open))  # noqa: B023
        await engine.stop()
    gc.collect()
    await until(lambda: sockets() <= before)
