"""Prometheus text, written by hand: an emulated engine has few metrics and no time for a registry."""

from bisect import bisect_left
from collections.abc import Mapping
from typing import Final

from router.core.signals import SimulatedEngine, registered

BUCKETS_S: Final = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0)
BUCKETS_S_LONG: Final = (*BUCKETS_S, 40.0, 80.0, 160.0, 640.0, 2560.0)


def metric(name: str, kind: str, value: float, labels: Mapping[str, object]) -> str:
    """One sample, with its TYPE line unless *kind* is empty (a further sample of the same name)."""
    named = ",".join(f'{key}="{value}"' for key, value in labels.items())
    head = f"# TYPE {name} {kind}\n" if kind else ""
    return f"{head}{name}{{{named}}} {float(value)}\n"


def signal_lines(kind: str, engine: SimulatedEngine, labels: Mapping[str, object]) -> list[str]:
    """The samples of every signal that is read from pages of the engine kind of that name."""
    shown = ((each.live[kind], each.of(engine)) for each in registered() if kind in each.live)
    samples = (sample for reading, value in shown for sample in reading.samples(value))
    return [metric(sample.name, sample.kind, sample.value, labels) for sample in samples]


class Histogram:
    """Seconds in buckets."""

    __slots__ = ("_counts", "_sum_s")

    def __init__(self) -> None:
        """Empty."""
        self._counts = [0] * (len(BUCKETS_S_LONG) + 1)
        self._sum_s = 0.0

    def add(self, value_s: float) -> None:
        """Count one."""
        self._counts[bisect_left(BUCKETS_S_LONG, value_s)] += 1
        self._sum_s += value_s

    def text(self, name: str, labels: Mapping[str, object]) -> str:
        """The histogram in Prometheus's form."""
        lines, total = [f"# TYPE {name} histogram\n"], 0
        for bound, count in zip((*BUCKETS_S_LONG, float("inf")), self._counts, strict=True):
            total += count
            le = "+Inf" if bound == float("inf") else str(bound)
            lines.append(metric(f"{name}_bucket", "", total, {"le": le, **labels}))
        lines.append(metric(f"{name}_count", "", total, labels))
        lines.append(metric(f"{name}_sum", "", self._sum_s, labels))
        return "".join(lines)
