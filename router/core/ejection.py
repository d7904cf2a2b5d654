"""Failures by backend, and backends ejected after faults in a row, each time for twice as long (outlier ejection).

Ejects for a backend's own faults alone: a client's 4xx is counted and no more, and a first token wipes the row.
"""

from collections import defaultdict
from typing import Final

from router.core.flight import Failure, FailureKind

_WHY_CHARS_MAX: Final = 300
_UNTOLD: Final = frozenset(
    {
        FailureKind.CLIENT_ERROR,
        FailureKind.CONTEXT_EXCEEDED,
        FailureKind.NOT_FOUND,
        FailureKind.EXHAUSTED,
        FailureKind.WITHDRAWN,
    }
)


class BackendFailures:
    """What attempts on one backend failed of, since it joined.

    ``counts``: by kind; ``in_a_row``: its own faults since it last answered (one less than eject it, once
    another router has ejected it); ``ejections``: how many; ``ejected_s`` and
    ``readmitted_s``: since and until when it is ejected, while ``ejected``; ``why``, ``kind`` and ``at_s``: of the last
    failure that says something about the backend (none: an empty ``why``).
    """

    __slots__ = ("at_s", "counts", "ejected", "ejected_s", "ejections", "in_a_row", "kind", "readmitted_s", "why")

    def __init__(self) -> None:
        self.counts: dict[FailureKind, int] = defaultdict(int)
        self.in_a_row = 0
        self.ejections = 0
        self.ejected = False
        self.ejected_s = self.readmitted_s = 0.0
        self.why = ""
        self.kind = FailureKind.FAULT
        self.at_s = 0.0


class Ejection:
    """The failures of each backend, and who is ejected now; the bounds are handed in, for a reload may change them."""

    __slots__ = ("_rows", "by_backend")

    def __init__(self) -> None:
        self.by_backend: dict[str, BackendFailures] = {}
        self._rows = 0  # backends with faults in a row: mostly none, and an answer then costs nothing

    def failed(self, backend: str, failure: Failure, now_s: float) -> None:
        """Count a failure of any kind."""
        known = self._of(backend)
        known.counts[failure.kind] += 1
        if failure.kind not in _UNTOLD:
            known.why, known.kind, known.at_s = failure.why[:_WHY_CHARS_MAX], failure.kind, now_s

    def fault(self, backend: str, failures_max: int, eject_s: float, eject_s_max: float, now_s: float) -> float:
        """Count a fault in a row; for how long the backend is ejected from now, 0 when it is not."""
        known = self._of(backend)
        if known.ejected:
            return 0.0
        self._rows += known.in_a_row == 0
        known.in_a_row += 1
        if known.in_a_row < failures_max:
            return 0.0
        ejected_s = min(eject_s * 2.0 ** (known.in_a_row - failures_max), eject_s_max)
        known.ejected, known.ejected_s, known.readmitted_s = True, now_s, now_s + ejected_s
        known.ejections += 1
        return ejected_s

    def hinted(self, backend: str, failures_max: int) -> None:
        """Another router has ejected it: the next fault here ejects it too. It may answer here all the same."""
        known = self._of(backend)
        if not known.ejected and known.in_a_row < failures_max - 1:
            self._rows += known.in_a_row == 0
            known.in_a_row = failures_max - 1

    def answered(self, backend: str) -> None:
        """It answered: its row of faults is over."""
        if self._rows:
            self._settle(backend)

    def readmit(self, backend: str) -> None:
        """Its ejection is over; the next fault ejects it again, for twice as long."""
        known = self.by_backend.get(backend)
        if known is not None:
            known.ejected = False

    def restarted(self, backend: str) -> None:
        """It is back after a restart: a row of faults says nothing of what is there now."""
        self._settle(backend)
        self.readmit(backend)

    def leave(self, backend: str) -> None:
        """It is gone for good."""
        self._settle(backend)
        self.by_backend.pop(backend, None)

    def _of(self, backend: str) -> BackendFailures:
        known = self.by_backend.get(backend)
        if known is None:
            known = self.by_backend[backend] = BackendFailures()
        return known

    def _settle(self, backend: str) -> None:
        known = self.by_backend.get(backend)
        if known is not None and known.in_a_row:
            known.in_a_row = 0
            self._rows -= 1
