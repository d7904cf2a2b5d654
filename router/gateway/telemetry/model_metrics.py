"""The metric family of requests that another model served than their client named. Both names are a config's rules'.

Must not depend on how the model was chosen.
"""

from collections.abc import Iterator
from typing import Final

from prometheus_client.core import CounterMetricFamily, Metric

from router.core.decisions import RequestRecord

SPLIT: Final = "split"
FALLBACK: Final = "fallback"


class ModelMetrics:
    """Counts requests that reached a backend, by both models and by how one came to stand for the other."""

    def __init__(self) -> None:
        self._counts: dict[tuple[str, str, str], int] = {}

    def ended(self, record: RequestRecord) -> None:
        """A request that the core routed has ended."""
        named, served = record.request.requested_model or record.request.model, record.served_model
        if named == served or not record.backend:
            return
        key = named, served, FALLBACK if record.fallback_why else SPLIT
        self._counts[key] = self._counts.get(key, 0) + 1

    def collect(self) -> Iterator[Metric]:
        """The family."""
        family = CounterMetricFamily(
            "headroom_model_substituted_requests",
            "Requests that were sent to another model than their client named, by both and why: a split by weight, or "
            "a fallback since its own could not serve it in time",
            labels=["model", "served_model", "why"],
        )
        for labels, count in sorted(self._counts.items()):
            family.add_metric(labels, count)
        yield family
