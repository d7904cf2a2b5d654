"""States for the service manager that started this process: ready, reloading, stopping, alive (systemd's sd_notify).

One datagram a state, to the socket that ``NOTIFY_SOCKET`` names; without the variable nothing is sent and nothing runs.
A state that cannot be sent is dropped: serving does not depend on it. Must not depend on what is served.
"""

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Callable, MutableMapping
from contextlib import asynccontextmanager, suppress
from time import monotonic_ns
from typing import Final

_TICK_S: Final = 0.25  # how soon a start or a stop is reported
_STATUS_MOST: Final = 500  # characters


class ServiceManager:
    """Where states go. The variables are removed from the environment, so that child processes report none."""

    def __init__(self, environment: MutableMapping[str, str] = os.environ) -> None:
        address = environment.pop("NOTIFY_SOCKET", "")
        period_us, pid = environment.pop("WATCHDOG_USEC", ""), environment.pop("WATCHDOG_PID", "")
        self._address = f"\0{address[1:]}" if address.startswith("@") else address
        ours = pid in {"", str(os.getpid())}
        self.watchdog_s = int(period_us) / 1e6 if ours and period_us.isascii() and period_us.isdecimal() else 0.0

    def __bool__(self) -> bool:
        return bool(self._address)

    def ready(self, status: str) -> None:
        """It serves; also after a reload, whatever came of it. *status* is shown by ``systemctl status``."""
        self._send(f"READY=1\nSTATUS={_line(status)}")

    def show(self, status: str) -> None:
        """It goes on, with another *status*."""
        self._send(f"STATUS={_line(status)}")

    def reloading(self) -> None:
        """A config is being read and validated, while the one before serves."""
        self._send(f"RELOADING=1\nMONOTONIC_USEC={monotonic_ns() // 1000}\nSTATUS=validating the changed config")

    def stopping(self) -> None:
        """It takes no more requests; streams in flight go on."""
        self._send("STOPPING=1\nSTATUS=streams in flight are served to their end")

    def alive(self) -> None:
        """The loop runs: without this in time, the manager restarts the process."""
        self._send("WATCHDOG=1")

    def _send(self, state: str) -> None:
        if not self._address:
            return
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as made:
            made.sendto(state.encode(), self._address)

    @asynccontextmanager
    async def watching(
        self, started: Callable[[], bool], stopping: Callable[[], bool], status: Callable[[], str]
    ) -> AsyncIterator[None]:
        """Within the context, report when it has *started*, when its *status* changes, when it is *stopping*, and that
        the loop runs.
        """
        task = asyncio.create_task(self._report(started, stopping, status), name="service manager") if self else None
        try:
            yield
        finally:
            if task is not None:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
                self.stopping()  # the end may have come sooner than the next look

    async def _report(
        self, started: Callable[[], bool], stopping: Callable[[], bool], status: Callable[[], str]
    ) -> None:
        shown, was_stopping = "", False
        while True:
            if stopping() and not was_stopping:
                was_stopping = True
                self.stopping()
            if started() and not was_stopping and (now := status()) != shown:
                if shown:
                    self.show(now)
                else:
                    self.ready(now)
                shown = now
            if self.watchdog_s:
                self.alive()
            await asyncio.sleep(min(_TICK_S, self.watchdog_s / 3 or _TICK_S))


def _line(status: str) -> str:
    """What a state may have: one line."""
    return " ".join(status.split())[:_STATUS_MOST]
