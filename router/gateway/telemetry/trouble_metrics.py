"""The metric families of backends' failures, ejections and refusals. Must not depend on where they are read."""

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from router.gateway.monitoring.troubles import Troubles


def families(troubles: Troubles) -> Iterator[Metric]:
    """One series a backend and kind; those of a state are there only while it lasts."""
    failures = CounterMetricFamily(
        "headroom_backend_failures", "Failed attempts, by kind of failure", labels=["backend", "kind"]
    )
    last = GaugeMetricFamily(
        "headroom_backend_last_failure_timestamp_seconds",
        "When an attempt last failed for a reason of the backend's",
        labels=["backend", "kind"],
    )
    ejections = CounterMetricFamily(
        "headroom_backend_ejections", "How often a backend was ejected for faults in a row", labels=["backend"]
    )
    ejected = GaugeMetricFamily(
        "headroom_backend_ejected_since_timestamp_seconds",
        "Since when a backend is ejected; no series while it is not",
        labels=["backend"],
    )
    refuses = GaugeMetricFamily(
        "headroom_backend_refuses_since_timestamp_seconds",
        "Since when a backend is not chosen for a model or an endpoint that it refused; no series while it is",
        labels=["backend", "what"],
    )
    for name, trouble in troubles.items():
        for kind, count in trouble.by_kind.items():
            failures.add_metric([name, kind], count)
        ejections.add_metric([name], trouble.ejections)
        if trouble.last is not None:
            last.add_metric([name, trouble.last.kind], trouble.last.at_s)
        if trouble.ejected is not None:
            ejected.add_metric([name], trouble.ejected.since_s)
        for refusal in trouble.refuses:
            refuses.add_metric([name, refusal.what], refusal.since_s)
    yield from (failures, last, ejections, ejected, refuses)
