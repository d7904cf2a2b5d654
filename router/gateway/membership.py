"""Backends join, drain and leave as the config says: streams in flight on one that leaves run to their end.

The one place that holds which backends are draining: they leave, or an operator has drained them. Must not
depend on the config's text or on engines' health.
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Final

from router.core.errors import DownReason
from router.core.types import Backend, Load
from router.gateway.monitoring.downtime import Downtime
from router.gateway.protocols.target import Target
from router.gateway.traffic.driver import Driver
from router.gateway.turns import in_turns

IDLE: Final = Load()


class Membership:
    """The backends of one router."""

    def __init__(self, driver: Driver, loads: Callable[[], Mapping[str, Load]], on_left: Callable[[str], None]) -> None:
        """``loads``: the core's own load by backend; ``on_left`` is called when a backend has left."""
        self._driver, self._loads, self._on_left = driver, loads, on_left
        self._known: dict[str, Backend] = {}  # as the core has them
        self._draining: set[str] = set()
        self._drained_s: dict[str, float] = {}  # by an operator: since when, in seconds since the epoch

    async def update(self, backends: Iterable[tuple[Target, Backend]]) -> frozenset[str]:
        """Make these the backends; the others drain. Returns the new ones, down until their first health check.

        Requests that come meanwhile go to those that are there by then. One update runs at a time.
        """
        before = frozenset(self._known)
        driver, core, clock = self._driver, self._driver.core, self._driver.clock
        wanted: set[str] = set()
        async for target, backend in in_turns(backends):
            wanted.add(backend.name)
            self._join(target, backend)
        async for name in in_turns(set(driver.upstreams) - wanted):
            if name in driver.upstreams:  # it may have drained and left between two turns
                self._draining.add(name)
                driver.perform(core.backend_draining(name, True, clock()))
        self.sweep(clock())
        return frozenset(self._known) - before

    def _join(self, target: Target, backend: Backend) -> None:
        driver, core, now_s, name = self._driver, self._driver.core, self._driver.clock(), backend.name
        driver.join(target)
        known = self._known.get(name)
        if known != backend:
            driver.perform(core.backend_joined(backend, now_s))
        if known is None:
            driver.perform(core.backend_health(name, False, now_s))
            if name in self._drained_s:  # before it was there, as where another worker got the call
                driver.perform(core.backend_draining(name, True, now_s))
        self._known[name] = backend
        if name in self._draining:
            self._draining.discard(name)
            driver.perform(core.backend_draining(name, name in self._drained_s, now_s))

    def drain(self, name: str, at_s: float) -> None:
        """Send no more requests to a backend, by an operator's wish; streams in flight run on. KeyError: there is none.

        It lasts until ``undrain``, until the backend has left, or until this router ends.
        """
        self._set_drained(name, True)
        self._drained_s.setdefault(name, at_s)

    def undrain(self, name: str) -> None:
        """Send it requests again. KeyError: there is no such backend."""
        self._set_drained(name, False)
        self._drained_s.pop(name, None)

    @property
    def known(self) -> Collection[str]:
        """The names of those that are here, draining ones included."""
        return self._known.keys()

    @property
    def drained(self) -> Mapping[str, float]:
        """Those that an operator has drained: since when, in seconds since the epoch."""
        return dict(self._drained_s)

    def take_drained(self, drained: Mapping[str, float]) -> None:
        """Make these the drained ones; one that is not there yet is drained when it joins."""
        before, self._drained_s = self._drained_s, dict(drained)
        for name in (before.keys() ^ drained.keys()) & self._known.keys():
            self._set_drained(name, name in drained)

    def down(self, name: str) -> Downtime | None:
        """Whether it is drained by an operator."""
        since_s = self._drained_s.get(name)
        if since_s is None:
            return None
        return Downtime(DownReason.DRAINED, since_s, "drained by an operator; undrain it on the page")

    def _set_drained(self, name: str, drained: bool) -> None:
        if name not in self._known:
            raise KeyError(name)
        core = self._driver.core
        self._driver.perform(core.backend_draining(name, drained or name in self._draining, self._driver.clock()))

    def sweep(self, now_s: float) -> None:
        """Remove the draining backends that have nothing in flight any more."""
        if not self._draining:
            return
        loads = self._loads()
        for name in tuple(self._draining):
            load = loads.get(name, IDLE)
            if load.prefilling + load.decoding == 0:
                self._draining.discard(name)
                self._known.pop(name, None)
                self._drained_s.pop(name, None)
                self._driver.perform(self._driver.core.backend_left(name, now_s))
                self._driver.leave(name)
                self._on_left(name)
