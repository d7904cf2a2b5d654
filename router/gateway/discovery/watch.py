"""Asks engines what they are until each has answered, in the background, and completes plans by what they said.

An engine that is not up yet is tried again every period; its first failure is logged, and each that differs from the
one before. Must not depend on what serves at the moment: ``on_found`` is called whenever there is something new.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from random import uniform
from typing import Final

from router.config.settings import Backend
from router.core.errors import Unanswered
from router.engines import EngineFacts, EngineKind
from router.gateway.config.plan import Plan
from router.gateway.discovery.reading import completed, read_engine
from router.gateway.monitoring.probe import ProbeClient
from router.gateway.monitoring.repeating import start_s
from router.gateway.tls import TlsContext

_JITTER: Final = 0.1  # of the period, so that routers started together do not ask together
_log = logging.getLogger("headroom")


class Discovery:
    """The engines that are being read, and the facts of those that have answered."""

    def __init__(self, on_found: Callable[[], Awaitable[None]], make_client: Callable[[float], ProbeClient]) -> None:
        """``make_client``: a client whose every wait is bounded by the seconds given."""
        self._on_found, self._make_client = on_found, make_client
        self._found: dict[str, tuple[Backend, Backend]] = {}  # by name: as configured, and completed
        # by name: as configured, its certificates, and the task that reads it
        self._tasks: dict[str, tuple[Backend, TlsContext | None, asyncio.Task[None]]] = {}
        self._untried: set[str] = set()

    @property
    def untried(self) -> frozenset[str]:
        """Those whose first reading has not ended, or not become a backend yet."""
        return frozenset(self._untried)

    def complete(self, plan: Plan) -> Plan:
        """The plan with every backend that was found by now; the same plan when none of its backends was."""
        found = {}
        for given in plan.undiscovered:
            configured, whole = self._found.get(given.name, (None, None))
            if whole is not None and configured == given:
                found[given.name] = whole
        return plan.discovered(found) if found else plan

    async def watch(
        self,
        wanted: tuple[Backend, ...],
        keys: Mapping[str, str],
        certificates: Mapping[str, TlsContext],
        period_s: float,
        timeout_s: float,
    ) -> None:
        """Ask these from now on, and no others. By backend: *keys*, the bearer tokens that engines want, and
        *certificates*.
        """
        configured = {given.name: (given, certificates.get(given.name)) for given in wanted}
        for name, (given, shown, _) in tuple(self._tasks.items()):
            if configured.get(name) != (given, shown):
                await self._end(name)
        new = [name for name in configured if name not in self._tasks]
        for number, name in enumerate(new):
            given, shown = configured[name]
            self._untried.add(name)
            asking = self._ask(given, keys.get(name, ""), shown, period_s, timeout_s, start_s(number))
            self._tasks[name] = given, shown, asyncio.create_task(asking, name=f"discovery of {name}")

    async def _ask(
        self,
        given: Backend,
        key: str,
        certificates: TlsContext | None,
        period_s: float,
        timeout_s: float,
        delay_s: float,
    ) -> None:
        if delay_s > 0.0:
            await asyncio.sleep(delay_s)
        client, last = self._make_client(timeout_s), ""
        try:
            while True:
                try:
                    kind, facts = await read_engine(given, client, key, certificates)
                    break
                except Unanswered as why:
                    if str(why) != last:
                        _log.warning("backend %s: not served yet, %s (%s); trying again", given.name, why, given.url)
                    last = str(why)
                self._untried.discard(given.name)
                await asyncio.sleep(period_s * uniform(1 - _JITTER, 1 + _JITTER))
        finally:
            client.close()
        self._found[given.name] = given, completed(given, kind, facts)
        _log.info("backend %s: %s", given.name, said(kind, facts))
        await self._on_found()
        self._untried.discard(given.name)

    def forget(self, name: str) -> None:
        """A backend has left: what its engine said is dropped."""
        self._found.pop(name, None)

    async def _end(self, name: str) -> None:
        *_, task = self._tasks.pop(name)
        self._untried.discard(name)
        if task is not asyncio.current_task():  # the task of a backend that was just found ends by itself
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def close(self) -> None:
        """Stop reading engines."""
        for name in tuple(self._tasks):
            await self._end(name)


def said(kind: EngineKind, facts: EngineFacts) -> str:
    """What an engine reported, in one line."""
    parts = [f"{kind.name} {facts.version}".rstrip(), f"models {', '.join(facts.models)}"]
    parts += [f"context {facts.context_tokens_max} tokens"] if facts.context_tokens_max else []
    parts += [f"KV cache {facts.kv_tokens_max} tokens"] if facts.kv_tokens_max else []
    return ", ".join(parts)
