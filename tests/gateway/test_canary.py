"""A policy on trial: whose requests it gets, and when the trial ends how."""

import random
from math import nan

import pytest

from router.core.decisions import EndState, RequestRecord
from router.core.types import Slo, Usage
from router.gateway.rollout.canary import FIRST_LOOK, Arm, Split, Trial, difference, fraction, wilson
from tests import fakes


def account(kept: bool, *, outcome: EndState = EndState.SERVED, **facts: object) -> RequestRecord:
    """A request that met its TTFT SLO of 1 s, or violated it."""
    request = fakes.request(slo=Slo(ttft_s=1.0), **facts)
    return RequestRecord(request, outcome, "a", 1, 0.0, 0.5 if kept else 2.0, 3.0, Usage(3), None, nan, nan, nan)


ENDED = [(account(True, request_id=f"q{n}"), account(False, request_id=f"q{n}")) for n in range(12_000)]


def run(trial: Trial, serving: float, canary: float, requests: int, seed: int) -> str | None:
    """Play requests whose chance to keep the SLO is that of their policy; the verdict."""
    draw = random.Random(seed)
    for number in range(requests):
        kept, missed = ENDED[(number + 97 * seed) % len(ENDED)]
        chance = canary if trial.split.takes(kept.request) else serving
        if trial.accounted(kept if draw.random() < chance else missed):
            break
    return trial.verdict


def test_whose_request_it_is_follows_from_a_stable_hash() -> None:
    """The same in every process, near the share, and the same for all requests of a tenant or session."""
    assert fraction("r1") == pytest.approx(fraction("r1"))
    assert 0.0 <= fraction("") < 1.0
    split = Split(0.2)
    taken = [split.takes(fakes.request(f"id-{n}")) for n in range(5_000)]
    assert sum(taken) / 5_000 == pytest.approx(0.2, abs=0.02)
    by_tenant = Split(0.5, by="tenant")
    for tenant in "abcdefgh":
        assert len({by_tenant.takes(fakes.request(tenant=tenant)) for _ in range(20)}) == 1
    assert {by_tenant.takes(fakes.request(tenant=t)) for t in "abcdefgh"} == {True, False}
    by_session = Split(0.5, by="session")
    for session in "abcdefgh":
        assert len({by_session.takes(fakes.request(session=session, tenant="t")) for _ in range(20)}) == 1


def test_named_tenants_are_the_canarys_and_nobody_else() -> None:
    """Whatever the share."""
    split = Split(0.999, tenants=frozenset({"beta"}))
    assert split.takes(fakes.request(tenant="beta"))
    assert not split.takes(fakes.request(tenant="other"))


def test_a_canary_that_is_as_good_is_promoted_and_not_before_its_minimum() -> None:
    """With 400 requests of its own at the least."""
    trial = Trial(Split(0.3), drop_max=0.03, sample_min=400)
    assert run(trial, 0.97, 0.97, 100_000, seed=1) == "promoted"
    assert trial.arms["canary"].requests >= 400
    assert "attainment" in trial.why


def test_a_canary_that_fails_most_is_returned_at_the_first_look() -> None:
    """It costs some two dozen requests."""
    trial = Trial(Split(0.1))
    assert run(trial, 0.98, 0.2, 10_000, seed=2) == "returned"
    assert trial.arms["canary"].requests == FIRST_LOOK


def test_a_canary_that_cannot_be_told_apart_is_returned_in_the_end() -> None:
    """Not shown to be as good: at the largest sample."""
    trial = Trial(Split(0.5), drop_max=0.0001, sample_max=200)
    assert run(trial, 0.9, 0.9, 10_000, seed=3) == "returned"
    assert "not shown" in trial.why


def test_a_worse_canary_is_seldom_promoted_and_a_good_one_seldom_returned() -> None:
    """Over all looks of a trial the chance of the wrong verdict stays at 5 % (here: of 60 trials each)."""

    def verdicts(canary: float) -> list[str | None]:
        return [
            run(Trial(Split(0.3), drop_max=0.03, sample_max=3_000), 0.95, canary, 12_000, seed) for seed in range(60)
        ]

    assert verdicts(0.92).count("promoted") <= 8  # exactly the bound worse: 5 % and three standard errors
    good = verdicts(0.95)
    assert sum(v == "returned" for v in good) <= 15  # most of these ran out of sample, see the one below
    assert good.count("promoted") >= 40


def test_a_client_that_left_says_nothing() -> None:
    """Its request is in neither arm."""
    trial = Trial(Split(0.5))
    trial.accounted(account(True, outcome=EndState.LEFT))
    trial.accounted(account(True, outcome=EndState.CLIENT_ERROR))
    assert [arm.requests for arm in trial.arms.values()] == [0, 0]


def test_what_is_shown_of_a_trial_has_the_interval_of_the_drop() -> None:
    """None before both arms have ended requests."""
    trial = Trial(Split(0.5))
    assert trial.plain()["drop"] is None
    trial.arms |= {"serving": Arm(70, 56), "canary": Arm(80, 48)}
    assert trial.plain()["drop"] == {"mean": 0.2, "low": 0.0524, "high": 0.3339}


def test_the_bounds_are_those_of_the_literature() -> None:
    """Newcombe 1998, table II, case (a): 56/70 against 48/80, 95 % two-sided: 0.0524 to 0.3339; Wilson for 0 of 20."""
    low, high = difference(Arm(70, 56), Arm(80, 48), 0.025)
    assert (low, high) == (pytest.approx(0.0524, abs=1e-4), pytest.approx(0.3339, abs=1e-4))
    assert wilson(Arm(20, 0), 0.025) == (pytest.approx(0.0), pytest.approx(0.1611, abs=1e-4))
