"""The output of a child process that must not delay traffic, and that must end all the same.

It begins on processor time that traffic leaves idle (``simulator/background.py``). On a machine that is never idle it
would not get any: its share grows in steps. Must not depend on what the process does.
"""

import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from time import monotonic
from typing import Final

Steps = Sequence[tuple[float, int]]
STEPS: Final[Steps] = ((5.0, 10), (15.0, 0))  # from so many seconds on, this nice value: a tenth of a core, its share


def communicate(process: "subprocess.Popen[str]", text: str, limit_s: float, steps: Steps = STEPS) -> tuple[str, str]:
    """stdout and stderr of the process, with *text* on its stdin. Raises TimeoutExpired after *limit_s*."""
    began_s = monotonic()
    given: str | None = text
    for after_s, nice in steps:
        try:
            return process.communicate(given, timeout=min(after_s, limit_s) - (monotonic() - began_s))
        except subprocess.TimeoutExpired:
            given = None  # it has it already
        _raise(process.pid, nice)
    return process.communicate(given, timeout=limit_s - (monotonic() - began_s))


def _raise(pid: int, nice: int) -> None:
    """Needs a privilege; a process without it did not begin on idle time alone."""
    if sys.platform == "linux":
        with suppress(PermissionError, ProcessLookupError):
            os.setpriority(os.PRIO_PROCESS, pid, nice)
            os.sched_setscheduler(pid, os.SCHED_OTHER, os.sched_param(0))
