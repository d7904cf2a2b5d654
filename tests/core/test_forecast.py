"""What is predicted for each candidate, and that more load never makes it less."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.core import kernels
from router.core.belief import Belief
from router.core.columns import IMPOSED_DELAY_S, PRIOR, SCALE
from router.core.fleet import Fleet
from router.core.forecast import Forecast
from router.core.ledger import Ledger
from router.core.physics import StepCoefficients, prefill_s, step_s
from router.core.roof import Roofs, roof_s
from router.core.types import Backend, Load, Slo
from tests.fakes import backend, core, request, sent

MOE = StepCoefficients(
    0.012,
    2e-5,
    2e-8,
    2e-5,
    1e-9,
    0.004,
    weights_s=0.002,
    gemm_token_s=1.5e-5,
    experts_s=0.015,
    expert_share=0.06,
)
LOADS = st.builds(
    lambda prefilling, decoding, context: Load(prefilling, 700 * prefilling, decoding, context),
    st.integers(0, 20),
    st.integers(0, 200),
    st.integers(0, 100_000),
)


def forecast(*loads, made=None, asked=None, now_s=0.0, **facts):
    """The forecast over backends that carry these loads."""
    ledger, belief = Ledger(), Belief()
    for n, _ in enumerate(loads):
        joined = made(f"b{n}") if made else backend(f"b{n}", **facts)
        belief.joined(ledger.join(joined, 0.0), joined)
    ledger.peers.on_peer_load("peer", {f"b{n}": load for n, load in enumerate(loads)}, 0.0)
    fleet = Fleet(ledger, ledger.roster.pool("m"), now_s)
    return Forecast(asked or request(prompt_tokens=1000, output_tokens_max=100), fleet, belief)


def moe(name):
    """A backend whose steps bend: experts to touch, compute to bind."""
    return Backend(name, ("m",), MOE, chunk_tokens=2048, network_s=0.001)


@pytest.mark.parametrize("prompt", [1, 300, 2048, 5000])
def test_an_idle_engine_takes_what_physics_says(prompt):
    """TTFT is the prefill in chunks and the network; nothing is ahead."""
    it = forecast(Load(), made=moe, asked=request(prompt_tokens=prompt))
    assert it.ttft_s[0] == pytest.approx(0.001 + prefill_s(MOE, prompt, 2048), rel=0.03)


def test_tpot_is_the_step_of_the_batch_that_is_joined():
    """Experts and compute included, at the middle of the reply."""
    it = forecast(Load(0, 0, 99, 50_000), made=moe, asked=request(prompt_tokens=1000, output_tokens_max=64))
    tokens = 50_000 + 1000 + it.output_tokens / 2
    assert it.tpot_s[0] == pytest.approx(step_s(MOE, 100, tokens), rel=0.02)


def test_e2e_is_ttft_and_the_tpot_of_the_rest():
    """The expected length, bounded by the cap."""
    it = forecast(Load(2, 500, 10, 5000))
    assert it.e2e_s[0] == pytest.approx(it.ttft_s[0] + (it.output_tokens - 1) * it.tpot_s[0])
    assert it.output_tokens <= 100


@given(LOADS, LOADS)
def test_more_load_is_never_faster(one, more):
    """Contract: with everything on top, no mean and no tail falls, but by the tails of another band."""
    both = Load(*(a + b for a, b in zip(_row(one), _row(more), strict=True)))
    it = forecast(one, both, made=moe)
    for times in (it.ttft_s, it.tpot_s, it.e2e_s, it.ttft_tail_s(0.9), it.tpot_tail_s(0.99), it.e2e_tail_s(0.5)):
        assert times[1] >= times[0] * (1 - 1e-9)
        assert np.isfinite(times).all()
        assert (times > 0).all()


def _row(load):
    return load.prefilling, load.prefill_tokens, load.decoding, load.context_tokens


@given(LOADS, st.integers(1, 20_000))
def test_nothing_is_faster_than_at_rest(load, prompt):
    """Contract: load adds to every mean."""
    it = forecast(load, Load(), made=moe, asked=request(prompt_tokens=prompt))
    assert (it.rest <= it.means_s * (1 + 1e-9)).all()
    assert it.rest[:, 0] == pytest.approx(it.rest[:, 1])


def test_the_toll_is_the_time_that_a_send_adds_to_all_that_run_there():
    """Each of 10 waits while the prompt of 1,000 tokens is taken in, 0.1 ms a token, and then has 100 steps with one
    sequence (0.1 ms) and its tokens in the cache (0.1 us each) more; nothing runs on an idle engine.
    """
    it = forecast(Load(), Load(0, 0, 10, 5000), Load(0, 0, 20, 5000))
    each_s = 1000 * 1e-4 + it.output_tokens * (1e-4 + 1e-7 * it.tokens)
    assert it.imposed_delay_s[0] == 0.0
    assert it.imposed_delay_s[1:] == pytest.approx([10 * each_s, 20 * each_s], rel=1e-6)
    assert it.imposed_delay_s.tolist() == it.rows[IMPOSED_DELAY_S].tolist()


def test_the_toll_of_a_cached_prompt_is_less():
    """Only what has to be computed is waited for."""
    it = forecast(Load(0, 0, 10, 5000), Load(0, 0, 10, 5000), asked=request(prompt_tokens=1000, output_tokens_max=100))
    it._belief.hit[1] = 0.9
    again = Forecast(it._request, it._fleet, it._belief)
    assert again.imposed_delay_s[0] - again.imposed_delay_s[1] == pytest.approx(10 * 900 * 1e-4, rel=1e-6)


def test_what_a_reply_may_be_is_asked_of_the_lengths_of_its_model_and_class_under_its_cap():
    """Quantile, probability, the same for every candidate, and the mean of the model whatever the class."""
    asked = request(prompt_tokens=1000, output_tokens_max=300, slo_class="chat")
    it = forecast(Load(), Load(), asked=asked)
    lengths = it._belief.lengths
    for n in range(400):
        lengths.update("m", "chat", 40 + n % 100)
        lengths.update("m", "batch", 1000)
    it = Forecast(asked, it._fleet, it._belief)
    assert it.reply_tokens(0.9) == lengths.quantile("m", "chat", 0.9, 300) < 250
    assert it.mean_reply_tokens == pytest.approx(545, rel=0.1)
    chance, slope = it.in_time(np.array([90.0, 300.0]))
    assert chance[0] == pytest.approx(0.5, abs=0.1)
    assert (chance[1], slope[1]) == (1.0, 0.0)
    assert slope[0] > 0.0


@given(LOADS, st.integers(1, 20_000), st.integers(0, 5000))
def test_a_longer_prompt_is_never_sooner(load, prompt, more):
    """Contract: on the same engines."""
    short = forecast(load, made=moe, asked=request(prompt_tokens=prompt))
    long = forecast(load, made=moe, asked=request(prompt_tokens=prompt + more))
    assert long.ttft_s[0] >= short.ttft_s[0] * (1 - 1e-9)
    assert long.tpot_s[0] >= short.tpot_s[0] * (1 - 1e-9)


def test_the_longer_a_prompt_is_under_way_the_sooner_its_step_is_over():
    """One prompt of 2,000 tokens was sent to an idle engine; the next comes soon after, or late, or very late."""
    ttft = []
    for later_s in (0.0, 0.05, 0.15, 9.0):
        it = core(backend(), routing="slo_headroom")
        it.arrived(request("ahead", prompt_tokens=2000), 0.0)
        ttft.append(sent(it.arrived(request("r", arrived_s=later_s), later_s)).predicted_ttft_s)
    assert ttft[0] - ttft[1] == pytest.approx(0.05, rel=0.1)
    assert ttft[0] - ttft[2] == pytest.approx(0.15, rel=0.1)
    assert ttft[3] < ttft[2]
    assert ttft[3] > 0.025


def test_a_prompt_sent_a_moment_ago_shares_its_step_with_the_next():
    """On an engine that decodes, neither has begun: they go together, and only its tokens are in the way."""
    it = forecast(Load(0, 0, 10, 1000), asked=request(prompt_tokens=100), now_s=1.0)
    alone = it.ttft_s[0]
    ledger = it._fleet._ledger
    ledger.load.reserve(0, 500.0, 600.0, np.inf, 0.999)
    together = Forecast(request(prompt_tokens=100), Fleet(ledger, ledger.roster.pool("m"), 1.0), it._belief).ttft_s[0]
    assert together - alone == pytest.approx(0.05, rel=0.05)


def test_a_full_engine_is_waited_for():
    """Slots taken: the k-th end is k/n of a life away. With room there is no wait."""
    free, full, queue = forecast(Load(0, 0, 15, 3000), Load(0, 0, 16, 3200), Load(4, 800, 16, 3200), seqs_max=16).ttft_s
    life_s = 100 * 0.0119
    assert full - free == pytest.approx(life_s / 16, rel=0.2)
    assert queue - full > 3.5 * life_s / 20


@pytest.mark.parametrize("own", [10, 1000])
def test_the_wait_for_room_goes_by_how_long_others_reply(own):
    """Whatever the SLO of the new request."""
    full = Load(decoding=8, context_tokens=8_000)
    short, long = (forecast(full, asked=request(prompt_tokens=10, output_tokens_max=own), seqs_max=8) for _ in range(2))
    for it, tokens in ((short, 50), (long, 500)):
        it._belief.lengths.update("m", "another", tokens)
    step = forecast(full).tpot_s[0]
    assert long.ttft_s[0] - short.ttft_s[0] == pytest.approx(450 / 8 * step, rel=0.1)


def test_a_full_cache_is_waited_for():
    """KV blocks bind before slots do."""
    room, full = forecast(Load(0, 0, 4, 5000), Load(0, 0, 4, 9900), kv_tokens_max=10_000).ttft_s
    assert full > room + 0.05


def test_a_full_engine_does_not_run_more_than_it_may():
    """Those who wait do not slow those who run: TPOT is that of the largest batch."""
    full, queue = forecast(Load(0, 0, 16, 3200), Load(64, 3200, 16, 3200), seqs_max=16).tpot_s
    assert queue == pytest.approx(full, rel=0.05)


def test_prompts_that_keep_coming_raise_tpot():
    """A share of every second goes to prefill: twice as many prompts, more than twice the share's stretch."""
    it = core(backend(), routing="slo_headroom")
    tpots_s = []
    for n in range(40):
        sent(it.arrived(request(f"r{n}", prompt_tokens=1000, arrived_s=n * 0.2), n * 0.2))
        tpots_s.append(it._flights[f"r{n}"].open[0].predicted.tpot_s)
        it.client_left(f"r{n}", n * 0.2 + 0.1)
    assert tpots_s[-1] > 1.2 * tpots_s[0]


def test_tails_lie_above_means_and_rise_with_the_quantile():
    """Before anything was seen: the prior's."""
    it = forecast(Load(1, 100, 5, 500))
    assert it.ttft_s[0] < it.ttft_tail_s(0.9)[0] < it.ttft_tail_s(0.95)[0] < it.ttft_tail_s(0.99)[0]
    assert it.e2e_s[0] < it.e2e_tail_s(0.9)[0]


def test_a_capped_reply_has_a_narrower_tail_than_an_open_one():
    """E2E's spread is mostly the length's: with 4 tokens at most there is little left of it."""
    capped = forecast(Load(), asked=request(output_tokens_max=4))
    open_ended = forecast(Load(), asked=request())
    assert capped.e2e_tail_s(0.9)[0] / capped.e2e_s[0] < open_ended.e2e_tail_s(0.9)[0] / open_ended.e2e_s[0]


def test_nothing_is_computed_until_asked():
    """A policy without forecasts pays nothing, and its sends predict nothing."""
    it = forecast(Load())
    assert not it.made
    assert it.answer is None
    assert it.ttft_s.base is it.e2e_tail_s(0.9).base
    assert it.made
    assert it.answer is it.ttft_s.base


def test_candidates_apart_in_the_columns_are_read_as_neighbours_are():
    """Slots 0 and 2 of three: gathered, not sliced."""
    ledger, belief = Ledger(), Belief()
    for n in range(3):
        joined = backend(f"b{n}", slower=1.0 + n)
        belief.joined(ledger.join(joined, 0.0), joined)
    whole = Forecast(request(), Fleet(ledger, np.array([0, 1, 2]), 0.0), belief)
    apart = Forecast(request(), Fleet(ledger, np.array([0, 2]), 0.0), belief)
    for name in ("ttft_s", "tpot_s", "e2e_s"):
        assert getattr(apart, name).tolist() == getattr(whole, name)[[0, 2]].tolist()


def test_a_prediction_has_the_quantiles_of_its_forecast():
    """The account's tails are the policy's tails."""
    it = forecast(
        Load(2, 900, 7, 3000), asked=request(prompt_tokens=1000, output_tokens_max=100, slo=Slo(quantile=0.93))
    )
    at = it.at(0)
    assert (at.ttft_tail_s, at.tpot_tail_s, at.e2e_tail_s) == tuple(it.tails_s(0.93)[:, 0].tolist())
    other = forecast(Load(2, 900, 7, 3000))
    assert other.tails_s(0.93).tolist() == it.tails_s(0.93).tolist()


def test_replies_that_a_prompt_breaks_are_the_same_whenever_asked_for():
    """With the means, or after them."""
    first, later = (forecast(Load(2, 900, 7, 3000, 0.02), asked=request(prompt_tokens=4000)) for _ in range(2))
    at_once = first.expected_tpot_violations.tolist()
    assert at_once[0] > 0.0
    assert later.ttft_s.tolist() == first.ttft_s.tolist()
    assert later.expected_tpot_violations.tolist() == at_once


def test_every_prompt_ahead_lengthens_what_breaks_a_reply():
    """Not the longest step alone: a reply that outlives one prompt does not outlive three."""
    few, more = (
        forecast(Load(1, tokens, 1, 300, 0.02), asked=request(prompt_tokens=400)).expected_tpot_violations[0]
        for tokens in (4_000, 12_000)
    )
    assert 0.0 < few < more


def test_the_record_carries_means_and_tails():
    """At the quantile of the request's SLO; nan without a forecast."""
    it = core(backend(), routing="slo_headroom")
    it.arrived(request("r", slo=Slo(ttft_s=1.0, quantile=0.95)), 0.0)
    (done,) = it.client_left("r", 0.1)[1:]
    assert done.predicted_ttft_s < done.predicted_ttft_tail_s < 1.0
    it = core(backend())
    it.arrived(request("r"), 0.0)
    assert np.isnan(it.client_left("r", 0.1)[-1].predicted_e2e_tail_s)


@pytest.mark.parametrize("tokens", [0.0, 0.3, 1.0, 7.5, 100.0, 1000.0, 2300.0])
def test_the_roof_is_read_from_its_table(tokens):
    """Within a part in a hundred of a step."""
    roofs = Roofs(2)
    scale = roofs.joined(1, MOE, 2304.0)
    exact = float(roof_s(MOE, np.array([tokens]))[0])
    prior = np.zeros((2, PRIOR))
    prior[1, SCALE] = scale
    assert kernels.roof_s(roofs.rows, prior, 1, tokens) == pytest.approx(exact, abs=0.01 * MOE.fixed_s)
