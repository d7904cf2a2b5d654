"""Counts by tenant: bounded whatever clients call themselves, and never falling."""

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client.core import Metric

from router.core.decisions import EndState, RequestRecord
from router.core.errors import Reason
from router.core.types import Request, Slo
from router.gateway.telemetry.tenant_metrics import OTHER, TenantMetrics
from tests.gateway.test_metrics import account

Counts = dict[tuple[str, str], float]


def of(tenant: str, outcome: EndState = EndState.SERVED, reason: Reason | None = None) -> RequestRecord:
    """A request of this tenant."""
    record = account(outcome, reason)
    request = Request("r", "tiny", 0.0, 100, slo=Slo(ttft_s=0.5), slo_class="chat", tenant=tenant)
    return replace(record, request=request)


def families(metrics: TenantMetrics) -> list[Metric]:
    return list(metrics.collect())


def requests(metrics: TenantMetrics) -> Counts:
    """By tenant and result."""
    return {(s.labels["tenant"], s.labels["result"]): s.value for s in families(metrics)[0].samples}


def test_requests_count_by_tenant_and_result() -> None:
    """Those without a tenant as none; tokens of those that reached a backend."""
    metrics = TenantMetrics()
    for record in (
        of("a"), of("a", EndState.REFUSED, Reason.SATURATED), of("a", EndState.LEFT), of(""),
    ):  # fmt: skip
        metrics.ended(record)
    counts = requests(metrics)
    assert [counts["a", result] for result in ("met", "violated", "not_judged")] == [1, 1, 1]
    assert counts["none", "met"] == 1
    tokens = {(s.labels["tenant"], s.labels["kind"]): s.value for s in families(metrics)[1].samples}
    assert (tokens["a", "prompt"], tokens["a", "output"]) == (120, 11)


def test_a_busy_tenant_takes_the_label_of_a_quiet_one() -> None:
    """Its earlier requests are the others' still; the series of the one that lost its place stays as it is."""
    metrics = TenantMetrics(most=2)
    for tenant in ("a", "b", *["a"] * 50, *["late"] * 66):  # the 64th is judged; it counts as one of the others still
        metrics.ended(of(tenant))
    counts = requests(metrics)
    assert {tenant for tenant, _ in counts} == {"a", "b", "late", OTHER}
    assert (counts["late", "met"], counts[OTHER, "met"], counts["b", "met"]) == (2, 64, 1)
    for _ in range(64):
        metrics.ended(of("b"))
    assert requests(metrics)["b", "met"] == 1
    for _ in range(200):
        metrics.ended(of("b"))
    assert requests(metrics)["b", "met"] > 1


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(["a", "b", "c", "d", OTHER, ""]), max_size=400))
def test_no_series_falls_or_ends_and_none_is_counted_twice(tenants: list[str]) -> None:
    """Whatever takes whose place, so that the sum of several workers' pages does not fall either."""
    metrics = TenantMetrics(most=2, labels_most=3)
    before: Counts = {}
    for number, tenant in enumerate(tenants, 1):
        metrics.ended(of(tenant))
        now = requests(metrics)
        assert sum(now.values()) == number
        assert len(now) <= 12
        assert all(now[series] >= value for series, value in before.items())
        before = now


def test_names_without_end_are_held_within_a_bound() -> None:
    """A client that makes up a tenant for each request."""
    metrics = TenantMetrics()
    for number in range(5_000):
        metrics.ended(of(f"t{number}"))
    assert len({tenant for tenant, _ in requests(metrics)}) == 21
    assert len(metrics._recent) <= 1_001
