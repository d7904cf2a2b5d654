"""Watches each engine: its health checks, and the numbers on its metrics page.

Only the health path decides whether an engine is up. A metrics page that cannot be read changes nothing of that: the
last report just grows old. Must not depend on what the core does with a report. An engine that answers its health check
while its streams stand still is detected by the relay, not here.
"""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from random import uniform
from time import localtime, strftime, time
from typing import Final, Protocol

from router.config import settings
from router.core.errors import Unanswered
from router.core.types import EngineReport
from router.engines import Snapshot, read_metrics
from router.gateway.monitoring.probe import ProbeClient
from router.gateway.tls import TlsContext

JITTER: Final = 0.1  # of the period: routers started together shall not probe together


@dataclass(frozen=True, slots=True)
class WatchedEngine:
    """Where one engine answers. ``models``: its models' names; ``scraped``: whether this router reads its metrics.

    ``key``: its bearer token; ``certificates``: as in its target.
    """

    name: str
    health_url: str
    metrics_url: str
    models: tuple[str, ...]
    scraped: bool = True
    key: str = ""
    certificates: TlsContext | None = None


@dataclass(frozen=True, slots=True)
class HealthChange:
    """The result of a backend's health checks has changed; the text is for the log.

    ``why``: what the last check got instead of a 2xx status; ``failures``: checks that failed in a row; ``at_s``: since
    when it is so, in seconds since the epoch.
    """

    up: bool
    url: str
    at_s: float
    why: str = ""
    failures: int = 0

    def __str__(self) -> str:
        at = strftime("%H:%M:%S", localtime(self.at_s))
        if self.up:
            return f"health check passed ({self.url}), up since {at}"
        return f"health check failed ({self.why} at {self.url}), {self.failures} in a row, down since {at}"


class EngineListener(Protocol):
    """Receives what changes at an engine: the gateway, or a sidecar's publisher."""

    def probe_started(self, name: str) -> None:
        """A scrape of this engine starts now."""

    def reported(self, name: str, report: EngineReport) -> None:
        """Its answer."""

    def backend_health(self, name: str, change: HealthChange) -> None:
        """Its health changed."""


class EngineObserver(Protocol):
    """Counts scrapes."""

    def scraped(self, backend: str, report: EngineReport, took_s: float) -> None:
        """A page was read."""

    def scrape_failed(self, backend: str, why: str) -> None:
        """A page could not be read, or is of no known engine."""


def engine(
    given: settings.Backend, scraped: bool, key: str = "", certificates: TlsContext | None = None
) -> WatchedEngine:
    """The addresses of a configured backend; its engine kind's where the config gives none."""
    kind = given.kind
    health, metrics = given.health_url or kind.health_url(given.url), given.metrics_url or kind.metrics_url(given.url)
    return WatchedEngine(given.name, health, metrics, tuple(set(given.models.values())), scraped, key, certificates)


class Watch:
    """One engine under watch."""

    def __init__(
        self,
        engine: WatchedEngine,
        client: ProbeClient,
        listener: EngineListener,
        observer: EngineObserver,
        down_after: int,
        clock: Callable[[], float],
        scrapes: Callable[[str], bool] = lambda _: True,
    ) -> None:
        """``down_after``: failed checks in a row before an engine counts as down; one good one brings it back.

        ``scrapes``: whether reading this engine's metrics is ours at the moment, and not another worker's.
        """
        self.engine = engine
        self.up: bool | None = None  # None: not checked yet
        self.last: Snapshot | None = None
        self._client, self._listener, self._observer = client, listener, observer
        self._down_after, self._clock, self._scrapes = down_after, clock, scrapes
        self._failures = 0

    async def run(self, period_s: float) -> None:
        """Probe about every ``period_s``; cancel to end."""
        while True:
            await self.look()
            await asyncio.sleep(period_s * uniform(1 - JITTER, 1 + JITTER))

    async def look(self) -> None:
        """One health check and, beside it, one reading of the metrics."""
        if self.engine.scraped and self._scrapes(self.engine.name):
            await asyncio.gather(self._check(), self._scrape())
        else:
            await self._check()

    async def _check(self) -> None:
        url, why = self.engine.health_url, ""
        try:
            page = await self._client.get(url, self.engine.key, certificates=self.engine.certificates)
            if not page.is_success:
                why = f"status {page.status}"
        except Unanswered as error:
            why = str(error)
        self._failures = self._failures + 1 if why else 0
        up = not why or (bool(self.up) and self._failures < self._down_after)
        if up != self.up:
            self.up = up
            self._listener.backend_health(self.engine.name, HealthChange(up, url, time(), why, self._failures))

    async def _scrape(self) -> None:
        asked_s = self._clock()
        self._listener.probe_started(self.engine.name)
        try:
            page = await self._client.get(
                self.engine.metrics_url, self.engine.key, certificates=self.engine.certificates
            )
        except Unanswered as why:
            self._observer.scrape_failed(self.engine.name, f"{self.engine.metrics_url}: {why}")
            return
        if not page.is_success:
            self._observer.scrape_failed(self.engine.name, f"{self.engine.metrics_url} answered {page.status}")
            return
        found = read_metrics(page.body, self.engine.models)
        if found is None:
            self._observer.scrape_failed(self.engine.name, f"no known engine's metrics at {self.engine.metrics_url}")
            return
        report = found.report(asked_s, self.last)
        self.last = found
        self._listener.reported(self.engine.name, report)
        self._observer.scraped(self.engine.name, report, self._clock() - asked_s)


class Engines:
    """All engines under watch; ``watch`` may be called again with another set while it runs."""

    def __init__(
        self,
        listener: EngineListener,
        observer: EngineObserver,
        make_client: Callable[[float], ProbeClient],
        clock: Callable[[], float],
        scrapes: Callable[[str], bool] = lambda _: True,
    ) -> None:
        """``make_client``: a client whose every wait is bounded by the seconds given; ``scrapes``: see Watch."""
        self._listener, self._observer, self._make_client = listener, observer, make_client
        self._clock, self._scrapes = clock, scrapes
        self._client: ProbeClient | None = None
        self._timeout_s = 0.0
        self._tasks: dict[str, tuple[tuple[WatchedEngine, float, int], asyncio.Task[None]]] = {}
        self._watches: dict[str, Watch] = {}

    @property
    def watches(self) -> Mapping[str, Watch]:
        """By backend name."""
        return self._watches

    async def watch(
        self, engines: tuple[WatchedEngine, ...], period_s: float, timeout_s: float, down_after: int
    ) -> None:
        """Watch these from now on: new ones begin, changed ones begin anew, the others end."""
        await self._use_timeout(timeout_s)
        wanted = {engine.name: (engine, period_s, down_after) for engine in engines}
        for name, (how, task) in tuple(self._tasks.items()):
            if wanted.get(name) != how or task.done():
                await self._end(name)
        for name, how in wanted.items():
            if name not in self._tasks:
                self._begin(how)

    async def _use_timeout(self, timeout_s: float) -> None:
        if self._client is None or timeout_s != self._timeout_s:
            await self.close()
            self._client, self._timeout_s = self._make_client(timeout_s), timeout_s

    def _begin(self, how: tuple[WatchedEngine, float, int]) -> None:
        engine, period_s, down_after = how
        assert self._client is not None
        watch = Watch(engine, self._client, self._listener, self._observer, down_after, self._clock, self._scrapes)
        self._watches[engine.name] = watch
        self._tasks[engine.name] = how, asyncio.create_task(watch.run(period_s), name=f"watch {engine.name}")

    async def _end(self, name: str) -> None:
        _, task = self._tasks.pop(name)
        del self._watches[name]
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    async def close(self) -> None:
        """Stop all watches."""
        for name in tuple(self._tasks):
            await self._end(name)
        if self._client is not None:
            self._client.close()
            self._client = None
