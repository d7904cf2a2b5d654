"""One worker: a gateway that shares its port, its config and its sight of the engines with the others.

Believes: the seat that the parent gave it. Must not know how many of the others live; it sees that in the shared state.
Each engine's metrics are read by one worker, chosen by the engine's name among those alive, and told to the others.
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
from typing import TYPE_CHECKING, Any, Final, cast
from zlib import crc32

from router.core.types import EngineReport
from router.gateway.app import Gateway, front_limits
from router.gateway.config.plan import Plan
from router.gateway.control.api import control_app
from router.gateway.monitoring.health import Engines
from router.gateway.monitoring.probe import ProbeClient
from router.gateway.monitoring.sidecar import Publisher
from router.gateway.rollout.reload import remade, settled
from router.gateway.state.files import Stamp, stamp
from router.gateway.telemetry.metrics import Metrics
from router.gateway.traffic.server import server
from router.gateway.workers import WorkerIdentity, running
from router.gateway.workers.crew import ControlAggregator
from router.gateway.workers.sockets import listening

if TYPE_CHECKING:
    from uvicorn import Server
    from uvicorn._types import ASGI3Application

UP: Final = b"u"  # what a worker tells its parent once it serves
_log = logging.getLogger("headroom")


class _Told(Publisher):
    """Counts what this worker reads of engines, and publishes it for the others."""

    def __init__(self, metrics: Metrics, gateway: Gateway) -> None:
        super().__init__(gateway.store)
        self._metrics = metrics

    def scraped(self, backend: str, report: EngineReport, took_s: float) -> None:
        """A page was read."""
        self._metrics.scraped(backend, report, took_s)
        self.reported(backend, report)

    def scrape_failed(self, backend: str, why: str) -> None:
        """A page was not to be had."""
        self._metrics.scrape_failed(backend, why)

    def health(self, backend: str, up: bool) -> None:
        """The answer of a health check."""
        self._metrics.health(backend, up)


class Worker(Gateway):
    """A gateway in its seat. ``serve`` serves until a signal, or the end of its parent, ends it."""

    def __init__(self, plan: Plan, path: Path, place: WorkerIdentity, number: int) -> None:
        """``number``: of the change that *plan* came with (``running.py``)."""
        super().__init__(plan, path, monotonic, place)
        self.place = place
        self.audit.worker = self.router_id
        self.steering.trials = place.slots
        self.reloader.leads = self._leads
        record = plan.settings.record
        self.reloader.record = place.record(record.file) if record else None
        self._told = _Told(self.metrics, self)
        self.engines = Engines(self, self._told, ProbeClient, self.clock, self._scrapes)
        self.crew = ControlAggregator(cast("Any", control_app(self)), place, self._versions)
        self._siblings = {place.id_of(slot): slot for slot in place.others}
        self._number, self._published = number, plan
        self._looked: Stamp = None

    # -- among the others --------------------------------------------------------------------------------------

    def _alive(self) -> list[int]:
        """The slots of the workers alive, this one's among them."""
        return sorted([self.place.slot, *(self._siblings[peer] for peer in self.sync.peers if peer in self._siblings)])

    def _leads(self) -> bool:
        """Whether what only one may do is ours."""
        return self._alive()[0] == self.place.slot

    def _scrapes(self, name: str) -> bool:
        """Whether this engine's metrics are ours to read."""
        alive = self._alive()
        return alive[crc32(name.encode()) % len(alive)] == self.place.slot

    def _reported_by_sidecars(self) -> tuple[str, ...]:
        if self.plan.settings.scrape.source == "state":
            return super()._reported_by_sidecars()
        return tuple(backend.name for backend in self.plan.backends if not self._scrapes(backend.name))

    def _versions(self) -> Mapping[str, str]:
        peers = {name: view.version for name, view in self.sync.peers.items() if name in self._siblings}
        return {self.router_id: self.plan.version} | dict(sorted(peers.items()))

    async def _keep_together(self) -> None:
        """Publish what engines say and what config was taken here; follow what was taken elsewhere. For ever."""
        period_s = self.plan.settings.state.sync_s
        while True:
            await asyncio.sleep(period_s)
            await self._told.publish()
            try:
                await self._agree()
            except OSError as error:
                _log.error("%s: %s", self.place.running, error)

    async def _agree(self) -> None:
        """Every worker ends at the change with the highest number."""
        plan = self.plan
        if plan is not self._published:
            newest = next(iter(self.reloader.versions))
            bad = {version.version: version.bad for version in self.reloader.versions if version.bad}
            self._number = running.publish(self.place.running, newest, bad)
            self._published = plan
            return
        now = stamp(self.place.running)
        if now == self._looked:
            return
        self._looked = now
        found = running.read(self.place.running)
        if found is not None and found.number > self._number:
            self._number = found.number
            self._published = await self.reloader.follow(found.version, found.bad)

    # -- life --------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Begin all that runs beside the traffic, and answer the other workers."""
        await super().start()
        self._tasks.append(asyncio.create_task(self._keep_together(), name="workers"))
        await self.crew.start()

    async def close(self) -> None:
        """End all of it."""
        await self.crew.close()
        await super().close()

    def server(self) -> "Server":
        """The server of this worker; it is to be given its sockets."""
        limits = front_limits(self.plan.settings.listen)
        return server(cast("ASGI3Application", self.crew.outside), self.driver, limits=limits)

    async def serve(self, port: int, parent: socket.socket) -> None:
        """Serve on *port* until a signal or the end of the parent, then let streams end."""
        loop = asyncio.get_running_loop()
        made = self.server()
        asked: set[asyncio.Task[Any]] = set()
        loop.add_signal_handler(signal.SIGHUP, lambda: asked.add(asyncio.create_task(self.reloader.reload("SIGHUP"))))

        def orphaned() -> None:
            loop.remove_reader(parent)
            atexit.register(shutil.rmtree, self.place.folder, ignore_errors=True)
            signal.raise_signal(signal.SIGTERM)

        loop.add_reader(parent, orphaned)  # all it ever says is its end
        try:
            await self.start()
            await self._seen_engines()
            with listening(self.plan.settings.listen.host, port) as sockets:
                serving = asyncio.create_task(made.serve(sockets))
                while not (made.started or serving.done()):  # noqa: ASYNC110 - uvicorn tells nobody
                    await asyncio.sleep(0.005)
                with suppress(OSError):
                    parent.send(UP)
                await serving
        finally:
            loop.remove_reader(parent)
            await self.close()

    async def _seen_engines(self) -> None:
        """Until each engine's health is known or too slow to wait for: what comes in may then go somewhere."""
        with suppress(TimeoutError):
            async with asyncio.timeout(self.plan.settings.scrape.timeout_s):
                while any(watch.up is None for watch in self.engines.watches.values()):  # noqa: ASYNC110 - one condition
                    await asyncio.sleep(0.01)


def worker(path: Path, place: WorkerIdentity) -> Worker:
    """The worker of this seat, with the config that serves. Raises ConfigError, OSError."""
    found = running.read(place.running)
    if found is None:
        raise FileNotFoundError(f"{place.running}: a parent puts the config there")
    return Worker(settled(*remade(found.version, path)), path, place, found.number)
