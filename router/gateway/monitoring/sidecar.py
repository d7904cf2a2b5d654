"""Beside the engines: reads their metrics and publishes them, so that a hundred routers need not all ask.

Believes: the config's backends and its Redis. Must not know requests. Redis away: reports are dropped, not queued, for
a late one is worth nothing; the next is tried as if nothing had been.
"""

import asyncio
import logging
from time import monotonic

from router.core.errors import StoreGone
from router.core.types import EngineReport
from router.gateway.config.plan import Plan
from router.gateway.monitoring.health import Engines, engine
from router.gateway.monitoring.probe import ProbeClient
from router.gateway.state import Store
from router.gateway.state.redis import RedisStore

_log = logging.getLogger("headroom")


class Publisher:
    """Gathers reports and publishes them together, once a period. Told and Observer of the engines at once."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._reports: dict[str, EngineReport] = {}
        self._gone = False

    def probe_started(self, name: str) -> None:
        """Nobody here needs to know."""

    def reported(self, name: str, report: EngineReport) -> None:
        """To be published with the next."""
        self._reports[name] = report

    def backend_health(self, name: str, up: bool) -> None:
        """Routers check health themselves: what this machine reaches, theirs may not."""
        _log.info("engine %s is %s", name, "up" if up else "down")

    def scraped(self, backend: str, report: EngineReport, took_s: float) -> None:
        """Counted by those who read it."""

    def scrape_failed(self, backend: str, why: str) -> None:
        """A page was not to be had."""
        _log.warning("engine %s: %s", backend, why)

    def health(self, backend: str, up: bool) -> None:
        """Only changes are told."""

    async def publish(self) -> None:
        """Publish what has come since the last time; say once when the store goes and once when it is back."""
        reports, self._reports = self._reports, {}
        if not reports:
            return
        try:
            await self._store.report(reports, monotonic())
        except StoreGone as gone:
            if not self._gone:
                _log.warning("the shared state does not answer: %s", gone)
            self._gone = True
            return
        if self._gone:
            _log.info("the shared state answers again")
        self._gone = False


async def sidecar(plan: Plan) -> None:
    """Scrape and publish until cancelled."""
    state, scrape = plan.settings.state, plan.settings.scrape
    assert state.redis_url is not None  # the caller has looked
    store = RedisStore(state.redis_url, state.pool, f"{plan.router_id}-sidecar", state.lease_s, state.timeout_s)
    publisher = Publisher(store)
    engines = Engines(publisher, publisher, ProbeClient, monotonic)
    watched = tuple(engine(given, True, plan.engine_keys.get(given.name, "")) for given in plan.settings.backends)
    try:
        await engines.watch(watched, scrape.period_s, scrape.timeout_s, scrape.down_after)
        while True:
            await asyncio.sleep(scrape.period_s / 2)
            await publisher.publish()
    finally:
        await engines.close()
        await store.close()
