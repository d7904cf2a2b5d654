"""The parent of the workers: starts them, starts again who dies, ends them all. It serves nobody itself.

Believes: a worker that said it is up can serve; one that ends before any did has told why. Must not know requests. A
worker holds one end of a socket pair: its other end tells the parent that the worker is up, and the worker, by closing,
that the parent is gone. A worker is a new process, not a fork: no thread, lock or connection is inherited.
"""

import asyncio
import logging
import signal
import socket
import tempfile
from asyncio.subprocess import Process
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from time import time
from typing import Final

from router.core.errors import CannotStart
from router.event_loop import on_signal
from router.gateway.config.plan import Plan
from router.gateway.rollout.validation import Validation
from router.gateway.rollout.versions import Version
from router.gateway.sockets import reserved
from router.gateway.worker_identity import WorkerIdentity
from router.gateway.workers import running
from router.search_path import environment, module_command
from router.version import build

_log = logging.getLogger("headroom")

WAIT_S: Final = 0.1  # before a first restart; each that follows soon waits twice as long
WAIT_S_MAX: Final = 10.0
SOON_S: Final = 30.0
GRACE_S: Final = 5.0  # beyond ``listen.drain_s``, until a worker that does not end is killed
_MEMORY: Final = Path("/dev/shm")


@dataclass(slots=True)
class _Seat:
    """One worker as its parent sees it."""

    place: WorkerIdentity
    process: Process | None = None
    up: bool = False


class Parent:
    """Keeps ``slots`` workers of one config alive until SIGTERM or SIGINT."""

    def __init__(self, plan: Plan, validation: Validation, path: Path, slots: int, *more: str) -> None:
        """*plan* is validated; *more*: options for the workers' command."""
        self._plan, self._validation, self._path, self._slots, self._more = plan, validation, path, slots, more
        self._seats: list[_Seat] = []
        self._ending = asyncio.Event()
        self._restarts = 0
        self._why_not = ""
        self._ever_up = False

    async def run(self) -> None:
        """Until it is told to end. Raises OSError when the port is taken, CannotStart when no worker comes up."""
        listen = self._plan.settings.listen
        with reserved(listen.host, listen.port) as port, _folder() as folder:
            places = [WorkerIdentity(folder, slot, self._slots, self._plan.router_id) for slot in range(self._slots)]
            self._seats = [_Seat(place) for place in places]
            running.publish(places[0].running, self._version(), {})
            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self._pass_on)
            where = f"http://{listen.host}:{port}"
            _log.info("router %s: %s by %d workers; %s", self._plan.router_id, where, self._slots, build())
            with on_signal(lambda _: self._ending.set()):
                keepers = [asyncio.create_task(self._keep(seat, port)) for seat in self._seats]
                await self._ending.wait()
                await self._end(keepers)
        if self._why_not:
            raise CannotStart(self._why_not)

    def _version(self) -> Version:
        plan = self._plan
        sources = {path: source.text for path, source in plan.sources.items()}
        return Version(plan.version, time(), "start", plan.text, sources, asdict(self._validation))

    def _pass_on(self) -> None:
        """A reload asked of one worker reaches all."""
        first = next((seat for seat in self._seats if seat.up), None)
        if first is None:
            _log.warning("SIGHUP: no worker is up; those that come will read what serves")
        else:
            self._signal(first, signal.SIGHUP)

    async def _keep(self, seat: _Seat, port: int) -> None:
        """Start a worker, and start it again whenever it ends, ever more slowly while it does so soon."""
        loop = asyncio.get_running_loop()
        wait_s = WAIT_S
        while not self._ending.is_set():
            began_s = loop.time()
            status = await self._live(seat, port)
            if self._ending.is_set():
                return
            if not self._ever_up:
                self._give_up(f"worker {seat.place.slot} {_how(status)} before any worker was up")
                return
            wait_s = WAIT_S if loop.time() - began_s > SOON_S else min(2 * wait_s, WAIT_S_MAX)
            await self._on_worker_exit(seat, status, wait_s)

    async def _live(self, seat: _Seat, port: int) -> int:
        """One life of a worker; its exit status."""
        ours, its = socket.socketpair()
        with ours:
            with its:
                seat.process = await self._spawn(seat.place, port, its)
            if self._ending.is_set():  # while it was started, so it was not among those to end
                self._signal(seat, signal.SIGTERM)
            watching = asyncio.create_task(self._until_up(seat, ours))
            try:
                return await seat.process.wait()
            finally:
                watching.cancel()
                seat.up = False

    async def _spawn(self, place: WorkerIdentity, port: int, its: socket.socket) -> Process:
        seat = (str(place.folder), str(place.slot), str(place.slots), place.name, str(port), str(its.fileno()))
        return await asyncio.create_subprocess_exec(
            *module_command("router", "worker", str(self._path), *seat, *self._more),
            env=environment(), pass_fds=(its.fileno(),),
        )  # fmt: skip

    async def _until_up(self, seat: _Seat, ours: socket.socket) -> None:
        ours.setblocking(False)
        with suppress(OSError):
            if await asyncio.get_running_loop().sock_recv(ours, 1):
                seat.up = self._ever_up = True

    async def _on_worker_exit(self, seat: _Seat, status: int, wait_s: float) -> None:
        self._restarts += 1
        seat.place.restarts.write_text(str(self._restarts), encoding="utf-8")
        _log.error("worker %d %s; starting it again in %.1f s", seat.place.slot, _how(status), wait_s)
        with suppress(TimeoutError):
            await asyncio.wait_for(self._ending.wait(), wait_s)

    def _give_up(self, why: str) -> None:
        self._why_not = why
        self._ending.set()

    async def _end(self, keepers: list[asyncio.Task[None]]) -> None:
        """Let all drain; who has not ended long after its time is killed."""
        for seat in self._seats:
            self._signal(seat, signal.SIGTERM)
        _, late = await asyncio.wait(keepers, timeout=self._plan.settings.listen.drain_s + GRACE_S)
        if late:
            _log.error("%d workers did not end in time and are killed", len(late))
            for seat in self._seats:
                self._signal(seat, signal.SIGKILL)
        await asyncio.gather(*keepers)

    @staticmethod
    def _signal(seat: _Seat, number: signal.Signals) -> None:
        if seat.process is not None and seat.process.returncode is None:
            with suppress(ProcessLookupError):
                seat.process.send_signal(number)


def _how(status: int) -> str:
    return f"was killed by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"


@contextmanager
def _folder() -> Iterator[Path]:
    """A folder of our own, in memory where there is such a place."""
    try:
        made = tempfile.TemporaryDirectory(prefix="headroom-", dir=_MEMORY)
    except OSError:
        made = tempfile.TemporaryDirectory(prefix="headroom-")
    with made as name:
        yield Path(name)
