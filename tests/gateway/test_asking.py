"""Small pages read over real sockets, however an engine frames them."""

import asyncio

import pytest

from router.core.errors import Unanswered
from router.gateway.monitoring.probe import Page, ProbeClient
from tests.fakes_wire import LAST, Act, ScriptedEngine, chunked, reply
from tests.waiting import until

PLAIN = reply(b"page", content_type="text/plain")
CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + chunked(b"pa", b"ge") + LAST
BARE = b"HTTP/1.0 200 OK\r\n\r\npage"


async def test_pages_are_read_whatever_their_framing() -> None:
    """A length, chunks, or the end of the connection; path, query and key go out as given."""
    async with ScriptedEngine([PLAIN], [CHUNKED], [BARE, Act.CLOSE], [reply(b"no", 503)]) as engine:
        asker, url = ProbeClient(2.0), f"http://127.0.0.1:{engine.port}"
        for _ in range(3):
            assert await asker.get(f"{url}/a/metrics?x=1", "secret") == Page(200, b"page")
        assert engine.requests[0].startswith(b"GET /a/metrics?x=1 HTTP/1.1\r\n")
        assert b"authorization: Bearer secret\r\n" in engine.requests[0]
        refused = await asker.get(url)
        assert (refused.status, refused.is_success) == (503, False)
        assert engine.requests[-1].startswith(b"GET / HTTP/1.1\r\n")
        assert engine.connections == 2  # the first three shared one
        asker.close()


async def test_an_idle_connection_that_has_died_is_replaced_unseen() -> None:
    """vLLM closes them after five seconds."""
    async with ScriptedEngine([PLAIN], [Act.CLOSE], [PLAIN]) as engine:
        asker, url = ProbeClient(2.0), f"http://127.0.0.1:{engine.port}/"
        assert (await asker.get(url)).body == b"page"
        assert (await asker.get(url)).body == b"page"
        assert engine.connections == 2
        asker.close()


async def test_what_does_not_come_is_said_in_time_and_leaves_nothing_open() -> None:
    """Silence, a cut connection, a reply that is not HTTP, a closed port, an invalid URL."""
    silent = [Act.UNTIL_LEFT]
    async with ScriptedEngine(silent, [PLAIN[:-2], Act.CLOSE], [b"what\r\n\r\n"], [CHUNKED[:-9], Act.RESET]) as engine:
        asker, url = ProbeClient(0.2), f"http://127.0.0.1:{engine.port}/"
        with pytest.raises(Unanswered, match=r"no answer in 0\.2 s"):
            await asker.get(url)
        await until(lambda: engine.left == 1)
        asker = ProbeClient(5.0)
        for _ in range(3):
            with pytest.raises(Unanswered):
                await asker.get(url)
        await until(lambda: engine.open == 0)
        await engine.stop()
        with pytest.raises(Unanswered, match="cannot be reached"):
            await asker.get(url)
        with pytest.raises(Unanswered, match="expected http"):
            await asker.get("ftp://x/")
        asker.close()


async def test_one_who_asked_and_went_away_leaves_nothing_open() -> None:
    """A watch that ends in the middle of its question."""
    async with ScriptedEngine([Act.UNTIL_LEFT]) as engine:
        task = asyncio.create_task(ProbeClient(5.0).get(f"http://127.0.0.1:{engine.port}/"))
        await until(lambda: engine.requests != [])
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await until(lambda: engine.left == 1)
