"""A load client for live measurements: streamed chats at fixed times or a fixed number at once, timed at the socket.

It stands on the cores of whatever serves, beside the gateway, so it does as little as it can: no parser, one connection
per stream that is open. What a reply held is the engine's own count (``usage``).
"""

import asyncio
import json
import re
import sysconfig
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from math import log, nan
from pathlib import Path
from random import Random
from time import monotonic

END = b"0\r\n\r\n"
COUNTED = re.compile(rb'"prompt_tokens":(\d+),"total_tokens":\d+,"completion_tokens":(\d+)')
BACKEND = re.compile(rb"x-headroom-backend: ([^\r]+)")
JOIN_EVERY_S = 0.3
CHARS_PER_TOKEN = 3.4  # of the tiny models' tokenizer, on the text it was made from


@dataclass(frozen=True, slots=True)
class Ask:
    """One request. ``session`` names it in the gateway's record; ``at_s``: seconds into an open loop; ``fixed``: the
    reply has exactly ``max_tokens``, else it ends when the model says so, there at the latest.
    """

    session: str
    prompt: str
    max_tokens: int
    fixed: bool = False
    at_s: float = 0.0
    model: str = "tiny"
    slo_class: str = ""

    def wire(self) -> bytes:
        """Head and body."""
        messages = [{"role": "user", "content": self.prompt}]
        body = {"model": self.model, "messages": messages, "max_tokens": self.max_tokens, "ignore_eos": self.fixed}
        data = json.dumps(body | {"stream": True, "stream_options": {"include_usage": True}}).encode()
        slo_class = f"x-slo-class: {self.slo_class}\r\n" if self.slo_class else ""
        head = f"host: g\r\ncontent-type: application/json\r\nx-session-id: {self.session}\r\n{slo_class}"
        return f"POST /v1/chat/completions HTTP/1.1\r\n{head}content-length: {len(data)}\r\n\r\n".encode() + data


@dataclass(slots=True)
class Seen:
    """How one went. Seconds on the clock that the gateway has too; ``tokens`` 0: it was refused or cut."""

    ask: Ask
    at_once: int
    sent_s: float = nan
    first_s: float = nan
    ended_s: float = nan
    status: int = 0
    backend: str = ""
    prompt_tokens: int = 0
    tokens: int = 0

    @property
    def ttft_s(self) -> float:
        """Send to first token."""
        return self.first_s - self.sent_s

    @property
    def e2e_s(self) -> float:
        """Send to last token."""
        return self.ended_s - self.sent_s

    @property
    def tpot_s(self) -> float:
        """Mean time per token after the first (nan: there was one at most)."""
        return (self.ended_s - self.first_s) / (self.tokens - 1) if self.tokens > 1 else nan


class _Stream(asyncio.Protocol):
    """One connection, one request after another."""

    def __init__(self) -> None:
        self.seen: Seen | None = None
        self.done: asyncio.Future[None] | None = None
        self._tail = b""
        self._head = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: asyncio.Transport = transport  # type: ignore[assignment]

    def ask(self, seen: Seen) -> asyncio.Future[None]:
        """Send it; the answer is done when the reply is."""
        self.seen, self._tail, self._head = seen, b"", b""
        self.done = asyncio.get_running_loop().create_future()
        seen.sent_s = monotonic()
        self.transport.write(seen.ask.wire())
        return self.done

    def data_received(self, data: bytes) -> None:
        seen, now_s = self.seen, monotonic()
        if seen is None:
            return
        if not seen.status:
            self._head += data
            if b"\r\n\r\n" not in self._head:
                return
            seen.status = int(self._head[9:12])
            named = BACKEND.search(self._head)
            seen.backend = named[1].decode() if named else ""
        if seen.first_s != seen.first_s:
            seen.first_s = now_s
        self._tail = (self._tail + data)[-2048:]
        whole = self._tail.endswith(END) if seen.status == 200 else True
        if whole:
            self._over(seen, now_s)

    def _over(self, seen: Seen, now_s: float) -> None:
        seen.ended_s = now_s
        counted = COUNTED.search(self._tail)
        if counted and b"[DONE]" in self._tail:
            seen.prompt_tokens, seen.tokens = int(counted[1]), int(counted[2])
        self._settle()

    def connection_lost(self, exc: Exception | None) -> None:
        self._settle()

    def _settle(self) -> None:
        self.seen = None
        if self.done is not None and not self.done.done():
            self.done.set_result(None)


async def _connected(port: int) -> _Stream:
    _, stream = await asyncio.get_running_loop().create_connection(_Stream, "127.0.0.1", port)
    return stream


async def closed_loop(port: int, steps: Sequence[tuple[int, Sequence[Ask]]]) -> list[Seen]:
    """So many at once, each asked as soon as one before it is over, step by step to more; in the order of asking.

    Those who join in a step come one by one, as users do: together they would all meet in one step of the engine.
    """
    seen: list[Seen] = []
    left = iter([(at_once, ask) for at_once, asks in steps for ask in asks])

    async def user(stack: asyncio.TaskGroup, place: int) -> None:
        stream = await _connected(port)
        for at_once, ask in left:
            if place + 1 < at_once and place + 1 == len(joined):
                joined.append(stack.create_task(_later(user(stack, place + 1))))
            seen.append(Seen(ask, at_once))
            if stream.transport.is_closing():
                stream = await _connected(port)
            await stream.ask(seen[-1])
        stream.transport.close()

    async with asyncio.TaskGroup() as stack:
        joined: list[object] = [stack.create_task(user(stack, 0))]
    return seen


async def _later(begin: Coroutine[None, None, None]) -> None:
    await asyncio.sleep(JOIN_EVERY_S)
    await begin


async def open_loop(port: int, asks: Sequence[Ask]) -> list[Seen]:
    """Each in its time, whatever became of those before it."""
    loop, free, seen = asyncio.get_running_loop(), list[_Stream](), [Seen(ask, 0) for ask in asks]
    zero_s = loop.time() + 0.1

    async def one(each: Seen) -> None:
        await asyncio.sleep(max(0.0, zero_s + each.ask.at_s - loop.time()))
        while free and free[-1].transport.is_closing():
            free.pop()
        stream = free.pop() if free else await _connected(port)
        await stream.ask(each)
        free.append(stream)

    await asyncio.gather(*map(one, seen))
    for stream in free:
        stream.transport.close()
    return seen


class Talk:
    """Prompts cut from Python's own library, every one from another place, and replies of varied length."""

    def __init__(self, seed: int, prompt_tokens: float = 120.0, reply_tokens: float = 70.0, longest: int = 300) -> None:
        """Medians, and the longest reply that is asked for; both vary by a factor of about two either way."""
        files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
        self._text = "".join(file.read_text(encoding="utf-8", errors="replace") for file in files)
        self._chance = Random(seed)
        self._prompt, self._reply, self._longest = prompt_tokens, reply_tokens, longest

    def prompt(self) -> str:
        """Between 8 and 1,000 tokens or so."""
        tokens = min(1_000.0, max(8.0, self._chance.lognormvariate(log(self._prompt), 0.8)))
        at = self._chance.randrange(len(self._text) - 8_000)
        return self._text[at : at + int(tokens * CHARS_PER_TOKEN)]

    def reply_tokens(self) -> int:
        """Between 8 and the longest."""
        return int(min(self._longest, max(8.0, self._chance.lognormvariate(log(self._reply), 0.7))))
