"""What a decision with its forecast, and a stream's learning, cost: figures, and the budgets they must keep."""

import random
import time

import numpy as np
import pytest

import policies
from router.core.decisions import Send
from router.core.dispatcher import Dispatcher
from router.core.types import NO_SLO, Slo, Usage
from tests.fakes import backend, request

pytestmark = pytest.mark.benchmark
TIGHT = Slo(ttft_s=2.0, tpot_s=0.1, e2e_s=60.0, quantile=0.9)


def pool(count, slo=TIGHT):
    """A pool under load, each backend with some streams."""
    it = Dispatcher(
        policies.find("routing", "slo_headroom", {}), policies.find("admission", "deadline", {}), random.Random(1)
    )
    for n in range(count):
        it.backend_joined(backend(f"b{n}", slower=1.0 + n % 3), 0.0)
    serve(it, 8 * count, "warm", slo)
    return it


def serve(it, count, kind, slo=NO_SLO):
    """Requests one by one, of which every second goes on running; microseconds of each step."""
    costs = {"arrive": [], "first": [], "end": []}
    for n in range(count):
        now_s = n * 0.01
        asked = request(f"{kind}{n}", arrived_s=now_s, prompt_tokens=100 + n % 900, slo=slo)
        began = time.perf_counter()
        commands = it.arrived(asked, now_s)
        costs["arrive"].append(time.perf_counter() - began)
        if not commands or not isinstance(commands[0], Send):
            continue
        began = time.perf_counter()
        it.first_byte(asked.id, 1, now_s + 0.02)
        costs["first"].append(time.perf_counter() - began)
        if n % 8:
            began = time.perf_counter()
            it.ended(asked.id, 1, Usage(50, asked.prompt_tokens), now_s + 0.6)
            costs["end"].append(time.perf_counter() - began)
    return {name: np.array(took) * 1e6 for name, took in costs.items()}


@pytest.mark.parametrize(("backends", "budget_us"), [(100, 100.0), (1000, 400.0)])
def test_a_decision_with_its_forecast_keeps_its_budget(backends, budget_us):
    """All quantiles on every candidate, the choice, the reservation."""
    it = pool(backends)
    took = serve(it, 1500, "timed", TIGHT)["arrive"]
    print(f"\ndecision over {backends}: p50 {np.median(took):.0f} us, p99 {np.quantile(took, 0.99):.0f} us")
    assert np.median(took) < budget_us


def test_what_a_stream_teaches_costs_little():
    """First token and end, learning and books together."""
    it = pool(100)
    costs = serve(it, 3000, "timed", TIGHT)
    print(f"\nfirst token p50 {np.median(costs['first']):.1f} us, end p50 {np.median(costs['end']):.1f} us")
    assert np.median(costs["first"]) + np.median(costs["end"]) < 60.0
