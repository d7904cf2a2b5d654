"""What the clairvoyant foresees of an engine is what then happens, if nobody else comes."""

import random

import numpy as np
import pytest

from router.core.types import Request
from simulator.foresight import follow
from simulator.kernel import Kernel
from simulator.pool import Member, Pool
from simulator.replica import Replica
from simulator.sequence import Limits, Sequence
from simulator.truth import Hidden
from simulator.workload import Arrival

SITE = Pool((Member("a", "l40s"),), truth=Hidden(drift=0.0)).sites(3)[0]
ROOMY, TIGHT = Limits(kv_blocks=4_000), Limits(seqs_max=8, chunk_tokens=600, kv_blocks=4_000)


@pytest.mark.parametrize("limits", [ROOMY, TIGHT])
@pytest.mark.parametrize("seed", range(4))
def test_every_first_and_last_token_comes_when_it_was_foreseen(limits: Limits, seed: int) -> None:
    """In the middle of chunks and runs, with some waiting and one more coming."""
    draw, kernel = random.Random(seed), Kernel()
    first: dict[str, float] = {}
    last: dict[str, float] = {}
    replica = Replica(
        "a",
        SITE.truth,
        limits,
        kernel,
        lambda s: first.setdefault(s.id, kernel.now_s),
        lambda s: last.setdefault(s.id, kernel.now_s),
    )
    at_s = 0.0
    for number in range(25):
        at_s += draw.expovariate(12.0)
        kernel.run_until(at_s)
        replica.add(Sequence(f"r{number}", draw.randint(1, 2_500), draw.randint(1, 60)), at_s)
    kernel.run_until(at_s + 0.02)
    now_s, there = kernel.now_s, replica.there()
    coming = Arrival(Request("new", "m", now_s, 900), 30)
    foreseen = follow(replica, there, [coming], 0.0)
    replica.add(Sequence("new", 900, 30), now_s)
    kernel.run_until(1e6)
    names = [*(sequence.id for sequence in there), "new"]
    assert len(there) > 3
    had = np.array([first[name] <= now_s for name in names])
    assert foreseen.end_s + now_s == pytest.approx([last[name] for name in names], rel=1e-6)
    assert (foreseen.first_s + now_s)[~had] == pytest.approx(np.array([first[n] for n in names])[~had], rel=1e-6)
