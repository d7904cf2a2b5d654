"""Backends ejected after faults in a row, each time for twice as long (outlier ejection).

Counts a backend's own faults alone: a client's 4xx never gets here, and a first token or a whole reply wipes the count.
"""


class Ejection:
    """Faults by backend, and who is ejected now; the bounds are handed in, for a reload may change them."""

    __slots__ = ("_ejected", "_faults")

    def __init__(self) -> None:
        self._faults: dict[str, int] = {}
        self._ejected: set[str] = set()

    def fault(self, backend: str, failures_max: int, eject_s: float, eject_s_max: float) -> float:
        """Count a fault; for how long the backend is ejected from now, 0 when it is not."""
        if backend in self._ejected:
            return 0.0
        faults = self._faults[backend] = self._faults.get(backend, 0) + 1
        if faults < failures_max:
            return 0.0
        self._ejected.add(backend)
        return float(min(eject_s * 2.0 ** (faults - failures_max), eject_s_max))

    def answered(self, backend: str) -> None:
        """It answered: what was counted against it is forgotten."""
        if self._faults:
            self._faults.pop(backend, None)

    def readmit(self, backend: str) -> None:
        """Its ejection is over; the next fault ejects it again, for twice as long."""
        self._ejected.discard(backend)

    def forget(self, backend: str) -> None:
        """It is gone for good, or back after a restart: what was counted says nothing of what is there now."""
        self._faults.pop(backend, None)
        self._ejected.discard(backend)
