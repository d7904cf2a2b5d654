"""Curves of rates over time from CSV files, plain or gzipped: what ``gen:curve`` follows.

Two forms. With a header: a column of seconds (``t_s`` or ``timestamp``) and one of requests per second (``rate``,
``rate_rps`` or ``total_rate_rps``), and ``workload`` where the file has several. Without one: ServeGen's files of one
client (github.com/alibaba/ServeGen, ``chunk-N-trace.csv``): seconds, requests per second, and columns of gaps, which
are not used. A rate holds until the next row's time, the last one as long as the one before it.
"""

import csv
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from simulator.errors import BadLine
from simulator.traces.fields import seconds
from simulator.traces.opening import opened
from simulator.workload.arrival_times import RateCurve

EXAMPLE: Final = "t_s,rate\n0,1.5\n600,3.25\n"
_TIMES: Final = ("t_s", "timestamp")
_RATES: Final = ("rate", "rate_rps", "total_rate_rps")
_ROWS_MIN: Final = 2


def read_curve(path: Path, workload: str = "") -> RateCurve:
    """The curve in the file; *workload* names one of several. Raises BadLine, OSError."""
    found: dict[str, list[tuple[float, float]]] = {}
    for place, name, at_s, rate in _rows(path):
        points = found.setdefault(name, [])
        if points and at_s <= points[-1][0]:
            raise BadLine(f"{place}: times must grow, got {at_s:g} s after {points[-1][0]:g} s")
        points.append((at_s, rate))
    name = workload or next(iter(found), "")
    if name not in found or (len(found) > 1 and not workload):
        raise BadLine(f"{path}: expected workload= one of {', '.join(sorted(found)) or '(none in this file)'}")
    return _curve(path, found[name])


def _curve(path: Path, points: Sequence[tuple[float, float]]) -> RateCurve:
    if len(points) < _ROWS_MIN:
        raise BadLine(f"{path}: expected {_ROWS_MIN} rows or more, so that it is known how long a rate holds")
    last_s, before_s = points[-1][0], points[-2][0]
    curve = RateCurve(tuple(at_s for at_s, _ in points), tuple(rate for _, rate in points), 2 * last_s - before_s)
    if not curve.mean > 0:
        raise BadLine(f"{path}: every rate is 0")
    return curve


def _rows(path: Path) -> Iterator[tuple[str, str, float, float]]:
    """Place, workload, seconds and rate of each row."""
    with opened(path) as lines:
        columns: Mapping[str, int] | None = None
        for number, row in enumerate(csv.reader(lines), 1):
            place = f"{path}:{number}"
            if not row:
                continue
            if columns is None:
                columns = _columns(row, place)
                if "" not in columns:
                    continue
            try:
                name = row[columns["workload"]] if "workload" in columns else ""
                yield place, name, seconds(row[columns["time"]], "the time"), seconds(row[columns["rate"]], "the rate")
            except IndexError:
                raise BadLine(f"{place}: expected a time and a rate, got {','.join(row)[:40]!r}") from None
            except ValueError as problem:
                raise BadLine(f"{place}: {problem}") from None


def _columns(first: Sequence[str], place: str) -> dict[str, int]:
    """Where time, rate and workload stand; the key "" marks a file without a header."""
    names = [name.strip().lstrip("\ufeff").lower() for name in first]
    try:
        float(names[0])
    except ValueError:
        pass
    else:
        return {"": 0, "time": 0, "rate": 1}
    time = next((name for name in _TIMES if name in names), None)
    rate = next((name for name in _RATES if name in names), None)
    if time is None or rate is None:
        raise BadLine(f"{place}: expected columns {' or '.join(_TIMES)}, and {' or '.join(_RATES)}; got {first}")
    found = {"time": names.index(time), "rate": names.index(rate)}
    return {**found, "workload": names.index("workload")} if "workload" in names else found
