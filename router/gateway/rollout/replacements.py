"""Which decisions of guarded policies were replaced, for the record of a run.

A decision that came too late depends on the machine and not on the events, so that a replay needs it stated. Must not
depend on what was decided, nor on who replaced it.
"""

from typing import Final

OVERRAN: Final = "overran"
RAISED: Final = "raised"
INVALID: Final = "invalid"
DROPPED: Final = "dropped"  # the policy was not called: it had failed too often before

Found = list[list[int | str]]
"""Of each decision that was replaced: its place among those of one event, from 0, and why."""


class Replacements:
    """The decisions of all guards of one core since the last event."""

    __slots__ = ("_count", "_found")

    def __init__(self) -> None:
        self._count = 0
        self._found: Found = []

    def add(self, why: str) -> None:
        """One more decision; *why* it was replaced, empty: it was not."""
        if why:
            self._found.append([self._count, why])
        self._count += 1

    def take(self) -> Found:
        """Those of the event that has just ended; the next one begins."""
        found, self._count = self._found, 0
        if found:
            self._found = []
        return found
