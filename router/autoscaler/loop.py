"""The scaling loop: from demand to the number of replicas, with the reason; the config's target applies it.

Routers publish their demand in Redis or, where a single router has its state in memory, at its admin path. Without an
answer the last advice remains; while a part of the routers cannot be seen, replicas are only added. Must not depend on
any one target or on how replicas are started.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from time import monotonic

import httpx
from prometheus_client import CollectorRegistry, Counter, start_http_server

from router.autoscaler.advice import Existing, advise, variants
from router.autoscaler.applying import Applying
from router.autoscaler.caution import Caution
from router.autoscaler.demand import Views, together
from router.autoscaler.sources import Sources
from router.core.errors import StoreGone
from router.gateway.config.plan import Plan
from router.targets import Advice, NotObserved, Target

_log = logging.getLogger("headroom")


class Autoscaler:
    """Reads the demand, computes the advice, sets the gauges, and applies the advice to the target."""

    def __init__(self, plan: Plan, target: Target, admin_key: str = "", clock: Callable[[], float] = monotonic) -> None:
        """``admin_key``: of the router, where its demand is read over HTTP and that needs a key."""
        self._plan, self._target, self._admin_key, self._clock = plan, target, admin_key, clock
        self._caution = Caution()
        self.registry = CollectorRegistry()
        self._applying = Applying(self.registry)
        self._failures = Counter(
            "headroom_autoscale_failures",
            "Rounds in which the demand or the replicas could not be read",
            registry=self.registry,
        )

    async def round(self, source: Callable[[], Awaitable[Views]]) -> list[Advice]:
        """Read the demand once and apply what follows; without an answer the gauges stay and nothing is applied."""
        try:
            views = await source()
            demand = together([view.demand for view in views.values()])
            existing = await self._observed(sorted(demand))
        except (StoreGone, httpx.HTTPError, ValueError) as error:
            return self._failed(f"the demand of the routers could not be read: {error}")
        except NotObserved as error:
            return self._failed(f"the replicas could not be observed: {error}")
        missing = self._caution.missing(views, self._clock())
        advice = self._caution.checked(advise(self._plan, demand, existing), missing)
        await self._applying.apply(advice, self._target)
        return advice

    def _failed(self, why: str) -> list[Advice]:
        self._failures.inc()
        _log.warning("%s; the advice stays as it is", why)
        return []

    async def _observed(self, models: list[str]) -> Existing:
        """The replicas that the target can observe. Raises NotObserved where it can, and could not now."""
        places = [(model, variant) for model in models for variant in variants(self._plan, model)]
        found = {place: await self._target.observe(*place) for place in places}
        return {place: replicas for place, replicas in found.items() if replicas is not None}

    async def run(self, *, once: bool = False) -> None:
        """Go round until cancelled, then close the target; with ``once`` a single time, without the metrics port."""
        try:
            await self._run(once)
        finally:
            await self._target.close()

    async def _run(self, once: bool) -> None:
        settings = self._plan.settings.autoscale
        async with Sources(self._plan, self._admin_key) as sources:
            source = sources.views
            if once:
                if not await self.round(source):
                    _log.info("no router reports any demand, so there is no advice")
                return
            server, _ = start_http_server(settings.port, self._plan.settings.listen.host, self.registry)
            try:
                while True:
                    await self.round(source)
                    await asyncio.sleep(settings.period_s)
            finally:
                server.shutdown()
                server.server_close()
