"""What failed is tried again further and further apart; what was done is in the audit log."""

from itertools import pairwise

from router.autoscaler.applying import Applying
from router.autoscaler.metrics import ScalingMetrics
from router.gateway.rollout.audit import Audit
from router.targets import Advice, Applied, Outcome, Target

ADVICE = Advice("m", "small", 3, 1, "because")


class Failing(Target):
    """A target that fails while ``fails``."""

    def __init__(self) -> None:
        self.fails = True
        self.calls = 0

    async def apply(self, advice: Advice) -> Applied:
        self.calls += 1
        return Applied(Outcome.FAILED, "refused") if self.fails else Applied(Outcome.APPLIED, "done")


def always() -> bool:
    return True


async def test_attempts_at_one_change_are_further_and_further_apart() -> None:
    """One a round at first, then every second, fourth, eighth; never more than sixteen rounds apart."""
    target, applying = Failing(), Applying(ScalingMetrics(), Audit())
    called = []
    for _ in range(70):
        before = target.calls
        await applying.apply([ADVICE], target, always)
        called.append(target.calls > before)
    rounds = [at for at, one in enumerate(called) if one]
    assert [later - earlier for earlier, later in pairwise(rounds)] == [1, 2, 4, 8, 16, 16, 16]


async def test_it_is_stated_what_failed_and_when_it_is_tried_again() -> None:
    """In each round, also in those without an attempt; it is given up in none."""
    target, applying = Failing(), Applying(ScalingMetrics(), Audit())
    stated = [(await applying.apply([ADVICE], target, always))[0] for _ in range(5)]
    assert [(one.outcome.value, one.reason) for one in stated] == [
        ("failed", "refused; attempt 1 failed; the next is made in 1 round"),
        ("failed", "refused; attempt 2 failed; the next is made in 2 rounds"),
        ("waiting", "refused; attempt 2 failed; the next is made in 1 round"),
        ("failed", "refused; attempt 3 failed; the next is made in 4 rounds"),
        ("waiting", "refused; attempt 3 failed; the next is made in 3 rounds"),
    ]
    for _ in range(1_000):
        await applying.apply([ADVICE], target, always)
    target.fails = False
    stated = [(await applying.apply([ADVICE], target, always))[0] for _ in range(16)]
    assert [one.outcome for one in stated].count(Outcome.APPLIED) >= 1


async def test_another_change_is_tried_at_once_and_a_success_begins_anew() -> None:
    """A failure says nothing of a number that was never tried."""
    target, applying = Failing(), Applying(ScalingMetrics(), Audit())
    for _ in range(4):
        await applying.apply([ADVICE], target, always)
    assert target.calls == 3
    await applying.apply([Advice("m", "small", 4, 1, "more")], target, always)
    assert target.calls == 4
    target.fails = False
    await applying.apply([ADVICE], target, always)
    await applying.apply([ADVICE], target, always)
    assert target.calls == 6


async def test_the_audit_log_has_what_was_done_and_why() -> None:
    """Failures too; rounds in which nothing had to be done are left out."""
    target, audit = Failing(), Audit(lambda: 7.0)
    applying = Applying(ScalingMetrics(), audit)
    await applying.apply([ADVICE], target, always)
    target.fails = False
    await applying.apply([ADVICE], target, always)
    facts = {"at_s": 7.0, "model": "m", "variant": "small", "replicas": 3, "running": 1, "why": "because"}
    assert list(audit.last) == [
        {"event": "scaling failed", "result": "refused; attempt 1 failed; the next is made in 1 round", **facts},
        {"event": "scaling applied", "result": "done", **facts},
    ]


async def test_a_target_that_raises_is_a_failure_and_the_other_advice_is_applied() -> None:
    """No target ends the autoscaler, or the router that it runs in."""

    class Raising(Failing):
        async def apply(self, advice: Advice) -> Applied:
            if advice.variant == "small":
                raise RuntimeError("oops")
            return await super().apply(advice)

    target, applying = Raising(), Applying(ScalingMetrics(), Audit())
    target.fails = False
    failed, done = await applying.apply([ADVICE, Advice("m", "big", 3, 1, "because")], target, always)
    assert failed.outcome is Outcome.FAILED
    assert failed.reason.startswith("the target failed: RuntimeError('oops'); attempt 1 failed")
    assert done.outcome is Outcome.APPLIED


async def test_nothing_is_applied_without_the_lease() -> None:
    """It may end between two pieces of advice."""
    target, applying = Failing(), Applying(ScalingMetrics(), Audit())
    (applied,) = await applying.apply([ADVICE], target, lambda: False)
    assert applied == Applied(Outcome.UNCHANGED, "another autoscaler applies advice")
    assert target.calls == 0
