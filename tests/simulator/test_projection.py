"""What the clairvoyant foresees of an engine is what then happens, if nobody else comes."""

import random
from math import inf, nan

import numpy as np
import pytest

from simulator.bounds.projection import SloState, in_engine, project, project_alone
from simulator.pool import Member, Pool
from simulator.replica.replica import Replica
from simulator.replica.sequence import EngineLimits, Sequence
from simulator.replica.truth import HiddenFactors
from simulator.run.kernel import Kernel

SITE = Pool((Member("a", "l40s"),), truth=HiddenFactors(drift=0.0)).sites(3)[0]
ROOMY, TIGHT = EngineLimits(kv_blocks=4_000), EngineLimits(seqs_max=8, chunk_tokens=600, kv_blocks=4_000)


@pytest.mark.parametrize("limits", [ROOMY, TIGHT])
@pytest.mark.parametrize("seed", range(4))
def test_every_first_and_last_token_comes_when_it_was_foreseen(limits: EngineLimits, seed: int) -> None:
    """In the middle of chunks and runs, with some waiting and one more coming."""
    draw = random.Random(seed)
    kernel, replica, first, last = _engine(limits)
    at_s = 0.0
    for number in range(25):
        at_s += draw.expovariate(12.0)
        kernel.run_until(at_s)
        replica.add(Sequence(f"r{number}", draw.randint(1, 2_500), draw.randint(1, 60)), at_s)
    kernel.run_until(at_s + 0.02)
    now_s, (there, enters_s) = kernel.now_s, in_engine(replica)
    projection = project(replica, [*there, Sequence("new", 900, 30)], [*enters_s, 0.03])
    replica.add(Sequence("new", 900, 30), now_s + 0.03)
    kernel.run_until(1e6)
    names = [*(sequence.id for sequence in there), "new"]
    assert len(there) > 3
    assert projection.fits
    had = np.array([first[name] <= now_s for name in names])
    end_s, first_s = np.array(projection.end_s) + now_s, np.array(projection.first_s) + now_s
    assert end_s == pytest.approx([last[name] for name in names], rel=1e-6)
    assert first_s[~had] == pytest.approx(np.array([first[n] for n in names])[~had], rel=1e-6)


def _engine(limits: EngineLimits) -> tuple[Kernel, Replica, dict[str, float], dict[str, float]]:
    """A replica on a clock, and when its first and last tokens came."""
    kernel = Kernel()
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
    return kernel, replica, first, last


def test_what_the_prefix_cache_holds_is_not_computed_again() -> None:
    """Of a prompt of which all but the last stretch was seen before; also for one that would be alone."""
    kernel, replica, first, last = _engine(ROOMY)
    prefix = tuple(range(8))
    replica.add(Sequence("a", 1_024, 2, prefix=prefix, unit_tokens=128), 0.0)
    kernel.run_until(100.0)
    again = Sequence("b", 1_100, 20, prefix=prefix, unit_tokens=128)
    projection, least_s = project(replica, [again], [0.01]), project_alone(replica, again, 0.01)
    cold_s = project(replica, [Sequence("c", 1_100, 20)], [0.01]).first_s[0]
    replica.add(again, 100.01)
    kernel.run_until(200.0)
    assert again.cached_tokens == 1_024
    assert projection.first_s[0] + 100.0 == pytest.approx(first["b"], rel=1e-9) == least_s[0] + 100.0
    assert projection.end_s[0] + 100.0 == pytest.approx(last["b"], rel=1e-9) == least_s[1] + 100.0
    assert projection.first_s[0] < cold_s / 2


def test_a_cache_that_is_too_small_for_all_is_foreseen() -> None:
    """Two that fit by their prompts and would not by their replies; one alone fits."""
    kernel, replica, _, _ = _engine(EngineLimits(kv_blocks=100))
    replica.add(Sequence("a", 600, 400), 0.0)
    kernel.run_until(0.5)
    there, _ = in_engine(replica)
    assert project(replica, there).fits
    assert not project(replica, [*there, Sequence("b", 600, 400)], [0.0]).fits
    replica.add(Sequence("b", 600, 400), 0.5)
    kernel.run_until(1e6)
    assert replica.preemptions > 0


@pytest.mark.parametrize(
    ("slos", "share"),
    [
        (SloState(10.0, 2.0, inf, inf, nan), 0.75),
        (SloState(10.0, inf, 0.1, inf, nan), 0.5),
        (SloState(10.0, inf, inf, 5.0, nan), 0.5),
        (SloState(10.0, 2.0, 0.1, 5.0, nan), 0.75),
        (SloState(10.0, 2.0, 0.1, 5.0, 10.5), 1.0),
        (SloState(10.0, inf, inf, inf, nan), 0.0),
    ],
)
def test_the_share_of_a_bound_is_of_the_one_used_most(slos: SloState, share: float) -> None:
    """One second is gone; the first token comes in half a second, the last of 21 a second later."""
    assert slos.slo_use(11.0, 0.5, 1.5, 21) == pytest.approx(share)
