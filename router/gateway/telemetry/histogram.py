"""Histograms of the metrics page: counted a request, made into text at a scrape. Must not depend on what they count."""

from collections.abc import Mapping, Sequence
from itertools import accumulate
from math import isnan
from typing import Final

from prometheus_client.core import Exemplar, HistogramMetricFamily

from router.gateway.traffic.meter import edge_above

NO_EXEMPLARS: Final[Mapping[int, Exemplar]] = {}


class Histogram:
    """Counts by upper edge; ``counts[-1]`` is of all beyond the last. ``exemplars``: by place in ``counts``, the last
    value of which a trace was written.
    """

    __slots__ = ("counts", "edges", "exemplars", "total")

    def __init__(self, edges: tuple[float, ...]) -> None:
        self.edges = tuple(map(float, edges))  # comparing floats is faster than comparing int with float
        self.counts = [0] * (len(edges) + 1)
        self.total = 0.0
        self.exemplars: dict[int, Exemplar] = {}

    def add(self, value: float) -> None:
        """Count one value; nan, a time that never came, is none."""
        if not isnan(value):
            self.counts[edge_above(self.edges, value)] += 1
            self.total += value

    def exemplify(self, value: float, trace_id: str) -> None:
        """One value that was counted has a trace."""
        if not isnan(value):
            self.exemplars[edge_above(self.edges, value)] = Exemplar({"trace_id": trace_id}, value)


def add_histogram(family: HistogramMetricFamily, labels: Sequence[str], histogram: Histogram) -> None:
    """Add one histogram to a family."""
    add_counts(family, labels, histogram.edges, histogram.counts, histogram.total, histogram.exemplars)


def add_counts(
    family: HistogramMetricFamily,
    labels: Sequence[str],
    edges: Sequence[float],
    counts: Sequence[int],
    total: float,
    exemplars: Mapping[int, Exemplar] = NO_EXEMPLARS,
) -> None:
    """One histogram's cumulative buckets."""
    names = [*map(str, edges), "+Inf"]
    sums = zip(names, map(float, accumulate(counts)), strict=True)
    family.add_metric(
        labels,
        [(name, count, exemplars[at]) if at in exemplars else (name, count) for at, (name, count) in enumerate(sums)],
        total,
    )
