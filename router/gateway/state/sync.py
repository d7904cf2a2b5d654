"""The loop that synchronises one router with the store, in the background.

The store may be unreachable for hours. The router then works with its own load alone, drops each peer one lease after
its last view, shows it in a gauge, and retries with a growing delay. No error ends the loop, one of this router's own
code included: it is logged, and counts as a sync that failed. Must not depend on what a load or a report means.
"""

import asyncio
import logging
from collections.abc import Callable, Collection, Mapping
from math import inf
from typing import Final, Protocol

from router.core.border import AHEAD_S, asked_in_time
from router.core.errors import StateFault, StoreGone
from router.core.quota import Shares
from router.core.types import EngineReport, Load
from router.engines import RunningAdapters
from router.gateway.state import RouterView, Shared, Store

RETRY_S_MAX: Final = 1.0
PUSHED_PERIODS: Final = 5.0  # between two syncs with peers that send their changes as they happen
QUIET_S: Final = 10.0  # for which a store that comes and goes adds nothing to the log
_log = logging.getLogger("headroom")


class Listener(Protocol):
    """Receives what the store holds."""

    def on_peer_load(self, peer: str, loads: Mapping[str, Load]) -> None:
        """A peer's work in flight, by backend."""

    def peer_quotas(self, peer: str, shares: Mapping[str, Shares]) -> None:
        """What a peer took of the quotas, by account."""

    def peer_lost(self, peer: str) -> None:
        """A peer's lease has expired."""

    def reported(self, name: str, report: EngineReport) -> None:
        """A sidecar's report of an engine."""

    def adapters_reported(self, name: str, running: RunningAdapters) -> None:
        """The adapters for which that engine runs requests, by the same report."""


class StateObserver(Protocol):
    """Counts syncs for the metrics."""

    def synced(self, took_s: float, peers: int) -> None:
        """The store answered; ``peers``: other routers with a lease."""

    def sync_failed(self, fault: str, peers: int) -> None:
        """The store did not answer, or did not take this router's view; ``peers``: those whose last view still counts.

        ``fault``: the value of a StateFault.
        """


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
        pushing: Callable[[Collection[str]], bool] = lambda _: False,
    ) -> None:
        """``view``: what to publish; ``backends``: whose reports to read (none where this router scrapes itself).
        ``pushing``: whether all of these peers send their changes as they happen, so that views matter less.
        """
        self._store, self._listener, self._observer = store, listener, observer
        self._view, self._backends = view, backends
        self._period_s, self._lease_s, self._pushing = period_s, lease_s, pushing
        self._last_view_s: dict[str, float] = {}
        self._reported_s: dict[str, float] = {}
        self._odd_s: dict[str, float] = {}  # by backend, the time of the last report that cannot be of now
        self.peers: Mapping[str, RouterView] = {}
        self.fault: StoreGone | None = None  # of the last sync
        self._stated: set[StateFault] = set()  # in the log, of this outage
        self._stated_s, self._ended_s = -inf, -inf

    async def run(self, clock: Callable[[], float]) -> None:
        """Sync until cancelled."""
        wait_s = self._period_s
        while True:
            ok = await self.once(clock)
            wait_s = self.wait_s if ok else min(max(2 * wait_s, 0.1), RETRY_S_MAX)
            await asyncio.sleep(wait_s)

    @property
    def wait_s(self) -> float:
        """Between two syncs that work: longer where changes come without them, and well within a lease."""
        pushed = bool(self.peers) and self._pushing(self.peers)
        return (
            max(self._period_s, min(PUSHED_PERIODS * self._period_s, self._lease_s / 4)) if pushed else self._period_s
        )

    async def once(self, clock: Callable[[], float]) -> bool:
        """One sync; False when nothing was read."""
        started_s = clock()
        try:
            shared = await self._store.sync(self._view(), self._backends(), started_s)
            self._pass_on(shared, clock())
        except StoreGone as gone:
            self._failed(gone, clock())
            return False
        except Exception as error:
            if StateFault.INTERNAL not in self._stated:
                _log.exception("a sync with the shared state failed by a fault of this router; it goes on trying")
            self._failed(StoreGone(repr(error), StateFault.INTERNAL), clock())
            return False
        if shared.fault is not None:  # what others wrote was read all the same, so there is no reason to wait longer
            self._failed(shared.fault, clock())
            return True
        self._good(clock())
        self._observer.synced(clock() - started_s, len(self.peers))
        return True

    def _failed(self, gone: StoreGone, now_s: float) -> None:
        """Drop the peers whose lease is over; log a fault of another kind than those before it in the same outage."""
        self._forget(now_s)
        if self.fault is None and now_s - self._stated_s > QUIET_S:
            self._stated.clear()
        if gone.fault not in self._stated:
            self._stated.add(gone.fault)
            self._stated_s = now_s
            _log.warning(
                "shared state: %s (%s); this router decides without the load of its peers until it answers",
                gone,
                gone.fault.value,
            )
        self.fault = gone
        self._observer.sync_failed(gone.fault.value, len(self.peers))

    def _good(self, now_s: float) -> None:
        """Log the end of an outage; one of a store that comes and goes is logged once in ``QUIET_S``."""
        if self.fault is not None and self._stated_s > self._ended_s:
            self._ended_s = now_s
            _log.info("shared state: it answers again")
        self.fault = None

    def _pass_on(self, shared: Shared, now_s: float) -> None:
        for peer, view in shared.routers.items():
            self._last_view_s[peer] = now_s
            self._listener.on_peer_load(peer, view.loads)
            self._listener.peer_quotas(peer, view.quotas)
        for backend, report in shared.reports.items():
            if self._is_news(backend, report.asked_s, asked_in_time(report, now_s)):
                if (running := shared.adapters.get(backend)) is not None:
                    self._listener.adapters_reported(backend, running)
                self._listener.reported(backend, report)
        self.peers = shared.routers
        self._forget(now_s)

    def _is_news(self, backend: str, asked_s: float, in_time: bool) -> bool:
        """Whether the listener gets it. One that is not of now is passed on to be counted, once, and hides no other."""
        if in_time:
            known_s = self._reported_s.get(backend, -inf) + 1e-3  # less is the jitter of clocks
            self._reported_s[backend] = max(asked_s, self._reported_s.get(backend, -inf))
            return asked_s > known_s
        last_odd_s, self._odd_s[backend] = self._odd_s.get(backend), asked_s
        return last_odd_s is None or abs(asked_s - last_odd_s) > AHEAD_S

    def _forget(self, now_s: float) -> None:
        """Drop the peers without a view for a lease, by this router's clock."""
        for peer, viewed_s in tuple(self._last_view_s.items()):
            if now_s - viewed_s > self._lease_s:
                del self._last_view_s[peer]
                self.peers = {name: view for name, view in self.peers.items() if name != peer}
                self._listener.peer_lost(peer)
