"""Connections between routers of different hosts: who may open one, what a frame is, peers that are slow or gone."""

import asyncio
import socket
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.core.errors import ConfigError, PeerRefused, StoreGone, Unreadable
from router.gateway.app import Gateway
from router.gateway.config.plan import plan_file
from router.gateway.state import RouterView, mesh_links
from router.gateway.state.mesh import Mesh, address_of
from router.gateway.state.mesh_frames import FrameReader, FrameWriter, key_of
from router.gateway.state.mesh_links import Sender, dialled
from router.gateway.state.wire import view_from, view_json
from router.gateway.worker_identity import WorkerIdentity
from router.urls import host_port
from tests import fakes
from tests.redis_server import RedisServer, free_port, server_binary
from tests.waiting import until

KEY = "a key that all routers have"


# -- frames ------------------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.lists(st.binary(max_size=300), max_size=8), st.randoms(use_true_random=False))
def test_contents_come_back_however_the_bytes_are_cut(contents: list[bytes], draw: Random) -> None:
    """TCP has no bounds between messages."""
    writer, reader = FrameWriter(b"k"), FrameReader(b"k", 1 << 10)
    data, found = b"".join(map(writer.frame, contents)), []
    while data:
        cut = draw.randint(1, len(data))
        found += reader.contents(data[:cut])
        data = data[cut:]
    assert found == contents


@settings(deadline=None)
@given(st.integers(0, 2), st.integers(0, 10**6), st.integers(1, 255))
def test_a_frame_that_was_changed_anywhere_gives_no_content(which: int, at: int, mask: int) -> None:
    """Nor do those after it."""
    writer, reader = FrameWriter(b"k"), FrameReader(b"k", 1 << 10)
    frames = [bytearray(writer.frame(b"content %d" % number)) for number in range(3)]
    frames[which][at % len(frames[which])] ^= mask
    found = []
    with suppress(Unreadable):
        for content in reader.contents(b"".join(frames)):
            found.append(content)  # noqa: PERF402 - those before the error count
    assert len(found) <= which


@pytest.mark.parametrize("order", [(0, 0), (1,), (0, 2), (1, 0)])
def test_frames_that_are_repeated_left_out_or_moved_do_not_fit(order: Sequence[int]) -> None:
    """Their place is part of their code."""
    writer, reader = FrameWriter(b"k"), FrameReader(b"k", 1 << 10)
    frames = [writer.frame(b"%d" % number) for number in range(3)]
    with pytest.raises(Unreadable, match="code"):
        list(reader.contents(b"".join(frames[number] for number in order)))


def test_a_frame_of_another_key_or_beyond_all_bounds_is_refused() -> None:
    """The second before it is there."""
    with pytest.raises(Unreadable, match="code"):
        list(FrameReader(b"k", 1 << 10).contents(FrameWriter(b"l").frame(b"x")))
    with pytest.raises(Unreadable, match="at most 8"):
        list(FrameReader(b"k", 8).contents(FrameWriter(b"k").frame(b"123456789")[:20]))


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("10.0.0.1:9003", ("10.0.0.1", 9003)),
        ("[fe80::1]:9003", ("fe80::1", 9003)),
        ("router-0.routers:1", ("router-0.routers", 1)),
        ("", None),
        ("10.0.0.1", None),
        (":9003", None),
        ("a:0", None),
        ("a:65536", None),
        ("a:-1", None),
        ("a:٣", None),
        ("a\n:1", None),
        ("a" * 300 + ":1", None),
    ],
)
def test_an_address_is_a_host_and_a_port(text: str, address: tuple[str, int] | None) -> None:
    """What a peer publishes may be anything."""
    assert address_of(text) == address
    if address is not None:
        assert host_port(*address) == text


def test_an_address_is_published_and_anything_else_in_its_place_is_none() -> None:
    """A view of a release without a mesh has none."""
    assert view_from(view_json(RouterView(mesh="a:1"))).mesh == "a:1"
    assert b"mesh" not in view_json(RouterView())
    for odd in (b"7", b"null", b'"' + b"a" * 301 + b'"'):
        assert view_from(view_json(RouterView(mesh="a:1")).replace(b'"a:1"', odd)).mesh == ""


# -- connections -------------------------------------------------------------------------------------------------------


class Pool:
    """Some routers' meshes on this host, and what each of them received."""

    def __init__(self) -> None:
        self.meshes: dict[str, Mesh] = {}
        self.got: dict[str, list[bytes]] = {}
        self.extra: dict[str, str] = {}
        self.tasks: dict[str, asyncio.Task[None]] = {}
        self.shared = True  # whether the state that has the addresses is there

    def addresses(self, own: str) -> Mapping[str, str]:
        found = {name: mesh.address for name, mesh in self.meshes.items() if name != own and mesh.address}
        return found | self.extra if self.shared else {}

    def start(self, name: str, key: str = KEY) -> Mesh:
        it = self.meshes[name] = Mesh("127.0.0.1", 0, key, "127.0.0.1", None, lambda: self.addresses(name))
        self.got[name] = []
        self.tasks[name] = asyncio.create_task(it.run(self.got[name].append))
        return it

    async def stop(self, name: str) -> None:
        self.tasks[name].cancel()
        await asyncio.gather(self.tasks[name], return_exceptions=True)

    async def reaches(self, sender: str, message: bytes, *receivers: str) -> None:
        """Until it arrived at each: connections come about in a moment."""

        def arrived() -> bool:
            if not all(message in self.got[name] for name in receivers):
                self.meshes[sender].send(message)
                return False
            return True

        await until(arrived)


@asynccontextmanager
async def pool(*names: str) -> AsyncIterator[Pool]:
    made = Pool()
    for name in names:
        made.start(name)
    try:
        yield made
    finally:
        for name in list(made.tasks):
            await made.stop(name)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looks for peers more often than a router does."""
    monkeypatch.setattr("router.gateway.state.mesh.LOOK_S", 0.01)


async def test_every_router_reaches_every_other_in_order() -> None:
    """And not itself."""
    async with pool("a", "b", "c") as it:
        for name in "abc":
            await it.reaches(name, name.encode(), *(set("abc") - {name}))
        for number in range(100):
            it.meshes["a"].send(b"%d" % number)
        expected = [b"%d" % number for number in range(100)]
        for name in "bc":
            await until(lambda name=name: it.got[name][-1:] == [b"99"])
            assert it.got[name][-100:] == expected
        assert b"a" not in it.got["a"]


async def test_a_router_with_another_key_is_not_listened_to_nor_sent_anything(caplog: pytest.LogCaptureFixture) -> None:
    """Both log it once; the others go on."""
    async with pool("a", "b") as it:
        false = it.start("false", "a key that nobody else has")
        await until(lambda: false.refused > 2 and min(it.meshes[name].refused for name in "ab") > 2)
        await it.reaches("a", b"x", "b")
        false.send(b"false")
        assert not it.got["false"]
        assert b"false" not in it.got["a"] + it.got["b"]
        logged, refused = len(caplog.records), false.refused
        await until(lambda: false.refused > refused)
        assert len(caplog.records) == logged
        assert any("another key" in record.getMessage() for record in caplog.records)


async def test_a_stranger_at_the_port_gets_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither one that says nothing, nor one that says anything else, nor one that leaves."""
    monkeypatch.setattr(mesh_links, "GREET_S", 0.1)
    async with pool("a", "b") as it:
        await until(lambda: it.meshes["a"].address)
        at = address_of(it.meshes["a"].address)
        assert at is not None
        for words in (None, b"", b"GET / HTTP/1.1\r\n\r\n" + b"x" * 100, b"\x00" * 4096):
            reader, writer = await asyncio.open_connection(*at)
            if words is None:
                writer.close()
            else:
                writer.write(words)
                assert (await reader.read(1000)).startswith(b"HRM1")
                assert await reader.read() == b""
                writer.close()
        await until(lambda: it.meshes["a"].refused >= 4)
        await it.reaches("b", b"x", "a")
        assert it.got["a"][0] == b"x"


async def test_a_router_that_sends_garbage_is_cut_off_and_may_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was whole before counts, what comes after does not."""
    async with pool("a") as it:
        await until(lambda: it.meshes["a"].address)
        at = address_of(it.meshes["a"].address)
        assert at is not None
        for garbage in (b"\xff" * 100, b"\x00" * 100):
            sender = await dialled(at, key_of(KEY))
            assert sender.send(b"good")
            transport = sender._transport
            assert transport is not None
            transport.write(garbage)
            await until(lambda sender=sender: sender.closed)
            assert not sender.send(b"more")
        assert it.got["a"] == [b"good"] * 2
        assert it.meshes["a"].refused == 2


async def test_a_peer_that_does_not_read_is_dropped_and_nobody_waits_for_it() -> None:
    """The others get all; it is dialled again, as one that was stopped may go on."""
    async with pool("a", "b") as it:
        await it.reaches("a", b"x", "b")
        stuck = it.start("stuck")
        await it.reaches("a", b"there", "stuck")
        for receiver in stuck._receivers:
            assert receiver._transport is not None
            receiver._transport.pause_reading()
        message, count = b"y" * 65_536, 0
        while not it.meshes["a"].dropped:
            it.meshes["a"].send(message)
            count += 1
            await until(lambda count=count: it.got["b"].count(message) == count)
        await it.reaches("a", b"again", "stuck", "b")
        assert it.got["b"].count(message) == count


async def test_a_router_that_restarts_elsewhere_is_reached_there() -> None:
    """Its address is another one then."""
    async with pool("a", "b") as it:
        await it.reaches("a", b"x", "b")
        await it.stop("b")
        it.start("b")
        await it.reaches("a", b"y", "b")
        await it.reaches("b", b"z", "a")


async def test_without_the_shared_state_routers_go_on_with_the_addresses_that_they_had(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A connection that breaks meanwhile is opened again; a router that stays away is given up."""
    async with pool("a", "b") as it:
        await it.reaches("a", b"x", "b")
        it.shared = False
        for peer in it.meshes["a"]._peers.values():
            assert peer.sender is not None
            peer.sender.abort()
        await it.reaches("a", b"y", "b")
        await it.stop("b")
        await until(lambda: not it.meshes["a"]._peers["b"].connected)
        monkeypatch.setattr("router.gateway.state.mesh.KEPT_S", 0.0)
        await until(lambda: not it.meshes["a"]._peers)


async def test_addresses_that_lead_nowhere_are_tried_again_and_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    """Nothing listens there, no name, no address: both routers log it once, and reach each other."""
    caplog.set_level("INFO", "headroom")
    async with pool("a", "b") as it:
        it.extra = {"gone": f"127.0.0.1:{free_port()}", "odd": "a..b:1", "none": "x"}

        def unreached() -> list[str]:
            texts = (record.getMessage() for record in caplog.records)
            return [text.split()[3] for text in texts if "cannot be reached" in text]

        await until(lambda: len(unreached()) >= 4)
        await it.reaches("a", b"x", "b")
        assert sorted(unreached()) == ["gone", "gone", "odd", "odd"]


async def test_what_greets_with_another_word_is_no_router() -> None:
    """As another service at an address that was a router's."""
    with socket.create_server(("127.0.0.1", 0)) as service:
        dialling = asyncio.create_task(dialled(service.getsockname()[:2], key_of(KEY)))
        loop = asyncio.get_running_loop()
        service.setblocking(False)
        opened, _ = await loop.sock_accept(service)
        with opened:
            await loop.sock_sendall(opened, b"+PONG\r\n" + b"." * 30)
            with pytest.raises(PeerRefused, match="no router"):
                await dialling


async def test_a_port_that_is_taken_is_a_fault_of_the_channel() -> None:
    """It names the address."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(StoreGone, match=f"cannot listen at 127.0.0.1:{port}"):
            await Mesh("127.0.0.1", port, KEY, "", None, dict).run(lambda _: None)


@pytest.mark.parametrize(("host", "port"), [("a..b", 0), ("h" * 100, 0), ("127.0.0.1", (1 << 16) + 3)])
async def test_an_address_that_cannot_be_is_a_fault_of_the_channel_too(host: str, port: int) -> None:
    """A name that is none, the port of the last of many workers: other channels go on."""
    with pytest.raises(StoreGone, match="cannot listen at"):
        await Mesh(host, port, KEY, "", None, dict).run(lambda _: None)


async def test_a_router_is_reached_at_its_address_toward_the_shared_state() -> None:
    """Where the config names none; without a way there it has to."""
    it = Mesh("0.0.0.0", 0, KEY, "", ("127.0.0.1", 6379), dict)
    running = asyncio.create_task(it.run(lambda _: None))
    await until(lambda: it.address)
    assert it.address.startswith("127.0.0.1:")
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    with pytest.raises(StoreGone, match=r"give state\.mesh\.advertise"):
        await Mesh("0.0.0.0", 0, KEY, "", None, dict).run(lambda _: None)


async def test_a_sender_without_a_connection_sends_nothing() -> None:
    """It has been closed, or is not open yet."""
    it = Sender(b"k")
    assert not it.send(b"x")
    it.abort()
    await it.over.wait()


async def test_connections_to_a_router_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """One too many is closed at once."""
    monkeypatch.setattr("router.gateway.state.mesh.ACCEPTED_MOST", 2)
    async with pool("a") as it:
        await until(lambda: it.meshes["a"].address)
        at = address_of(it.meshes["a"].address)
        assert at is not None
        senders = [await dialled(at, key_of(KEY)) for _ in range(2)]
        with pytest.raises(PeerRefused, match="no room"):
            await dialled(at, key_of(KEY))
        for sender in senders:
            sender.abort()
            await sender.over.wait()
        await until(lambda: not it.meshes["a"]._receivers)
        again = await dialled(at, key_of(KEY))
        again.abort()
        await again.over.wait()


# -- whole routers -----------------------------------------------------------------------------------------------------

BACKENDS = "backends:\n  - {name: a, url: 'http://127.0.0.1:1', models: [m], card: l4, model: qwen3-4b}\n"


def config(folder: Path, name: str, redis_url: str, more: str = "") -> Path:
    path = folder / f"{name}.yaml"
    mesh = f"{{host: 127.0.0.1, port: 0, key: {KEY}{more}}}"
    path.write_text(f"{BACKENDS}state: {{redis_url: '{redis_url}', router_id: {name}, mesh: {mesh}}}\n")
    return path


@pytest.mark.skipif(server_binary() is None, reason="no Redis-compatible server binary installed")
async def test_routers_find_each_other_in_the_shared_state_and_send_each_other_their_changes(tmp_path: Path) -> None:
    """What one sends is seen by the other between two syncs, and its end as well; also once the state is gone."""
    async with RedisServer() as server:
        paths = [config(tmp_path, name, server.url) for name in ("a", "b")]
        one, two = (Gateway(plan_file(path), path) for path in paths)
        for it in (one, two):
            it.core.backend_joined(fakes.backend("a"), it.clock())
            assert it.changes is not None
        assert one.changes is not None
        assert two.changes is not None
        tasks = [asyncio.create_task(it.sync.run(it.clock)) for it in (one, two)]
        tasks += [asyncio.create_task(it.run()) for it in (one.changes, two.changes)]
        await until(lambda: one.changes.peers == ["b"] and two.changes.peers == ["a"])
        server.stop()
        await until(lambda: not two.sync.peers)
        held = one.core.ledger.load.reserve(0, 10.0, 20.0, float("inf"), one.clock())
        one.driver.perform(())
        peers = two.core.ledger.table.peers
        await until(lambda: peers[:, 0].sum() > 0.0)
        one.core.ledger.load.release(held, one.clock())
        one.driver.perform(())
        await until(lambda: peers[:, 0].sum() == 0.0)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for it in (one, two):
            await it.store.close()


def test_workers_take_ports_one_after_another_and_do_not_dial_each_other(tmp_path: Path) -> None:
    """They have their own sockets."""
    path = config(tmp_path, "r", "redis://127.0.0.1:1")
    path.write_text(path.read_text().replace("port: 0", "port: 9100"))
    it = Gateway(plan_file(path), path, identity=WorkerIdentity(tmp_path, 2, 4, "r"))
    assert it.changes is not None
    mesh = it.changes._channels[1]
    assert isinstance(mesh, Mesh)
    assert mesh._bind == ("127.0.0.1", 9102)
    it.sync.peers = {"r.w0": RouterView(mesh="x:1"), "s.w0": RouterView(mesh="y:1"), "old": RouterView()}
    assert mesh._addresses() == {"s.w0": "y:1"}


@pytest.mark.parametrize(
    ("state", "why"),
    [
        ("{mesh: {key: 0123456789abcdef}}", "mesh needs redis_url"),
        ("{redis_url: 'redis://a:1', mesh: {}}", "key"),
        ("{redis_url: 'redis://a:1', mesh: {key: short}}", "key"),
        ("{redis_url: 'redis://a:1', push_s: null, mesh: {key: 0123456789abcdef}}", "push_s is null"),
    ],
)
def test_a_mesh_without_peers_or_a_key_is_a_fault_of_the_config(tmp_path: Path, state: str, why: str) -> None:
    """Named at its place."""
    path = tmp_path / "r.yaml"
    path.write_text(f"{BACKENDS}state: {state}\n")
    with pytest.raises(ConfigError, match=why):
        plan_file(path)
