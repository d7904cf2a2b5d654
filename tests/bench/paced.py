"""Short streams at a fixed rate, from both ends: `python -m tests.bench.paced engine PORT`, `client PORT RATE S`.

The client is open loop (a slow answer delays no later request) and prints one JSON object: for each request the second
it was sent in, and how many milliseconds it took to its last byte (-1: lost).
"""

import asyncio
import gc
import json
import sys
from time import monotonic

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


class Client(asyncio.Protocol):
    """One keep-alive connection; ``free`` is where it waits for the next request."""

    def __init__(self, free: list["Client"], seen: list[tuple[float, float]], began_s: float) -> None:
        self.free, self.seen, self.began_s = free, seen, began_s
        self.sent_s = 0.0
        self.tail = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: asyncio.Transport = transport  # type: ignore[assignment]

    def ask(self) -> None:
        """Send one request."""
        self.sent_s, self.tail = monotonic(), b""
        self.transport.write(REQUEST)

    def data_received(self, data: bytes) -> None:
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
        self.seen.append((round(self.sent_s - self.began_s, 4), round(took_ms, 2)))
        self.sent_s = 0.0


async def engine(port: int) -> None:
    """Serve for ever."""
    server = await asyncio.get_running_loop().create_server(Engine, "127.0.0.1", port)
    await server.serve_forever()


async def client(port: int, rate: float, seconds: float) -> None:
    """Ask at the rate, then wait for what is open."""
    loop, free, seen = asyncio.get_running_loop(), [], []
    began_s = monotonic()
    asked = 0
    while asked < rate * seconds:
        due = min(int((monotonic() - began_s) * rate), int(rate * seconds))
        while asked < due:
            if not free:
                _, fresh = await loop.create_connection(lambda: Client(free, seen, began_s), "127.0.0.1", port)
                free.append(fresh)
            free.pop().ask()
            asked += 1
        await asyncio.sleep(0.0005)
    for _ in range(1_000):
        if len(seen) >= asked:
            break
        await asyncio.sleep(0.01)
    print(json.dumps({"asked": asked, "seen": seen}))


def main() -> None:
    """The command line."""
    gc.disable()
    role, *numbers = sys.argv[1:]
    uvloop.run(engine(int(numbers[0])) if role == "engine" else client(int(numbers[0]), *map(float, numbers[1:])))


if __name__ == "__main__":
    main()
