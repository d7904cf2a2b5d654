"""What a quota adds to a request: it is admitted, its headers are written, it is settled. `make bench` prints it."""

from time import perf_counter

import pytest

from router.core import quota
from router.core.quota import Price, Quota, QuotaRules, Quotas
from router.gateway.protocols import quota_answers
from tests import fakes

pytestmark = pytest.mark.benchmark

REQUESTS = 20_000
LIMITS = Quota(requests_per_minute=1e9, tokens_per_minute=1e12, requests_parallel_max=1e6, usd_per_month=1e9)


def cost_us(key: str, *, headers: bool) -> float:
    """Of one request of a tenant with every limit, and of a *key* with as many."""
    it = Quotas(QuotaRules({"t": LIMITS}, {"t/0123abcd": LIMITS}, {"m": Price(1.0, 0.1, 3.0)}))
    request = fakes.request("r", tenant="t", output_tokens_max=500)
    rounds = []
    for _ in range(7):
        began_s = perf_counter()
        for n in range(REQUESTS):
            now_s = n * 1e-3
            verdict = it.admit(request, key, True, now_s)
            if headers:
                quota_answers.fields(verdict)
            it.settle("r", 330.0, 100.0, 120.0, now_s, "m")
        rounds.append((perf_counter() - began_s) / REQUESTS * 1e6)
    return min(rounds)


def test_a_quota_costs_a_request_under_two_microseconds() -> None:
    """Admitted and settled, on one account; the bound is of compiled modules."""
    tenant, both, written = cost_us("", headers=False), cost_us("t/0123abcd", headers=False), cost_us("", headers=True)
    print(
        f"\nquotas, us a request: {tenant:.2f} (a tenant), {both:.2f} (a tenant and a key), {written:.2f} with headers"
    )
    if not quota.__file__.endswith(".py"):
        assert tenant < 2.0
