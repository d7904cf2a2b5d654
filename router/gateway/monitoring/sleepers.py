"""Which engines sleep, and since when, by their reports: for the log, the metrics and the fleet page.

The core reads the same of each report by itself. Must not depend on health checks: a sleeping engine passes them.
"""

import logging
from time import time
from typing import Final

from router.core.errors import DownReason
from router.core.types import EngineReport
from router.gateway.monitoring.downtime import Downtime

_log = logging.getLogger("headroom")
_WHY: Final = "the engine sleeps or is paused, by its own report"


class Sleepers:
    """The engines whose last report says that they sleep."""

    def __init__(self) -> None:
        self._since_s: dict[str, float] = {}  # by name, seconds since the epoch

    @property
    def names(self) -> tuple[str, ...]:
        """Who sleeps."""
        return tuple(self._since_s)

    def reported(self, name: str, report: EngineReport) -> None:
        """An engine's last report."""
        if report.asleep == (name in self._since_s):
            return
        if report.asleep:
            self._since_s[name] = time()
            _log.warning("backend %s: asleep or paused by its own report; it gets no requests until it is awake", name)
        else:
            del self._since_s[name]
            _log.info("backend %s: awake again", name)

    def down(self, name: str) -> Downtime | None:
        """Since when it sleeps; None while it is awake."""
        since_s = self._since_s.get(name)
        return None if since_s is None else Downtime(DownReason.ASLEEP, since_s, _WHY)

    def forget(self, name: str) -> None:
        """The backend left."""
        self._since_s.pop(name, None)
