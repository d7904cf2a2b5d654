"""Laws of the scaling policy: what money, other variants and another unit of time may change, and what they may not."""

from dataclasses import fields, replace
from math import inf
from random import Random

import pytest

import policies
from router.core import Demand, KindDemand, Slo, Supply
from tests.fakes import backend

SLO = Slo(ttft_s=2.0, tpot_s=0.05)
HEADROOM = policies.find("scaling", "headroom")
SEEDS = range(8)
SECONDS = [each.name for each in fields(backend().prior) if each.name.endswith("_s")]


def drawn(seed, **facts):
    """A demand for one to three variants, with counts as they arrive."""
    draw = Random(seed)
    variants = {
        name: backend(name, slower=draw.uniform(0.4, 2.0), price_per_hour=draw.uniform(0.5, 5.0), network_s=0.0)
        for name in ("a", "b", "c")[: 1 + seed % 3]
    }
    rate, bucket_s = draw.uniform(0.5, 40.0), 5.0
    arrivals = tuple(float(round(rate * bucket_s * draw.uniform(0.8, 1.2))) for _ in range(48))
    prompt, output = draw.uniform(100.0, 3000.0), draw.uniform(20.0, 500.0)
    usual = {
        "model": "m",
        "requests_per_s": rate,
        "prompt_tokens": prompt,
        "output_tokens": output,
        "slo": SLO,
        "replicas": {name: draw.randrange(4) for name in variants},
        "variants": variants,
        "attainment": 1.0,
        "kinds": (KindDemand("chat", SLO, rate, prompt, output),),
        "arrivals": arrivals,
        "bucket_s": bucket_s,
        "supply": {name: Supply(start_s=60.0) for name in variants},
    }
    return Demand(**(usual | facts))


def wanted(demand, policy=HEADROOM):
    """Replicas by variant."""
    return {answer.variant: answer.replicas for answer in policy.scale(demand)}


def usd_per_hour(demand, counts):
    """Of these replicas."""
    return sum(demand.variants[name].price_per_hour * count for name, count in counts.items())


@pytest.mark.parametrize("seed", SEEDS)
def test_doubling_every_price_changes_nothing(seed):
    """Only what is cheaper than what counts. With it go the budget and what an order costs."""
    demand = drawn(seed)
    supply = {name: replace(each, start_usd=0.1) for name, each in demand.supply.items()}
    demand = replace(demand, supply=supply)
    dearer = replace(
        demand,
        variants={name: replace(b, price_per_hour=2.0 * b.price_per_hour) for name, b in demand.variants.items()},
        supply={name: replace(each, start_usd=0.2) for name, each in supply.items()},
    )
    for budget in (inf, 6.0):
        policy = policies.find("scaling", "headroom", {"usd_per_hour_max": budget})
        doubled = policies.find("scaling", "headroom", {"usd_per_hour_max": 2.0 * budget})
        assert wanted(dearer, doubled) == wanted(demand, policy)


@pytest.mark.parametrize("seed", SEEDS)
def test_another_variant_that_is_dearer_never_raises_the_cost(seed):
    """The same engine at a higher price is not ordered; a faster one only where that is cheaper."""
    demand = drawn(seed, replicas={})
    alone = usd_per_hour(demand, wanted(demand))
    first = next(iter(demand.variants.values()))
    for slower in (1.0, 0.5):
        prior = backend(slower=slower).prior if slower < 1.0 else first.prior
        dear = replace(first, name="dear", price_per_hour=1.5 * first.price_per_hour, prior=prior)
        more = replace(demand, variants=demand.variants | {"dear": dear})
        counts = wanted(more)
        assert usd_per_hour(more, counts) <= alone + 1e-9
        assert slower < 1.0 or counts["dear"] == 0


@pytest.mark.parametrize("times", [0.25, 4.0])
@pytest.mark.parametrize("seed", SEEDS)
def test_another_unit_of_time_changes_nothing(seed, times):
    """All that takes so many times as long, with SLOs and starts so many times as long, at as low a rate."""
    demand = drawn(seed)
    slo = Slo(ttft_s=SLO.ttft_s * times, tpot_s=SLO.tpot_s * times)
    slower = {
        name: replace(
            b,
            prior=replace(b.prior, **{name: getattr(b.prior, name) * times for name in SECONDS}),
            price_per_hour=b.price_per_hour / times,
        )
        for name, b in demand.variants.items()
    }
    scaled = replace(
        demand,
        requests_per_s=demand.requests_per_s / times,
        slo=slo,
        kinds=tuple(replace(k, slo=slo, requests_per_s=k.requests_per_s / times) for k in demand.kinds),
        variants=slower,
        bucket_s=demand.bucket_s * times,
        supply={name: replace(each, start_s=each.start_s * times) for name, each in demand.supply.items()},
        period_s=demand.period_s * times,
    )
    policy = policies.find("scaling", "headroom", {"payback_s": 900.0 * times})
    assert wanted(scaled, policy) == wanted(demand)
