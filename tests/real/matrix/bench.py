"""One engine's endpoint behind the gateway, a relay between them: sends a request, gathers what each side saw of it."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from math import nan
from pathlib import Path
from time import monotonic
from typing import Any, Protocol, TypeVar
from uuid import uuid4

import httpx

from tests.real.matrix.frames import GENERATE, Dialect, Piece, Reply, frames
from tests.real.matrix.relay import Exchange, Relay
from tests.real.matrix.under_test import PROMPT, EngineUnderTest
from tests.real.world import Gateway, samples_sum

WITHIN_S = 10.0  # for what follows by itself: a gauge that is scraped, a sequence that is freed
TOKENS = 40
CLOSE = {"connection": "close"}  # a kept connection may be closed by the other side just when it is used again
T = TypeVar("T")


class BenchError(Exception):
    """What a check needs could not be set up, so that it measures nothing; the message says what."""


class Stage(Protocol):
    """Where the engine runs."""

    home: Path

    def kill(self, word: str) -> None:
        """Kill those of its processes that have *word* in their command."""

    def start(self, engine: EngineUnderTest) -> None:
        """Have it run, as new where one of its processes has ended."""


@dataclass(frozen=True, slots=True)
class Seen:
    """One request through the gateway: what its client saw, what passed between gateway and engine, what /explain says.

    ``engine``: the reply as the engine sent it, None when no request reached it; ``sent_s``: when the client sent its.
    """

    sent_s: float
    client: Reply
    body: bytes
    engine: Reply | None
    exchange: Exchange | None
    explained: dict[str, Any]

    @property
    def output_tokens(self) -> int:
        """What the gateway counted."""
        return int(self.explained["output_tokens"])

    def actual_s(self, name: str) -> float:
        """A measured time of /explain; nan where there is none."""
        value = self.explained["actual"].get(name)
        return nan if value is None else value / 1e3


class Bench:
    """The gateway, its engine and the relay between them."""

    def __init__(
        self,
        under_test: EngineUnderTest,
        dialect: Dialect,
        gateway: Gateway,
        relay: Relay,
        client: httpx.AsyncClient,
        stage: Stage,
    ) -> None:
        """All of them run. *client* is there already: to make one takes longer than a first token."""
        self.client, self.stage = client, stage
        self.under_test, self.dialect, self.gateway, self.relay = under_test, dialect, gateway, relay
        self.engine_dialect = GENERATE if under_test.backend.get("protocol") == "triton" else dialect
        front = under_test.front
        self.url = f"http://127.0.0.1:{front(gateway.port).ports[0]}" if front else gateway.url
        key = under_test.backend.get("api_key")
        self._key = {"authorization": f"Bearer {key}"} if key else {}  # for a plain client; the gateway has its own
        self.engine_path = self.engine_dialect.path.format(model=under_test.engine_model)

    def body(self, prompt: str = PROMPT, tokens: int = TOKENS, *, usage: bool = False) -> dict[str, Any]:
        """A request of this endpoint."""
        asked = {"stream_options": {"include_usage": True}} if usage else {}
        body = self.dialect.body(self.under_test.model, prompt, tokens) | asked | self.under_test.asked
        return {name: value for name, value in body.items() if name not in self.under_test.lacks}

    async def ask(self, body: dict[str, Any], leaves_after: int = 0, *, full: bool = False) -> Seen:
        """Send it through the gateway, among the crowd if there is one; the client leaves after so many frames with
        text, 0: at the end.
        """
        async with self.crowded(full=full) as others:
            seen = await self.send(body, leaves_after)
            first_s = seen.engine.first_text_s if seen.engine else None
            if others and not full and first_s is not None and not any(other.done() for other in others):
                raise BenchError("the request did not wait for a seat, though others had taken all")
        return seen

    async def send(self, body: dict[str, Any], leaves_after: int = 0) -> Seen:
        """The same with nobody else about."""
        mark = len(self.relay.exchanges)
        url = f"{self.url}{self.dialect.path.format(model=self.under_test.model)}"
        sent_s = monotonic()
        request_id, client, raw = await self._stream(url, body, self.dialect, leaves_after)
        return await self.seen(sent_s, request_id, client, raw, mark)

    async def seen(self, sent_s: float, request_id: str, client: Reply, raw: bytes, mark: int) -> Seen:
        """A request that is over; *mark*: how many exchanges there were before it."""
        passed = self.relay.since(mark, self.engine_path)
        exchange = passed[-1] if passed else None
        explained = await self._explained(request_id)
        engine = exchange.read(self.engine_dialect) if exchange else None
        return Seen(sent_s, client, raw, engine, exchange, explained)

    async def leave_waiting(self, body: dict[str, Any]) -> Seen:
        """Send it through the gateway while every seat is taken; the client leaves as soon as the engine has it wait.
        Returns once it waits no more.
        """
        mark, sent_s, request_id = len(self.relay.exchanges), monotonic(), str(uuid4())
        url = f"{self.url}{self.dialect.path.format(model=self.under_test.model)}"
        async with self.crowded() as others:
            client = asyncio.create_task(self._stream(url, body, self.dialect, request_id=request_id))
            if not await within(self.waiting):
                raise BenchError("the engine has nobody wait")
            client.cancel()
            await asyncio.wait([client])
            if not await within(self._none_waits) or any(other.done() for other in others):
                raise BenchError("the engine has it wait until a seat is free, though its client left")
        return await self.seen(sent_s, request_id, Reply(self.dialect, 0, []), b"", mark)

    async def _none_waits(self) -> bool:
        return not await self.waiting()

    @asynccontextmanager
    async def crowded(self, *, full: bool = False) -> AsyncIterator[list["asyncio.Task[Reply]"]]:
        """Every seat of the engine taken by others, and every place in its queue where *full*; nothing without a crowd.

        Raises BenchError when they do not get them.
        """
        crowd = self.under_test.crowd
        if crowd is None:
            yield []
            return
        waiting = crowd.queue if full else 0
        body = self.body(tokens=crowd.tokens)
        others = [asyncio.create_task(self.straight(body)) for _ in range(crowd.seats + waiting)]

        async def taken() -> bool:
            return await self.running() == crowd.seats and await self.waiting() == waiting

        try:
            if not await within(taken):
                raise BenchError(f"others did not get {crowd.seats} seats and {waiting} places in the queue")
            yield others
        finally:
            for other in others:
                other.cancel()
            await asyncio.gather(*others, return_exceptions=True)
            await within(self.idle)

    async def idle(self) -> bool:
        """Whether the engine runs nothing, by its own count."""
        return not await self.running()

    async def straight(self, body: dict[str, Any]) -> Reply:
        """The same request by a plain client, past the gateway, in what the engine speaks."""
        if self.engine_dialect is not self.dialect:
            body = self.engine_dialect.body(
                self.under_test.engine_model, str(body.get("prompt") or body["messages"]), TOKENS
            )
        url = f"http://127.0.0.1:{self.under_test.port}{self.engine_path}"
        return (await self._stream(url, body | {"model": self.under_test.engine_model}, self.engine_dialect))[1]

    async def load_adapter(self) -> None:
        """Load the model into the running engine; returns when the gateway routes it."""
        folder = self.stage.home / self.under_test.adapter
        await self._change_adapter("load", {"lora_path": str(folder), "load_inplace": True})
        await self.routable(self.under_test.model)

    async def unload_adapter(self) -> None:
        """The reverse."""
        await self._change_adapter("unload", {})
        await self.routable(self.under_test.model, listed=False)

    async def _change_adapter(self, what: str, more: dict[str, Any]) -> None:
        url = f"http://127.0.0.1:{self.under_test.port}/v1/{what}_lora_adapter"
        answer = await self.client.post(url, json={"lora_name": self.under_test.engine_model, **more}, headers=CLOSE)
        if answer.is_error:
            raise BenchError(f"the engine does not {what} the adapter: {answer.status_code} {answer.text[:200]}")

    async def routable(self, model: str, *, listed: bool = True) -> None:
        """Return when the gateway lists the model, or lists it no more. Raises BenchError when it does not."""

        async def is_so() -> bool:
            answer = await self.client.get(f"{self.gateway.url}/v1/models", headers=CLOSE)
            return (model in {each["id"] for each in answer.json()["data"]}) is listed

        if not await within(is_so):
            raise BenchError(f"the gateway {'does not list' if listed else 'lists'} {model}")

    def kill(self) -> None:
        """Kill the process of the engine that the row names."""
        self.stage.kill(self.under_test.kills)

    async def start_again(self) -> None:
        """Have the engine run; returns when the gateway has found that it does."""
        await asyncio.to_thread(self.stage.start, self.under_test)

        async def is_up() -> bool:
            return bool(await self.at_gateway("headroom_backend_up", backend=self.under_test.name))

        if not await within(is_up):
            raise BenchError("the gateway does not find that the engine is there again")

    async def _stream(
        self, url: str, body: dict[str, Any], dialect: Dialect, leaves_after: int = 0, request_id: str = ""
    ) -> tuple[str, Reply, bytes]:
        """The id of the request, the reply as it came, its raw body."""
        pieces: list[Piece] = []
        status, cut = 0, False
        headers = self._key | ({"x-request-id": request_id} if request_id else {})
        try:
            async with self.client.stream("POST", url, json=body, headers=headers) as answer:
                status, request_id = answer.status_code, answer.headers.get("x-request-id", "")
                async for data in answer.aiter_raw():
                    pieces.append((monotonic(), data))
                    if leaves_after and len(Reply(dialect, status, frames(pieces)).texts) >= leaves_after:
                        break
        except httpx.HTTPError:
            cut = True
        return request_id, Reply(dialect, status, frames(pieces), cut), b"".join(data for _, data in pieces)

    async def _explained(self, request_id: str) -> dict[str, Any]:
        """What /explain says, once the request is over."""

        async def known() -> httpx.Response | None:
            answer = await self._page(f"{self.gateway.url}/explain/{request_id}")
            return answer if answer.is_success else None

        found = await within(known) if request_id else None
        return dict(found.json()) if found else {}

    async def generated(self) -> float | None:
        """Tokens that the engine has generated by its own count; None when it does not count them."""
        counters = self.under_test.counters
        if counters is None or not counters.generated:
            return None
        return await self.sum_at(counters.url, counters.generated)

    async def running(self) -> float | None:
        """Requests at the engine by its own count; None when it does not count them."""
        counters = self.under_test.counters
        if counters is None or not counters.running:
            return None
        return await self.sum_at(counters.url, counters.running, **counters.labels)

    async def waiting(self) -> float:
        """Requests that the engine has wait, by its own count; 0 when it does not count them."""
        counters = self.under_test.counters
        if counters is None or not counters.waiting:
            return 0.0
        return await self.sum_at(counters.url, counters.waiting, **counters.labels)

    async def at_gateway(self, name: str, **labels: str) -> float:
        """The sum of these samples on the gateway's page, 0 where there is none."""
        return await self.sum_at(f"{self.gateway.url}/metrics", name, **labels)

    async def _page(self, url: str) -> httpx.Response:
        """A page on a connection of its own; a server that is busy with something else may need a second try."""
        try:
            return await self.client.get(url, headers=CLOSE)
        except httpx.TransportError:
            return await self.client.get(url, headers=CLOSE)

    async def sum_at(self, url: str, name: str, **labels: str) -> float:
        """The sum of these samples on a page of Prometheus text, 0 where there is none."""
        return samples_sum((await self._page(url)).text, name, 0.0, **labels)


async def within(condition: Callable[[], Awaitable[T]]) -> T:
    """The first value of *condition* that is true; the last one when none is in time."""
    until_s = monotonic() + WITHIN_S
    while not (found := await condition()) and monotonic() < until_s:  # noqa: ASYNC110 - any condition, not one event
        await asyncio.sleep(0.02)
    return found
