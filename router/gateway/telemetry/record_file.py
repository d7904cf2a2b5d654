"""A file of lines that is renamed when it is full, and that survives a full disk or a folder that is gone.

Must not depend on what a line means. Used by one thread.
"""

import io
import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

from router.gateway.private_files import make_folder, private


class RecordFile:
    """The file and the one before it, together within a bound. Each begins with a header.

    ``lines``: how many were written, headers aside. A write that fails leaves no part of itself behind, and the next
    one goes on from there, in a new file if the old one is gone.
    """

    def __init__(self, path: Path, bytes_max: int, header: Callable[[bool], bytes]) -> None:
        """``header``: the first line of a file, made when the first of its other lines is taken; True: of one that
        continues another. Raises OSError when the file cannot be opened, for which a full disk is no reason.
        """
        self.lines = 0
        self._path = path
        self._half_bytes = bytes_max // 2
        self._header = header
        self._continues = False
        self._size = 0
        self._file: io.FileIO | None = None
        self._open()

    def append(self, lines: Iterable[bytes]) -> None:
        """Write them. Raises OSError; ``lines`` says how many are written."""
        self._follow()
        batch: list[bytes] = []
        header = b""
        room = self._half_bytes - self._size
        for line in lines:
            if not batch and not self._size:
                header = self._header(self._continues)
            batch.append(line)
            room -= len(line)
            if room < 0:
                self._write(header, batch)
                self._rotate()
                batch, room = [], self._half_bytes - self._size
        self._write(header, batch)

    def close(self) -> None:
        """Nothing more is written."""
        if self._file is not None:
            self._file.close()

    def _follow(self) -> None:
        """Begin anew where the file was moved, removed or emptied, else what is written would be lost with it, or stand
        behind a hole.
        """
        if self._file is not None:
            try:
                there, mine = os.stat(self._path), os.fstat(self._file.fileno())
            except FileNotFoundError:
                pass
            else:
                if (there.st_dev, there.st_ino) == (mine.st_dev, mine.st_ino) and mine.st_size >= self._size:
                    return
            self._end()
        self._open()

    def _open(self) -> None:
        make_folder(self._path.parent)
        self._file = open(self._path, "wb", buffering=0, opener=private)  # noqa: SIM115 - open for as long as the process
        self._size = 0

    def _end(self) -> None:
        file, self._file = self._file, None
        self._continues = self._continues or self._size > 0
        if file is not None:
            file.close()

    def _rotate(self) -> None:
        self._end()
        self._path.replace(self._path.with_name(self._path.name + ".1"))
        self._open()

    def _write(self, header: bytes, batch: list[bytes]) -> None:
        if batch and not self._size:
            self._put(header)
        self._put(b"".join(batch))
        self.lines += len(batch)

    def _put(self, data: bytes) -> None:
        assert self._file is not None
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError:
            with suppress(OSError):
                self._file.truncate(self._size)
                self._file.seek(self._size)
            raise
        self._size += len(data)
