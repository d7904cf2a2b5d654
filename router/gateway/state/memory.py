"""The store of a single router: no peers, nothing on disk. Every call returns at once."""

from collections.abc import Iterable, Mapping
from dataclasses import replace

from router.core.types import EngineReport
from router.engines import RunningAdapters
from router.gateway.state import NO_ADAPTERS, SEEN, RouterView, Shared
from router.gateway.state.seen import seen_from
from router.gateway.state.skipped import SkippedValues


class MemoryStore:
    """Holds views, reports and beliefs in this process."""

    def __init__(self, router_id: str) -> None:
        self.skipped = SkippedValues()
        self._router_id = router_id
        self._own: RouterView | None = None
        self._synced_s = 0.0
        self._kept: dict[str, bytes] = {}
        self._reports: dict[str, EngineReport] = {}
        self._adapters: dict[str, RunningAdapters] = {}
        self._beliefs: dict[str, bytes] = {}

    async def sync(self, own: RouterView, backends: tuple[str, ...], now_s: float) -> Shared:
        """There are no peers; the reports are those of this process."""
        self._own, self._synced_s = own, now_s
        reports = {name: self._reports[name] for name in backends if name in self._reports}
        return Shared(
            reports=reports, adapters={name: self._adapters[name] for name in reports.keys() & self._adapters}
        )

    async def report(
        self, reports: Mapping[str, EngineReport], now_s: float, adapters: Mapping[str, RunningAdapters] = NO_ADAPTERS
    ) -> None:
        """Hold each until the next of its backend."""
        self._reports.update(reports)
        self._adapters.update(adapters)

    async def routers(self, now_s: float) -> Mapping[str, RouterView]:
        """This router, after its first sync."""
        if self._own is None:
            return {}
        seen = seen_from(await self.kept(SEEN + self._router_id))
        return {self._router_id: replace(self._own, age_s=max(0.0, now_s - self._synced_s), seen=seen)}

    async def beliefs(self, backends: Iterable[str]) -> Mapping[str, bytes]:
        """The beliefs saved in this process."""
        return {name: self._beliefs[name] for name in backends if name in self._beliefs}

    async def keep_beliefs(self, beliefs: Mapping[str, bytes]) -> None:
        """Save them."""
        self._beliefs.update(beliefs)

    async def keep(self, name: str, value: bytes, lease_s: float) -> None:
        """For as long as this process lives."""
        self._kept[name] = value

    async def kept(self, name: str) -> bytes:
        """What this process stored last."""
        return self._kept.get(name, b"")

    async def close(self) -> None:
        """There is nothing to close."""
        self._own = None
