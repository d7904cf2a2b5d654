"""Routers on real sockets that lose, repeat, delay and spoil messages, end and begin anew: ledgers agree, and empty."""

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from math import inf
from pathlib import Path
from random import Random
from time import monotonic
from typing import Any

import numpy as np
import orjson
import pytest

from router.core.dispatcher import Dispatcher
from router.core.peer_change import PeerChange
from router.gateway.state.changes import Changes, Channel
from router.gateway.state.datagrams import Datagrams
from router.gateway.state.mesh import Mesh
from router.gateway.state.skipped import SkippedValues
from tests import fakes
from tests.waiting import until

NAMES = ("a", "b", "c")
ROUNDS = 60
KEY = "a key that all routers have"
Spoil = Callable[[bytes, Random], Sequence[bytes]]


def with_amounts(raw: bytes, draw: Random) -> bytes:
    """The message with amounts that cannot be."""
    plain = orjson.loads(raw)
    for row in plain["work"].values():
        row[draw.randrange(len(row))] = draw.choice([None, "x", -1e6, 1e300, True, -(1 << 62)])
    return orjson.dumps(plain).replace(b"1e300", draw.choice([b"1e999", b"1e300"]))


def spoilt(raw: bytes, draw: Random) -> bytes:
    """What is no message any more, of each kind."""
    plain = orjson.loads(raw)
    kind = draw.randrange(5)
    if kind == 0:
        return raw[: draw.randrange(len(raw))]
    if kind == 1:
        return draw.randbytes(draw.randrange(1, 200))
    if kind == 2:
        del plain[draw.choice(list(plain))]
    if kind == 3:
        plain[draw.choice(list(plain))] = draw.choice([None, [], {}, -1, "", [[]], 1 << 63])
    if kind == 4:
        return draw.choice([b"", b"{}", b"[[[[", b"NaN", b"{" * 5000])
    return orjson.dumps(plain)


FATES: dict[str, Spoil] = {
    "nothing": lambda raw, _: [raw],
    "lost": lambda raw, draw: [raw] if draw.random() < 0.5 else [],
    "repeated": lambda raw, draw: [raw] * draw.choice([1, 2, 5]),
    "garbage": lambda raw, draw: [raw, spoilt(raw, draw)],
    "amounts": lambda raw, draw: [with_amounts(raw, draw) if draw.random() < 0.5 else raw],
}


class Unreliable:
    """A channel whose messages a test loses, repeats or spoils before they are sent, or sends in another order."""

    def __init__(self, inner: Channel, fate: str, draw: Random) -> None:
        self._inner, self._fate, self._draw = inner, fate, draw
        self._late: list[bytes] = []
        self.well = False
        self.name = inner.name
        self.dropped = self.refused = 0
        self.address = ""

    async def run(self, on_message: Callable[[bytes], None]) -> None:
        await self._inner.run(on_message)

    def send(self, message: bytes) -> None:
        if self.well:
            self._inner.send(message)
        elif self._fate == "reordered":
            self._late.append(message)
            if len(self._late) > 3:
                self._inner.send(self._late.pop(self._draw.randrange(4)))
        else:
            for each in FATES[self._fate](message, self._draw):
                self._inner.send(each)

    async def close(self) -> None:
        await self._inner.close()


class Router:
    """A core before the same backends as its peers, and its exchange. ``ahead_s``: of its clock."""

    def __init__(self, name: str, channel: Channel, fate: str, life: int, ahead_s: float, draw: Random) -> None:
        self.core: Dispatcher = fakes.core(*map(fakes.backend, NAMES))
        self.clock = lambda: monotonic() + ahead_s
        self.channel = Unreliable(channel, fate, draw)
        self.changes = Changes([self.channel], self, name, life, 0.001, SkippedValues(), self.clock)
        self.held: list[Any] = []
        self.task: asyncio.Task[None] | None = None

    def own_changes(self, whole: bool, part: int, parts: int) -> PeerChange | None:
        return self.core.own_change(self.clock(), whole=whole, part=part, parts=parts)

    def on_peer_change(self, peer: str, change: PeerChange) -> None:
        self.core.on_peer_change(peer, change, self.clock())

    @property
    def waited_for(self) -> bool:
        return self.core.held_anywhere

    def forget_silent_peers(self) -> None:
        self.core.forget_silent_peers(self.clock())

    def act(self, draw: Random) -> None:
        """A request comes or goes."""
        load = self.core.ledger.load
        if self.held and draw.random() < 0.5:
            load.release(self.held.pop(draw.randrange(len(self.held))), self.clock())
        else:
            self.held.append(load.reserve(draw.randrange(3), 100.0, 200.0, inf, self.clock()))
        self.changes.on_event(())

    def empty(self) -> None:
        """All requests end."""
        while self.held:
            self.core.ledger.load.release(self.held.pop(), self.clock())
        self.changes.on_event(())

    @property
    def own(self) -> Any:
        return self.core.ledger.table.own[:, :3]

    @property
    def peers(self) -> Any:
        return self.core.ledger.table.peers[:, :3]

    def start(self) -> None:
        self.task = asyncio.create_task(self.changes.run())

    async def end(self) -> None:
        assert self.task is not None
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)


class Pool:
    """Routers over datagrams or over a mesh."""

    def __init__(self, folder: Path, kind: str, fate: str) -> None:
        self.folder, self.kind, self.fate = folder, kind, fate
        folder.mkdir()
        self.draw = Random(f"{kind}/{fate}")
        self.routers: dict[str, Router] = {}
        self._meshes: dict[str, Mesh] = {}
        self._lives = 0

    def _channel(self, name: str) -> Channel:
        if self.kind == "datagrams":
            return Datagrams(self.folder / name, [self.folder / other for other in "xyz" if other != name])
        made = Mesh("127.0.0.1", 0, KEY, "127.0.0.1", None, lambda: self._addresses(name))
        self._meshes[name] = made
        return made

    def _addresses(self, own: str) -> dict[str, str]:
        return {name: each.address for name, each in self._meshes.items() if name != own and each.address}

    def start(self, name: str, ahead_s: float = 0.0) -> None:
        self._lives += 1
        it = Router(name, self._channel(name), self.fate, 1_000 - self._lives, ahead_s, self.draw)
        self.routers[name] = it
        it.start()

    async def met(self) -> None:
        """Until each receives the changes of all others."""
        others = len(self.routers) - 1
        await until(lambda: all(len(it.changes.peers) == others for it in self.routers.values()))

    def agree(self) -> bool:
        """Whether each sees what the others have."""
        routers = list(self.routers.values())
        return all(
            np.allclose(it.peers, sum(other.own for other in routers if other is not it), atol=1e-6) for it in routers
        )

    async def settle(self) -> None:
        """From now on messages arrive: within one message with everything the ledgers agree, loaded and empty."""
        for it in self.routers.values():
            it.channel.well = True
        await until(self.agree)
        for it in self.routers.values():
            it.empty()
        await until(lambda: self.agree() and not any(it.peers.any() for it in self.routers.values()))
        for it in self.routers.values():
            assert not it.own.any()


@asynccontextmanager
async def pool(folder: Path, kind: str, fate: str, *, ahead_s: float = 0.0) -> AsyncIterator[Pool]:
    made = Pool(folder, kind, fate)
    for number, name in enumerate("xyz"):
        made.start(name, number * ahead_s)
    try:
        await made.met()
        yield made
    finally:
        for it in made.routers.values():
            await it.end()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looks for peers more often than a router does."""
    monkeypatch.setattr("router.gateway.state.mesh.LOOK_S", 0.01)


async def busy(it: Pool) -> None:
    """Requests come and go at each."""
    for _ in range(ROUNDS):
        for each in list(it.routers.values()):
            each.act(it.draw)
        await asyncio.sleep(0.001)


@pytest.mark.parametrize("kind", ["datagrams", "mesh"])
async def test_whatever_happens_to_messages_the_ledgers_agree_and_end_empty(tmp_path: Path, kind: str) -> None:
    """Lost, repeated, in another order, garbage between them, amounts that cannot be; clocks hours apart."""

    async def suffer(fate: str, ahead_s: float) -> None:
        async with pool(tmp_path / fate, kind, fate, ahead_s=ahead_s) as it:
            await busy(it)
            for each in it.routers.values():
                assert np.isfinite(each.peers).all()
                assert (each.peers >= 0.0).all()
            await it.settle()
            counts = [each.changes.counts for each in it.routers.values()]
            assert all(each["received"] for each in counts)
            assert (fate == "garbage") == any(each["skipped"] for each in counts)
            if fate == "amounts":
                assert sum(each.core.dropped_numbers.by_source["peer"] for each in it.routers.values())

    async with asyncio.TaskGroup() as group:
        for fate in ("nothing", "lost", "repeated", "reordered", "garbage", "amounts"):
            group.create_task(suffer(fate, 3600.0 if fate in ("nothing", "lost") else 0.0))


@pytest.mark.parametrize("kind", ["datagrams", "mesh"])
async def test_a_router_that_ends_and_begins_anew_leaves_nothing_behind(tmp_path: Path, kind: str) -> None:
    """Without a word, with requests in flight; its name has another life then, of a lower number."""
    async with pool(tmp_path / "p", kind, "nothing") as it:
        await busy(it)
        ended = it.routers.pop("z")
        await ended.end()
        await until(it.agree)  # in no store, so silence alone ends its load
        it.start("z")
        await it.met()
        await busy(it)
        await it.settle()


async def test_strangers_at_every_socket_change_nothing(tmp_path: Path) -> None:
    """Bytes of any kind at the sockets themselves, while requests come and go."""
    draw = Random(1)
    async with AsyncExitStack() as stack:
        pools = [
            await stack.enter_async_context(pool(tmp_path / kind, kind, "nothing")) for kind in ("datagrams", "mesh")
        ]
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as stranger:
            for _ in range(20):
                for each in (*pools[0].routers.values(), *pools[1].routers.values()):
                    each.act(draw)
                for name in "xyz":
                    stranger.sendto(draw.randbytes(draw.randrange(1, 500)), str(tmp_path / "datagrams" / name))
                    host, port = pools[1]._meshes[name].address.split(":")
                    _, writer = await asyncio.open_connection(host, int(port))
                    writer.write(draw.randbytes(draw.randrange(1, 500)))
                    writer.close()
        for it in pools:
            await it.settle()
