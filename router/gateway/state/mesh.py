"""A channel between routers of different hosts: a connection from each to each other, at addresses that they publish.

A router sends over the connections that it opened itself and receives over those that others opened, so that no two
have to agree on one. A peer that does not read is dropped and dialled again later, and so is one whose host does not
answer. Where the shared state is gone, the addresses that were known stay in use. Must not depend on what the messages
hold.
"""

import asyncio
import logging
import re
import socket
from collections.abc import Callable, Mapping
from typing import Final

from router.core.errors import StateFault, StoreGone
from router.gateway.state.mesh_frames import key_of
from router.gateway.state.mesh_links import Receiver, Sender, dialled
from router.urls import host_port

LOOK_S: Final = 0.25  # period of looking for peers to dial
RETRY_S_MAX: Final = 5.0
KEPT_S: Final = 300.0  # for which a peer that is no longer published is dialled
SILENT_S: Final = 10.0  # after which an accepted connection without a message is closed
PEERS_MOST: Final = 1_024
ACCEPTED_MOST: Final = 2 * PEERS_MOST  # connections to this router
_PORT_MOST: Final = (1 << 16) - 1
_log = logging.getLogger("headroom")

Address = tuple[str, int]
_ADDRESS: Final = re.compile(r"(?P<host>[!-~]{1,257}):(?P<port>[0-9]{1,5})")


def address_of(text: str) -> Address | None:
    """An address as it is published; None for what is none."""
    found = _ADDRESS.fullmatch(text)
    if found is None:
        return None
    host, port = found["host"].removeprefix("[").removesuffix("]"), int(found["port"])
    return (host, port) if host and 0 < port < 1 << 16 else None


class _Peer:
    """A peer to send to. ``seen_s``: when its address was published last; ``due_s``: when it may be dialled next."""

    __slots__ = ("address", "dialling", "due_s", "fault", "seen_s", "sender", "wait_s")

    def __init__(self, address: Address) -> None:
        self.address = address
        self.sender: Sender | None = None
        self.dialling: asyncio.Task[None] | None = None
        self.seen_s = self.due_s = self.wait_s = 0.0
        self.fault = ""  # as it was logged

    @property
    def connected(self) -> bool:
        """Whether messages can be sent."""
        return self.sender is not None and not self.sender.closed

    def close(self) -> None:
        """For good."""
        if self.dialling is not None:
            self.dialling.cancel()
        if self.sender is not None:
            self.sender.abort()


class Mesh:
    """One router's connections to and from the others."""

    name = "the mesh"

    def __init__(
        self,
        host: str,
        port: int,
        key: str,
        advertised: str,
        toward: Address | None,
        addresses: Callable[[], Mapping[str, str]],
    ) -> None:
        """Opens nothing yet. ``port`` 0: any. ``advertised``: the host at which peers reach this router; empty: the one
        that it has on the way to ``toward``. ``addresses``: of the peers by id, as they are published now.
        """
        self._bind, self._key, self._advertised, self._toward = (host, port), key_of(key), advertised, toward
        self._addresses = addresses
        self._peers: dict[str, _Peer] = {}
        self._receivers: set[Receiver] = set()
        self._reasons: set[str] = set()  # why connections were closed, as it was logged
        self.address = ""  # as it is to be published, while this router can be reached
        self.dropped = self.refused = 0

    # -- sending -------------------------------------------------------------------------------------------------

    def send(self, message: bytes) -> None:
        """To every peer that is connected."""
        for peer in self._peers.values():
            if peer.sender is not None and not peer.sender.closed and not peer.sender.send(message):
                self.dropped += 1

    async def _look(self) -> None:
        """Dial those that are there and not connected, and let go of those that have been away for long."""
        while True:
            self._look_once(asyncio.get_running_loop().time())
            await asyncio.sleep(LOOK_S)

    def _look_once(self, now_s: float) -> None:
        for name, text in self._addresses().items():
            address = address_of(text)
            if address is not None and (name in self._peers or len(self._peers) < PEERS_MOST):
                self._published(name, address).seen_s = now_s
        self._dial_due(now_s)
        self._sweep()

    def _published(self, name: str, address: Address) -> _Peer:
        """The peer at this address; one at another is closed."""
        known = self._peers.get(name)
        if known is not None and known.address == address:
            return known
        if known is not None:
            known.close()
        new = self._peers[name] = _Peer(address)
        return new

    def _dial_due(self, now_s: float) -> None:
        for name, peer in list(self._peers.items()):
            if peer.connected or peer.dialling is not None:
                continue
            if now_s - peer.seen_s > KEPT_S:
                del self._peers[name]
            elif now_s >= peer.due_s:
                peer.dialling = asyncio.create_task(self._dial(name, peer), name=f"dial {name}")

    def _sweep(self) -> None:
        """Close accepted connections over which nothing comes any more."""
        for receiver in list(self._receivers):
            receiver.silent_sweeps += 1
            if receiver.silent_sweeps * LOOK_S > SILENT_S:
                receiver.refuse("nothing came for long")

    async def _dial(self, name: str, peer: _Peer) -> None:
        try:
            peer.sender = await dialled(peer.address, self._key)
        except (OSError, ValueError) as error:  # the latter of a host that is no name
            peer.wait_s = min(max(2 * peer.wait_s, LOOK_S), RETRY_S_MAX)
            why = str(error) or "no answer in time"
            if not peer.fault:
                text = "the mesh: router %s cannot be reached at %s (%s); its load is known by its views"
                _log.warning(text, name, host_port(*peer.address), why)
            peer.fault = why
        else:
            if peer.fault:
                _log.info("the mesh: router %s is reached at %s", name, host_port(*peer.address))
            peer.wait_s, peer.fault = LOOK_S, ""
        finally:
            peer.due_s = asyncio.get_running_loop().time() + peer.wait_s
            peer.dialling = None

    # -- receiving -----------------------------------------------------------------------------------------------

    async def run(self, on_message: Callable[[bytes], None]) -> None:
        """Receive and dial until cancelled. Raises StoreGone where the port cannot be opened."""
        listening = await self._listen(on_message)
        try:
            await self._look()
        finally:
            self.address = ""
            listening.close()
            await self.close()

    async def _listen(self, on_message: Callable[[bytes], None]) -> asyncio.Server:
        host, port = self._bind
        if port > _PORT_MOST:  # uvloop would take the rest of it
            text = f"cannot listen at {host_port(host, port)}: no port is above {_PORT_MOST}"
            raise StoreGone(text, StateFault.UNREACHABLE)

        def receiver() -> Receiver:
            made = Receiver(self._key, on_message, self._over, full=len(self._receivers) >= ACCEPTED_MOST)
            self._receivers.add(made)
            return made

        try:
            listening = await asyncio.get_running_loop().create_server(receiver, host, port)
        except (OSError, ValueError) as error:  # the latter of a host that is no name
            text = f"cannot listen at {host_port(host, port)}: {getattr(error, 'strerror', None) or error}"
            raise StoreGone(text, StateFault.UNREACHABLE) from error
        try:
            self.address = host_port(await self._reached_at(), listening.sockets[0].getsockname()[1])
        except (OSError, ValueError) as error:
            listening.close()
            text = f"no address at which peers reach this router ({error}); give state.mesh.advertise"
            raise StoreGone(text, StateFault.UNREACHABLE) from error
        return listening

    async def _reached_at(self) -> str:
        """The host at which peers reach this router. Raises OSError."""
        if self._advertised:
            return self._advertised
        if self._toward is None:
            raise OSError("the shared state is on this host alone")
        found = await asyncio.get_running_loop().getaddrinfo(*self._toward, type=socket.SOCK_DGRAM)
        family, kind, protocol, _, where = found[0]
        with socket.socket(family, kind, protocol) as probe:  # a datagram socket that connects sends nothing
            probe.connect(where)
            host: str = probe.getsockname()[0]
        return host

    def _over(self, receiver: Receiver, why: str) -> None:
        """A connection to this router is gone; why, where this router closed it: each reason is logged once."""
        self._receivers.discard(receiver)
        if not why:
            return
        self.refused += 1
        if why not in self._reasons and len(self._reasons) < PEERS_MOST:
            self._reasons.add(why)
            _log.warning("the mesh: a connection to this router was closed (%s)", why)

    async def close(self) -> None:
        """Close every connection."""
        peers, self._peers = list(self._peers.values()), {}
        links: list[Sender | Receiver] = [peer.sender for peer in peers if peer.sender is not None]
        links += self._receivers
        dialling = [peer.dialling for peer in peers if peer.dialling is not None]
        for peer in peers:
            peer.close()
        for link in links:
            link.abort()
        await asyncio.gather(*dialling, *(link.over.wait() for link in links), return_exceptions=True)
