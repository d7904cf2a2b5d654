"""Publishes what was read of engines' metrics to the shared state, for routers that do not read them.

Must not depend on requests, or on who reads. Redis away: reports are dropped, not queued, for a late one is worth
nothing; the next is tried as if nothing had been.
"""

import asyncio
import logging
from collections.abc import Callable
from time import monotonic

from router.core.errors import StoreGone
from router.core.types import EngineReport
from router.engines import RunningAdapters
from router.gateway.monitoring.health import EngineObserver, HealthChange
from router.gateway.state import Store

_log = logging.getLogger("headroom")


class Publisher:
    """Collects reports and publishes them together, once a period: an EngineListener and an EngineObserver."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._reports: dict[str, EngineReport] = {}
        self._adapters: dict[str, RunningAdapters] = {}
        self._gone = False

    def probe_started(self, name: str) -> None:
        """Not published."""

    def reported(self, name: str, report: EngineReport) -> None:
        """Publish it with the next."""
        self._reports[name] = report

    def adapters_reported(self, name: str, running: RunningAdapters) -> None:
        """Publish it with the report of the same page, which follows."""
        self._adapters[name] = running

    def backend_health(self, name: str, change: HealthChange) -> None:
        """Only logged: routers check health themselves, since what this machine reaches, theirs may not."""
        (_log.info if change.up else _log.warning)("engine %s: %s", name, change)

    def scraped(self, backend: str, report: EngineReport, took_s: float) -> None:
        """Counted by those who read it."""

    def scrape_failed(self, backend: str, why: str) -> None:
        """A page could not be read."""
        _log.warning("engine %s: metrics not read: %s", backend, why)

    async def run(self, period_s: Callable[[], float]) -> None:
        """Publish twice in each period of scrapes; cancel to end."""
        while True:
            await asyncio.sleep(period_s() / 2)
            await self.publish()

    async def publish(self) -> None:
        """Publish what has come since the last time; say once when the store goes and once when it is back."""
        reports, self._reports = self._reports, {}
        adapters, self._adapters = self._adapters, {}
        if not reports:
            return
        try:
            await self._store.report(reports, monotonic(), adapters)
        except StoreGone as gone:
            if not self._gone:
                _log.warning("the shared state does not answer: %s", gone)
            self._gone = True
            return
        if self._gone:
            _log.info("the shared state answers again")
        self._gone = False


class WorkerPublisher(Publisher):
    """Publishes the reports that one of several workers or routers reads, for the others."""

    def __init__(self, store: Store, observer: EngineObserver, wanted: Callable[[], bool] = lambda: True) -> None:
        """``observer`` counts the scrapes; ``wanted``: whether others read the reports here."""
        super().__init__(store)
        self._observer, self._wanted = observer, wanted

    def scraped(self, backend: str, report: EngineReport, took_s: float) -> None:
        """A page was read."""
        self._observer.scraped(backend, report, took_s)
        if self._wanted():
            self.reported(backend, report)

    def scrape_failed(self, backend: str, why: str) -> None:
        """A page could not be read."""
        self._observer.scrape_failed(backend, why)
