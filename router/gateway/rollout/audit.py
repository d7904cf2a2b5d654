"""What was done to the policies and the config, and why: one line a step, on disk where the config says so.

Believes: who calls. Must not know what the steps mean. The last ones stay in memory for /admin/policy. Steps are
seldom, so a line is written and flushed at once; a disk that fails is said in the log and stops nobody.
"""

import json
import logging
from collections import deque
from collections.abc import Callable
from pathlib import Path
from time import time
from typing import Any, Final

KEPT: Final = 200

_log = logging.getLogger("headroom")


class Audit:
    """The audit log of one router."""

    def __init__(self, clock: Callable[[], float] = time, worker: str = "") -> None:
        """``clock``: seconds since the epoch; ``worker``: its id, where several workers share the file."""
        self.file: Path | None = None
        self._worker = worker
        self.last: deque[dict[str, Any]] = deque(maxlen=KEPT)
        self._clock = clock

    def note(self, event: str, **facts: Any) -> None:
        """One step."""
        who = {"worker": self._worker} if self._worker else {}
        entry = {"at_s": round(self._clock(), 3), "event": event, **who, **facts}
        self.last.append(entry)
        if self.file is None:
            return
        try:
            with self.file.open("a", encoding="utf-8") as file:
                file.write(json.dumps(entry, default=str) + "\n")
        except OSError as problem:
            _log.error("audit log: %s", problem)
