"""The metric families of the changes that routers send each other. Must not depend on how they travel."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric


class ChangesView(Protocol):
    """What is shown of the exchange of changes."""

    @property
    def peers(self) -> Sequence[str]:
        """The peers whose changes come now."""

    @property
    def counts(self) -> Mapping[str, int]:
        """Messages by what became of them."""


class ChangeMetrics:
    """Read at a scrape; no sample where nothing is exchanged."""

    def __init__(self) -> None:
        self._changes: ChangesView | None = None

    def watch(self, changes: ChangesView | None) -> None:
        """Where to read how the exchange fares; None: there is none."""
        self._changes = changes

    def collect(self) -> Iterator[Metric]:
        """All families."""
        pushing = GaugeMetricFamily(
            "headroom_peers_pushing", "Other routers whose changes come as they happen", labels=[]
        )
        messages = CounterMetricFamily(
            "headroom_peer_changes",
            "Messages with changes: sent, received, lost on the way, skipped as unreadable, dropped for a slow peer",
            labels=["event"],
        )
        if self._changes is not None:
            pushing.add_metric([], len(self._changes.peers))
            for event, count in self._changes.counts.items():
                messages.add_metric([event], count)
        yield from (pushing, messages)
