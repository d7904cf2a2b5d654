"""Opens text files, plain or gzipped, by their first two bytes and not by their names; keeps what can be read once."""

import atexit
import gzip
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from shutil import copyfileobj
from tempfile import mkstemp
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


def lasting(name: str) -> Path:
    """The path *name*, or for ``-``, a pipe or a terminal the path of a copy: workers and later readers open it too.

    The copy is removed when this process ends. Raises OSError.
    """
    path = Path("/dev/stdin" if name == "-" else name)
    if path.is_file() or not path.exists():
        return path.resolve() if path.exists() and _of_this_process(path) else path
    handle, copy = mkstemp(prefix="trace-")
    atexit.register(Path(copy).unlink, missing_ok=True)
    with path.open("rb") as source, open(handle, "wb") as target:
        copyfileobj(source, target)
    return Path(copy)


def _of_this_process(path: Path) -> bool:
    """Whether the path names something of this process, such as a file that a shell opened as standard input."""
    return path.parts[:2] == ("/", "dev") or path.parts[:2] == ("/", "proc")
