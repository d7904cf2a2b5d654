"""The history as JSON: one series with its quantiles, and the counters of the largest series of a dimension.

Counts and histogram cells stay in the answer, so that those of several workers add up (``merged``). Must not depend on
how a history is stored beyond its rings.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from router.core.slo_metrics import SLO_METRICS
from router.gateway.telemetry.history import (
    BUCKETS,
    COUNTERS,
    DIMENSIONS,
    EDGES_S,
    History,
    Key,
    Ring,
    Series,
    Window,
)
from router.gateway.turns import in_turns

QUANTILES: Final = {"p50": 0.5, "p90": 0.9, "p99": 0.99}
GROUPS_MAX: Final = 16
_GAUGES: Final = ("load", "queue", "usd_per_hour")  # sums over ``samples`` in a ring, means here
_OF_GROUPS: Final = ("requests", "met", "refused", "failed", "load", "samples")
_NOTHING: Final[Mapping[str, Any]] = {"counters": {}, "cells": {}}


async def settle(history: History, dimension: str) -> None:
    """Close the open slots of a dimension in parts, so that a view of many backends has little left to close."""
    async for series in in_turns(history.open_slots(dimension)):
        series.close()


def view(history: History, window: Window, key: Key) -> dict[str, Any]:
    """One series and those of its dimension. ``first``: the number of the first slot, of ``slot_s`` since the epoch."""
    series = history.get(key)
    shape = _ring(
        series or next((each for _, each in history.all_of(key[0])), None) or Series((60, 60), (144, 600)), window
    )
    last = int(history.wall() // shape.slot_s)
    whole = {
        "window": window,
        "by": key[0],
        "name": key[1],
        "slot_s": shape.slot_s,
        "first": last - len(shape.numbers) + 1,
        "slots": len(shape.numbers),
        "now_s": round(history.wall(), 3),  # the last slot has only begun
        **(_NOTHING if series is None else _plain(_ring(series, window), last)),
        "groups": _groups(history, window, key[0]),
        "names": {dimension: sorted(history.names(dimension)) for dimension in DIMENSIONS},
    }
    return finished(whole)


def finished(whole: dict[str, Any]) -> dict[str, Any]:
    """The same with the quantiles of its cells, in milliseconds; None for a slot without a value."""
    latency: dict[str, dict[str, list[float | None]]] = {}
    for metric, edges_s in zip(SLO_METRICS, EDGES_S, strict=True):
        cells = whole["cells"].get(metric.name, {})
        rows = [cells.get(str(slot)) for slot in range(whole["slots"])]
        latency[metric.name] = {
            name: [None if row is None else _quantile_ms(row, edges_s, share) for row in rows]
            for name, share in QUANTILES.items()
        }
    return whole | {"latency_ms": latency}


def merged(views: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The history of several workers: sums, slot by slot; the price of the fleet is the same for all."""
    own, others = dict(views[0]), views[1:]
    for other in others:
        by = other["first"] - own["first"]
        own["counters"] = _sum(own["counters"], other["counters"], by, own["slots"])
        own["cells"] = {
            metric.name: _sum_cells(
                own["cells"].get(metric.name, {}), other["cells"].get(metric.name, {}), by, own["slots"]
            )
            for metric in SLO_METRICS
        }
        groups = {**other["groups"], **own["groups"]}
        own["groups"] = {
            name: _sum(own["groups"].get(name, {}), other["groups"].get(name, {}), by, own["slots"]) for name in groups
        }
        own["names"] = {each: sorted({*own["names"][each], *other["names"][each]}) for each in DIMENSIONS}
    return finished(own)


def _ring(series: Series, window: Window) -> Ring:
    return series.hour if window == "hour" else series.day


def _plain(ring: Ring, last: int) -> dict[str, Any]:
    counters, cells = ring.read(last)
    by_slot = {
        metric.name: {
            str(slot): row[BUCKETS * number : BUCKETS * (number + 1)].tolist()
            for slot, row in enumerate(cells)
            if row[BUCKETS * number : BUCKETS * (number + 1)].any()
        }
        for number, metric in enumerate(SLO_METRICS)
    }
    return {"counters": _counters(counters), "cells": by_slot}


def _counters(rows: NDArray[np.float32]) -> dict[str, list[float]]:
    """By name; those that are zero throughout are left out."""
    named = dict(zip(COUNTERS, rows.T.astype(float), strict=False))
    samples = named["samples"]
    for name in _GAUGES:
        named[name] = np.divide(named[name], samples, out=np.zeros_like(samples), where=samples > 0)
    return {name: np.round(values, 4).tolist() for name, values in named.items() if values.any()}


def _groups(history: History, window: Window, dimension: str) -> dict[str, dict[str, list[float]]]:
    """The counters of the series with most requests, or else most load."""
    if not dimension:
        return {}
    rings = {name: _ring(series, window) for name, series in history.all_of(dimension)}
    now_s = history.wall()
    groups: dict[str, dict[str, list[float]]] = {}
    sizes = {name: ring.size(int(now_s // ring.slot_s)) for name, ring in rings.items()}
    for name in sorted(sizes, key=lambda each: sizes[each], reverse=True)[:GROUPS_MAX]:
        ring = rings[name]
        counters = _counters(ring.read(int(now_s // ring.slot_s))[0])
        groups[name] = {each: counters[each] for each in _OF_GROUPS if each in counters}
    return groups


def _sum(
    own: Mapping[str, Sequence[float]], other: Mapping[str, Sequence[float]], by: int, slots: int
) -> dict[str, list[float]]:
    found = {}
    for name in {**own, **other}:
        mine, theirs = own.get(name) or [0.0] * slots, _shifted(other.get(name) or [0.0] * slots, by)
        fold = max if name == "usd_per_hour" else float.__add__
        found[name] = [fold(float(a), float(b)) for a, b in zip(mine, theirs, strict=True)]
    return found


def _shifted(values: Sequence[float], by: int) -> list[float]:
    """Of a view whose first slot is *by* slots later."""
    return [values[slot - by] if 0 <= slot - by < len(values) else 0.0 for slot in range(len(values))]


def _sum_cells(
    own: Mapping[str, Sequence[int]], other: Mapping[str, Sequence[int]], by: int, slots: int
) -> dict[str, list[int]]:
    found = {slot: list(row) for slot, row in own.items()}
    for slot, row in other.items():
        at = int(slot) + by
        if 0 <= at < slots:
            mine = found.get(str(at)) or [0] * BUCKETS
            found[str(at)] = [a + b for a, b in zip(mine, row, strict=True)]
    return found


def _quantile_ms(counts: Sequence[int], edges_s: Sequence[float], share: float) -> float:
    """By interpolation on the logarithm within the bucket that has it."""
    wanted, below = share * sum(counts), 0.0
    for bucket, count in enumerate(counts):
        if count and below + count >= wanted:
            high_s = edges_s[min(bucket, len(edges_s) - 1)]
            low_s = edges_s[bucket - 1] if bucket else high_s / 2
            part = (wanted - below) / count
            return float(round(1e3 * low_s * (high_s / low_s) ** part, 2))
        below += count
    return 0.0
