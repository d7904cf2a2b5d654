"""The endpoint picker, put together: a router whose requests come from proxies. ``headroom epp`` serves it.

Must not depend on the command line.
"""

import asyncio
import itertools
import logging
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from math import inf
from pathlib import Path
from time import monotonic
from typing import Final, cast
from urllib.parse import urlsplit

import uvicorn
from uvicorn._types import ASGI3Application

from router.gateway.app import Gateway
from router.gateway.config.plan import Plan
from router.gateway.epp.addresses import Addresses
from router.gateway.epp.credentials import credentials
from router.gateway.epp.fallbacks import Fallbacks
from router.gateway.epp.link import Links
from router.gateway.epp.server import PickerServer
from router.gateway.serving import control_of, reload_on_hangup, request_limits
from router.gateway.sockets import owned
from router.gateway.traffic.server import server
from router.version import build

_PREPARE_S: Final = 5.0  # as long as resolvers wait for one server
_log = logging.getLogger("headroom")


def as_proxied(plan: Plan) -> Plan:
    """The plan with the limits that a proxy leaves: it sends a request once, and waits for the answer to that."""
    return replace(plan, limits=replace(plan.limits, hedge_slo_share=inf, first_byte_slo_factor=inf, late_final=True))


class EndpointPicker:
    """One router in one process, with a gRPC server for proxies and an HTTP server for its control plane."""

    def __init__(self, plan: Plan, path: Path, clock: Callable[[], float] = monotonic) -> None:
        """Opens no socket; raises OSError when the record's file cannot be written."""
        self._addresses = Addresses()
        links = Links(self._addresses)
        self.gateway = gateway = Gateway(as_proxied(plan), path, clock, dialler=links.dial, prepare=self._prepare)
        driver, complete = gateway.driver, gateway.reloader.complete
        gateway.reloader.complete = lambda given: as_proxied(complete(given))
        self._addresses.targets = lambda: [upstream.target for upstream in driver.upstreams.values()]
        explain, most = gateway.core.explain, lambda: gateway.plan.settings.epp.fallbacks
        links.endpoints = Fallbacks(self._addresses, driver.upstreams, explain, most).endpoints
        self._up: frozenset[str] = frozenset()
        driver.on_sweep.append(self._follow_restarts)
        self._limits = request_limits(plan.settings.listen)
        self._turns = itertools.count()
        self._looking_up: asyncio.Task[None] | None = None
        self.server = PickerServer(driver, links, self._limits, self._any_endpoint, lambda: gateway.ready)

    async def _prepare(self, plan: Plan) -> None:
        """Names have their addresses before a config takes effect, but for those that the resolver has none of."""
        hosts = {urlsplit(given.url).hostname or "" for given in plan.addresses}
        await self._addresses.prepare(hosts, _PREPARE_S)

    def _follow_restarts(self, _: float) -> None:
        """A backend that comes up may have another address than before, which its health checks have found."""
        up = frozenset(name for name, watch in self.gateway.engines.watches.items() if watch.up)
        upstreams = self.gateway.driver.upstreams
        self._addresses.look_again({upstreams[name].target.host for name in up - self._up if name in upstreams})
        self._up = up

    def _any_endpoint(self, among: tuple[str, ...] | None) -> str:
        """Of the backends that are up, and among those if there are such, one after the other."""
        driver, watches = self.gateway.driver, self.gateway.engines.watches
        names = [name for name, watch in watches.items() if watch.up and (among is None or name in among)]
        up = [driver.upstreams[name].target for name in names if name in driver.upstreams]
        found = [endpoint for target in up if (endpoint := self._addresses.endpoint(target))]
        return found[next(self._turns) % len(found)] if found else ""

    async def serve(self) -> None:
        """Serve until a signal (``router/event_loop.py``), then let streams end. SIGHUP reloads."""
        gateway = self.gateway
        listen = gateway.plan.settings.listen
        with reload_on_hangup(gateway):
            try:
                with owned(listen.host, listen.port) as sockets:
                    port = await self.start()
                    self._log_start(port, sockets[0].getsockname()[1])
                    await self.control().serve(sockets)
            finally:
                await self.close()

    async def start(self) -> int:
        """Start everything but the control plane; returns the port for proxies. Raises OSError."""
        gateway, given = self.gateway, self.gateway.plan.settings.epp
        await gateway.start()
        self._looking_up = asyncio.create_task(self._addresses.run(), name="addresses")
        return await self.server.start(given.host, given.port, credentials(given, gateway.path.parent))

    def control(self) -> uvicorn.Server:
        """The server of health, metrics and admin paths; its ``serve`` returns once streams have ended."""
        gateway = self.gateway
        return server(
            cast("ASGI3Application", control_of(gateway)),
            gateway.driver,
            limits=self._limits,
            tls=lambda: gateway.plan.tls,
            routes=False,
            beside=partial(self.server.stop, self._limits.drain_s),
        )

    async def close(self) -> None:
        """Stop what ``start`` began; streams have ended by now."""
        if self._looking_up is not None:
            self._looking_up.cancel()
        self._addresses.close()
        await self.server.stop(0.0)
        await self.gateway.close()

    def _log_start(self, port: int, control_port: int) -> None:
        gateway, given = self.gateway, self.gateway.plan.settings
        _log.info(
            "endpoint picker %s: proxies call %s:%d (%s), metrics and admin on port %d, %d backends, policy %s; %s",
            gateway.router_id,
            given.epp.host,
            port,
            "TLS" if given.epp.secure else "no TLS",
            control_port,
            len(given.backends),
            given.policy.routing.name,
            build(),
        )
