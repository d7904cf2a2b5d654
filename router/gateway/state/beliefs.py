"""What was learnt of each backend, kept in the store, so that a new router starts warm.

Believes: the core knows which beliefs it can take; one of other physics or another version is passed over. Must not
know what is in them. Every router writes what it learnt itself; the last word stands, as each alone is good enough.
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
    """Teaches the core what the store has, and keeps what the core learns."""

    def __init__(
        self,
        store: Store,
        learnt: Callable[[], Mapping[str, Mapping[str, Any]]],
        teach: Callable[[str, Mapping[str, Any]], None],
    ) -> None:
        """``learnt``: by backend, as JSON can hold it; ``teach`` raises ValueError for what cannot be taken."""
        self._store, self._learnt, self._teach = store, learnt, teach

    async def warm(self, backends: frozenset[str]) -> int:
        """Teach what is kept of these; how many were. A store that is gone leaves the router cold, and that is all."""
        try:
            kept = await self._store.beliefs()
        except StoreGone as gone:
            _log.warning("starting cold: %s", gone)
            return 0
        return sum(self._taught(name, kept[name]) for name in sorted(backends & kept.keys()))

    def _taught(self, name: str, raw: bytes) -> bool:
        try:
            self._teach(name, dict(orjson.loads(raw)))
        except (ValueError, KeyError, TypeError, IndexError) as odd:
            _log.info("what is kept of %s is of no use here: %s", name, odd)
            return False
        return True

    async def keep(self) -> bool:
        """Keep what has been learnt; False when the store was gone."""
        try:
            await self._store.keep_beliefs({name: orjson.dumps(each) for name, each in self._learnt().items()})
        except StoreGone:
            return False
        return True

    async def run(self) -> None:
        """Keep it every ``KEEP_S``; cancel to end."""
        while True:
            await asyncio.sleep(KEEP_S)
            await self.keep()
