"""The metric families of quotas: what accounts used, and what was refused. Must not depend on where they are read."""

from collections.abc import Iterator
from typing import Final

from prometheus_client.core import CounterMetricFamily, Metric

from router.core.quota import Quotas

_KINDS: Final = (("prompt", "prompt_tokens"), ("cached", "cached_tokens"), ("output", "output_tokens"))


class QuotaMetrics:
    """Read at a scrape. An account is ``tenant:NAME`` or ``key:TENANT/DIGEST``; tenants that the config does not name
    are ``tenant:*``.
    """

    def __init__(self) -> None:
        self._quotas = Quotas()

    def watch(self, quotas: Quotas) -> None:
        """Where to read."""
        self._quotas = quotas

    def collect(self) -> Iterator[Metric]:
        """All families; none where there is no quota."""
        if not self._quotas.active:
            return
        requests = CounterMetricFamily(
            "headroom_quota_requests", "Requests of accounts with a quota that have ended", labels=["account"]
        )
        tokens = CounterMetricFamily(
            "headroom_quota_tokens", "Tokens of accounts with a quota, by kind", labels=["account", "kind"]
        )
        usd = CounterMetricFamily(
            "headroom_quota_usd", "Price of the tokens of accounts with a quota, in USD", labels=["account"]
        )
        for account, use in sorted(self._quotas.counted.items()):
            requests.add_metric([account], use.requests)
            usd.add_metric([account], use.usd)
            for kind, attribute in _KINDS:
                tokens.add_metric([account, kind], getattr(use, attribute))
        refused = CounterMetricFamily(
            "headroom_quota_refused_requests", "Requests that a quota refused, by limit", labels=["account", "limit"]
        )
        for (account, limit), count in sorted(self._quotas.refused.items()):
            refused.add_metric([account, limit.value], count)
        yield from (requests, tokens, usd, refused)
