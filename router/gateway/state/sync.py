"""The loop that keeps one router and the store in step, beside the traffic.

Believes: the store may be gone for hours. Must not know what a load or a report means. Gone: the router goes on with
its own view, forgets each peer a lease after it last heard of it, says so in a gauge, and tries again ever more slowly.
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
    """Who wants to know."""

    def on_peer_load(self, peer: str, loads: Mapping[str, Load]) -> None:
        """What another router has in flight."""

    def peer_lost(self, peer: str) -> None:
        """Another router's lease ran out."""

    def reported(self, name: str, report: EngineReport) -> None:
        """What a sidecar read of an engine."""


class StateObserver(Protocol):
    """Who counts."""

    def synced(self, took_s: float, peers: int) -> None:
        """The store answered."""

    def sync_failed(self, why: str) -> None:
        """The store was gone."""

    def unreadable(self, peer: str) -> None:
        """What a peer published cannot be read, since now."""


class Sync:
    """Publishes our view and passes on the others', every ``period_s``."""

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
        """``view`` says what to publish, ``backends`` whose reports to read (none where we scrape ourselves)."""
        self._store, self._listener, self._observer = store, listener, observer
        self._view, self._backends = view, backends
        self._period_s, self._lease_s = period_s, lease_s
        self._heard_s: dict[str, float] = {}
        self._reported_s: dict[str, float] = {}
        self.peers: Mapping[str, RouterView] = {}

    async def run(self, clock: Callable[[], float]) -> None:
        """Sync for ever; cancel to end."""
        wait_s = self._period_s
        while True:
            ok = await self.once(clock)
            wait_s = self._period_s if ok else min(max(2 * wait_s, 0.1), RETRY_S_MAX)
            await asyncio.sleep(wait_s)

    async def once(self, clock: Callable[[], float]) -> bool:
        """One sync; False when the store was gone."""
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
            self._heard_s[peer] = now_s
            if view is UNREADABLE and self.peers.get(peer) is not UNREADABLE:
                self._observer.unreadable(peer)
            self._listener.on_peer_load(peer, view.loads)
        for backend, report in shared.reports.items():
            if report.asked_s > self._reported_s.get(backend, float("-inf")) + 1e-3:  # clocks jitter; news do not
                self._reported_s[backend] = min(report.asked_s, now_s)  # one from the future must not silence the next
                self._listener.reported(backend, report)
        self.peers = shared.routers
        self._forget(now_s)

    def _forget(self, now_s: float) -> None:
        """Drop peers whose lease is over; the store's own answer when it is there, our clock when it is not."""
        for peer, heard_s in tuple(self._heard_s.items()):
            if now_s - heard_s > self._lease_s:
                del self._heard_s[peer]
                self.peers = {name: view for name, view in self.peers.items() if name != peer}
                self._listener.peer_lost(peer)
