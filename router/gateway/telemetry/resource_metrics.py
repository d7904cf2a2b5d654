"""The metric families of what this process itself holds and drops. Must not depend on where they are read."""

from collections.abc import Callable, Iterator

from prometheus_client.core import CounterMetricFamily, Metric


class ResourceMetrics:
    """Read at a scrape."""

    def __init__(self) -> None:
        self._dropped: Callable[[], int] = int

    def watch(self, dropped: Callable[[], int]) -> None:
        """Where to read: how many events of the record were dropped."""
        self._dropped = dropped

    def collect(self) -> Iterator[Metric]:
        """All families."""
        yield CounterMetricFamily(
            "headroom_record_dropped_events",
            "Core events that are in no record file: the disk was full, too slow or gone",
            self._dropped(),
        )
