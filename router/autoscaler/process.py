"""The autoscaler as a process of its own: its source, its metrics port, its config file, its rounds.

Routers publish their demand in Redis or, where a single router has its state in memory, at its admin path. Must not
depend on how advice comes about.
"""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from router.autoscaler.leases import election_of
from router.autoscaler.loop import Autoscaler, make_target
from router.autoscaler.page import serve
from router.autoscaler.sources import Sources
from router.gateway.config.plan import Plan
from router.gateway.rollout.audit import Audit
from router.gateway.rollout.reload import Reloader

_log = logging.getLogger("headroom")


async def advise_once(plan: Plan, path: Path, admin_key: str) -> None:
    """One round. What is advised is applied as it is: nothing was seen before, and nothing will be later."""
    audit = Audit(worker="autoscaler")
    audit.file = plan.settings.reload.audit_file
    scaler = Autoscaler(plan, make_target(plan.target), audit=audit, settled_s=0.0)
    try:
        async with Sources(plan, path, admin_key) as sources:
            if not await scaler.round(sources.views):
                _log.info("no router reports any demand, so there is no advice")
    finally:
        await scaler.close()


async def run(plan: Plan, path: Path, admin_key: str) -> None:
    """Go round until cancelled. The config is read again when its file changes, whole or not at all."""
    audit = Audit(worker="autoscaler")
    sources = Sources(plan, path, admin_key)
    target = make_target(plan.target)
    scaler = Autoscaler(plan, target, election=election_of(plan), audit=audit, keeper=sources.keeper)
    reloader = Reloader(path, plan, scaler.adopt, scaler.metrics, audit, stores=False)
    reloader.complete = scaler.offered
    try:
        async with sources, _beside(scaler, reloader):
            await _rounds(scaler, sources)
    finally:
        await scaler.close()


async def _rounds(scaler: Autoscaler, sources: Sources) -> None:
    listen = scaler.plan.settings.listen
    while True:
        port = scaler.plan.settings.autoscale.port
        server = serve(port, listen.host, scaler)
        try:
            while scaler.plan.settings.autoscale.port == port:
                await scaler.round(sources.views)
                await asyncio.sleep(scaler.plan.settings.autoscale.period_s)
        finally:
            server.shutdown()
            server.server_close()


@asynccontextmanager
async def _beside(scaler: Autoscaler, reloader: Reloader) -> AsyncIterator[None]:
    """Within the context the config is watched and the lease renewed."""
    await scaler.election.renew()
    tasks = [asyncio.create_task(reloader.watch()), asyncio.create_task(scaler.election.run())]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
