"""One engine's endpoint behind the gateway, a relay between them: sends a request, gathers what each side saw of it."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from math import nan
from time import monotonic
from typing import Any, TypeVar

import httpx

from tests.real.matrix.engines import MODEL, EngineUnderTest
from tests.real.matrix.frames import GENERATE, Dialect, Piece, Reply, frames
from tests.real.matrix.relay import Exchange, Relay
from tests.real.world import Gateway, samples_sum

WITHIN_S = 10.0  # for what follows by itself: a gauge that is scraped, a sequence that is freed
TOKENS = 40
CLOSE = {"connection": "close"}  # a kept connection may be closed by the other side just when it is used again
T = TypeVar("T")
PROMPT = "Tell me of the river, and take your time about it."


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
        self, under_test: EngineUnderTest, dialect: Dialect, gateway: Gateway, relay: Relay, client: httpx.AsyncClient
    ) -> None:
        """All of them run. *client* is there already: to make one takes longer than a first token."""
        self.client = client
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
        return self.dialect.body(MODEL, prompt, tokens) | asked

    async def ask(self, body: dict[str, Any], leaves_after: int = 0) -> Seen:
        """Send it through the gateway; the client leaves after so many frames with text, 0: at the end."""
        mark = len(self.relay.exchanges)
        url = f"{self.url}{self.dialect.path.format(model=MODEL)}"
        sent_s = monotonic()
        request_id, client, raw = await self._stream(url, body, self.dialect, leaves_after)
        passed = self.relay.since(mark, self.engine_path)
        exchange = passed[-1] if passed else None
        explained = await self._explained(request_id)
        engine = exchange.read(self.engine_dialect) if exchange else None
        return Seen(sent_s, client, raw, engine, exchange, explained)

    async def straight(self, body: dict[str, Any]) -> Reply:
        """The same request by a plain client, past the gateway, in what the engine speaks."""
        if self.engine_dialect is not self.dialect:
            body = self.engine_dialect.body(
                self.under_test.engine_model, str(body.get("prompt") or body["messages"]), TOKENS
            )
        url = f"http://127.0.0.1:{self.under_test.port}{self.engine_path}"
        return (await self._stream(url, body | {"model": self.under_test.engine_model}, self.engine_dialect))[1]

    async def _stream(
        self, url: str, body: dict[str, Any], dialect: Dialect, leaves_after: int = 0
    ) -> tuple[str, Reply, bytes]:
        """The id of the request, the reply as it came, its raw body."""
        pieces: list[Piece] = []
        status, request_id, cut = 0, "", False
        try:
            async with self.client.stream("POST", url, json=body, headers=self._key) as answer:
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
