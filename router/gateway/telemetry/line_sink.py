"""Lines to a file, a pipe or a terminal, written by a thread of their own: who writes a line never waits for it.

Must not depend on what a line means. What a full disk, a stopped reader or a slow one leaves no room for is dropped and
counted. A file that was moved is opened anew (``logrotate``), one that was emptied is continued at its new end
(``copytruncate``). Several processes may share one: whole lines are appended at once.
"""

import os
import stat
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

from router.gateway.private_files import FILE_MODE, make_folder

LINES_MAX: Final = 20_000  # that wait to be written: seconds of the fastest traffic
FLUSH_S: Final = 0.25
CLOSE_S: Final = 2.0  # how long the end waits for a reader that reads no more
_PIPE_BYTES: Final = 4096  # PIPE_BUF: so many bytes of several writers are not mixed in a pipe


class LineSink:
    """The sink. ``write`` from one thread or several; ``close`` writes what is left."""

    def __init__(
        self,
        to: Path | int,
        *,
        at_once: bool = False,
        lines_max: int = LINES_MAX,
        changed: Callable[[OSError | None], None] = lambda _: None,
    ) -> None:
        """*to*: a file, or a descriptor that is open and stays so; *at_once*: do not gather lines first. *changed* is
        called with the error once writing begins to fail, with None once it works again. Raises OSError when the file
        cannot be opened.
        """
        self._path = to if isinstance(to, Path) else None
        self._at_once, self._lines_max, self._changed = at_once, lines_max, changed
        self._lines: deque[bytes] = deque()
        self._overflowed = self._unwritten = 0  # lines: the first is counted by the caller's thread, the other by ours
        self._failing = self._torn = False
        self._wake, self._written = threading.Event(), threading.Event()
        self._over = False
        self._descriptor = -1 if isinstance(to, Path) else to
        if self._path is not None:
            self._open(self._path)
        self._piece_bytes = _PIPE_BYTES if stat.S_ISFIFO(os.fstat(self._descriptor).st_mode) else 1 << 20
        self._thread = threading.Thread(target=self._run, name="lines", daemon=True)
        self._thread.start()

    @property
    def dropped(self) -> int:
        """Lines that were not written and will not be."""
        return self._overflowed + self._unwritten

    def write(self, line: bytes) -> None:
        """Take one line, which ends with a line feed."""
        if len(self._lines) < self._lines_max:
            self._lines.append(line)
            if self._at_once:
                self._wake.set()
        else:
            self._overflowed += 1

    def close(self) -> None:
        """Write what is left, unless that takes too long, and close the file."""
        self._over = True
        self._wake.set()
        self._thread.join(CLOSE_S)
        if self._thread.is_alive():
            self._overflowed += len(self._lines)
        elif self._path is not None and self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def flush(self) -> None:
        """Wait until what was taken so far has been written, unless that takes too long."""
        for _ in range(2):  # the first may be the end of a write that began before
            self._written.clear()
            self._wake.set()
            self._written.wait(CLOSE_S / 2)

    def _run(self) -> None:
        while not self._over:
            self._wake.wait(None if self._at_once else FLUSH_S)
            self._wake.clear()
            self._flush()
        self._flush()

    def _flush(self) -> None:
        lines = [self._lines.popleft() for _ in range(len(self._lines))]
        if lines:
            left = len(lines)
            try:
                self._follow()
                for count, piece in self._pieces(lines):
                    self._put(piece)
                    left -= count
            except OSError as error:
                self._unwritten += left
                self._report(error)
            else:
                self._report(None)
        self._written.set()

    def _pieces(self, lines: list[bytes]) -> list[tuple[int, bytes]]:
        """Lines in as few writes as may be: how many lines each has, and its bytes."""
        pieces: list[tuple[int, bytes]] = []
        batch: list[bytes] = []
        size = 0
        for line in lines:
            if batch and size + len(line) > self._piece_bytes:
                pieces.append((len(batch), b"".join(batch)))
                batch, size = [], 0
            batch.append(line)
            size += len(line)
        return [*pieces, (len(batch), b"".join(batch))]

    def _put(self, piece: bytes) -> None:
        if self._torn:  # the last write stopped within a line
            piece = b"\n" + piece
        rest = memoryview(piece)
        while rest:
            written = os.write(self._descriptor, rest)
            self._torn = rest[written - 1] != ord("\n")
            rest = rest[written:]

    def _follow(self) -> None:
        """Open the file anew where it was moved or removed."""
        if self._path is None:
            return
        if self._descriptor >= 0:
            with suppress(FileNotFoundError):
                there, mine = os.stat(self._path), os.fstat(self._descriptor)
                if (there.st_dev, there.st_ino) == (mine.st_dev, mine.st_ino):
                    return
            os.close(self._descriptor)
            self._descriptor = -1
        self._open(self._path)

    def _open(self, path: Path) -> None:
        make_folder(path.parent)
        self._descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, FILE_MODE)
        self._torn = False

    def _report(self, error: OSError | None) -> None:
        if (error is not None) != self._failing:
            self._failing = error is not None
            self._changed(error)
