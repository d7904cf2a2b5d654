"""What it costs to look for a prompt in prefix caches: to hash its blocks, and to find who has them."""

import random
from timeit import repeat

import numpy as np
import pytest

from router.core.prefix import PrefixIndex
from router.gateway.protocols.blocks import blocks_of
from tests.bench.test_forecast_cost import slowness

pytestmark = pytest.mark.benchmark


def least_us(act, times):
    """Microseconds of one call, in the quickest of some runs."""
    return min(repeat(act, number=times, repeat=9)) / times * 1e6


@pytest.mark.parametrize(("kilobytes", "budget_us"), [(1, 5.0), (4, 5.0), (10, 10.0), (100, 40.0)])
def test_the_blocks_of_a_prompt_cost_little(kilobytes, budget_us):
    """64 of them at most, however long it is."""
    rng = random.Random(1)
    text = "".join(rng.choices("abcdefghij klmnop", k=kilobytes * 1024 + 20))
    took_us, slow = least_us(lambda: blocks_of([text], "m", "", 64), 500), slowness()
    print(f"\nblocks of {kilobytes:3} KB: {took_us:.1f} us (machine: {slow:.1f} times slow)", end="")
    assert took_us < budget_us * slow


@pytest.mark.parametrize("backends", [8, 100, 1000])
def test_who_holds_a_prompt_is_found_as_soon_among_a_thousand(backends):
    """A shared beginning that all hold, then blocks that one holds."""
    rng, index = random.Random(1), PrefixIndex()
    shared = [rng.getrandbits(63) for _ in range(16)]
    prompts = [(*shared, *(rng.getrandbits(63) for _ in range(48))) for _ in range(backends)]
    for slot, prompt in enumerate(prompts):
        index.sent(slot, prompt, 2000)
    slots = np.arange(backends)
    found_us = least_us(lambda: index.matched(prompts[3], slots), 500)
    sent_us, slow = least_us(lambda: index.sent(3, prompts[3], 2000), 500), slowness()
    print(f"\n64 blocks among {backends:4}: found in {found_us:.1f} us, noted in {sent_us:.1f} us", end="")
    assert found_us < 40.0 * slow
    assert sent_us < 40.0 * slow
