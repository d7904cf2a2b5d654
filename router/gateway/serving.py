"""Serves one router: its HTTP server, from start to the end of the last stream.

Must not depend on how a router is put together (app.py) beyond its parts.
"""

import asyncio
import logging
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import cast

from fastapi import FastAPI
from uvicorn import Server
from uvicorn._types import ASGI3Application

from router.config import settings
from router.gateway import descriptors
from router.gateway.app import Gateway
from router.gateway.control.api import control_app
from router.gateway.control.parts import ControlParts
from router.gateway.service_manager import ServiceManager
from router.gateway.sockets import owned
from router.gateway.traffic.server import ConnectionLimits, server
from router.version import build

_log = logging.getLogger("headroom")


def connection_limits(listen: settings.Listen) -> ConnectionLimits:
    """The limits of client connections in the listen section. Raises the process's limit of file descriptors."""
    limit = descriptors.raise_limit()
    if short := descriptors.shortage(listen.connections_max, limit):
        _log.warning("%s", short)
    return replace(request_limits(listen), descriptor_max=descriptors.for_clients(limit))


def request_limits(listen: settings.Listen) -> ConnectionLimits:
    """The same of a process that has no descriptor for each client."""
    return ConnectionLimits(**listen.model_dump(exclude={"host", "port", "workers", "tls", "buffered_bytes_max"}))


def control_of(gateway: Gateway) -> FastAPI:
    """The control plane of one router."""
    return control_app(control_parts(gateway))


def control_parts(gateway: Gateway) -> ControlParts:
    """What the control plane reads and calls."""
    return ControlParts(
        router_id=gateway.router_id,
        path=gateway.path,
        clock=gateway.clock,
        ready=lambda: gateway.ready,
        core=gateway.core,
        driver=gateway.driver,
        engines=gateway.engines,
        model_lists=gateway.model_lists.lists,
        downtimes=gateway.downtimes,
        failing_open=gateway.failing_open,
        sources=gateway.sources,
        reports=gateway.reports,
        store=gateway.store,
        sync=gateway.sync,
        changes=gateway.changes,
        reloader=gateway.reloader,
        rollout=gateway.rollout,
        audit=gateway.audit,
        journal=gateway.journal,
        history=gateway.history,
        backends=gateway.backends,
        metrics=gateway.metrics,
        scaling=lambda: None if gateway.scaling is None else gateway.scaling(),
    )


def server_of(gateway: Gateway) -> Server:
    """The server of one router; its ``serve`` returns once streams have ended after a signal."""
    listen = gateway.plan.settings.listen
    app = cast("ASGI3Application", control_of(gateway))
    limits = connection_limits(listen)
    return server(app, gateway.driver, host=listen.host, port=listen.port, limits=limits, tls=lambda: gateway.plan.tls)


async def serve(gateway: Gateway) -> None:
    """Serve until a signal (``router/event_loop.py``), then let streams end. SIGHUP reloads."""
    listen, manager = gateway.plan.settings.listen, ServiceManager()
    with reload_on_hangup(gateway, manager):
        try:
            with owned(listen.host, listen.port) as sockets:
                await gateway.start()
                _log_start(gateway, sockets[0].getsockname()[1])
                serving = server_of(gateway)
                async with manager.watching(
                    lambda: serving.started, lambda: gateway.driver.draining, lambda: _status(gateway)
                ):
                    await serving.serve(sockets)
        finally:
            await gateway.close()


def _status(gateway: Gateway) -> str:
    """What a service manager shows: the config that serves, and why a changed one does not."""
    last = gateway.reloader.last
    return f"serves config {last.version}" + ("" if last.ok else f"; a changed one is refused: {last.error}")


def _log_start(gateway: Gateway, port: int) -> None:
    host, policy = gateway.plan.settings.listen.host, gateway.plan.settings.policy.routing.name
    found = "".join(f" and {each.name}" for each in gateway.sources.states)
    facts = f"{len(gateway.plan.settings.backends)} backends{found}, policy {policy}; {build()}"
    scheme = "https" if gateway.plan.tls else "http"
    _log.info("router %s: listening on %s://%s:%d, %s", gateway.router_id, scheme, host, port, facts)


@contextmanager
def reload_on_hangup(gateway: Gateway, manager: ServiceManager | None = None) -> Iterator[None]:
    """SIGHUP reloads the config; *manager*: where that is reported."""
    loop = asyncio.get_running_loop()
    reloads: set[asyncio.Task[None]] = set()  # keeps them alive until they have ended

    async def reloaded() -> None:
        if manager is not None:
            manager.reloading()
        await gateway.reloader.reload("SIGHUP")
        if manager is not None:
            manager.ready(_status(gateway))

    def reload() -> None:
        task = asyncio.create_task(reloaded())
        reloads.add(task)
        task.add_done_callback(reloads.discard)

    loop.add_signal_handler(signal.SIGHUP, reload)
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGHUP)
