"""Histograms of the metrics page: counted a request, made into text at a scrape. Must not depend on what they count."""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from math import isnan
from typing import Final

from prometheus_client.core import Exemplar

from router.gateway.telemetry.exposition import HistogramFamily
from router.gateway.traffic.meter import edge_above

NO_EXEMPLARS: Final[Mapping[int, Exemplar]] = {}


class Histogram:
    """Counts by upper edge; ``counts[-1]`` is of all beyond the last. ``exemplars``: by place in ``counts``, the last
    value of which a trace was written.
    """

    __slots__ = ("counts", "edges", "exemplars", "total")

    def __init__(self, edges: tuple[float, ...]) -> None:
        self.edges = _floats(edges)
        self.counts = [0] * (len(edges) + 1)
        self.total = 0.0
        self.exemplars: Mapping[int, Exemplar] = NO_EXEMPLARS  # most have none

    def add(self, value: float) -> None:
        """Count one value; nan, a time that never came, is none."""
        if not isnan(value):
            self.counts[edge_above(self.edges, value)] += 1
            self.total += value

    def exemplify(self, value: float, trace_id: str) -> None:
        """One value that was counted has a trace."""
        if not isnan(value):
            found = {edge_above(self.edges, value): Exemplar({"trace_id": trace_id}, value)}
            self.exemplars = {**self.exemplars, **found}


@lru_cache(maxsize=64)
def _floats(edges: tuple[float, ...]) -> tuple[float, ...]:
    """Comparing floats is faster than comparing int with float; thousands of histograms have the same edges."""
    return tuple(map(float, edges))


def add_histogram(family: HistogramFamily, labels: Sequence[str], histogram: Histogram) -> None:
    """Add one histogram to a family."""
    family.add(labels, histogram.edges, histogram.counts, histogram.total, histogram.exemplars)
