"""Opens text files, plain or gzipped: told apart by their first two bytes, not by their names."""

import gzip
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from simulator.errors import BadLine

_GZIP: Final = b"\x1f\x8b"


@contextmanager
def opened(path: Path) -> Iterator[Iterable[str]]:
    """The lines of the file, decompressed. Raises BadLine if it is a part of a gzip file, or OSError."""
    with path.open("rb") as raw:
        compressed = raw.read(2) == _GZIP
    with (
        gzip.open(path, "rt", encoding="utf-8", errors="replace")
        if compressed
        else path.open(encoding="utf-8", errors="replace") as text
    ):
        try:
            yield text
        except (EOFError, gzip.BadGzipFile) as problem:
            raise BadLine(f"{path}: expected a whole gzip file: {problem}") from None
