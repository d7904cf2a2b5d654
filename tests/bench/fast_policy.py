"""The fast policy of policies/README.md beside ``slo_headroom``: what a decision with its forecast costs each."""

import random
import re
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

import policies
from router import loading
from router.core.dispatcher import Dispatcher
from router.core.fleet import Fleet
from router.core.forecast import Forecast
from tests.bench.test_forecast_cost import TIGHT, serve
from tests.fakes import backend, request

README = Path(__file__).parents[2] / "policies" / "README.md"
DECISIONS, RUNS = 500, 5


def example(folder):
    """The page's second policy."""
    path = Path(folder) / "fast_policy.py"
    path.write_text(
        re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)[2], encoding="utf-8"
    )
    return loading.load("routing", loading.read(path), {})


def costs_us(policy, backends):
    """Microseconds of processor time of each decision over a pool under load: the least of some runs."""
    it = Dispatcher(policy, policies.find("admission", "deadline", {}), random.Random(1))
    for n in range(backends):
        it.backend_joined(backend(f"b{n}", slower=1.0 + n % 3), 0.0)
    serve(it, 8 * backends, "warm", TIGHT)
    rng = random.Random(2)

    def decided(n):
        asked = request(f"timed{n}", arrived_s=1e3, prompt_tokens=100 + n % 900, slo=TIGHT)
        began = time.thread_time_ns()
        fleet = Fleet(it.ledger, it.ledger.roster.pool("m"), 1e3)
        policy.choose(asked, fleet, Forecast(asked, fleet, it.belief), rng)
        return (time.thread_time_ns() - began) / 1e3

    return np.min([[decided(n) for n in range(DECISIONS)] for _ in range(RUNS)], axis=0)


def main():
    """A line for each policy and size of pool."""
    with TemporaryDirectory() as folder:
        made = {"slo_headroom": policies.find("routing", "slo_headroom", {}), "fast_policy.py": example(folder)}
        for backends in (8, 100, 1000):
            for name, policy in made.items():
                p50, p99 = np.quantile(costs_us(policy, backends), (0.5, 0.99))
                print(f"{name:14} over {backends:4}: p50 {p50:.1f} us, p99 {p99:.1f} us")


if __name__ == "__main__":
    main()
