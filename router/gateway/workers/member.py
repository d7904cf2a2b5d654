"""One worker: a gateway that shares its port, its config and its reports of engines with the other workers.

Must not depend on the parent process beyond its end of a socket pair. Which workers are alive comes from the shared
state. Each engine's metrics are read by one worker, chosen by the engine's name, and published to the others.
"""

import asyncio
import atexit
import logging
import shutil
import signal
import socket
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from time import monotonic
from typing import Any, Final, cast

from uvicorn import Server
from uvicorn._types import ASGI3Application

from router.gateway.app import Gateway
from router.gateway.config.plan import Plan
from router.gateway.monitoring.publishing import WorkerPublisher
from router.gateway.rollout.reload import remade, settled
from router.gateway.rollout.versions import Version
from router.gateway.serving import connection_limits, control_of, reload_on_hangup
from router.gateway.sockets import listening
from router.gateway.state.files import Stamp, stamp
from router.gateway.traffic.server import server
from router.gateway.worker_identity import WorkerIdentity
from router.gateway.workers import running
from router.gateway.workers.crew import ControlAggregator
from router.gateway.workers.drains import Drains, agree
from router.gateway.workers.opening import until_informed
from router.gateway.workers.used import UsedFile

UP: Final = b"u"  # sent to the parent once the worker serves
_log = logging.getLogger("headroom")


class Worker:
    """A gateway and what it shares. ``serve`` serves until a signal, or the end of its parent, ends it."""

    def __init__(self, plan: Plan, path: Path, identity: WorkerIdentity, number: int) -> None:
        """``number``: of the change that *plan* came with (``running.py``)."""
        self.identity = identity
        self.gateway = Gateway(plan, path, monotonic, identity)
        assert self.gateway.publisher is not None  # it has an identity
        self._publisher: WorkerPublisher = self.gateway.publisher
        self._control = ControlAggregator(cast("Any", control_of(self.gateway)), identity, self._versions)
        self._number, self._published = number, self._newest
        self._seen: Stamp = None  # of the file of the running config, when it was last read
        self._drained: Drains = {}  # as agreed with the other workers
        self._drains_seen: Stamp = None
        summed = plan.redis is not None  # by the shared state
        self._used = None if summed else UsedFile(identity.used(identity.slot), self.gateway.quotas)
        self._sharing: asyncio.Task[None] | None = None

    # -- with the other workers --------------------------------------------------------------------------------

    def _versions(self) -> Mapping[str, str]:
        """The config version of each worker alive, this one's first."""
        workers = {self.identity.id_of(slot) for slot in self.identity.others}
        peers = {name: view.version for name, view in self.gateway.sync.peers.items() if name in workers}
        return {self.gateway.router_id: self.gateway.plan.version} | dict(sorted(peers.items()))

    async def _share(self) -> None:
        """Publish reports of engines and a config taken here, and follow one taken elsewhere; cancel to end."""
        period_s = self.gateway.plan.settings.state.sync_s
        while True:
            await asyncio.sleep(period_s)
            await self._publisher.publish()
            try:
                await self._agree()
                self._agree_on_drains()
                if self._used is not None:
                    self._used.write(self.gateway.clock())
            except OSError as error:
                _log.error(
                    "%s: cannot share the running config, drains and use with the other workers: %s", self._file, error
                )

    @property
    def _newest(self) -> tuple[str, float]:
        """The config that was taken last, and when: of backends that come and go no other worker has to learn, for each
        finds them by itself.
        """
        newest: Version = next(iter(self.gateway.reloader.versions))
        return newest.version, newest.at_s

    @property
    def _file(self) -> Path:
        return self.identity.running

    async def _agree(self) -> None:
        """Every worker ends at the change with the highest number."""
        reloader = self.gateway.reloader
        if self._newest != self._published:
            newest = next(iter(reloader.versions))
            bad = {version.version: version.bad for version in reloader.versions if version.bad}
            self._published = self._newest
            self._number = running.publish(self._file, newest, bad)
            return
        now = stamp(self._file)
        if now == self._seen:
            return
        self._seen = now
        found = running.read(self._file)
        if found is not None and found.number > self._number:
            self._number = found.number
            await reloader.follow(found.version, found.bad)
            self._published = self._newest

    def _agree_on_drains(self) -> None:
        """Every worker drains what an operator has drained at one of them, also one that was away then."""
        backends, file = self.gateway.backends, self.identity.drains
        now = stamp(file)
        if backends.drained == self._drained and now == self._drains_seen:
            return
        self._drained = agree(file, backends.drained, self._drained, backends.known)
        self._drains_seen = now  # what was written since is read once more, which changes nothing
        backends.take_drained(self._drained)

    # -- life --------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Start everything that runs beside the traffic, and answer the other workers."""
        self._agree_on_drains()  # before a backend joins: none gets a request that another worker has drained
        await self.gateway.start()
        if self._used is not None:
            self._used.resume(self.gateway.clock())
        self._sharing = asyncio.create_task(self._share(), name="workers")
        await self._control.start()

    async def close(self) -> None:
        """Stop it."""
        await self._control.close()
        if self._sharing is not None:
            self._sharing.cancel()
            await asyncio.gather(self._sharing, return_exceptions=True)
        if self._used is not None:
            with suppress(OSError):
                self._used.write(self.gateway.clock(), due=True)
        await self.gateway.close()

    def _server(self) -> Server:
        """The server of this worker; its sockets are given when it serves."""
        limits = connection_limits(self.gateway.plan.settings.listen)
        app = cast("ASGI3Application", self._control.outside)
        return server(app, self.gateway.driver, limits=limits, tls=lambda: self.gateway.plan.tls)

    async def serve(self, port: int, parent: socket.socket) -> None:
        """Serve on *port* until a signal or the end of the parent, then let streams end."""
        loop = asyncio.get_running_loop()
        serving = self._server()

        def orphaned() -> None:
            loop.remove_reader(parent)
            atexit.register(shutil.rmtree, self.identity.folder, ignore_errors=True)
            signal.raise_signal(signal.SIGTERM)

        with reload_on_hangup(self.gateway):
            loop.add_reader(parent, orphaned)  # readable only when its other end has been closed
            try:
                await self.start()
                await until_informed(self.gateway)
                await self._serve_on(port, serving, parent)
            finally:
                loop.remove_reader(parent)
                await self.close()

    async def _serve_on(self, port: int, serving: Server, parent: socket.socket) -> None:
        with listening(self.gateway.plan.settings.listen.host, port) as sockets:
            task = asyncio.create_task(serving.serve(sockets))
            while not (serving.started or task.done()):  # noqa: ASYNC110 - uvicorn has no callback
                await asyncio.sleep(0.005)
            with suppress(OSError):
                parent.send(UP)
            await task


def worker(path: Path, identity: WorkerIdentity) -> Worker:
    """The worker of this identity, with the config that serves. Raises ConfigError, OSError."""
    found = running.read(identity.running)
    if found is None:
        raise FileNotFoundError(f"{identity.running}: expected the running config here; `headroom serve` writes it")
    return Worker(settled(*remade(found.version, path)), path, identity, found.number)
