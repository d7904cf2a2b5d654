"""Values of the shared state that were not taken: counted for the metrics, each named once in the log.

Anybody may write into a store, another release among them. A value that is no good is skipped, and the rest is taken.
Must not depend on what the values are of.
"""

import logging
from enum import StrEnum
from typing import Final

from router.core.errors import SkipReason

KEYS_MOST: Final = 10_000  # whose present fault is remembered; a store may hold any number of keys
NAMED_MOST: Final = 1_000  # of the log
_log = logging.getLogger("headroom")


class Kind(StrEnum):
    """What a value is of."""

    VIEW = "view"
    REPORT = "report"
    BELIEF = "belief"
    DEMAND = "demand"
    CHANGE = "change"  # a message of a peer
    ROUTERS = "routers"  # the set of the routers' ids, or one of its ids


class SkippedValues:
    """``counts``: by kind and reason. A value that is read again as it was counts once."""

    def __init__(self) -> None:
        self.counts: dict[tuple[str, str], int] = {}
        self._present: dict[tuple[Kind, str], SkipReason] = {}
        self._named: set[tuple[Kind, str, SkipReason]] = set()

    def add(self, kind: Kind, name: str, reason: SkipReason, what: str) -> None:
        """The value of that name was skipped."""
        if self._present.get((kind, name)) is reason:
            return
        if len(self._present) >= KEYS_MOST:
            self._present.clear()
        self._present[kind, name] = reason
        place = (kind.value, reason.value)
        self.counts[place] = self.counts.get(place, 0) + 1
        if len(self._named) < NAMED_MOST and (kind, name, reason) not in self._named:
            self._named.add((kind, name, reason))
            text = "shared state: the %s of %r was skipped (%s: %s); headroom_state_skipped_values_total counts more"
            _log.warning(text, kind.value, name, reason.value, what)

    def taken(self, kind: Kind, name: str) -> None:
        """The value of that name was read, so that a later fault of it is news."""
        self._present.pop((kind, name), None)
