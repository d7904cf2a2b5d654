"""What a replica serves within SLOs: by the forecast that routes, belief included."""

from dataclasses import replace
from math import inf

import pytest

from router.core.belief import Belief
from router.core.capacity import NOTHING, Capacity, Traffic, VariantBelief, capacity
from router.core.types import Slo
from tests.fakes import backend

CHAT = Traffic(5.0, 500.0, 200.0, Slo(ttft_s=2.0, tpot_s=0.05), 0.9)
BATCH = Traffic(5.0, 500.0, 200.0, Slo(e2e_s=600.0), 0.9)
HOPELESS = Traffic(1.0, 100_000.0, 200.0, Slo(ttft_s=0.01), 0.9)


def rate(*kinds: Traffic, slower: float = 1.0, learnt: object = None) -> float:
    return capacity(backend("a", slower=slower), kinds, learnt).requests_per_s  # type: ignore[arg-type]


def test_a_slower_replica_a_tighter_slo_and_a_longer_request_allow_less() -> None:
    """In each the rate falls."""
    whole = rate(CHAT)
    assert whole > 0.0
    assert rate(CHAT, slower=1.5) < whole
    assert rate(replace(CHAT, slo=Slo(ttft_s=2.0, tpot_s=0.03))) < whole
    assert rate(replace(CHAT, output_tokens=800.0)) < whole / 2
    assert rate(replace(CHAT, quantile=0.99)) < whole


def test_one_class_on_the_replica_bounds_all_others() -> None:
    """A batch alone fills the replica; beside chats it leaves them their TPOT."""
    assert rate(BATCH) > rate(CHAT, BATCH)
    assert rate(CHAT, BATCH) == pytest.approx(rate(CHAT), rel=0.2)


def test_what_cannot_be_served_even_when_idle_counts_for_nothing() -> None:
    """It takes no share of the replica, and its weight says so."""
    both = capacity(backend("a"), (CHAT, HOPELESS))
    assert both.served == (True, False)
    assert both.weights[1] == inf
    assert both.requests_per_s == pytest.approx(rate(CHAT))
    assert capacity(backend("a"), (HOPELESS,)) == Capacity(0.0, (False,), (inf,), 0.0, 0.0, "")
    assert capacity(backend("a"), ()) == NOTHING


def believed(factor: float) -> dict[str, object]:
    """A belief that every term of the step takes so many times the data sheet's."""
    belief, there = Belief(), backend("a")
    belief.joined(0, there)
    belief.regression._log[0] = factor
    return belief.export(0)


def test_what_was_learnt_of_a_replica_changes_what_it_serves() -> None:
    """Capacity is that of the belief, not of the data sheet."""
    assert rate(CHAT, learnt=believed(0.3)) < rate(CHAT) < rate(CHAT, learnt=believed(-0.3))


def test_a_belief_about_other_physics_is_refused() -> None:
    """Its factors are of another prior."""
    with pytest.raises(ValueError, match="other physics"):
        rate(CHAT, slower=2.0, learnt=believed(0.0))


def test_the_belief_about_a_variant_follows_its_replicas_slowly() -> None:
    """The mean of them; one update moves it by the share of the time that passed."""
    mean = VariantBelief()
    assert mean.update([], 0.0) is None
    first = mean.update([believed(0.0), believed(0.4)], 10.0)
    assert first is not None
    assert first["regression"]["log_factor"][0] == pytest.approx(0.2)
    later = mean.update([believed(1.0)], 25.0)
    assert later is not None
    assert 0.2 < later["regression"]["log_factor"][0] < 0.3
    assert mean.update([], 30.0) == later


@pytest.mark.parametrize("times", [1.0, 4.0])
def test_a_replica_that_few_requests_fill_serves_those(times: float) -> None:
    """Six replies at once would be too many, four are not. In a slower unit of time it is the same."""
    slo = Slo(ttft_s=2.0 * times, tpot_s=0.05 * times)
    found = capacity(backend(slower=1.73 * times), [Traffic(1.0, 1400.0, 60.0, slo, 0.9)])
    assert found.served == (True,)
    assert found.batch == pytest.approx(4.1, abs=0.1)
    assert found.requests_per_s * times == pytest.approx(1.9, abs=0.1)
    assert found.weights == (pytest.approx(1.0 / found.requests_per_s),)


@pytest.mark.parametrize("tpot_s", [0.0138 + 0.0002 * step for step in range(12)])
def test_a_kind_that_bears_no_traffic_beside_it_does_not_make_all_others_impossible(tpot_s: float) -> None:
    """On an idle replica it would meet its SLO, with any load it does not."""
    tight = replace(CHAT, slo=Slo(ttft_s=2.0, tpot_s=tpot_s), requests_per_s=0.1)
    found = capacity(backend("a"), (CHAT, tight))
    assert found.served[0]
    assert found.requests_per_s > 0.0
    assert (found.weights[1] < inf) == found.served[1]
