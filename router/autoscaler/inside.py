"""The autoscaler inside a router (``autoscale: {inside: true}``): of all routers one applies advice.

It reads the shared state that the router has anyway, follows the config that serves there, and exports its metrics on
the router's page. Must not depend on how a router serves.
"""

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any

from router.autoscaler.keeping import FileKeeper, StoreKeeper
from router.autoscaler.leases import election_of
from router.autoscaler.loop import Autoscaler, make_target
from router.autoscaler.metrics import ScalingMetrics
from router.autoscaler.shown import shown
from router.core.errors import ConfigError
from router.gateway.app import Gateway
from router.gateway.config.plan import Plan
from router.gateway.state import RouterView

_log = logging.getLogger("headroom")


class Inside:
    """The autoscaler of one router."""

    def __init__(self, gateway: Gateway) -> None:
        """Starts nothing yet. Raises ConfigError where the target or the election cannot be made."""
        plan = gateway.plan
        self._gateway = gateway
        election = election_of(plan, alone=gateway.leads)
        metrics = ScalingMetrics(gateway.metrics.registry)
        file = plan.settings.autoscale.memory_file
        shared = plan.redis is not None
        keeper = FileKeeper(file) if file is not None and not shared else StoreKeeper(gateway.store, shared)
        target = make_target(plan.target)
        self.scaler = Autoscaler(plan, target, election=election, audit=gateway.audit, metrics=metrics, keeper=keeper)
        complete = gateway.reloader.complete
        gateway.reloader.complete = lambda new: self._offered(complete(new))
        gateway.scaling = self._shown

    def _offered(self, plan: Plan) -> Plan:
        """Refuse a config that this autoscaler could not follow. Raises ConfigError."""
        if not plan.settings.autoscale.inside:
            raise ConfigError(["autoscale.inside: cannot change while running; restart to change it"])
        return self.scaler.offered(plan)

    def _shown(self) -> dict[str, Any]:
        return shown(self.scaler.last)

    async def beside(self, serving: Coroutine[Any, Any, None]) -> None:
        """Serve, with the autoscaler for as long as that lasts."""
        tasks = [asyncio.create_task(work, name="autoscaler") for work in (self._rounds(), self.scaler.election.run())]
        for task in tasks:
            task.add_done_callback(_log_failure)
        try:
            await serving
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self.scaler.close()

    async def _rounds(self) -> None:
        await self.scaler.election.renew()
        while True:
            plan = self._gateway.plan
            if plan is not self.scaler.plan:
                await self.scaler.adopt(plan)
            await self.scaler.round(self._views)
            await asyncio.sleep(plan.settings.autoscale.period_s)

    async def _views(self) -> dict[str, RouterView]:
        return dict(await self._gateway.store.routers(self._gateway.clock()))


def _log_failure(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()):
        _log.error("the autoscaler failed and has ended: %r; restart the router", error)
