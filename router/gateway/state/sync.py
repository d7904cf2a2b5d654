"""The loop that synchronises one router with the store, in the background.

The store may be unreachable for hours. The router then works with its own load alone, drops each peer one lease after
its last view, shows it in a gauge, and retries with a growing delay. Must not depend on what a load or a report means.
"""

import asyncio
from collections.abc import Callable, Mapping
from typing import Final, Protocol

from router.core.errors import StoreGone
from router.core.types import EngineReport, Load
from router.gateway.state import RouterView, Shared, Store
from router.gateway.state.wire import UNREADABLE

RETRY_S_MAX: Final = 1.0


class Listener(Protocol):
    """Receives what the store holds."""

    def on_peer_load(self, peer: str, loads: Mapping[str, Load]) -> None:
        """A peer's work in flight, by backend."""

    def peer_lost(self, peer: str) -> None:
        """A peer's lease has expired."""

    def reported(self, name: str, report: EngineReport) -> None:
        """A sidecar's report of an engine."""


class StateObserver(Protocol):
    """Counts syncs for the metrics."""

    def synced(self, took_s: float, peers: int) -> None:
        """The store answered."""

    def sync_failed(self, why: str) -> None:
        """The store did not answer."""

    def unreadable(self, peer: str) -> None:
        """A peer's view has become unreadable."""


class Sync:
    """Publishes this router's view and passes on the peers', every ``period_s``."""

    def __init__(
        self,
        store: Store,
        listener: Listener,
        view: Callable[[], RouterView],
        backends: Callable[[], tuple[str, ...]],
        observer: StateObserver,
        period_s: float,
        lease_s: float,
    ) -> None:
        """``view``: what to publish; ``backends``: whose reports to read (none where this router scrapes itself)."""
        self._store, self._listener, self._observer = store, listener, observer
        self._view, self._backends = view, backends
        self._period_s, self._lease_s = period_s, lease_s
        self._last_view_s: dict[str, float] = {}
        self._reported_s: dict[str, float] = {}
        self.peers: Mapping[str, RouterView] = {}

    async def run(self, clock: Callable[[], float]) -> None:
        """Sync until cancelled."""
        wait_s = self._period_s
        while True:
            ok = await self.once(clock)
            wait_s = self._period_s if ok else min(max(2 * wait_s, 0.1), RETRY_S_MAX)
            await asyncio.sleep(wait_s)

    async def once(self, clock: Callable[[], float]) -> bool:
        """One sync; False when the store did not answer."""
        started_s = clock()
        try:
            shared = await self._store.sync(self._view(), self._backends(), started_s)
        except StoreGone as gone:
            self._observer.sync_failed(str(gone))
            self._forget(clock())
            return False
        self._pass_on(shared, clock())
        self._observer.synced(clock() - started_s, len(shared.routers))
        return True

    def _pass_on(self, shared: Shared, now_s: float) -> None:
        for peer, view in shared.routers.items():
            self._last_view_s[peer] = now_s
            if view is UNREADABLE and self.peers.get(peer) is not UNREADABLE:
                self._observer.unreadable(peer)
            self._listener.on_peer_load(peer, view.loads)
        for backend, report in shared.reports.items():
            if report.asked_s > self._reported_s.get(backend, float("-inf")) + 1e-3:  # less is the jitter of clocks
                self._reported_s[backend] = min(report.asked_s, now_s)  # one from the future must not hide the next
                self._listener.reported(backend, report)
        self.peers = shared.routers
        self._forget(now_s)

    def _forget(self, now_s: float) -> None:
        """Drop the peers without a view for a lease, by this router's clock."""
        for peer, viewed_s in tuple(self._last_view_s.items()):
            if now_s - viewed_s > self._lease_s:
                del self._last_view_s[peer]
                self.peers = {name: view for name, view in self.peers.items() if name != peer}
                self._listener.peer_lost(peer)
