"""Beside the engines: reads their metrics and publishes them, so that a hundred routers need not all read them.

Believes: the config's backends, its sources of others, and its Redis. Must not know requests.
"""

import asyncio
from math import inf
from pathlib import Path
from time import monotonic

from router.gateway.config.plan import Plan
from router.gateway.discovery.watch import Discovery
from router.gateway.monitoring.health import Engines, engine
from router.gateway.monitoring.probe import ProbeClient
from router.gateway.monitoring.publishing import Publisher
from router.gateway.sources.registry import source_of
from router.gateway.sources.sources import Sources
from router.gateway.state import Store
from router.gateway.state.redis import RedisStore


class Sidecar:
    """Reads the engines of a plan, those that its sources find among them, and publishes what they report."""

    def __init__(self, plan: Plan, path: Path, store: Store) -> None:
        """*path*: of the config."""
        self._plan, self._publisher = plan, Publisher(store)
        self._engines = Engines(self._publisher, self._publisher, ProbeClient, monotonic)
        self._discovery = Discovery(self._watch, ProbeClient)
        self._sources = Sources(lambda plan, given: source_of(plan, given, path), self._watch, self._down_s)
        self._changing = asyncio.Lock()  # a source and an engine may have something new at once

    def _down_s(self, name: str) -> float:
        watch = self._engines.watches.get(name)
        return inf if watch is None else watch.down_s

    async def _watch(self) -> None:
        """Read the engines that are known by now."""
        async with self._changing:
            plan = self._plan = self._discovery.complete(self._sources.complete(self._plan))
            scrape, keys, certificates = plan.settings.scrape, plan.engine_keys, plan.engine_tls
            await self._discovery.watch(plan.undiscovered, keys, certificates, scrape.period_s, scrape.timeout_s)
            watched = tuple(
                engine(given, True, keys.get(given.name, ""), certificates.get(given.name)) for given in plan.addresses
            )
            await self._engines.watch(watched, scrape.period_s, scrape.timeout_s, scrape.down_after)

    async def run(self) -> None:
        """Scrape and publish until cancelled."""
        try:
            await self._sources.watch(self._plan)
            await self._watch()
            await self._publisher.run(lambda: self._plan.settings.scrape.period_s)
        finally:
            await self._sources.close()
            await self._discovery.close()
            await self._engines.close()


async def sidecar(plan: Plan, path: Path) -> None:
    """Scrape and publish until cancelled. *path*: of the config."""
    state = plan.settings.state
    assert plan.redis is not None  # the caller has looked
    store = RedisStore(plan.redis, state.pool, f"{plan.router_id}-sidecar", state.lease_s, state.timeout_s)
    try:
        await Sidecar(plan, path, store).run()
    finally:
        await store.close()
