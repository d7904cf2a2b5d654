"""Which engines' metrics this router reads, where several routers share that work: one reads each, and publishes it.

The choice is by the names of the engine and of the routers with a lease alone, so routers need not agree on anything,
and one that comes or goes changes no more than its own share (rendezvous hashing; Thaler & Ravishankar 1998). Two that
see different routers for a moment both read an engine, or neither does, for as long. An engine of which no report comes
is read by the others too, now and then: its reader may not reach it, or be of another release. Must not depend on how
reports travel.
"""

from collections.abc import Callable, Collection
from math import inf
from typing import Final

from router.core.hashing import hash64
from router.core.reports import UNATTRIBUTED_TTL_S

UNREAD_S: Final = UNATTRIBUTED_TTL_S / 2  # a report that old is soon believed no more


def owns(router_id: str, engine: str, peers: Collection[str]) -> bool:
    """Whether this router reads an engine's metrics; *peers*: the ids of the others."""
    return max((router_id, *peers), key=lambda each: (hash64(f"{each}\n{engine}"), each)) == router_id


class Division:
    """The choice of each engine, kept while the routers are the same: it is looked up with every sync."""

    __slots__ = ("_began_s", "_choose", "_chosen", "_names", "_peers", "_tried_s")

    def __init__(self, choose: Callable[[str, Collection[str]], bool], began_s: float) -> None:
        """``choose``: whether an engine is this router's to read, by its name and the other routers' ids; ``began_s``:
        since when reports can have come.
        """
        self._choose, self._began_s = choose, began_s
        self._tried_s: dict[str, float] = {}  # by engine of another router, when it was last read here all the same
        self._peers: Collection[str] = ()
        self._names: frozenset[str] = frozenset()
        self._chosen: dict[str, bool] = {}

    def mine(self, engine: str, peers: Collection[str]) -> bool:
        """Whether it is."""
        if peers is not self._peers:
            self._peers, names = peers, frozenset(peers)
            if names != self._names:
                self._names = names
                self._chosen.clear()
        found = self._chosen.get(engine)
        if found is None:
            found = self._chosen[engine] = self._choose(engine, self._names)
        return found

    def reads(self, engine: str, peers: Collection[str], reported_s: float, now_s: float) -> bool:
        """Whether this router reads the engine now. ``reported_s``: when the last report of it was made (-inf: there is
        none).
        """
        if self.mine(engine, peers):
            return True
        if now_s - max(reported_s, self._began_s, self._tried_s.get(engine, -inf)) <= UNREAD_S:
            return False
        self._tried_s[engine] = now_s
        return True

    def forget(self, engine: str) -> None:
        """A backend has left."""
        self._chosen.pop(engine, None)
        self._tried_s.pop(engine, None)

    def clear(self) -> None:
        """The choice may be another from now on."""
        self._chosen.clear()
