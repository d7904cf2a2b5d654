"""Both ends of the wire for tests of the data plane: an engine with a script, a client that speaks raw bytes."""

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import uvicorn
from uvicorn.server import ServerState

from router.core.decisions import EndState
from router.core.dispatcher import Dispatcher
from router.core.flight import DispatchLimits
from router.core.record import Recording
from router.core.types import Request, Slo
from router.gateway.protocols.target import Target
from router.gateway.traffic.client_connection import ConnectionLimits, client_connection
from router.gateway.traffic.driver import Driver
from router.gateway.traffic.request_log import RequestLog
from tests import fakes

WITHIN_S = 10.0


class Act(Enum):
    """What a script can do besides sending bytes and waiting for an event."""

    CLOSE = "close"  # in good order
    RESET = "reset"
    UNTIL_LEFT = "until left"  # wait for the other side to close
    NOTICES = "notices"  # the same, and go on with the script


Step = bytes | asyncio.Event | Act
Script = Sequence[Step]


def reply(body: bytes, status: int = 200, *, content_type: str = "application/json", more: str = "") -> bytes:
    """A whole answer with its length."""
    head = f"HTTP/1.1 {status} X\r\ncontent-type: {content_type}\r\ncontent-length: {len(body)}\r\n{more}\r\n"
    return head.encode() + body


STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"
LAST = b"0\r\n\r\n"


def event(data: str | dict[str, Any]) -> bytes:
    """One event, without framing."""
    return f"data: {data if isinstance(data, str) else json.dumps(data)}\n\n".encode()


def token(text: str = " x") -> dict[str, Any]:
    """A chat chunk as vLLM sends it."""
    return {"id": "c", "object": "chat.completion.chunk", "choices": [{"index": 0, "delta": {"content": text}}]}


def chunked(*pieces: bytes) -> bytes:
    """Each piece as one chunk, no end."""
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces)


def stream(*texts: str, usage: dict[str, int] | None = None) -> bytes:
    """A whole chat stream as vLLM sends it."""
    events = [event(token(text)) for text in texts]
    if usage is not None:
        events.append(event({"id": "c", "choices": [], "usage": usage}))
    return STREAM_HEAD + chunked(*events, event("[DONE]")) + LAST


class ScriptedEngine:
    """An engine on a real socket. Each request takes the next script; the last one is for all that follow."""

    def __init__(self, *scripts: Script) -> None:
        self.scripts = list(scripts)
        self.requests: list[bytes] = []
        self.connections = 0
        self.open = 0
        self.left = 0
        self.port = 0
        self.tls: ssl.SSLContext | None = None
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> "ScriptedEngine":
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port, limit=1 << 26, ssl=self.tls)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def stop(self) -> None:
        """Refuse connections from now on and drop those there are."""
        assert self._server is not None
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def target(self, name: str = "a", **facts: Any) -> Target:
        """Where the gateway finds it."""
        return Target(name, "127.0.0.1", self.port, **facts)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.connections += 1
        self.open += 1
        try:
            while await self._one(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError):
            self.left += 1
        except asyncio.CancelledError:  # stopped: asyncio's own callback would log it
            pass
        finally:
            self.open -= 1
            self._tasks.discard(task)
            writer.close()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = await reader.readuntil(b"\r\n\r\n")
        length = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
        body = await reader.readexactly(int(length[0].split(b":")[1])) if length else b""
        self.requests.append(head + body)
        script = self.scripts.pop(0) if len(self.scripts) > 1 else self.scripts[0]
        return all([await self._do(step, reader, writer) for step in script])

    async def _do(self, step: Step, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        if isinstance(step, bytes):
            writer.write(step)
            await writer.drain()
        elif isinstance(step, asyncio.Event):
            await step.wait()
        elif step is Act.UNTIL_LEFT or step is Act.NOTICES:
            await reader.read()
            self.left += 1
            return step is Act.NOTICES
        else:
            if step is Act.RESET:
                writer.transport.abort()
            return False
        return True


@dataclass
class Seen:
    """An observer that remembers."""

    outcomes: list[RequestLog] = field(default_factory=list)
    rejections: list[tuple[str, int]] = field(default_factory=list)
    late: list[tuple[str, str, int, bool]] = field(default_factory=list)
    arrivals: int = 0

    def arrived(self, request: Request, class_slo: Slo) -> None:
        self.arrivals += 1

    def ended(self, outcome: RequestLog) -> None:
        self.outcomes.append(outcome)

    def late_tokens(self, request: Request, backend: str, tokens: int, *, estimated: bool) -> None:
        self.late.append((request.id, backend, tokens, estimated))

    def rejected(self, path: str, status: int, peer: object) -> None:
        self.rejections.append((path, status))

    @property
    def endings(self) -> list[EndState]:
        return [outcome.record.outcome for outcome in self.outcomes]


@dataclass
class Reply:
    """An answer as a client reads it; ``complete``: its framing says that it ended."""

    status: int
    headers: dict[str, str]
    body: bytes
    complete: bool = True

    def json(self) -> Any:
        return json.loads(self.body)

    def events(self) -> list[str]:
        """The data of each event."""
        return [line[6:] for line in self.body.decode().split("\n") if line.startswith("data: ")]


class Client:
    """One raw connection to the gateway."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def head(self) -> tuple[int, dict[str, str]]:
        """Status and header fields of the next answer, interim ones too."""
        async with asyncio.timeout(WITHIN_S):
            lines = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        fields = [line.partition(": ") for line in lines[1:] if line]
        return int(lines[0].split(" ")[1]), {name.lower(): value for name, _, value in fields}

    async def reply(self, *, head_only: bool = False) -> Reply:
        """The next whole answer, as far as it comes."""
        status, headers = await self.head()
        async with asyncio.timeout(WITHIN_S):
            if head_only:
                return Reply(status, headers, b"")
            if headers.get("transfer-encoding") == "chunked":
                return Reply(status, headers, *await self._chunks())
            if "content-length" in headers:
                return Reply(status, headers, *await self._exactly(int(headers["content-length"])))
            return Reply(status, headers, *await self._rest())

    async def _rest(self) -> tuple[bytes, bool]:
        body = b""
        try:
            while data := await self.reader.read(1 << 16):
                body += data
        except ConnectionError:
            return body, False
        return body, True

    async def _exactly(self, count: int) -> tuple[bytes, bool]:
        try:
            return await self.reader.readexactly(count), True
        except asyncio.IncompleteReadError as cut:
            return cut.partial, False
        except ConnectionError:
            return b"", False

    async def _chunks(self) -> tuple[bytes, bool]:
        body = bytearray()
        try:
            while size := int(await self.reader.readuntil(b"\r\n"), 16):
                body += await self.reader.readexactly(size)
                assert await self.reader.readexactly(2) == b"\r\n"
            assert await self.reader.readexactly(2) == b"\r\n"
        except asyncio.IncompleteReadError as cut:
            return bytes(body) + cut.partial, False
        except ConnectionError:
            return bytes(body), False
        return bytes(body), True

    async def ended(self) -> bytes:
        """What is left until the gateway closes."""
        async with asyncio.timeout(WITHIN_S):
            return (await self._rest())[0]

    def close(self) -> None:
        self.writer.close()

    def reset(self) -> None:
        self.writer.transport.abort()


@dataclass
class Gateway:
    """A gateway under test."""

    port: int
    driver: Driver
    core: Dispatcher | Recording
    seen: Seen
    state: ServerState
    clients: list[Client] = field(default_factory=list)

    async def client(self) -> Client:
        made = Client(*await asyncio.open_connection("127.0.0.1", self.port, limit=1 << 26))
        self.clients.append(made)
        return made

    async def ask(self, raw: bytes, *, head_only: bool = False) -> Reply:
        """One request on a connection of its own."""
        client = await self.client()
        client.send(raw)
        try:
            return await client.reply(head_only=head_only)
        finally:
            client.close()

    async def chat(self, *, stream: bool = True, more: str = "", **body: Any) -> Reply:
        """One chat completion."""
        return await self.ask(chat(stream=stream, more=more, **body))


def post(path: str, body: bytes, more: str = "", version: str = "1.1") -> bytes:
    """A POST as clients send it."""
    head = f"POST {path} HTTP/{version}\r\nhost: g\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
    return f"{head}{more}\r\n".encode() + body


def chat(*, stream: bool = True, more: str = "", version: str = "1.1", **body: Any) -> bytes:
    """A chat completion request."""
    document = {"model": "m", "stream": stream, "messages": [{"role": "user", "content": "hello"}], **body}
    return post("/v1/chat/completions", json.dumps(document).encode(), more, version)


async def app(scope: Any, _: Any, send: Callable[[dict[str, Any]], Any]) -> None:
    """What is not routed: says its path."""
    body = scope["path"].encode()
    headers = [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


@asynccontextmanager
async def gateway(
    *targets: Target,
    models: tuple[str, ...] = ("m",),
    routing: str = "round_robin",
    core_limits: DispatchLimits | None = None,
    front_limits: ConnectionLimits | None = None,
    core: Dispatcher | Recording | None = None,
    **options: Any,
) -> AsyncIterator[Gateway]:
    """A gateway on a free port in front of these targets, with the real core (or the one given, which knows them)."""
    if core is None:
        backends = [fakes.backend(target.name, models=models) for target in targets]
        core = fakes.core(*backends, routing=routing, limits=core_limits)
    seen = Seen()
    driver = Driver(core, targets, seen, **options)
    protocol = client_connection(driver, front_limits or ConnectionLimits())
    config = uvicorn.Config(app, http=protocol, ws="none", lifespan="off", log_config=None)
    config.load()
    state = ServerState()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: protocol(config=config, server_state=state, app_state={}), "127.0.0.1", 0)
    made = Gateway(server.sockets[0].getsockname()[1], driver, core, seen, state)
    try:
        yield made
    finally:
        for client in made.clients:
            client.close()
        server.close()
        await driver.drain(0.0)
        for connection in list(state.connections):
            connection.transport.abort()


@asynccontextmanager
async def pair(*scripts: Script, **options: Any) -> AsyncIterator[tuple[Gateway, ScriptedEngine]]:
    """One engine with this script and a gateway in front of it."""
    async with ScriptedEngine(*scripts) as engine, gateway(engine.target(), **options) as made:
        yield made, engine
