"""A channel between the workers of one host: a datagram socket each, in the folder that only this user may enter.

A datagram arrives whole or not at all, and in order. Nothing waits for a worker that does not read: what its socket has
no room for is dropped. Must not depend on what the messages hold.
"""

import asyncio
import socket
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Final

from router.core.errors import StateFault, StoreGone

READS_MOST: Final = 64  # messages that one turn of the loop reads
BYTES_MOST: Final = 1 << 20


class Datagrams:
    """One worker's socket, and the paths of the others'."""

    name = "the sockets of the workers"
    address = ""

    def __init__(self, own: Path, others: Iterable[Path]) -> None:
        """Opens nothing yet. *own*: a socket's path is at most some 100 bytes long."""
        self._own, self._others = own, tuple(str(other) for other in others)
        self._socket: socket.socket | None = None
        self.dropped = self.refused = 0

    async def run(self, on_message: Callable[[bytes], None]) -> None:
        """Receive until cancelled. Raises StoreGone where the socket cannot be made."""
        loop = asyncio.get_running_loop()
        opened = self._socket = self._open()
        loop.add_reader(opened.fileno(), self._readable, opened, on_message)
        try:
            await asyncio.Event().wait()
        finally:
            loop.remove_reader(opened.fileno())
            self._shut()

    def _open(self) -> socket.socket:
        opened = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            opened.setblocking(False)
            for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
                opened.setsockopt(socket.SOL_SOCKET, option, BYTES_MOST)
            self._own.unlink(missing_ok=True)
            opened.bind(str(self._own))
            self._own.chmod(0o600)
        except OSError as error:
            opened.close()
            raise StoreGone(f"{self._own}: {error.strerror or error}", StateFault.FILES) from error
        return opened

    def _readable(self, opened: socket.socket, on_message: Callable[[bytes], None]) -> None:
        for _ in range(READS_MOST):
            try:
                message = opened.recv(BYTES_MOST)
            except OSError:  # nothing more is there
                return
            on_message(message)

    def send(self, message: bytes) -> None:
        """To each of the other workers that has room for it."""
        if self._socket is None:
            return
        for path in self._others:
            try:
                self._socket.sendto(message, path)
            except (FileNotFoundError, ConnectionRefusedError):
                pass  # that worker does not run
            except OSError:  # it does not read, or the message is longer than a datagram may be
                self.dropped += 1

    async def close(self) -> None:
        """Remove the socket."""
        self._shut()

    def _shut(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None
            with suppress(OSError):
                self._own.unlink(missing_ok=True)
