"""The control plane of several workers: each of them answers for all.

Each worker also serves its application to the others, on a socket of its own in a folder that only this user may enter.
Must not depend on what answers mean, beyond how they are combined. The worker that got the request answers first: what
it refuses, the others are not sent, unless it is that something is unknown to it.
"""

import asyncio
import os
import socket
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
from router.gateway.private_files import FILE_MODE
from router.gateway.state.files import put
from router.gateway.telemetry import history_view
from router.gateway.worker_identity import WorkerIdentity
from router.gateway.workers import sums, views
from router.gateway.workers.used import read

_NOT_FOUND: Final = 404
_EXPLAINED: Final = {200, _NOT_FOUND}  # the others are of the caller's key
ANSWER_S: Final = 2.0
AGREE_S: Final = 3.0
_FORWARDED: Final = frozenset({b"authorization", b"content-type"})
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
        """Whether it is a success."""
        return self.status // 100 == 2  # noqa: PLR2004 - RFC 9110 15.3

    def json(self) -> Any:
        """Its JSON."""
        return orjson.loads(self.body)

    def with_body(self, body: bytes) -> "Answer":
        """The same with another body."""
        return Answer(self.status, self.headers, body)

    async def send(self, send: Send) -> None:
        """Send it, with its length."""
        headers = [*self.headers, (b"content-length", b"%d" % len(self.body))]
        await send({"type": "http.response.start", "status": self.status, "headers": headers})
        await send({"type": "http.response.body", "body": self.body})


class ControlAggregator:
    """The application that a worker serves to clients, and the one that it serves to the other workers."""

    def __init__(self, app: App, identity: WorkerIdentity, versions: Callable[[], Mapping[str, str]]) -> None:
        """*app*: one worker's own; *versions*: of the workers alive by router id, this one's first."""
        self._app, self._identity, self._versions = app, identity, versions
        self._before = _bytes_of(identity.counters(identity.slot))  # of earlier processes of this worker
        self._clients: dict[int, httpx.AsyncClient] = {}
        self._server: Server | None = None
        self._serving: asyncio.Task[None] | None = None

    # -- to clients --------------------------------------------------------------------------------------------

    async def outside(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The application for clients."""
        combine = self._combination(scope) if scope["type"] == "http" else None
        if combine is None:
            await self._app(scope, receive, send)
            return
        own = await _whole(self._inside, scope, receive)
        with suppress(ValueError, KeyError, TypeError):  # workers of two releases: the answer is this one's alone
            own = await combine(own, scope)
        await own.send(send)

    def _combination(self, scope: Scope) -> Callable[[Answer, Scope], Awaitable[Answer]] | None:
        """How all workers' answers are combined; None: any one is the same."""
        path, method = scope["path"], scope["method"]
        if method == "POST" and path.startswith("/admin/backends/"):
            return self._by_all
        if method == "POST" and path.startswith("/admin/"):
            return self._after_agreement
        if method != "GET":
            return None
        if path.startswith("/explain/"):
            return self._explained
        return {
            "/metrics": self._sum_metrics,
            "/admin/fleet": self._fleet,
            "/admin/policy": self._beside,
            "/admin/history": self._history,
            "/admin/discovery": self._discovery,
            "/admin/usage": self._usage,
            "/admin/scaling": self._scaling,
        }.get(path)

    async def _sum_metrics(self, own: Answer, scope: Scope) -> Answer:
        found = await self._others(scope)
        pages = [
            own.body,
            *(found[slot].body if slot in found else self._last_counters(slot) for slot in self._identity.others),
        ]
        whole = await asyncio.to_thread(sums.summed, pages)
        return own.with_body(whole + self._worker_metrics(1 + len(found)))

    def _last_counters(self, slot: int) -> bytes:
        """Of a worker that does not answer: a sum must not fall because one is started again."""
        return _bytes_of(self._identity.counters(slot))

    def _worker_metrics(self, up: int) -> bytes:
        restarts = int(_bytes_of(self._identity.restarts) or b"0")
        return WORKER_METRICS % (self._identity.slots, up, restarts)

    async def _fleet(self, own: Answer, scope: Scope) -> Answer:
        if not own.ok:
            return own
        whole = views.fleet(await self._views(own, scope), self._ids) | {"router": self._identity.name}
        return own.with_body(orjson.dumps(whole))

    async def _discovery(self, own: Answer, scope: Scope) -> Answer:
        """Each worker reads the sources for itself: what all have found, and where they differ."""
        if not own.ok:
            return own
        return own.with_body(orjson.dumps(views.discovery(await self._views(own, scope), self._ids)))

    async def _usage(self, own: Answer, scope: Scope) -> Answer:
        """Where no shared state sums it, what a worker has used that is started again is what it wrote last."""
        if not own.ok:
            return own
        found = await self._views(own, scope)
        gone = (
            [] if own.json()["month"] else [read(self._identity.used(slot)) for slot in self._ids if slot not in found]
        )
        return own.with_body(orjson.dumps(views.usage([*found.values(), *gone])))

    async def _scaling(self, own: Answer, scope: Scope) -> Answer:
        """Of the worker that applies the advice, where one of them does."""
        if not own.ok:
            return own
        decided = [view["decided"] for view in (await self._views(own, scope)).values() if view["decided"]]
        leader = next((each for each in decided if each["leads"]), None)
        return own if leader is None else own.with_body(orjson.dumps({"decided": leader}))

    async def _views(self, own: Answer, scope: Scope) -> dict[int, Any]:
        """By slot, what the workers that succeed answer, the one that got the request first."""
        others = {slot: answer.json() for slot, answer in (await self._others(scope)).items() if answer.ok}
        return {self._identity.slot: own.json()} | others

    @property
    def _ids(self) -> dict[int, str]:
        return {slot: self._identity.id_of(slot) for slot in range(self._identity.slots)}

    async def _history(self, own: Answer, scope: Scope) -> Answer:
        """Counts and histograms of all workers added up."""
        if not own.ok:
            return own
        found = [own.json(), *(each.json() for each in (await self._others(scope)).values() if each.ok)]
        return own.with_body(orjson.dumps(await asyncio.to_thread(history_view.merged, found)))

    async def _by_all(self, own: Answer, scope: Scope) -> Answer:
        """A call about a backend, which each worker that has it carries out; one may have found it before this one."""
        if not own.ok and own.status != _NOT_FOUND:
            return own
        others = (await self._others(scope)).values()
        return own if own.ok else next((each for each in others if each.ok), own)

    async def _beside(self, own: Answer, scope: Scope) -> Answer:
        """Statistics of policies differ by worker: each worker's own are listed."""
        if not own.ok:
            return own
        views_by_id = {
            self._identity.id_of(slot): each.json() for slot, each in (await self._others(scope)).items() if each.ok
        }
        mine = own.json()
        views_by_id[self._identity.router_id] = mine
        live = {name: {key: view[key] for key in ("version", "live")} for name, view in sorted(views_by_id.items())}
        together = views.reloads(views_by_id.values())
        return own.with_body(orjson.dumps(mine | together | {"workers": live}))

    async def _explained(self, own: Answer, scope: Scope) -> Answer:
        """The request whose own id it is, whichever worker had it; else one that bears it, with all that do."""
        if own.status not in _EXPLAINED:
            return own
        answers = [answer for answer in (own, *(await self._others(scope)).values()) if answer.ok]
        if not answers:
            return own
        views_found = [answer.json() for answer in answers]
        request_id = scope["path"].removeprefix("/explain/")
        alone = next((view for view in views_found if view["id"] == request_id), None)
        matches = [match for view in views_found for match in view["matches"]]
        return answers[0].with_body(orjson.dumps(alone or views_found[0] | {"matches": matches}))

    async def _after_agreement(self, own: Answer, scope: Scope) -> Answer:
        """Wait until the others have followed a change; the answer has each worker's version."""
        if own.ok:
            with suppress(TimeoutError):
                async with asyncio.timeout(AGREE_S):
                    while len(set(self._versions().values())) > 1:  # noqa: ASYNC110 - peers are polled
                        await asyncio.sleep(0.01)
        outcome = own.json()
        return (
            own.with_body(orjson.dumps(outcome | {"workers": self._versions()})) if isinstance(outcome, dict) else own
        )

    # -- to and from the other workers -------------------------------------------------------------------------

    async def _inside(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The application for the other workers: this one's own answers."""
        if scope["type"] == "http" and scope["path"] == "/metrics":
            plain = {**scope, "headers": []}  # sums read the text format, whatever the client would take
            answer = await _whole(self._app, plain, receive)
            page = sums.summed([answer.body, self._before]) if self._before else answer.body
            with suppress(StoreGone):
                put(self._identity.counters(self._identity.slot), sums.counters(page))
            await answer.with_body(page).send(send)
            return
        await self._app(scope, receive, send)

    async def _machine(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Only this user on this machine can connect to the socket."""
        await self._inside({**scope, "client": _MACHINE}, receive, send)

    async def _others(self, scope: Scope) -> dict[int, Answer]:
        """Send the same request to every other worker, with the client's key; one that does not answer is left out."""
        answers = await asyncio.gather(*(self._request(slot, scope) for slot in self._identity.others))
        return {slot: answer for slot, answer in zip(self._identity.others, answers, strict=True) if answer is not None}

    async def _request(self, slot: int, scope: Scope) -> Answer | None:
        client = self._clients.get(slot)
        if client is None:
            wire = httpx.AsyncHTTPTransport(
                uds=str(self._identity.socket(slot)), verify=False, limits=httpx.Limits(max_keepalive_connections=0)
            )
            client = self._clients[slot] = httpx.AsyncClient(transport=wire, timeout=ANSWER_S, trust_env=False)
        headers = [(name, value) for name, value in scope["headers"] if name in _FORWARDED]
        try:
            query = scope.get("query_string", b"").decode("ascii")
            url = f"http://w{slot}{scope['path']}" + (f"?{query}" if query else "")
            answer = await client.request(scope["method"], url, headers=headers)
        except httpx.HTTPError:
            return None
        kind = answer.headers.get("content-type", "application/json").encode()
        return Answer(answer.status_code, [(b"content-type", kind)], answer.content)

    async def start(self) -> None:
        """Start to answer the other workers. Raises OSError."""
        where = self._identity.socket(self._identity.slot)
        where.unlink(missing_ok=True)
        config = uvicorn.Config(
            self._machine, uds=str(where), lifespan="off", ws="none", interface="asgi3", log_config=None,
            access_log=False, timeout_graceful_shutdown=1,
        )  # fmt: skip
        self._server = _Quiet(config)
        self._serving = asyncio.create_task(self._server.serve(), name="worker socket")

    async def close(self) -> None:
        """Stop."""
        if self._server is not None and self._serving is not None:
            self._server.should_exit = True
            await asyncio.gather(self._serving, return_exceptions=True)
        for client in self._clients.values():
            await client.aclose()


class _Quiet(Server):
    """A server beside the one that serves clients: signals are that one's, and its socket is for this user alone."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        assert self.config.uds is not None
        os.chmod(self.config.uds, FILE_MODE)  # uvicorn's are for all; the folder has kept them out until now

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


WORKER_METRICS: Final = b"""\
# HELP headroom_workers Worker processes of this router, configured and answering
# TYPE headroom_workers gauge
headroom_workers{state="configured"} %d
headroom_workers{state="answering"} %d
# HELP headroom_worker_restarts_total Workers that died and were started again
# TYPE headroom_worker_restarts_total counter
headroom_worker_restarts_total %d
"""
