"""A fleet of 1,000 engines in one process, and what measures a router that has it.

`python -m tests.bench.thousand engines PORT` answers on PORT of every address of this machine, of which 127.0.0.0/8 has
enough for an engine each: so every backend has a host of its own, and with it connections of its own.
"""

import asyncio
import gc
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from time import process_time

import uvloop

from tests.bench.paced import Engine

BACKENDS = 1_000
TICK_S = 0.001


def host(number: int) -> str:
    """The address of an engine."""
    return f"127.0.{1 + number // 200}.{1 + number % 200}"


def section(number: int, port: int, price: float) -> str:
    """The lines of one backend: four sorts of cards."""
    card = ("a100-80g-sxm", "h100-80g-sxm", "l40s", "l4")[number % 4]
    url = f"http://{host(number)}:{port}"
    return (
        f'  - {{name: b{number}, url: "{url}", models: [m], card: {card}, model: qwen3-4b, price_per_hour: {price}}}\n'
    )


def config(engines: int, *, backends: int = BACKENDS, port: int = 0, price: float = 1.0, more: str = "") -> str:
    """A router's config; *engines*: the port of the engines."""
    head = f"listen: {{port: {port}, drain_s: 1}}\nreload: {{validation: {{enabled: false}}}}\n{more}backends:\n"
    return head + "".join(section(number, engines, price) for number in range(backends))


class Pauses:
    """What this process works between two turns of the event loop, of which there should be one every ``TICK_S``: all
    its threads together, since one that holds the interpreter stops the loop too. Processor time: others on the machine
    count as little as may be.
    """

    def __init__(self) -> None:
        self.longest_s = 0.0
        self.turns = 0

    async def watch(self) -> None:
        """Measure until cancelled."""
        before_s = process_time()
        while True:
            await asyncio.sleep(TICK_S)
            now_s = process_time()
            self.longest_s = max(self.longest_s, now_s - before_s)
            self.turns += 1
            before_s = now_s


@asynccontextmanager
async def pauses() -> AsyncIterator[Pauses]:
    """Those of the block."""
    found = Pauses()
    watching = asyncio.create_task(found.watch())
    await asyncio.sleep(2 * TICK_S)
    try:
        yield found
    finally:
        await asyncio.sleep(2 * TICK_S)
        watching.cancel()


async def engines(port: int) -> None:
    """Serve for ever."""
    server = await asyncio.get_running_loop().create_server(Engine, "0.0.0.0", port, backlog=4096)
    await server.serve_forever()


def main() -> None:
    """The command line."""
    gc.disable()
    uvloop.run(engines(int(sys.argv[2])))


if __name__ == "__main__":
    main()
