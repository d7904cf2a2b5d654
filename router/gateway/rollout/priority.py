"""The output of a child process that must not delay traffic, and that must end all the same.

It begins on processor time that traffic leaves idle (``simulator/background.py``). On a machine that is never idle it
would not get any: its share grows in steps. Must not depend on what the process does.
"""

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from threading import Thread
from time import monotonic
from typing import IO, Final

Steps = Sequence[tuple[float, int]]
STEPS: Final[Steps] = ((5.0, 10), (15.0, 0))  # from so many seconds on, this nice value: a tenth of a core, its share


_PIPES_S: Final = 1.0  # a process that the killed one started may hold them longer


class _Pipes:
    """The three pipes of a process, each in a thread: one that is full would block it, or this process."""

    def __init__(self, process: "subprocess.Popen[str]", text: str, on_line: Callable[[str], None]) -> None:
        self.lines: list[str] = []
        self.errors: list[str] = []
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        self._threads = [
            Thread(target=self._write, args=(process.stdin, text), daemon=True),
            Thread(target=self._read, args=(process.stdout, on_line), daemon=True),
            Thread(target=self._gather, args=(process.stderr,), daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    def output(self, within_s: float | None = None) -> tuple[str, str]:
        """stdout and stderr, once the process has ended and closed them."""
        for thread in self._threads:
            thread.join(within_s)
        return "".join(self.lines), "".join(self.errors)

    @staticmethod
    def _write(stdin: IO[str], text: str) -> None:
        with suppress(OSError), stdin:  # it may end without reading
            stdin.write(text)

    def _read(self, stdout: IO[str], on_line: Callable[[str], None]) -> None:
        for line in stdout:
            self.lines.append(line)
            on_line(line)

    def _gather(self, stderr: IO[str]) -> None:
        self.errors.extend(stderr)


def communicate(
    process: "subprocess.Popen[str]",
    text: str,
    limit_s: float,
    steps: Steps = STEPS,
    on_line: Callable[[str], None] = lambda line: None,
) -> tuple[str, str]:
    """stdout and stderr of the process, with *text* on its stdin. Raises TimeoutExpired after *limit_s*.

    It is killed then, or when
    waiting is interrupted. *on_line* gets each line of stdout as it comes, in a thread of its own; it must not raise.
    """
    began_s = monotonic()
    pipes = _Pipes(process, text, on_line)
    try:
        for after_s, nice in steps:
            if _ended(process, min(after_s, limit_s) - (monotonic() - began_s)):
                return pipes.output()
            _raise(process.pid, nice)
        process.wait(max(0.0, limit_s - (monotonic() - began_s)))
    except BaseException:
        process.kill()  # its pipes end with it, and with them the threads
        pipes.output(_PIPES_S)
        raise
    return pipes.output()


def _ended(process: "subprocess.Popen[str]", within_s: float) -> bool:
    try:
        process.wait(max(0.0, within_s))
    except subprocess.TimeoutExpired:
        return False
    return True


def _raise(pid: int, nice: int) -> None:
    """Needs a privilege; a process without it did not begin on idle time alone."""
    if sys.platform == "linux":
        with suppress(PermissionError, ProcessLookupError):
            os.setpriority(os.PRIO_PROCESS, pid, nice)
            os.sched_setscheduler(pid, os.SCHED_OTHER, os.sched_param(0))
