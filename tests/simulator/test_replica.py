"""One engine: the coalesced walk against the plain one and against a scheduler written the slow way."""

from dataclasses import replace
from math import inf, isnan, nan
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.core.physics import StepCoefficients
from simulator.replica.replica import Replica
from simulator.replica.sequence import EngineLimits, Sequence
from simulator.replica.truth import EXACT, HiddenFactors, Truth, true_of
from simulator.run.kernel import Kernel
from tests.fakes_sim import Job, PlainEngine

STEP = StepCoefficients(
    fixed_s=0.0093,
    seq_s=1.1e-5,
    context_s=1.3e-7,
    token_s=7.7e-5,
    token_context_s=1.7e-9,
    first_token_s=0.003,
    weights_s=0.0071,
    gemm_token_s=6.1e-5,
    roof_power=3,
)
Times = dict[str, float]


def walked(truth: Truth, limits: EngineLimits, jobs: list[Job], coalesce: bool) -> tuple[Times, Times, Replica]:
    """First-token and end times of every job, by a Replica."""
    kernel, first, end = Kernel(), {}, {}
    replica = Replica(
        "r",
        truth,
        limits,
        kernel,
        lambda s: first.__setitem__(s.id, kernel.now_s),
        lambda s: end.__setitem__(s.id, kernel.now_s),
        coalesce=coalesce,
    )
    for job in jobs:
        sequence = Sequence(job.name, job.prompt, job.output, priority=job.priority)
        kernel.at(job.at_s - 0.0005, lambda pair: replica.add(*pair), (sequence, job.at_s))
        if job.leaves_s < inf:
            kernel.at(job.leaves_s, replica.drop, sequence)
    kernel.run()
    return first, end, replica


def world(draw: Random) -> tuple[Truth, EngineLimits, list[Job]]:
    """A small engine, often short of blocks, and some requests, of whom some leave."""
    blocks, size = draw.choice([12, 30, 80, 1000]), draw.choice([1, 4, 16])
    limits = EngineLimits(
        seqs_max=draw.choice([1, 3, 8, 32]),
        chunk_tokens=draw.choice([32, 64, 200]),
        block_tokens=size,
        kv_blocks=blocks,
        priority=draw.random() < 0.3,
    )
    hidden = HiddenFactors(drift=draw.choice([0.0, 0.1]), drift_every_s=draw.choice([0.05, 10.0]))
    jobs, at_s, rate, room = [], 0.0, draw.choice([1, 10, 100]), blocks * size
    for number in range(draw.choice([1, 3, 10, 40])):
        at_s += draw.expovariate(rate)
        prompt = draw.randint(1, max(1, min(150, room - 2)))
        output = draw.randint(1, max(1, min(draw.choice([3, 60]), room - prompt)))
        leaves_s = at_s + draw.expovariate(2) if draw.random() < 0.2 else inf
        jobs.append(Job(str(number), at_s, prompt, output, draw.randint(0, 2), leaves_s))
    return true_of(STEP, hidden, draw.getrandbits(16), "r"), limits, jobs


def same(a: float, b: float) -> bool:
    return (isnan(a) and isnan(b)) or a == pytest.approx(b, rel=1e-9, abs=1e-12)


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 1 << 48))
def test_coalesced_plain_and_slow_walks_give_the_same_times(seed: int) -> None:
    """Every first token and every end agree to 1e-9, with preemption, priorities, drift and clients that leave."""
    truth, limits, jobs = world(Random(seed))
    first, end, quick = walked(truth, limits, jobs, coalesce=True)
    first_plain, end_plain, plain = walked(truth, limits, jobs, coalesce=False)
    PlainEngine(truth, limits).run(jobs)
    assert (quick.preemptions, quick.steps) == (plain.preemptions, plain.steps)
    for job in jobs:
        name = job.name
        assert same(first.get(name, nan), first_plain.get(name, nan))
        assert same(end.get(name, nan), end_plain.get(name, nan))
        assert same(first.get(name, nan), job.first_s)
        assert same(end.get(name, nan), job.end_s)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 1 << 48), st.booleans())
def test_every_block_comes_back(seed: int, coalesce: bool) -> None:
    """When all is over no block is held, nobody waits and nobody runs, whoever left or was preempted."""
    truth, limits, jobs = world(Random(seed))
    _, _, replica = walked(truth, limits, jobs, coalesce)
    assert (replica.kv_usage(), replica.running, replica.waiting, replica.decoding) == (0, 0, 0, 0)


def prefixed(draw: Random, coalesce: bool, seed: int) -> tuple[Times, Times, Replica]:
    """Requests that share prefixes, in a cache too small for all of them."""
    kernel, first, end = Kernel(), {}, {}
    limits = EngineLimits(seqs_max=8, chunk_tokens=256, block_tokens=4, kv_blocks=draw.choice([60, 150, 400]))
    replica = Replica(
        "r",
        true_of(STEP, HiddenFactors(), seed, "r"),
        limits,
        kernel,
        lambda s: first.__setitem__(s.id, kernel.now_s),
        lambda s: end.__setitem__(s.id, kernel.now_s),
        coalesce=coalesce,
    )
    at_s = 0.0
    for number in range(40):
        at_s += draw.expovariate(20)
        chain, units = draw.randint(0, 3), draw.randint(0, 8)
        prompt = min(units * 16 + draw.randint(1, 30), limits.prompt_tokens_max - 40)
        prefix = tuple((chain, n) for n in range(min(units, prompt // 16)))
        sequence = Sequence(str(number), prompt, draw.randint(1, 40), prefix=prefix, unit_tokens=16)
        kernel.at(at_s, lambda pair: replica.add(*pair), (sequence, at_s))
    kernel.run()
    return first, end, replica


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 1 << 48))
def test_a_prefix_cache_changes_nothing_about_coalescing(seed: int) -> None:
    """With shared prefixes, hits and evictions both walks agree, and every block comes back."""
    first, end, quick = prefixed(Random(seed), True, seed)
    first_plain, end_plain, plain = prefixed(Random(seed), False, seed)
    assert quick.cached_tokens == plain.cached_tokens
    assert first == pytest.approx(first_plain, rel=1e-9)
    assert end == pytest.approx(end_plain, rel=1e-9)
    assert quick.kv_usage() == 0


def served(
    limits: EngineLimits, sequences: list[tuple[float, Sequence]], truth: Truth | None = None
) -> tuple[Times, Replica]:
    """End times on an engine without secrets."""
    kernel, end = Kernel(), {}
    truth = truth or true_of(STEP, EXACT, 0, "r")
    replica = Replica("r", truth, limits, kernel, lambda _: None, lambda s: end.__setitem__(s.id, kernel.now_s))
    for at_s, sequence in sequences:
        replica.add(sequence, at_s)
    kernel.run()
    return end, replica


def test_a_second_request_with_the_same_prompt_computes_only_what_is_not_cached() -> None:
    """Of 512 shared tokens in blocks of 16 all but the last block's worth is found: the last token is computed."""
    prefix = ("a", "b", "c", "d")
    once = Sequence("once", 512, 2, prefix=prefix, unit_tokens=128)
    again = Sequence("again", 512, 2, prefix=prefix, unit_tokens=128)
    _, replica = served(EngineLimits(), [(0.0, once), (5.0, again)])
    assert (once.cached_tokens, again.cached_tokens) == (0, 496)
    assert replica.prefilled_tokens == 512 + 16


def test_without_prefix_caching_nothing_is_found() -> None:
    """enable_prefix_caching off: the same prompt is computed twice."""
    prefix = ("a", "b")
    pair = [(t, Sequence(str(t), 256, 2, prefix=prefix, unit_tokens=128)) for t in (0.0, 5.0)]
    _, replica = served(EngineLimits(prefix_caching=False), pair)
    assert replica.prefilled_tokens == 512


def test_cached_blocks_are_evicted_least_recently_freed_first() -> None:
    """A cache of two prompts that sees a third forgets the first and still knows the second."""
    limits = EngineLimits(block_tokens=16, kv_blocks=21)
    prompts = [Sequence(name, 160, 2, prefix=(name,), unit_tokens=160) for name in ("a", "b", "c", "b2", "a2")]
    for sequence in prompts:
        sequence.prefix = (sequence.id[0],)
    served(limits, [(float(n), sequence) for n, sequence in enumerate(prompts)])
    found = {sequence.id: sequence.cached_tokens for sequence in prompts}
    assert found["b2"] > 0
    assert found["a2"] == 0


def test_a_step_without_secrets_takes_what_physics_says() -> None:
    """One request alone on an exact truth: prefill step, then decode steps, as the coefficients add up."""
    end, _ = served(EngineLimits(), [(0.0, Sequence("one", 100, 3))])
    roof = (STEP.weights_s**3 + (STEP.gemm_token_s * 100) ** 3) ** (1 / 3) - STEP.weights_s
    prefill = STEP.fixed_s + roof + (STEP.token_s - STEP.gemm_token_s) * 100 + STEP.token_context_s * 100 * 50
    one = (STEP.weights_s**3 + STEP.gemm_token_s**3) ** (1 / 3) - STEP.weights_s
    decode = [STEP.fixed_s + STEP.seq_s + one + STEP.context_s * context for context in (101, 102)]
    assert end["one"] == pytest.approx(prefill + sum(decode), rel=1e-9)


def test_a_step_with_a_prompt_takes_at_least_its_launch() -> None:
    """What the prompt adds and what launching it adds join softly; decode steps know nothing of it."""
    launched, plain = (
        served(EngineLimits(), [(0.0, Sequence("one", 100, 3))], true_of(step, EXACT, 0, "r"))[0]["one"]
        for step in (replace(STEP, eager_s=0.5), STEP)
    )
    roof = (STEP.weights_s**3 + (STEP.gemm_token_s * 100) ** 3) ** (1 / 3) - STEP.weights_s
    assert launched - plain == pytest.approx((roof**2 + 0.25) ** 0.5 - roof, rel=1e-9)


def test_steps_cost_the_same_work_whatever_the_length() -> None:
    """A reply ten thousand times as long takes no more callbacks of the clock."""

    class Counting:
        """A kernel whose callbacks are counted."""

        def __init__(self):
            self.kernel, self.calls = Kernel(), 0

        @property
        def now_s(self):
            return self.kernel.now_s

        def at(self, when_s, act, argument=None):
            self.calls += 1
            self.kernel.at(when_s, act, argument)

    calls = []
    for output in (2, 20_000):
        kernel = Counting()
        limits = EngineLimits(kv_blocks=10_000)
        replica = Replica("r", true_of(STEP, EXACT, 0, "r"), limits, kernel, lambda _: None, lambda _: None)
        replica.add(Sequence("one", 100, output), 0.0)
        kernel.kernel.run()
        calls.append(kernel.calls)
    assert calls[0] == calls[1]


def test_an_urgent_request_overtakes_under_priority_scheduling() -> None:
    """One slot, three waiting: the smaller priority number goes first."""
    limits = EngineLimits(seqs_max=1, priority=True)
    sequences = [Sequence("first", 10, 5), Sequence("late", 10, 5, priority=3), Sequence("urgent", 10, 5, priority=-5)]
    end, _ = served(limits, [(0.0, sequences[0]), (0.001, sequences[1]), (0.002, sequences[2])])
    assert end["urgent"] < end["late"]


def test_a_dead_engine_forgets_everything() -> None:
    """abandon gives back everybody who was in it, and leaves it empty and usable."""
    kernel, ended = Kernel(), []
    replica = Replica("r", true_of(STEP, EXACT, 0, "r"), EngineLimits(seqs_max=2), kernel, lambda _: None, ended.append)
    for number in range(4):
        replica.add(Sequence(str(number), 50, 500), 0.0)
    kernel.run_until(0.5)
    assert [sequence.id for sequence in replica.abandon()] == ["0", "1", "2", "3"]
    kernel.run()
    assert (ended, replica.kv_usage(), replica.running, replica.waiting) == ([], 0, 0, 0)
    replica.add(Sequence("new", 50, 5), kernel.now_s)
    kernel.run()
    assert [sequence.id for sequence in ended] == ["new"]


def test_a_slowed_replica_takes_longer_from_the_next_step_on() -> None:
    """slow(3) in the middle of a long reply: the rest takes three times as long."""
    kernel, end = Kernel(), {}
    truth = true_of(STEP, EXACT, 0, "r")
    replica = Replica("r", truth, EngineLimits(), kernel, lambda _: None, lambda s: end.__setitem__(s.id, kernel.now_s))
    replica.add(Sequence("one", 10, 1000), 0.0)
    kernel.at(5.0, lambda _: replica.slow(3.0))
    kernel.run()
    alone, _ = served(EngineLimits(), [(0.0, Sequence("one", 10, 1000))])
    assert end["one"] == pytest.approx(5.0 + 3.0 * (alone["one"] - 5.0), rel=0.01)


@pytest.mark.parametrize("field", ["seqs_max", "chunk_tokens", "block_tokens", "kv_blocks"])
def test_limits_that_cannot_be_are_refused(field: str) -> None:
    """Zero of anything names the field."""
    with pytest.raises(ValueError, match=field):
        EngineLimits(**{field: 0})


def test_a_chunk_smaller_than_the_batch_is_refused() -> None:
    """vLLM asks the same of max_num_batched_tokens and max_num_seqs."""
    with pytest.raises(ValueError, match="at least seqs_max"):
        EngineLimits(seqs_max=256, chunk_tokens=128)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 1 << 48))
def test_with_no_evict_nobody_is_ever_preempted(seed: int) -> None:
    """TensorRT-LLM's guarantee: both walks agree, no preemption, no block over, everybody who stays is served."""
    truth, limits, jobs = world(Random(seed))
    limits = replace(limits, no_evict=True)
    first, end, quick = walked(truth, limits, jobs, coalesce=True)
    first_plain, end_plain, plain = walked(truth, limits, jobs, coalesce=False)
    assert quick.preemptions == plain.preemptions == 0
    assert first == pytest.approx(first_plain, rel=1e-9)
    assert end == pytest.approx(end_plain, rel=1e-9)
    assert all(job.name in end for job in jobs if job.leaves_s == inf)
    assert quick.kv_usage() == 0


def test_a_reply_that_may_be_long_waits_for_room_with_no_evict() -> None:
    """Two requests of which either may fill the cache run one after the other, though both replies are short."""
    limits = EngineLimits(block_tokens=16, kv_blocks=10, no_evict=True)
    pair = [Sequence(name, 32, 5) for name in ("one", "two")]
    for sequence in pair:
        sequence.reply_tokens_max = 100
    end, _ = served(limits, [(0.0, pair[0]), (0.0, pair[1])])
    alone, _ = served(limits, [(0.0, Sequence("one", 32, 5))])
    assert end["two"] == pytest.approx(2 * alone["one"], rel=0.05)
