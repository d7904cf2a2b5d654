"""The metric families of the sources of backends. Must not depend on where they are read."""

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric


class SourceView(Protocol):
    """What is shown of one source."""

    @property
    def name(self) -> str:
        """Its kind and what it reads."""

    @property
    def endpoints(self) -> Sequence[object]:
        """What it gave last."""

    @property
    def answered_s(self) -> float | None:
        """When that was."""

    @property
    def failing_s(self) -> float | None:
        """Since when it has failed."""

    @property
    def failures(self) -> int:
        """How often it has failed."""


class SourceMetrics:
    """Read at a scrape."""

    def __init__(self) -> None:
        self._states: Callable[[], Sequence[SourceView]] = tuple

    def watch(self, states: Callable[[], Sequence[SourceView]]) -> None:
        """Where to read how each source fares."""
        self._states = states

    def collect(self) -> Iterator[Metric]:
        """All families, one series a source."""
        up = GaugeMetricFamily(
            "headroom_discovery_up", "1 while a source of backends can be read, else 0", labels=["source"]
        )
        endpoints = GaugeMetricFamily(
            "headroom_discovery_endpoints", "Endpoints that a source of backends gave last", labels=["source"]
        )
        answered = GaugeMetricFamily(
            "headroom_discovery_answered_timestamp_seconds",
            "When a source of backends gave its endpoints last",
            labels=["source"],
        )
        failures = CounterMetricFamily(
            "headroom_discovery_failures", "Failed readings of a source of backends", labels=["source"]
        )
        for state in self._states():
            up.add_metric([state.name], float(state.failing_s is None and state.answered_s is not None))
            endpoints.add_metric([state.name], len(state.endpoints))
            failures.add_metric([state.name], state.failures)
            if state.answered_s is not None:
                answered.add_metric([state.name], state.answered_s)
        yield from (up, endpoints, answered, failures)
