"""Logs that requests are refused: how many by reason, and why the last one was; at once, and then once a minute.

The access log has each of them. Must not depend on what refuses.
"""

import logging
from collections import Counter
from math import inf
from typing import Final

from router.core.decisions import EndState, Refuse
from router.gateway.traffic.request_log import RequestLog

AGAIN_S: Final = 60.0
_log = logging.getLogger("headroom")


class RefusalLog:
    """A RequestObserver."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()  # since the last line, by reason
        self._why = ""
        self._logged_s = -inf

    def ended(self, log: RequestLog) -> None:
        """A request has ended: count it if it was refused."""
        record = log.record
        if record.outcome is not EndState.REFUSED or record.reason is None:
            return
        self._counts[record.reason.value] += 1
        last = log.decisions[-1] if log.decisions else None
        if isinstance(last, Refuse):
            self._why = f"; the last one, of class {record.request.slo_class}: {last.why}"

    def rejected(self, path: str, status: int, peer: tuple[str, int] | None) -> None:
        """A request that no core saw is the client's own error."""

    def sweep(self, now_s: float) -> None:
        """Log what is due; call it about every second."""
        if not self._counts or now_s - self._logged_s < AGAIN_S:
            return
        found = ", ".join(f"{count} {reason}" for reason, count in self._counts.most_common())
        _log.warning("requests refused since the last such line: %s%s", found, self._why)
        self._counts.clear()
        self._why, self._logged_s = "", now_s
