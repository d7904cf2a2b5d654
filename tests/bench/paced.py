"""Short streams at a fixed rate, from both ends: `python -m tests.bench.paced engine PORT`, `client PORT RATE S`.

The client is open loop (a slow answer delays no later request) and prints one JSON object: for each request the second
it was sent in, and how many milliseconds it took to its last byte (-1: lost). `spread PORT STREAMS REQUESTS BODY
[EVENTS]` asks and prints as the load generator in C does, but in even steps: that one begins its streams all at once.
"""

import asyncio
import gc
import json
import sys
from time import monotonic
from typing import NamedTuple

import uvloop

TOKEN = b'data: {"choices":[{"index":0,"delta":{"content":" x"}}]}\n\n'
USAGE = b'data: {"choices":[],"usage":{"prompt_tokens":20,"completion_tokens":4}}\n\n'
TOKENS, GAP_S = 4, 0.005
BODY = b'{"model":"m","stream":true,"messages":[{"role":"user","content":"a short question"}]}'
REQUEST = (
    b"POST /v1/chat/completions HTTP/1.1\r\nhost: g\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b"
    % (len(BODY), BODY)
)
PAGE = b"HTTP/1.1 200 OK\r\ncontent-length: 28\r\n\r\nvllm:num_requests_waiting 0\n"


def chunk(data: bytes) -> bytes:
    """One chunk."""
    return b"%x\r\n%b\r\n" % (len(data), data)


HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n" + chunk(TOKEN)
END = chunk(USAGE) + chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n"


class Engine(asyncio.Protocol):
    """Answers every POST with four tokens, 5 ms apart, and every GET with a page."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: asyncio.Transport = transport  # type: ignore[assignment]
        self.loop = asyncio.get_running_loop()
        self.read = b""

    def data_received(self, data: bytes) -> None:
        self.read += data
        if self.read.startswith(b"GET"):
            if self.read.endswith(b"\r\n\r\n"):
                self.read = b""
                self.transport.write(PAGE)
        elif self.read.endswith(b"}"):
            self.read = b""
            self.transport.write(HEAD)
            self.loop.call_later(GAP_S, self.token, 2)

    def token(self, number: int) -> None:
        """One more, or the end."""
        if number > TOKENS:
            self.transport.write(END)
        else:
            self.transport.write(chunk(TOKEN))
            self.loop.call_later(GAP_S, self.token, number + 1)


class Seen(NamedTuple):
    """One request: the second it was sent in, milliseconds to its last byte (-1: lost) and its first, its events."""

    at_s: float
    took_ms: float
    first_ms: float
    events: int


class Client(asyncio.Protocol):
    """One keep-alive connection; ``free`` is where it waits for the next request."""

    def __init__(self, free: list["Client"], seen: list[Seen], began_s: float, request: bytes) -> None:
        self.free, self.seen, self.began_s, self.request = free, seen, began_s, request
        self.sent_s = self.first_s = 0.0
        self.events = 0
        self.tail = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: asyncio.Transport = transport  # type: ignore[assignment]

    def ask(self) -> None:
        """Send one request."""
        self.sent_s, self.first_s, self.events, self.tail = monotonic(), 0.0, 0, b""
        self.transport.write(self.request)

    def data_received(self, data: bytes) -> None:
        self.first_s = self.first_s or monotonic()
        self.events += data.count(b"data: ")
        self.tail = (self.tail + data)[-64:]
        if self.tail.endswith(b"0\r\n\r\n"):
            whole = b"data: [DONE]" in self.tail
            self.ended((monotonic() - self.sent_s) * 1e3 if whole else -1.0)
            self.free.append(self)

    def connection_lost(self, exc: Exception | None) -> None:
        if self.sent_s:
            self.ended(-1.0)
        elif self in self.free:
            self.free.remove(self)

    def ended(self, took_ms: float) -> None:
        """Note one request."""
        first_ms = (self.first_s - self.sent_s) * 1e3
        self.seen.append(Seen(round(self.sent_s - self.began_s, 4), round(took_ms, 2), round(first_ms, 2), self.events))
        self.sent_s = 0.0


async def engine(port: int) -> None:
    """Serve for ever."""
    server = await asyncio.get_running_loop().create_server(Engine, "127.0.0.1", port)
    await server.serve_forever()


async def client(port: int, rate: float, seconds: float) -> None:
    """Ask at the rate, then wait for what is open."""
    asked, seen = await asking(port, rate, int(rate * seconds), REQUEST)
    print(json.dumps({"asked": asked, "seen": [each[:2] for each in seen]}))


async def asking(port: int, rate: float, requests: int, request: bytes) -> tuple[int, list[Seen]]:
    """So many, a second; how many were asked, and what came of each."""
    loop, free, seen = asyncio.get_running_loop(), list[Client](), list[Seen]()
    began_s = monotonic()
    asked = 0
    while asked < requests:
        due = min(int((monotonic() - began_s) * rate), requests)
        while asked < due:
            if not free:
                _, fresh = await loop.create_connection(lambda: Client(free, seen, began_s, request), "127.0.0.1", port)
                free.append(fresh)
            free.pop().ask()
            asked += 1
        await asyncio.sleep(0.0005)
    for _ in range(1_000):
        if len(seen) >= asked:
            break
        await asyncio.sleep(0.01)
    return asked, seen


async def spread(port: int, streams: int, requests: int, body_bytes: int, events: int = 10) -> None:
    """Even steps such that about ``streams`` are open at once, where events come 10 ms apart."""
    text = b'{"model":"m","stream":true,"max_tokens":128,"messages":[{"role":"user","content":"%b"}]}'
    body = text % (b"x" * body_bytes)
    head = REQUEST.partition(b"content-length")[0]
    began_s = monotonic()
    asked, seen = await asking(
        port, streams / (events * 0.01), requests, b"%bcontent-length: %d\r\n\r\n%b" % (head, len(body), body)
    )
    wall_s = monotonic() - began_s
    whole = [each for each in seen if each.took_ms >= 0.0]
    first, took = sorted(each.first_ms for each in whole), sorted(each.took_ms for each in whole)
    told = {
        "done": len(whole),
        "errors": asked - len(whole),
        "wall_s": wall_s,
        "requests_per_s": len(whole) / wall_s,
        "events": sum(each.events for each in whole),
        "events_per_s": sum(each.events for each in whole) / wall_s,
    }
    for name, ms in (("ttft", first), ("e2e", took)):
        told |= {f"{name}_ms_p{q}": ms[len(ms) * q // 100] if ms else -1.0 for q in (50, 99)}
    print(" ".join(f"{name}={value:.6g}" for name, value in told.items()))


def main() -> None:
    """The command line."""
    gc.disable()
    role, *numbers = sys.argv[1:]
    if role == "engine":
        uvloop.run(engine(int(numbers[0])))
    elif role == "client":
        uvloop.run(client(int(numbers[0]), *map(float, numbers[1:])))
    else:
        uvloop.run(spread(*map(int, numbers)))


if __name__ == "__main__":
    main()
