"""A process without file descriptors left: its own failure, said once, and no engine's."""

import logging
import os
import resource
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from router.config.settings import Listen
from router.core.flight import FailureKind
from router.gateway import descriptors, serving
from router.gateway.monitoring.probe import ProbeClient
from router.gateway.traffic.client_connection import ConnectionLimits
from tests.fakes_wire import ScriptedEngine, chat, gateway, pair, reply
from tests.gateway.test_engines import Listener, watch
from tests.pages import Pages
from tests.waiting import until

LIMIT = resource.RLIMIT_NOFILE


@contextmanager
def none_left() -> Iterator[None]:
    """The process may open nothing more."""
    soft, hard = resource.getrlimit(LIMIT)
    free = os.open(os.devnull, os.O_RDONLY)
    os.close(free)
    resource.setrlimit(LIMIT, (free, hard))
    try:
        yield
    finally:
        resource.setrlimit(LIMIT, (soft, hard))


async def test_a_router_without_descriptors_answers_503_and_blames_no_engine(caplog: pytest.LogCaptureFixture) -> None:
    """On all backends, several times; the log says it once; then everything is as before."""
    async with (
        ScriptedEngine([reply(b"{}")]) as one,
        ScriptedEngine([reply(b"{}")]) as two,
        gateway(one.target("a"), two.target("b")) as gate,
    ):
        client = await gate.client()
        await until(lambda: gate.state.connections)
        with none_left(), caplog.at_level(logging.WARNING):
            for _ in range(5):
                client.send(chat(stream=False))
                got = await client.reply()
                assert (got.status, got.headers["x-headroom-dropped-reason"]) == (503, "router-exhausted")
                assert int(got.headers["retry-after"]) >= 1
                assert "Too many open files" in got.json()["error"]["message"]
        assert len([line for line in caplog.messages if "no file descriptor" in line]) == 1
        for failures in gate.core.failures.values():
            assert (failures.in_a_row, failures.ejections, failures.why) == (0, 0, "")
            assert failures.counts.keys() == {FailureKind.EXHAUSTED}
        client.send(chat(stream=False))
        assert (await client.reply()).status == 200


async def test_a_health_check_without_a_descriptor_says_nothing_of_the_engine() -> None:
    """It is up or down as before."""
    listener = Listener()
    async with Pages({"/health": (200, b"")}) as pages:
        checks = watch(pages, listener, down_after=1)
        with none_left():
            await checks.check()
        assert checks.health is None
        await checks.check()
        checks._client = ProbeClient(5.0)  # without an idle connection
        with none_left():
            await checks.check()
        assert checks.up
        assert len(listener.changes) == 1


async def test_clients_get_503_before_the_last_descriptors_are_taken() -> None:
    """Those are for connections to engines."""
    async with pair([reply(b"{}")], front_limits=ConnectionLimits(descriptor_max=0)) as (gate, _):
        got = await gate.ask(chat())
        assert (got.status, got.headers["retry-after"], got.headers["connection"]) == (503, "1", "close")
    assert descriptors.for_clients(16_000) == 15_000


def test_the_limit_is_raised_at_start_and_one_that_is_too_small_is_named(caplog: pytest.LogCaptureFixture) -> None:
    """With what it is for, what it must be and what to do."""
    soft, hard = resource.getrlimit(LIMIT)
    resource.setrlimit(LIMIT, (min(soft, 512), hard))
    try:
        limits = serving.connection_limits(Listen(connections_max=hard))
        assert resource.getrlimit(LIMIT)[0] > 512
    finally:
        resource.setrlimit(LIMIT, (soft, hard))
    assert limits.connections_max == hard
    assert limits.descriptor_max == descriptors.for_clients(min(hard, 2**20))
    (line,) = caplog.messages
    assert line.startswith(f"listen.connections_max: {hard} connections")
    assert str(2 * hard + 256) in line
    assert descriptors.shortage(1_000, 2_256) == ""


@pytest.mark.parametrize(
    ("error", "own"),
    [
        (OSError(24, "Too many open files"), True),
        (OSError(99, "Cannot assign requested address"), True),
        (OSError("Multiple exceptions: [Errno 24] Too many open files, [Errno 111] Connect call failed"), True),
        (ConnectionRefusedError(111, "refused"), False),
        (socket.gaierror(-3, "Temporary failure in name resolution"), False),
        (TimeoutError(), False),
        (None, False),
    ],
)
def test_which_errors_are_the_routers_own(error: Exception | None, own: bool) -> None:
    """A look-up that fails is so only while nothing can be opened."""
    assert descriptors.exhausted(error) is own
    with none_left():
        assert descriptors.exhausted(socket.gaierror(-3, "Temporary failure in name resolution"))
