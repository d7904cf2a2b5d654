"""The beliefs learnt of each backend, saved in the store, so that a new router starts warm.

The core accepts or refuses a belief; one of other physics or another version is skipped. Must not depend on what is in
them. Every router writes what it learnt itself; the last write counts, as each belief alone is good enough.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Any, Final

import orjson

from router.core.errors import StoreGone
from router.gateway.state import Store

_log = logging.getLogger("headroom")
KEEP_S: Final = 10.0  # what is lost with a router is learnt again in seconds


class Beliefs:
    """Restores beliefs from the store into the core, and saves those of the core."""

    def __init__(
        self,
        store: Store,
        learnt: Callable[[], Mapping[str, Mapping[str, Any]]],
        adopt: Callable[[str, Mapping[str, Any]], None],
    ) -> None:
        """``learnt``: by backend, as JSON can hold it; ``adopt`` raises ValueError for a belief of another kind."""
        self._store, self._learnt, self._adopt = store, learnt, adopt

    async def warm(self, backends: frozenset[str]) -> int:
        """Adopt the stored beliefs of these backends; returns how many. Without a store the router starts cold."""
        try:
            stored = await self._store.beliefs(sorted(backends))
        except StoreGone as gone:
            _log.warning("no belief could be read, so the forecasts start from data sheets: %s", gone)
            return 0
        return sum(self._adopted(name, stored[name]) for name in sorted(backends & stored.keys()))

    def _adopted(self, name: str, raw: bytes) -> bool:
        try:
            self._adopt(name, dict(orjson.loads(raw)))
        except (ValueError, KeyError, TypeError, IndexError) as odd:
            _log.info("the stored belief of backend %s cannot be used: %s", name, odd)
            return False
        return True

    async def keep(self) -> bool:
        """Save the beliefs; False when the store does not answer."""
        try:
            await self._store.keep_beliefs({name: orjson.dumps(each) for name, each in self._learnt().items()})
        except StoreGone:
            return False
        return True

    async def run(self) -> None:
        """Save every ``KEEP_S``; cancel to end."""
        while True:
            await asyncio.sleep(KEEP_S)
            await self.keep()
