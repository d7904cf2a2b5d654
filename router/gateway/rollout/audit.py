"""The audit log of changes to config and policies: what changed and why, one JSON line each, on disk if configured.

Must not depend on what the steps mean. The last entries stay in memory for /admin/policy. Entries are rare, so each is
written and flushed at once; an error of the disk is logged and stops nothing.
"""

import json
import logging
from collections import deque
from collections.abc import Callable
from pathlib import Path
from time import time
from typing import Any, Final

from router.gateway.private_files import private

STEPS_MAX: Final = 200

_log = logging.getLogger("headroom")


class Audit:
    """The audit log of one router."""

    def __init__(self, clock: Callable[[], float] = time, worker: str = "") -> None:
        """``clock``: seconds since the epoch; ``worker``: its id, where several workers share the file."""
        self.file: Path | None = None
        self._worker = worker
        self.last: deque[dict[str, Any]] = deque(maxlen=STEPS_MAX)
        self._clock = clock

    def note(self, event: str, **facts: Any) -> None:
        """Write one entry."""
        who = {"worker": self._worker} if self._worker else {}
        entry = {"at_s": round(self._clock(), 3), "event": event, **who, **facts}
        self.last.append(entry)
        if self.file is None:
            return
        try:
            with open(self.file, "a", encoding="utf-8", opener=private) as file:
                file.write(json.dumps(entry, default=str) + "\n")
        except OSError as problem:
            _log.error("audit log: %s", problem)
