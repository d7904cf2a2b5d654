"""Metrics of waiting: how long requests were held, and how long those that were not served were here.

Must not depend on why a request ended as it did.
"""

from collections.abc import Iterator
from typing import Final

from prometheus_client.core import Metric

from router.core.columns import E2E, TTFT
from router.core.decisions import EndState, RequestRecord
from router.core.slo_metrics import SLO_METRICS
from router.gateway.telemetry.exposition import HistogramFamily
from router.gateway.telemetry.histogram import Histogram, add_histogram

_LABELS: Final = ("model", "slo_class", "outcome")
_Key = tuple[str, str, str]


class Waits:
    """Histograms by model, class and outcome."""

    __slots__ = ("_held", "_unserved")

    def __init__(self) -> None:
        self._held: dict[_Key, Histogram] = {}
        self._unserved: dict[_Key, Histogram] = {}

    def recorded(self, model: str, record: RequestRecord) -> None:
        """One request has ended. ``model``: as in the labels of other metrics."""
        key = model, record.request.slo_class, record.outcome.value
        if record.held_s > 0.0:
            _of(self._held, key, SLO_METRICS[TTFT].edges_s).add(record.held_s)
        if record.outcome is not EndState.SERVED:
            _of(self._unserved, key, SLO_METRICS[E2E].edges_s).add(record.e2e_s)

    def collect(self) -> Iterator[Metric]:
        """The families of the metrics page."""
        held = HistogramFamily(
            "headroom_held_seconds", "Time that requests were held at the gateway, of those that were", labels=_LABELS
        )
        unserved = HistogramFamily(
            "headroom_unserved_seconds", "Arrival to end of requests that were not served", labels=_LABELS
        )
        for family, by_key in ((held, self._held), (unserved, self._unserved)):
            for key, histogram in by_key.items():
                add_histogram(family, key, histogram)
            yield family


def _of(by_key: dict[_Key, Histogram], key: _Key, edges_s: tuple[float, ...]) -> Histogram:
    histogram = by_key.get(key)
    if histogram is None:
        histogram = by_key[key] = Histogram(edges_s)
    return histogram
