"""Why a backend is sent no requests, and since when: what the log, the metrics and the fleet page show.

Must not depend on how it was found out.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from router.core.errors import DownReason


@dataclass(frozen=True, slots=True)
class Downtime:
    """``since_s``: seconds since the epoch; ``why``: for people."""

    reason: DownReason
    since_s: float
    why: str

    def plain(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return {"reason": self.reason.value, "since_s": round(self.since_s, 3), "why": self.why}


Downtimes = Mapping[str, Sequence[Downtime]]
"""By backend name; none for one that is up."""
