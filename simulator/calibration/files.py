"""A file of measurements: opened, checked for its columns, read row by row and row against row.

`measurements.py` checks a row, `consistency.py` compares rows. Must not depend on how measurements are used.
"""

import csv
import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, TextIO

from simulator.calibration.consistency import consistent
from simulator.calibration.floor import possible
from simulator.calibration.measurements import Measurement, Skipped, parse
from simulator.errors import BadFile

_NEEDED: Final = ("engine", "card", "model", "precision", "load_kind", "batch_or_concurrency")


def read(path: Path) -> tuple[list[Measurement], list[Skipped]]:
    """Every usable row of a CSV (plain or .gz), and the rows left out, with line and reason. Raises BadFile if it is no
    such file.
    """
    with _naming_the_file(path), opened(path) as lines:
        rows = csv.DictReader(lines)
        absent = [name for name in _NEEDED if name not in (rows.fieldnames or ())]
        if absent:
            raise BadFile(f"{path}:1: no column {', '.join(absent)}; see simulator/calibration/measurements.py")
        observed, unusable = parse(rows)
    can_be, impossible = possible(observed)
    usable, doubtful = consistent(can_be)
    return usable, sorted([*unusable, *impossible, *doubtful], key=lambda each: each.line)


def opened(path: Path) -> TextIO:
    """A text file, plain or .gz, to read."""
    if path.suffix == ".gz":
        return gzip.open(path, "rt", newline="", encoding="utf-8")
    return path.open(newline="", encoding="utf-8")


@contextmanager
def _naming_the_file(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, EOFError, zlib.error, UnicodeDecodeError, csv.Error) as unreadable:
        raise BadFile(f"{path}: {unreadable}") from None
