"""The load client of the live measurements, against a server that counts who is there."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from tests import streams
from tests.streams import Ask, closed_loop, open_loop

HEAD = b"HTTP/1.1 200 OK\r\nx-headroom-backend: b\r\ntransfer-encoding: chunked\r\n\r\n"
USAGE = b'data: {"usage":{"prompt_tokens":9,"total_tokens":14,"completion_tokens":5}}\n\n'


class Server:
    """Answers each request with a first token, a pause, and the usage; knows how many it has had at once."""

    def __init__(self) -> None:
        self.here = self.most = 0
        self.most_by_step: dict[str, int] = {}
        self._visits: list[asyncio.Task[None]] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, to its end."""
        while head := await reader.readuntil(b"\r\n\r\n") if not reader.at_eof() else b"":
            length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
            step = json.loads(await reader.readexactly(length))["messages"][0]["content"]
            self.here += 1
            self.most_by_step[step] = max(self.most_by_step.get(step, 0), self.here)
            await asyncio.sleep(0.005)
            writer.write(HEAD + self.chunk(b'data: {"choices":[]}\n\n'))
            await asyncio.sleep(0.005)
            writer.write(self.chunk(USAGE) + self.chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n")
            self.here -= 1

    @staticmethod
    def chunk(data: bytes) -> bytes:
        """One chunk."""
        return b"%x\r\n%b\r\n" % (len(data), data)

    @asynccontextmanager
    async def started(self) -> AsyncIterator[int]:
        """Listening on a port; over when all who came have gone."""
        server = await asyncio.start_server(self._visit, "127.0.0.1", 0)
        async with server:
            yield int(server.sockets[0].getsockname()[1])
            await asyncio.gather(*self._visits)

    async def _visit(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._visits.append(task)
        with suppress(asyncio.IncompleteReadError):
            await self.serve(reader, writer)
        writer.close()
        await writer.wait_closed()


async def test_a_closed_loop_steps_up_to_as_many_as_it_is_told(monkeypatch) -> None:
    """Never more than the step allows, and in the end as many; every stream timed and counted."""
    monkeypatch.setattr(streams, "JOIN_EVERY_S", 0.001)
    counted = Server()
    steps = [(at_once, [Ask(f"{at_once}-{n}", str(at_once), 5) for n in range(30)]) for at_once in (1, 3, 6)]
    async with counted.started() as port:
        seen = await closed_loop(port, steps)
    assert [each.at_once for each in seen] == [1] * 30 + [3] * 30 + [6] * 30
    assert counted.most_by_step == {"1": 1, "3": 3, "6": 6}
    assert all((each.status, each.backend, each.prompt_tokens, each.tokens) == (200, "b", 9, 5) for each in seen)
    assert all(0.0 < each.ttft_s < each.e2e_s for each in seen)
    assert all(each.tpot_s == (each.ended_s - each.first_s) / 4 for each in seen)


async def test_an_open_loop_asks_in_time_whatever_becomes_of_those_before() -> None:
    """Twenty within 2 ms are there together, though each takes 10."""
    counted = Server()
    async with counted.started() as port:
        seen = await open_loop(port, [Ask(str(n), "open", 5, at_s=n * 1e-4) for n in range(20)])
    assert all(each.tokens == 5 for each in seen)
    assert counted.most_by_step["open"] > 5
