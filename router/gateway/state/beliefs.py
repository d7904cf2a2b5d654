"""The beliefs learnt of each backend, saved in the store, so that a new router starts warm.

The core accepts or refuses a belief; one of other physics or another version is skipped. Must not depend on what is in
them. Every router writes what it learnt itself; the last write counts, as each belief alone is good enough. A router
that could not read the store at its start tries again for a while, and meanwhile replaces no belief there by its own,
of which it has learnt little.
"""

import asyncio
import logging
from collections.abc import Callable, Collection, Mapping
from typing import Any, Final

import orjson

from router.core.errors import SkipReason, StoreGone
from router.gateway.state import Store
from router.gateway.state.skipped import Kind
from router.gateway.turns import in_turns

_log = logging.getLogger("headroom")
KEEP_S: Final = 10.0  # what is lost with a router is learnt again in seconds
RETRY_S: Final = 1.0
TRIES: Final = 60  # later than a minute after the start, what was learnt here is worth more than what was saved


class Beliefs:
    """Restores beliefs from the store into the core, and saves those of the core."""

    def __init__(
        self,
        store: Store,
        known: Callable[[], Collection[str]],
        learnt: Callable[[str], Mapping[str, Any] | None],
        adopt: Callable[[str, Mapping[str, Any]], None],
    ) -> None:
        """``known``: the backends there are; ``learnt``: of one of them, as JSON can hold it, None: it has left;
        ``adopt`` raises ValueError for a belief of another kind.
        """
        self._store, self._known, self._learnt, self._adopt = store, known, learnt, adopt
        self._unread: dict[str, int] = {}  # backends whose beliefs could not be read yet, and how often that was tried

    async def warm(self, backends: frozenset[str]) -> int:
        """Adopt the stored beliefs of these backends; returns how many. Without a store the router starts cold."""
        try:
            stored = await self._store.beliefs(sorted(backends))
        except StoreGone as gone:
            if not self._unread:
                _log.warning("no belief could be read, so the forecasts start from data sheets: %s", gone)
            self._tried(backends)
            return 0
        for name in backends:
            self._unread.pop(name, None)
        return sum([self._adopted(name, stored[name]) async for name in in_turns(sorted(backends & stored.keys()))])

    def _tried(self, backends: frozenset[str]) -> None:
        for name in backends:
            self._unread[name] = self._unread.get(name, 0) + 1
            if self._unread[name] >= TRIES:
                del self._unread[name]

    def _adopted(self, name: str, raw: bytes) -> bool:
        try:
            plain = dict(orjson.loads(raw))
        except (ValueError, TypeError) as odd:
            self._store.skipped.add(Kind.BELIEF, name, SkipReason.UNREADABLE, str(odd))
            return False
        try:
            self._adopt(name, plain)
        except (ValueError, KeyError, TypeError, IndexError) as odd:
            _log.info("the stored belief of backend %s cannot be used: %s", name, odd)
            return False
        return True

    async def keep(self) -> bool:
        """Save the beliefs; False when the store does not answer."""
        learnt: dict[str, bytes] = {}
        async for name in in_turns([name for name in self._known() if name not in self._unread]):
            if (each := self._learnt(name)) is not None:
                learnt[name] = orjson.dumps(each)
        try:
            await self._store.keep_beliefs(learnt)
        except StoreGone:
            return False
        return True

    async def run(self) -> None:
        """Save every ``KEEP_S``, and read what could not be read every ``RETRY_S``; cancel to end."""
        while True:
            for _ in range(int(KEEP_S / RETRY_S)):
                await asyncio.sleep(RETRY_S)
                if self._unread and (taken := await self.warm(frozenset(self._unread))):
                    _log.info("beliefs of %d backends were read late", taken)
            await self.keep()
