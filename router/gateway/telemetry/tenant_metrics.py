"""Requests and tokens by tenant, for the busiest tenants by name and for all others together.

A tenant is whatever clients send, so labels are bounded: the requests of ``TENANTS_MAX`` tenants count by name at a
time. A tenant that becomes twice as busy as the least busy of those takes its place. No series ever falls or ends, also
where the pages of several workers are summed: a tenant's counts begin at 0 when it first gets a label, those before are
``other``'s, and those of one that loses its place stay as they are. Once ``LABELS_MAX`` have had a label, only they get
a place. Must not depend on where tenants come from.
"""

from collections.abc import Iterator
from typing import Final

from prometheus_client.core import CounterMetricFamily, Metric

from router.core.decisions import RequestRecord

TENANTS_MAX: Final = 20
LABELS_MAX: Final = 100
OTHER: Final = "other"
_NONE: Final = "none"  # a request without a tenant
_KNOWN_MAX: Final = 1_000  # tenants whose recent requests are counted
_JUDGED_EVERY: Final = 64  # requests of tenants without a label
_TIMES: Final = 2


class _Counts:
    __slots__ = ("met", "other", "output_tokens", "prompt_tokens", "violated")

    def __init__(self) -> None:
        self.met = self.violated = self.other = self.prompt_tokens = self.output_tokens = 0

    def add(self, record: RequestRecord) -> None:
        if not record.judged:
            self.other += 1
        elif record.slo_met:
            self.met += 1
        else:
            self.violated += 1
        if record.backend:
            self.prompt_tokens += record.usage.prompt_tokens or record.request.prompt_tokens
            self.output_tokens += record.usage.output_tokens


class TenantMetrics:
    """The counts."""

    __slots__ = ("_counts", "_labels_most", "_most", "_named", "_other", "_recent", "_unlabelled")

    def __init__(self, most: int = TENANTS_MAX, labels_most: int = LABELS_MAX) -> None:
        self._most, self._labels_most = most, labels_most
        self._counts: dict[str, _Counts] = {}  # of all that ever had a label
        self._named: dict[str, _Counts] = {}  # of those whose requests count by name
        self._other = _Counts()
        self._recent: dict[str, int] = {}
        self._unlabelled = 0

    def ended(self, record: RequestRecord) -> None:
        """A request that the core routed has ended."""
        tenant = record.request.tenant or _NONE
        self._recent[tenant] = self._recent.get(tenant, 0) + 1
        counts = self._named.get(tenant)
        if counts is None:
            if len(self._named) < self._most and tenant != OTHER:
                counts = self._name(tenant)
            else:
                counts = self._other
                self._unlabelled += 1
                if self._unlabelled % _JUDGED_EVERY == 0:
                    self._promote()
        counts.add(record)
        if len(self._recent) > _KNOWN_MAX:
            self._forget()

    def _name(self, tenant: str) -> _Counts:
        """Count the tenant's requests by its name from now on."""
        counts = self._counts.get(tenant)
        if counts is None:
            counts = self._counts[tenant] = _Counts()
        self._named[tenant] = counts
        return counts

    def _promote(self) -> None:
        """Give the busiest tenant that may have one the place of the least busy one, if it is far busier."""
        recent, counts, more = self._recent, self._counts, len(self._counts) < self._labels_most
        without = (name for name in recent if name not in self._named and name != OTHER and (more or name in counts))
        new = max(without, key=lambda name: recent[name], default=None)
        least = min(self._named, key=lambda name: recent.get(name, 0), default=None)
        if new is None or least is None or recent[new] < _TIMES * max(recent.get(least, 0), 1):
            return
        del self._named[least]
        self._name(new)

    def _forget(self) -> None:
        """Halve what is recent, and leave out what then is nothing."""
        self._recent = {name: count >> 1 for name, count in self._recent.items() if count > 1}

    def collect(self) -> Iterator[Metric]:
        """The families of the metrics page."""
        requests = CounterMetricFamily(
            "headroom_tenant_requests",
            "Requests that met their SLO, violated it, or are not judged (the client left, its own error), by tenant: "
            "the busiest by name, the rest as other",
            labels=["tenant", "result"],
        )
        tokens = CounterMetricFamily(
            "headroom_tenant_tokens", "Tokens of requests that reached a backend, by tenant", labels=["tenant", "kind"]
        )
        for tenant, counts in (*self._counts.items(), (OTHER, self._other)):
            requests.add_metric([tenant, "met"], counts.met)
            requests.add_metric([tenant, "violated"], counts.violated)
            requests.add_metric([tenant, "not_judged"], counts.other)
            tokens.add_metric([tenant, "prompt"], counts.prompt_tokens)
            tokens.add_metric([tenant, "output"], counts.output_tokens)
        yield from (requests, tokens)
