"""What a decision with its forecast, and a stream's learning, cost: figures, and the budgets they must keep."""

import random
import time
import timeit

import numpy as np
import pytest

import policies
from router.core.decisions import Send
from router.core.dispatcher import Dispatcher
from router.core.ledger import Mark
from router.core.types import NO_SLO, Slo, Usage
from tests.fakes import backend, request

pytestmark = pytest.mark.benchmark
TIGHT = Slo(ttft_s=2.0, tpot_s=0.1, e2e_s=60.0, quantile=0.9)


def slowness():
    """How much slower this machine is now than one where numpy adds a hundred numbers in 0.3 us, as budgets assume."""
    numbers = np.arange(100.0)
    runs = timeit.repeat(lambda: numbers + numbers, number=500, repeat=20)
    return max(1.0, float(np.median(runs)) / 500 * 1e6 / 0.3)


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
    slow = slowness()
    p50, p99 = np.quantile(took, (0.5, 0.99))
    print(f"\ndecision over {backends}: p50 {p50:.0f} us, p99 {p99:.0f} us, on a machine {slow:.1f} times slow")
    assert p50 < budget_us * slow


def test_what_a_stream_teaches_costs_little():
    """First token, pace and end: regressions, tails, books."""
    it = pool(100)
    belief = it.belief
    it.arrived(request("one", slo=TIGHT), 1e4)
    expected = it._flights["one"].open[0].predicted.expectation
    since = Mark(0.0, 0.0, 0.0, 0.0)
    until = Mark(1.0, 8.0, 8000.0, 300.0)
    took = []
    for n in range(4000):
        began = time.perf_counter()
        belief.first_token(0, expected, 0.1, 0.11 + 0.001 * (n % 9))
        belief.pace(0, "m", expected, 0.02, 50, since, until)
        belief.end(0, expected, 1.0, 1.1)
        took.append(time.perf_counter() - began)
    slow, p50 = slowness(), float(np.median(took)) * 1e6
    print(f"\nlearning from one stream: p50 {p50:.1f} us, on a machine {slow:.1f} times slow")
    assert p50 < 40.0 * slow
