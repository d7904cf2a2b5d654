"""The control plane of several workers: whichever of them is asked answers for all.

Believes: the application of one worker, which each also serves to the others on a socket of its own in the folder that
only this user may enter. Must not know what the answers mean, beyond how they are put together. The worker that was
asked answers first, in its own right: who may not ask it is not answered by the others either.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import httpx
import orjson
import uvicorn
from uvicorn.server import Server

from router.core.errors import StoreGone
from router.gateway.state.files import put
from router.gateway.worker_identity import WorkerIdentity
from router.gateway.workers import sums, views

_NOT_FOUND: Final = 404
ASK_S: Final = 2.0
AGREE_S: Final = 3.0
_PASSED_ON: Final = frozenset({b"authorization", b"content-type"})
_MACHINE: Final = ("127.0.0.1", 0)

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


@dataclass(slots=True)
class Answer:
    """One worker's whole answer; its length is not among the ``headers``."""

    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes

    @property
    def ok(self) -> bool:
        """Whether it is what was asked for."""
        return self.status // 100 == 2  # noqa: PLR2004 - RFC 9110 15.3

    def told(self) -> Any:
        """Its JSON."""
        return orjson.loads(self.body)

    def saying(self, body: bytes) -> "Answer":
        """The same with another body."""
        return Answer(self.status, self.headers, body)

    async def send(self, send: Send) -> None:
        """Send it, with its length."""
        headers = [*self.headers, (b"content-length", b"%d" % len(self.body))]
        await send({"type": "http.response.start", "status": self.status, "headers": headers})
        await send({"type": "http.response.body", "body": self.body})


class ControlAggregator:
    """The application that a worker serves to clients, and the one that it serves to the other workers."""

    def __init__(self, app: App, place: WorkerIdentity, versions: Callable[[], Mapping[str, str]]) -> None:
        """*app*: one worker's own; *versions*: of the workers alive by router id, this one's first."""
        self._app, self._place, self._versions = app, place, versions
        self._before = _bytes_of(place.counters(place.slot))  # what those in this seat counted before us
        self._clients: dict[int, httpx.AsyncClient] = {}
        self._server: Server | None = None
        self._serving: asyncio.Task[None] | None = None

    # -- to clients --------------------------------------------------------------------------------------------

    async def outside(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The application for clients."""
        together = self._together(scope) if scope["type"] == "http" else None
        if together is None:
            await self._app(scope, receive, send)
            return
        own = await _whole(self._inside, scope, receive)
        with suppress(ValueError, KeyError, TypeError):  # workers of two releases: then it speaks for itself alone
            own = await together(own, scope)
        await own.send(send)

    def _together(self, scope: Scope) -> Callable[[Answer, Scope], Awaitable[Answer]] | None:
        """How all workers' answers become one; None: each can answer for all."""
        path, method = scope["path"], scope["method"]
        if method == "POST" and path.startswith("/admin/"):
            return self._agreed
        if method != "GET":
            return None
        if path.startswith("/explain/"):
            return self._whoever_knows
        return {"/metrics": self._summed, "/admin/fleet": self._fleet, "/admin/policy": self._beside}.get(path)

    async def _summed(self, own: Answer, scope: Scope) -> Answer:
        found = await self._others(scope)
        pages = [own.body, *(found[slot].body if slot in found else self._left(slot) for slot in self._place.others)]
        whole = await asyncio.to_thread(sums.summed, pages)
        return own.saying(whole + self._house(1 + len(found)))

    def _left(self, slot: int) -> bytes:
        """What a worker that does not answer last counted: a sum must not fall because one is started again."""
        return _bytes_of(self._place.counters(slot))

    def _house(self, up: int) -> bytes:
        restarts = int(_bytes_of(self._place.restarts) or b"0")
        return _HOUSE % (self._place.slots, up, restarts)

    async def _fleet(self, own: Answer, scope: Scope) -> Answer:
        if not own.ok:
            return own
        place = self._place
        told = {slot: answer.told() for slot, answer in (await self._others(scope)).items() if answer.ok}
        ids = {slot: place.id_of(slot) for slot in range(place.slots)}
        whole = views.fleet({place.slot: own.told()} | told, ids) | {"router": place.name}
        return own.saying(orjson.dumps(whole))

    async def _beside(self, own: Answer, scope: Scope) -> Answer:
        """How policies fare differs by worker: each says it for itself."""
        if not own.ok:
            return own
        told = {self._place.id_of(slot): each.told() for slot, each in (await self._others(scope)).items() if each.ok}
        mine = own.told()
        told[self._place.router_id] = mine
        live = {name: {key: view[key] for key in ("version", "live")} for name, view in sorted(told.items())}
        return own.saying(orjson.dumps(mine | {"workers": live}))

    async def _whoever_knows(self, own: Answer, scope: Scope) -> Answer:
        if own.status != _NOT_FOUND:
            return own
        found = await self._others(scope)
        return next((answer for answer in found.values() if answer.ok), own)

    async def _agreed(self, own: Answer, scope: Scope) -> Answer:
        """A change that one took is followed by the others: say when they have, or who has not yet."""
        if own.ok:
            with suppress(TimeoutError):
                async with asyncio.timeout(AGREE_S):
                    while len(set(self._versions().values())) > 1:  # noqa: ASYNC110 - peers are heard of by polling
                        await asyncio.sleep(0.01)
        told = own.told()
        return own.saying(orjson.dumps(told | {"workers": self._versions()})) if isinstance(told, dict) else own

    # -- to and from the other workers -------------------------------------------------------------------------

    async def _inside(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The application for the other workers: this one's own answers."""
        if scope["type"] == "http" and scope["path"] == "/metrics":
            answer = await _whole(self._app, scope, receive)
            page = sums.summed([answer.body, self._before]) if self._before else answer.body
            with suppress(StoreGone):
                put(self._place.counters(self._place.slot), sums.counters(page))
            await answer.saying(page).send(send)
            return
        await self._app(scope, receive, send)

    async def _machine(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Who reaches the socket is this user on this machine."""
        await self._inside({**scope, "client": _MACHINE}, receive, send)

    async def _others(self, scope: Scope) -> dict[int, Answer]:
        """The same question to every other worker, in the asker's name; who does not answer is left out."""
        answers = await asyncio.gather(*(self._ask(slot, scope) for slot in self._place.others))
        return {slot: answer for slot, answer in zip(self._place.others, answers, strict=True) if answer is not None}

    async def _ask(self, slot: int, scope: Scope) -> Answer | None:
        client = self._clients.get(slot)
        if client is None:
            wire = httpx.AsyncHTTPTransport(
                uds=str(self._place.socket(slot)), verify=False, limits=httpx.Limits(max_keepalive_connections=0)
            )
            client = self._clients[slot] = httpx.AsyncClient(transport=wire, timeout=ASK_S, trust_env=False)
        headers = [(name, value) for name, value in scope["headers"] if name in _PASSED_ON]
        try:
            answer = await client.get(f"http://w{slot}{scope['path']}", headers=headers)
        except httpx.HTTPError:
            return None
        kind = answer.headers.get("content-type", "application/json").encode()
        return Answer(answer.status_code, [(b"content-type", kind)], answer.content)

    async def start(self) -> None:
        """Answer the other workers from now on. Raises OSError."""
        where = self._place.socket(self._place.slot)
        where.unlink(missing_ok=True)
        config = uvicorn.Config(
            self._machine, uds=str(where), lifespan="off", ws="none", interface="asgi3", log_config=None,
            access_log=False, timeout_graceful_shutdown=1,
        )  # fmt: skip
        self._server = _Quiet(config)
        self._serving = asyncio.create_task(self._server.serve(), name="worker socket")

    async def close(self) -> None:
        """Answer nobody any more."""
        if self._server is not None and self._serving is not None:
            self._server.should_exit = True
            await asyncio.gather(self._serving, return_exceptions=True)
        for client in self._clients.values():
            await client.aclose()


class _Quiet(Server):
    """A server beside the one that serves clients: signals are that one's."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def _whole(app: App, scope: Scope, receive: Receive) -> Answer:
    """An application's answer, gathered."""
    answer = Answer(500, [], b"")

    async def send(message: Message) -> None:
        if message["type"] == "http.response.start":
            answer.status = message["status"]
            answer.headers = [(name, value) for name, value in message["headers"] if name != b"content-length"]
        else:
            answer.body += message.get("body", b"")

    await app(scope, receive, send)
    return answer


def _bytes_of(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError:
        return b""


_HOUSE: Final = b"""\
# HELP headroom_workers Worker processes of this router, configured and answering
# TYPE headroom_workers gauge
headroom_workers{state="configured"} %d
headroom_workers{state="answering"} %d
# HELP headroom_worker_restarts_total Workers that died and were started again
# TYPE headroom_worker_restarts_total counter
headroom_worker_restarts_total %d
"""
