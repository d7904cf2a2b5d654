"""One connection between two routers: the greeting in which both prove the key, then frames from who opened it.

Must not depend on how routers find each other, nor on what the frames hold.
"""

import asyncio
import secrets
import socket
from collections.abc import Callable
from typing import Final, cast

from router.core.errors import PeerRefused, Unreadable
from router.gateway.state.change_wire import BYTES_MOST
from router.gateway.state.mesh_frames import (
    MAGIC,
    NONCE_BYTES,
    PROOF_BYTES,
    FrameReader,
    FrameWriter,
    proof,
    proves,
    session_key,
)

GREET_S: Final = 2.0  # from the connection to the end of the greeting
QUEUE_BYTES_MOST: Final = 1 << 18  # that a peer may leave unread beyond what the kernel holds for it
UNANSWERED_MS: Final = 3_000  # after which the kernel gives up a connection whose other host does not answer
ACCEPTOR: Final = b"acceptor"
DIALLER: Final = b"dialler"
_HELLO_BYTES: Final = len(MAGIC) + NONCE_BYTES
_LEFT: Final = "it closed the connection before both had proved the key"


class _Link(asyncio.Protocol):
    """A connection, from when it is made. ``over``: set once it is gone."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._greeting = b""  # what came of it
        self._nonce = secrets.token_bytes(NONCE_BYTES)
        self.closed = False
        self.over = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is no subclass
        opened = transport.get_extra_info("socket")
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNANSWERED_MS)

    def connection_lost(self, error: Exception | None) -> None:
        self.closed, self._transport = True, None
        self.over.set()

    def abort(self) -> None:
        """Close it at once; what is not sent yet is dropped."""
        self.closed = True
        if self._transport is not None:
            self._transport.abort()
        else:
            self.over.set()

    def _write(self, data: bytes) -> None:
        if self._transport is not None:
            self._transport.write(data)


class Sender(_Link):
    """The side that opened the connection: frames go out here, and nothing but the greeting comes in."""

    def __init__(self, key: bytes) -> None:
        super().__init__()
        self._key = key
        self._frames: FrameWriter | None = None
        self.greeted: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def data_received(self, data: bytes) -> None:
        if self._frames is not None or self.closed:
            return
        before = len(self._greeting)
        self._greeting += data
        nonces = self._greeting[len(MAGIC) : _HELLO_BYTES] + self._nonce
        if not self._greeting.startswith(MAGIC[: len(self._greeting)]):
            self._refuse("what listens there is no router, or of another release")
        elif before < _HELLO_BYTES <= len(self._greeting):
            self._write(self._nonce + proof(self._key, DIALLER, nonces))
        if len(self._greeting) >= _HELLO_BYTES + PROOF_BYTES:
            given = self._greeting[_HELLO_BYTES : _HELLO_BYTES + PROOF_BYTES]
            if not proves(given, self._key, ACCEPTOR, nonces):
                self._refuse("it has another key")
            elif not self.greeted.done():
                self._frames = FrameWriter(session_key(self._key, nonces))
                self.greeted.set_result(None)

    def _refuse(self, why: str) -> None:
        if not self.greeted.done():
            self.greeted.set_exception(PeerRefused(why))
        self.abort()

    def connection_lost(self, error: Exception | None) -> None:
        super().connection_lost(error)
        if not self.greeted.done():
            self.greeted.set_exception(PeerRefused(f"{_LEFT}: it has another one, or no room for more peers"))

    def send(self, message: bytes) -> bool:
        """Send it; False, and the connection is closed, where the peer does not read."""
        if self.closed or self._transport is None or self._frames is None:
            return False
        if self._transport.get_write_buffer_size() > QUEUE_BYTES_MOST:
            self.abort()
            return False
        self._transport.write(self._frames.frame(message))
        return True


class Receiver(_Link):
    """The other side: frames come in here. ``silent_sweeps``: how often the mesh looked since the last bytes."""

    def __init__(
        self,
        key: bytes,
        on_message: Callable[[bytes], None],
        on_over: Callable[["Receiver", str], None],
        *,
        full: bool = False,
    ) -> None:
        """``on_over``: called when the connection is gone, with the reason where this side closed it; ``full``: it is
        closed at once, for there are too many.
        """
        super().__init__()
        self._key, self._on_message, self._on_over = key, on_message, on_over
        self._frames: FrameReader | None = None
        self._late: asyncio.TimerHandle | None = None
        self._full, self._why = full, ""
        self.silent_sweeps = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        if self._full:
            self.refuse("too many connections")
            return
        self._write(MAGIC + self._nonce)
        self._late = asyncio.get_running_loop().call_later(GREET_S, self.refuse, "no greeting in time")

    def data_received(self, data: bytes) -> None:
        self.silent_sweeps = 0
        if self.closed:
            return
        if self._frames is None:
            self._greeting += data
            if len(self._greeting) < NONCE_BYTES + PROOF_BYTES:
                return
            data = self._greeting[NONCE_BYTES + PROOF_BYTES :]
            if not self._greeted():
                return
        self._read(data)

    def _greeted(self) -> bool:
        nonces = self._nonce + self._greeting[:NONCE_BYTES]
        if not proves(self._greeting[NONCE_BYTES : NONCE_BYTES + PROOF_BYTES], self._key, DIALLER, nonces):
            self.refuse("a router with another key, or no router")
            return False
        self._end_wait()
        self._frames = FrameReader(session_key(self._key, nonces), BYTES_MOST)
        self._write(proof(self._key, ACCEPTOR, nonces))
        return True

    def _read(self, data: bytes) -> None:
        assert self._frames is not None
        try:
            for message in self._frames.contents(data):
                self._on_message(message)
        except Unreadable as error:
            self.refuse(str(error))

    def refuse(self, why: str) -> None:
        """Close it for this reason."""
        self._why = why
        self.abort()

    def connection_lost(self, error: Exception | None) -> None:
        super().connection_lost(error)
        self._end_wait()
        self._on_over(self, self._why or ("" if self._frames is not None else _LEFT))

    def _end_wait(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None


async def dialled(address: tuple[str, int], key: bytes) -> Sender:
    """A connection to the router there, ready to send. Raises OSError, ValueError."""
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(GREET_S):
        _, sender = await loop.create_connection(lambda: Sender(key), *address)
        try:
            await sender.greeted
        except BaseException:
            sender.abort()
            raise
    return sender
