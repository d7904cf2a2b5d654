"""Histograms of the metrics page: counted a request, made into text at a scrape. Must not depend on what they count."""

from collections.abc import Sequence
from itertools import accumulate
from math import isnan

from prometheus_client.core import HistogramMetricFamily

from router.gateway.traffic.meter import edge_above


class Histogram:
    """Counts by upper edge; ``counts[-1]`` is of all beyond the last."""

    __slots__ = ("counts", "edges", "total")

    def __init__(self, edges: tuple[float, ...]) -> None:
        self.edges = tuple(map(float, edges))  # comparing floats is faster than comparing int with float
        self.counts = [0] * (len(edges) + 1)
        self.total = 0.0

    def add(self, value: float) -> None:
        """Count one value; nan, a time that never came, is none."""
        if not isnan(value):
            self.counts[edge_above(self.edges, value)] += 1
            self.total += value


def add_histogram(family: HistogramMetricFamily, labels: Sequence[str], histogram: Histogram) -> None:
    """Add one histogram to a family."""
    add_counts(family, labels, histogram.edges, histogram.counts, histogram.total)


def add_counts(
    family: HistogramMetricFamily, labels: Sequence[str], edges: Sequence[float], counts: Sequence[int], total: float
) -> None:
    """One histogram's cumulative buckets."""
    names = [*map(str, edges), "+Inf"]
    family.add_metric(labels, list(zip(names, map(float, accumulate(counts)), strict=True)), total)
