"""The metric families of what this process itself holds and drops. Must not depend on where they are read."""

from collections.abc import Callable, Iterator, Mapping

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from router.gateway.traffic.buffers import Buffers


class ResourceMetrics:
    """Read at a scrape."""

    def __init__(self) -> None:
        self._dropped: Callable[[], int] = int
        self._buffers = Buffers()
        self._lines: Callable[[], Mapping[str, int]] = dict
        self._spans: Callable[[], Mapping[str, int]] = dict

    def watch(
        self,
        dropped: Callable[[], int],
        buffers: Buffers,
        lines: Callable[[], Mapping[str, int]],
        spans: Callable[[], Mapping[str, int]],
    ) -> None:
        """Where to read: how many events of the record were dropped; the bytes that are held; by log, how many lines
        were dropped; spans of traces, by what became of them.
        """
        self._dropped, self._buffers, self._lines, self._spans = dropped, buffers, lines, spans

    def collect(self) -> Iterator[Metric]:
        """All families."""
        yield CounterMetricFamily(
            "headroom_record_dropped_events",
            "Core events that are in no record file: the disk was full, too slow or gone",
            self._dropped(),
        )
        lines = CounterMetricFamily(
            "headroom_log_dropped_lines",
            "Lines that a log could not take: its reader or its disk was too slow, full or gone",
            labels=["log"],
        )
        for log, count in self._lines().items():
            lines.add_metric([log], count)
        yield lines
        spans = CounterMetricFamily(
            "headroom_trace_spans",
            "Spans of traces that the collector took (exported) or did not (failed)",
            labels=["result"],
        )
        for result, count in self._spans().items():
            spans.add_metric([result], count)
        yield spans
        buffers = self._buffers
        held = GaugeMetricFamily(
            "headroom_buffered_bytes",
            "Bytes held of requests' bodies, of replies not sent yet and of those held back",
            labels=["what"],
        )
        for what in ("bodies", "unsent", "held_back"):
            held.add_metric([what], getattr(buffers, what))
        yield held
        yield GaugeMetricFamily(
            "headroom_buffered_bytes_max", "How many this process may hold before it takes no more", buffers.bytes_max
        )
