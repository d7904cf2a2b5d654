"""The last hour and day of this router in bounded memory: counts, latency histograms and load, by slot of time.

One series of all requests, and one for each SLO class, model, tenant, backend and arm of a canary's trial, up to a
bound; the rest share the series ``other``. Slots are of the wall clock, so that those of several workers add up. Must
not depend on how it is shown.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from math import isfinite, log
from time import time
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from router.core.decisions import EndState, RequestRecord
from router.core.errors import Reason
from router.core.slo_metrics import SLO_METRICS
from router.core.types import Load, Request
from router.gateway.traffic.meter import edge_above
from router.gateway.traffic.request_log import RequestLog

Window = Literal["hour", "day"]
Key = tuple[str, str]
"""Dimension and name; ``ALL`` is the series of all requests."""

BUCKETS: Final = 32  # of each histogram, spaced by factors: 1.4 for TTFT
NAMES_MAX: Final = 16  # series of a dimension
BACKENDS_MAX: Final = 1_000
NAME_MAX: Final = 128  # characters
DIMENSIONS: Final = ("class", "model", "tenant", "backend", "arm")
ALL: Final[Key] = ("", "")
OTHER: Final = "other"
SAMPLE_S: Final = 5.0  # the period of samples of the load
SAMPLED_AT_ONCE: Final = 256  # backends; of more the others follow with the next calls
DAY_S: Final = 86_400.0
_COUNT_MAX: Final = 65_535

COUNTERS: Final = (
    "requests", "met", "refused", "failed", "left", "held", "output_tokens",
    "error", "predicted", "covered", "quantile",  # error: the sum of abs(log(TTFT / predicted)), over ``predicted``
    "load", "queue", "usd_per_hour", "samples",  # sums over ``samples``
    *(reason.value for reason in Reason),
)  # fmt: skip
_AT: Final = {name: number for number, name in enumerate(COUNTERS)}
_OF_BACKENDS: Final = _AT["samples"] + 1  # what no backend served has no backend
_REQUESTS, _MET, _REFUSED, _FAILED, _LEFT, _HELD, _TOKENS, _ERROR, _PREDICTED, _COVERED, _QUANTILE = range(11)


def _edges(first_s: float, last_s: float) -> tuple[float, ...]:
    """The upper edges of all buckets but the last, spaced by a factor."""
    factor = (last_s / first_s) ** (1.0 / (BUCKETS - 2))
    return tuple(first_s * factor**number for number in range(BUCKETS - 1))


EDGES_S: Final = tuple(_edges(metric.edges_s[0] / 2, metric.edges_s[-1] * 2) for metric in SLO_METRICS)
CELLS: Final = BUCKETS * len(SLO_METRICS)


class Ring:
    """The last slots of one length: a row of counters and one of histogram cells each."""

    __slots__ = ("cells", "counters", "numbers", "slot_s")

    def __init__(self, slots: int, slot_s: float, counters: int) -> None:
        self.slot_s = slot_s
        self.numbers = np.full(slots, -1, np.int64)
        self.counters = np.zeros((slots, counters), np.float32)
        self.cells = np.zeros((slots, CELLS), np.uint16)

    def add(self, number: int, counters: list[float], cells: list[float]) -> None:
        """Add to the slot of this number; the slot that was in its place is forgotten.

        Where a cell would exceed its size, the row is halved: its quantiles stay.
        """
        at = number % len(self.numbers)
        if self.numbers[at] != number:
            self.numbers[at] = number
            self.counters[at] = 0.0
            self.cells[at] = 0
        self.counters[at] += np.array(counters[: self.counters.shape[1]], np.float32)
        whole = self.cells[at] + np.array(cells, np.float64)
        while whole.max() > _COUNT_MAX:
            whole //= 2
        self.cells[at] = whole

    def size(self, last: int) -> tuple[float, float]:
        """Requests, and the sum of the samples of the load, in the slots up to number *last*."""
        there = (self.numbers > last - len(self.numbers)) & (self.numbers <= last)
        sums = self.counters[there].sum(axis=0)
        return float(sums[_REQUESTS]), float(sums[_AT["load"]])

    def read(self, last: int) -> tuple[NDArray[np.float32], NDArray[np.uint16]]:
        """Counters and cells of the slots up to number *last*, oldest first; zero where nothing happened."""
        wanted = np.arange(last - len(self.numbers) + 1, last + 1)
        at = wanted % len(self.numbers)
        there = (self.numbers[at] == wanted)[:, None]
        return np.where(there, self.counters[at], 0), np.where(there, self.cells[at], 0)


class Series:
    """One series: the open slot in plain lists, closed ones in two rings."""

    __slots__ = ("_cells", "_counters", "_number", "day", "hour")

    def __init__(self, hour: tuple[int, float], day: tuple[int, float], counters: int = len(COUNTERS)) -> None:
        """*hour*, *day*: the number of slots and the seconds of each."""
        self.hour, self.day = Ring(*hour, counters), Ring(*day, counters)
        self._number = -1
        self._counters = [0.0] * len(COUNTERS)
        self._cells = [0.0] * CELLS

    def add(self, now_s: float, counters: Iterable[tuple[int, float]], cells: Iterable[int] = ()) -> None:
        """Add amounts to counters, and one to each of these cells."""
        number = int(now_s // self.hour.slot_s)
        if number != self._number:
            self.close()
            self._number = number
        for at, amount in counters:
            self._counters[at] += amount
        for at in cells:
            self._cells[at] += 1.0

    def close(self) -> None:
        """Put the open slot, so far, into the rings."""
        if self._number < 0 or not any(self._counters):
            return
        self.hour.add(self._number, self._counters, self._cells)
        self.day.add(int(self._number * self.hour.slot_s // self.day.slot_s), self._counters, self._cells)
        self._counters, self._cells = [0.0] * len(COUNTERS), [0.0] * CELLS

    @property
    def last_s(self) -> float:
        """When something was last added, to a slot."""
        return (self._number + 1) * self.hour.slot_s


class History:
    """All series of one router. A RequestObserver."""

    def __init__(self, arm: Callable[[Request], str] = lambda request: "", wall: Callable[[], float] = time) -> None:
        """*arm*: of a canary's trial that a request belongs to ("": none runs); *wall*: seconds since the epoch."""
        self._arm, self.wall = arm, wall
        self._series: dict[Key, Series] = {ALL: _made(ALL)}
        self._counted = dict.fromkeys(DIMENSIONS, 0)
        self._sampled_s = 0.0
        self._unsampled: list[str] = []  # backends, in this period

    def ended(self, log: RequestLog) -> None:
        """A request that the core routed has ended."""
        record, now_s = log.record, self.wall()
        request = record.request
        counters, cells = _counted(record), _cells(record)
        self._series[ALL].add(now_s, counters, cells)
        for dimension, name in (
            ("class", request.slo_class),
            ("model", "" if record.reason is Reason.UNKNOWN_MODEL else request.model),
            ("tenant", request.tenant),
            ("backend", record.backend),
            ("arm", self._arm(request)),
        ):
            if name:
                self._of(dimension, name, now_s).add(now_s, counters, cells)

    def rejected(self, path: str, status: int, peer: tuple[str, int] | None) -> None:
        """A request was answered with an error before it reached the core: it belongs to no series."""

    def sample(self, loads: Mapping[str, Load], held: int, usd_per_hour: float) -> None:
        """Note the load, requests held and cost now; call it about every second."""
        now_s = self.wall()
        load, queue, usd, samples = (_AT[name] for name in ("load", "queue", "usd_per_hour", "samples"))
        if not 0.0 <= now_s - self._sampled_s < SAMPLE_S:
            self._sampled_s, self._unsampled = now_s, list(loads)
            total = sum([each.prefilling + each.decoding for each in loads.values()])
            now = ((load, total), (queue, float(held)), (usd, usd_per_hour), (samples, 1.0))
            self._series[ALL].add(now_s, now)
        part, self._unsampled = self._unsampled[:SAMPLED_AT_ONCE], self._unsampled[SAMPLED_AT_ONCE:]
        for name in part:
            there = loads.get(name)
            if there is not None:
                sequences = there.prefilling + there.decoding
                self._of("backend", name, now_s).add(now_s, ((load, sequences), (samples, 1.0)))

    def get(self, key: Key) -> Series | None:
        """A series, with its open slot closed; None where nothing was counted."""
        series = self._series.get(key)
        if series is not None:
            series.close()
        return series

    def open_slots(self, dimension: str) -> Iterator[Series]:
        """The series of a dimension whose open slots a view would close, to be closed in parts before it."""
        return iter([series for (each, _), series in self._series.items() if each == dimension])

    def names(self, dimension: str) -> list[str]:
        """Those that have a series."""
        return [name for each, name in self._series if each == dimension]

    def all_of(self, dimension: str) -> Iterator[tuple[str, Series]]:
        """The series of a dimension by name, with open slots closed."""
        for (each, name), series in self._series.items():
            if each == dimension:
                series.close()
                yield name, series

    def _of(self, dimension: str, name: str, now_s: float) -> Series:
        key = dimension, name[:NAME_MAX]
        series = self._series.get(key)
        if series is not None:
            return series
        most = BACKENDS_MAX if dimension == "backend" else NAMES_MAX
        if self._counted[dimension] >= most and not self._forgotten(dimension, now_s):
            key = dimension, OTHER
            if key in self._series:
                return self._series[key]
        self._counted[dimension] += 1
        series = self._series[key] = _made(key)
        return series

    def _forgotten(self, dimension: str, now_s: float) -> bool:
        """Whether a series of which a day has nothing could be removed."""
        old = [key for key, series in self._series.items() if key[0] == dimension and now_s - series.last_s > DAY_S]
        for key in old:
            del self._series[key]
        self._counted[dimension] -= len(old)
        return bool(old)


def _made(key: Key) -> Series:
    """Backends are many: their slots are longer, and count no reasons."""
    if key[0] == "backend":
        return Series((30, 120.0), (48, 1_800.0), _OF_BACKENDS)
    return Series((60, 60.0), (144, 600.0))


def _counted(record: RequestRecord) -> list[tuple[int, float]]:
    """What one request adds to counters."""
    found = [(_TOKENS, float(record.usage.output_tokens))]
    if record.judged:
        found += [(_REQUESTS, 1.0), (_MET, float(record.slo_met))]
        if record.outcome is EndState.REFUSED:
            found.append((_REFUSED, 1.0))
        elif record.outcome is not EndState.SERVED:
            found.append((_FAILED, 1.0))
    else:
        found.append((_LEFT, 1.0))
    if record.held_s > 0.0:
        found.append((_HELD, 1.0))
    if record.reason is not None:
        found.append((_AT[record.reason.value], 1.0))
    return found + _forecast(record)


def _forecast(record: RequestRecord) -> list[tuple[int, float]]:
    """How the forecast of TTFT did, from the send on."""
    actual_s, predicted_s = record.first_token_s - record.sent_s, record.predicted_ttft_s
    if not (record.outcome is EndState.SERVED and record.request.streamed and actual_s > 0.0 and predicted_s > 0.0):
        return []
    if not isfinite(predicted_s):
        return []
    covered = float(actual_s <= record.predicted_ttft_tail_s)
    error = abs(log(actual_s / predicted_s))
    return [(_ERROR, error), (_PREDICTED, 1.0), (_COVERED, covered), (_QUANTILE, record.request.slo.quantile)]


def _cells(record: RequestRecord) -> list[int]:
    """The histogram cells of a served request; a latency that it does not have has none."""
    if record.outcome is not EndState.SERVED:
        return []
    values = enumerate(zip(EDGES_S, record.latencies_s(), strict=True))
    return [
        BUCKETS * metric + edge_above(edges_s, value_s)
        for metric, (edges_s, value_s) in values
        if isfinite(value_s) and value_s > 0.0
    ]
