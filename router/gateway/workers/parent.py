"""The parent of the workers: starts them, restarts one that has ended, ends them all. It serves no request itself.

Must not depend on requests. A worker holds one end of a socket pair: a byte on it means that the worker serves, and its
end of file means to the worker that the parent is gone. A worker is a new process, not a fork: no thread, lock or
connection is inherited. A worker that ends before any has served has logged why, and the parent ends too.
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
from router.gateway.private_files import replace_content
from router.gateway.rollout.validation import Validation
from router.gateway.rollout.versions import Version
from router.gateway.service_manager import ServiceManager
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
class _WorkerProcess:
    """One worker and its process."""

    identity: WorkerIdentity
    process: Process | None = None
    up: bool = False


class Parent:
    """Keeps ``slots`` workers of one config alive until SIGTERM or SIGINT."""

    def __init__(self, plan: Plan, validation: Validation, path: Path, slots: int, *more: str) -> None:
        """*plan* is validated; *more*: options for the workers' command."""
        self._plan, self._validation, self._path, self._slots, self._more = plan, validation, path, slots, more
        self._workers: list[_WorkerProcess] = []
        self._ending = asyncio.Event()
        self._restarts = 0
        self._why_not = ""
        self._ever_up = False

    async def run(self) -> None:
        """Run until a signal. Raises OSError when the port is taken, CannotStart when no worker comes up."""
        listen, manager = self._plan.settings.listen, ServiceManager()
        with reserved(listen.host, listen.port) as port, _folder() as folder:
            identities = [
                WorkerIdentity(folder, slot, self._slots, self._plan.router_id) for slot in range(self._slots)
            ]
            self._workers = [_WorkerProcess(identity) for identity in identities]
            running.publish(identities[0].running, self._version(), {})
            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self._pass_on)
            where = f"{'https' if listen.tls else 'http'}://{listen.host}:{port}"
            _log.info("router %s: %s by %d workers; %s", self._plan.router_id, where, self._slots, build())
            with on_signal(lambda _: self._ending.set()):
                keepers = [asyncio.create_task(self._keep(worker, port)) for worker in self._workers]
                async with manager.watching(lambda: self._ever_up, self._ending.is_set, self._up):
                    await self._ending.wait()
                    await self._end(keepers)
        if self._why_not:
            raise CannotStart(self._why_not)

    def _up(self) -> str:
        return f"serves by {self._slots} workers"

    def _version(self) -> Version:
        plan = self._plan
        sources = {path: source.text for path, source in plan.sources.items()}
        return Version(plan.version, time(), "start", plan.text, sources, asdict(self._validation))

    def _pass_on(self) -> None:
        """Send SIGHUP to one worker; the others follow it."""
        first = next((worker for worker in self._workers if worker.up), None)
        if first is None:
            _log.warning("SIGHUP ignored: no worker serves yet; reload again once one does")
        else:
            self._signal(first, signal.SIGHUP)

    async def _keep(self, worker: _WorkerProcess, port: int) -> None:
        """Start a worker, and restart it whenever it ends; the delay doubles while it ends soon after its start."""
        loop = asyncio.get_running_loop()
        wait_s = WAIT_S
        while not self._ending.is_set():
            began_s = loop.time()
            status = await self._live(worker, port)
            if self._ending.is_set():
                return
            if not self._ever_up:
                self._give_up(f"worker {worker.identity.slot} {_how(status)} before any worker was up")
                return
            wait_s = WAIT_S if loop.time() - began_s > SOON_S else min(2 * wait_s, WAIT_S_MAX)
            await self._on_worker_exit(worker, status, wait_s)

    async def _live(self, worker: _WorkerProcess, port: int) -> int:
        """One life of a worker; its exit status."""
        ours, its = socket.socketpair()
        with ours:
            with its:
                worker.process = await self._spawn(worker.identity, port, its)
            if self._ending.is_set():  # while it was started, so it was not among those to end
                self._signal(worker, signal.SIGTERM)
            watching = asyncio.create_task(self._until_up(worker, ours))
            try:
                return await worker.process.wait()
            finally:
                watching.cancel()
                worker.up = False

    async def _spawn(self, identity: WorkerIdentity, port: int, its: socket.socket) -> Process:
        options = (
            str(identity.folder), str(identity.slot), str(identity.slots), identity.name, str(port), str(its.fileno()),
        )  # fmt: skip
        return await asyncio.create_subprocess_exec(
            *module_command("router", "worker", str(self._path), *options, *self._more),
            env=environment(), pass_fds=(its.fileno(),),
        )  # fmt: skip

    async def _until_up(self, worker: _WorkerProcess, ours: socket.socket) -> None:
        ours.setblocking(False)
        with suppress(OSError):
            if await asyncio.get_running_loop().sock_recv(ours, 1):
                worker.up = self._ever_up = True

    async def _on_worker_exit(self, worker: _WorkerProcess, status: int, wait_s: float) -> None:
        self._restarts += 1
        replace_content(worker.identity.restarts, b"%d" % self._restarts)
        _log.error("worker %d %s; restarting it in %.1f s", worker.identity.slot, _how(status), wait_s)
        with suppress(TimeoutError):
            await asyncio.wait_for(self._ending.wait(), wait_s)

    def _give_up(self, why: str) -> None:
        self._why_not = why
        self._ending.set()

    async def _end(self, keepers: list[asyncio.Task[None]]) -> None:
        """Let all drain; a worker that has not ended in time is killed."""
        for worker in self._workers:
            self._signal(worker, signal.SIGTERM)
        _, late = await asyncio.wait(keepers, timeout=self._plan.settings.listen.drain_s + GRACE_S)
        if late:
            _log.error("%d workers did not end within listen.drain_s and are killed", len(late))
            for worker in self._workers:
                self._signal(worker, signal.SIGKILL)
        await asyncio.gather(*keepers)

    @staticmethod
    def _signal(worker: _WorkerProcess, number: signal.Signals) -> None:
        if worker.process is not None and worker.process.returncode is None:
            with suppress(ProcessLookupError):
                worker.process.send_signal(number)


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
