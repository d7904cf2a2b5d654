"""The loops against the same formulas over whole arrays: equal to rounding on fleets drawn at random."""

import random
from math import ceil, log

import numpy as np
import pytest

from router.core import loops
from router.core.belief import Belief
from router.core.columns import (
    AHEAD,
    CONTEXT,
    DECODING,
    EAGER,
    FIRST,
    FIXED,
    KEPT_QUANTILES,
    KV_TOKENS_MAX,
    LEVELS,
    PAIR,
    PEERS,
    PREFILL_RATE,
    PREFILLING,
    RATE_AT_S,
    ROOF_POINTS,
    SCALE,
    SEQ,
    SHARE,
    TERMS,
    TOKEN,
    UNATTRIBUTED,
    WINDOW,
)
from router.core.estimators import BEYOND
from router.core.fleet import Fleet
from router.core.forecast import Forecast
from router.core.ledger import Ledger
from router.core.lengths import BINS, Lengths
from router.core.metering import RATE_TAU_S
from router.core.physics import StepCoefficients
from router.core.regression import Regression
from router.core.tails import Tails
from router.core.types import Backend, EngineReport, Load
from tests.fakes import request
from tests.scores import current_spreads, fold_in

SIGMA = (0.3, 0.5, 0.3, 0.3, 0.5, 0.5, 1.0)


def drawn(chance, count):
    """A ledger and a belief of backends unlike each other, some full, some idle, all learnt to be off."""
    ledger, belief = Ledger(), Belief()
    for n in range(count):
        prior = StepCoefficients(
            *(chance.uniform(0.5, 2.0) * x for x in (0.01, 1e-4, 1e-7, 2e-4, 1e-9, 5e-3, 2e-3, 1e-4, 1e-2, 0.06)),
            stages=chance.choice((1, 1, 4)),
            eager_s=chance.choice((0.0, 0.02)),
        )
        facts = {"seqs_max": chance.choice((8, 256)), "kv_tokens_max": chance.choice((5_000, 500_000))}
        joined = Backend(f"b{n}", ("m",), prior, chunk_tokens=chance.choice((512, 8192)), network_s=0.001 * n, **facts)
        belief.joined(ledger.join(joined, 0.0), joined)
    for _ in range(5 * count):
        now_s, slot = chance.uniform(0.0, 3.0), chance.randrange(count)
        held = ledger.load.reserve(slot, chance.choice((0.0, 3.0, 4000.0)), 700.0, np.inf, now_s)
        if chance.random() < 0.7:
            ledger.load.prefilled(held, now_s)
        belief.regression.update(
            slot, 0, np.array([0.1, 0.0, 0.01, 0.02, 0.001, 0.005, 0.03]), 0.0, chance.uniform(0.05, 0.5)
        )
        spreads = current_spreads(belief.tails, chance.randrange(3), slot)
        fold_in(belief.tails, chance.randrange(3), chance.randrange(3), slot, chance.gauss(0.0, 0.3), spreads)
    ledger.peers.on_peer_load("peer", {f"b{n}": Load(n % 3, 50.0 * (n % 3), n, 300.0 * n) for n in range(count)}, 0.0)
    ledger.reports.reported(0, EngineReport.by_name(1.0, running=9.0, waiting=2.0, kv_usage=0.1), 1.0)
    belief.load_band_bias[:] = np.random.default_rng(1).uniform(0.8, 1.2, belief.load_band_bias.shape)
    belief.hit[:] = np.linspace(0.0, 0.9, len(belief.hit))
    return ledger, belief


class Reference:
    """The means of ``forecast.py``, every line over all candidates at once."""

    def __init__(self, fleet, belief, it, mean_prompt, mean_output):  # noqa: PLR0915 - one model, told in one go
        slots = fleet.slots
        self.rows, self.prior, factor = belief.roofs.rows[slots], belief.prior[slots], belief.regression.factor[slots]
        self.each_row = np.arange(len(slots))
        c, f = (self.prior[:, :TERMS] * factor).T, factor.T
        prefilling, queued, batch, context = fleet.load
        own, cached = it.prefill_tokens, it.cached_tokens
        room = np.maximum(fleet.chunk_tokens - batch, 1.0)
        each = queued / np.maximum(prefilling, 1.0)
        growing = np.minimum(batch + prefilling + 1.0, fleet.seqs_max)
        first = np.minimum(queued, room)
        left = queued - first + own
        full = np.maximum(np.ceil(left / room) - 1.0, 0.0)
        last = left - full * room
        now = self.roof(batch * self.prior[:, SHARE])

        def beyond(tokens):
            over = self.roof(tokens + batch * self.prior[:, SHARE]) - now
            return np.hypot(over, self.prior[:, EAGER] * np.minimum(tokens, 1.0))

        step = c[FIXED] + f[FIXED] * now + c[SEQ] * batch + c[CONTEXT] * context
        prompt = f[TOKEN] * beyond(first) + first * (c[TOKEN] + c[PAIR] * (0.5 * each))
        since = fleet.now_s - fleet.of(fleet.columns[RATE_AT_S])
        since[fleet.of(fleet.columns[PREFILLING]) <= 0.0] = np.nan
        gone = np.where(batch > 0.0, np.maximum(since - step, 0.0) + 0.5 * step, since)
        known = (queued > 0.0) & (queued <= room) & (since >= 0.0)
        share = np.clip(1.0 - gone / (step + prompt), 0.1, 1.0)
        under_way = np.where(known, share, 0.5 * (batch + queued > 0.0))
        requests, held, running = prefilling + batch, queued + context, np.minimum(prefilling + batch, fleet.seqs_max)
        over = np.maximum(requests + 1.0 - fleet.seqs_max, (held + it.tokens - fleet.kv_tokens_max) / it.tokens)
        waiting = np.maximum(over, 0.0) * mean_output / np.maximum(running, 1.0)
        steps = full + under_way + 1.0 + waiting
        tokens = left + under_way * first
        prompt_s = f[TOKEN] * (under_way * beyond(first) + full * beyond(room) + beyond(last)) + c[TOKEN] * tokens
        pair_s = c[PAIR] * (own * (cached + 0.5 * own) + (tokens - own) * (0.5 * each))
        self.band = np.where(waiting > 0.0, 2, queued > 0.0)
        scheduled = np.minimum(batch + queued, 1.0) * c[AHEAD] * step
        ttft = steps * step + scheduled + fleet.network_s + prompt_s + pair_s + c[FIRST]
        self.ttft = ttft * belief.load_band_bias[0, self.band, slots]
        in_cache = np.minimum(context + queued + it.tokens, fleet.kv_tokens_max)
        life = c[FIXED] + f[FIXED] * self.roof(growing * self.prior[:, SHARE]) + c[SEQ] * growing
        life += c[CONTEXT] * in_cache
        piece = np.minimum(mean_prompt, room)
        each_s = f[TOKEN] * beyond(piece) / piece + c[TOKEN] + c[PAIR] * (mean_prompt / 2)
        taken = growing * mean_prompt * each_s / (mean_output * life)
        share = np.where(waiting > 0.0, taken / (1.0 + taken), fleet.prefill_tokens_per_s * each_s)
        self.tpot = life / (1.0 - np.minimum(share, 0.8)) * belief.load_band_bias[1, self.band, slots]
        self.e2e = self.ttft + max(it.output_tokens - 1.0, 0.0) * self.tpot
        fixed = steps * (c[FIXED] + f[FIXED] * now)
        parts = (fixed, steps * c[SEQ] * batch, steps * c[CONTEXT] * context, prompt_s, pair_s, c[FIRST], scheduled)
        self.terms = np.array(parts).T / factor
        self.log_variance = 0.25 * (waiting * step / self.ttft) ** 2 + (step / self.ttft) ** 2 / 12

    def roof(self, tokens):
        """Straight between the places of the tables."""
        place = np.sqrt(tokens) * self.prior[:, SCALE]
        below = np.minimum(place, ROOF_POINTS - 1.001).astype(np.intp)
        low, high = self.rows[self.each_row, below], self.rows[self.each_row, below + 1]
        return low + (place - below) * (high - low)


@pytest.mark.parametrize("prompt_tokens", [0, 100, 20_000])
@pytest.mark.parametrize("seed", range(8))
def test_forecasts_are_what_the_formulas_say(seed, prompt_tokens):
    """Every mean, and for every candidate the expectation that learning gets, to nine digits."""
    chance = random.Random(seed)
    ledger, belief = drawn(chance, 30)
    belief.prompts.update("m", 500.0, 700)
    belief.lengths.update("m", "default", 90)
    slots = np.array(sorted(chance.sample(range(30), 20))) if seed % 2 else ledger.roster.pool("m")
    fleet = Fleet(ledger, slots, 3.0)
    it = Forecast(request(prompt_tokens=prompt_tokens, output_tokens_max=chance.choice((0, 60))), fleet, belief)
    told = Reference(fleet, belief, it, 700.0, 90.0)
    assert set(told.band) >= {1, 2}
    np.testing.assert_allclose((it.ttft_s, it.tpot_s, it.e2e_s), (told.ttft, told.tpot, told.e2e), rtol=1e-9)
    for index, slot in enumerate(slots.tolist()):
        expected = it.at(index).expectation
        np.testing.assert_allclose(expected.terms_and_spreads[:TERMS], told.terms[index], rtol=1e-9, atol=1e-18)
        assert expected.log_variance == pytest.approx(told.log_variance[index], rel=1e-9)
        spreads = belief.tails.spread[:, :, told.band[index], slot]
        assert expected.terms_and_spreads[TERMS:].tolist() == spreads.ravel().tolist()
        assert it.prefill_tokens_at(index) == pytest.approx(it.prefill_tokens[index], rel=1e-12)


def filtered(it, terms, constant, actual, log_variance):
    """One outcome by the textbook: the state, the covariance and the noise after it, before anything wanders."""
    factor, log_factor, covariance, noise = it.factor[0], it._log[0], it._covariance[0], it._noise[0, 0]
    predicted = terms @ factor + constant
    shares = terms * factor / predicted
    spread = covariance @ shares
    believed = shares @ spread
    variance = believed + noise + log_variance
    z = np.clip(np.log(actual / predicted) / np.sqrt(variance), -2.5, 2.5)
    after = log_factor + z / np.sqrt(variance) * spread
    noise += 0.04 * (z**2 * variance - believed - log_variance - noise)
    return after, covariance - np.outer(spread, spread) / variance, np.clip(noise, 0.02**2, 1.0)


def test_the_regression_equals_the_filter_in_numpy():
    """Log factors, covariance and noise after each of a hundred outcomes; every fourth wanders besides."""
    chance, it = random.Random(5), Regression(2, 1)
    it.joined(0, SIGMA)
    for n in range(1, 101):
        terms = np.array([chance.random() for _ in range(TERMS)])
        actual, log_variance = 2.0 * float(terms.sum()) * chance.uniform(0.8, 1.2), chance.choice((0.0, 0.3))
        log_factor, covariance, noise = filtered(it, terms, 0.1, actual, log_variance)
        changes = it.changes(0)
        it.update(0, 0, terms, 0.1, actual, log_variance)
        np.testing.assert_allclose(it._log[0], log_factor, rtol=1e-9)
        np.testing.assert_allclose(it.factor[0], np.exp(log_factor), rtol=1e-9)
        assert it._noise[0, 0] == pytest.approx(noise, rel=1e-9)
        if it.changes(0) == changes and n % 32:
            wandered = it._wander[0] if n % 4 == 0 else 0.0
            np.testing.assert_allclose(it._covariance[0], covariance + wandered, rtol=1e-9, atol=1e-15)


def test_scores_are_kept_in_order_and_read_at_their_rank():
    """The last 160 of 700, some of them equal; ceil((n + 1) q) of each level, never falling, a guess beyond."""
    chance, tails, told = random.Random(6), Tails(1), []
    tails.joined(0, "m")
    for _ in range(700):
        told.append(round(chance.gauss(0.0, 0.3), 1))
        fold_in(tails, 0, 0, 0, told[-1], current_spreads(tails, 0, 0))
        kept, order, _, _ = tails.scores(0, 0, 0)
        ranked = sorted(told[-WINDOW:])
        count = len(ranked)
        assert kept[order[:count]].tolist() == ranked
    ranks = [ceil((count + 1) * level) for level in kept[LEVELS : LEVELS + KEPT_QUANTILES]]
    beyond = ranked[-1] + BEYOND * (ranked[-1] - ranked[count // 2])
    spreads = [ranked[rank - 1] if rank <= count else beyond for rank in ranks]
    assert current_spreads(tails, 0, 0)[0].tolist() == np.maximum.accumulate(spreads).tolist()


@pytest.mark.parametrize("cap", [0, 1, 7, 100, 4096, 2**18, 2**20])
def test_outlooks_are_what_the_product_limit_says(cap):
    """Of weights drawn at random: survival, the mean under a cap, and the spread of the log."""
    weights = np.random.default_rng(cap).uniform(0.0, 1.0, (2, BINS))
    it = Lengths()
    it.adopt("m", {"default": {"ended": weights[0].tolist(), "cut": weights[1].tolist()}})
    at_risk = weights.sum() - np.concatenate(([0.0], weights.sum(axis=0).cumsum()[:-1]))
    alive = np.concatenate(([1.0], np.cumprod(1.0 - weights[0] / at_risk)[:-1], [0.0]))
    edges = 2.0 ** (np.arange(BINS + 1) / 4)
    whole = BINS if not cap else min(BINS, int(np.searchsorted(edges, cap, side="right")) - 1)
    share = np.append(alive[:whole] - alive[1 : whole + 1], alive[whole])
    tokens = np.append(np.sqrt(edges[:whole] * edges[1 : whole + 1]), cap if whole < BINS else 1.0)
    if whole == BINS:
        share[-1] = 0.0
    mean, first, second = (float(share @ f) for f in (tokens, np.log(tokens), np.log(tokens) ** 2))
    told = it.estimate("m", "default", cap)
    assert told.tokens == pytest.approx(max(1.0, mean), rel=1e-9)
    assert told.spread == pytest.approx(np.sqrt(max(0.0, second - first**2)), rel=1e-7, abs=1e-7)


@pytest.mark.parametrize("cap", [0, 1, 50, 2**17, 2**20])
@pytest.mark.parametrize("seed", range(3))
def test_the_chance_to_end_in_time_and_its_slope_are_those_of_the_survival_curve(seed, cap):
    """Straight over the log of tokens between the edges of bins; the slope is that of the next quarter of an octave.
    Less than a token is never enough; the cap, or the longest reply that there is, always.
    """
    shape = np.random.default_rng(seed)
    alive = np.concatenate(([1.0], np.sort(shape.uniform(0.0, 1.0, BINS - 1))[::-1], [0.0]))
    tokens = np.concatenate(([0.0, 0.5, 1.0, 2.0, 49.9, 50.0, 2.0**17, 1e9], np.exp(shape.uniform(0.0, 11.7, 40))))
    out = np.empty((2, len(tokens)))
    loops.in_time(alive, 4.0, float(cap), tokens, out)

    def within(asked):
        return 1.0 - np.interp(4.0 * np.log2(np.maximum(asked, 1e-9)), np.arange(BINS + 1), alive)

    sure = (tokens >= 2.0**17) | ((cap > 0) & (tokens >= cap))
    never = (tokens < 1.0) & ~sure
    expected = np.where(sure, 1.0, np.where(never, 0.0, within(tokens)))
    slope = (within(tokens * 2.0**0.25) - within(tokens)) / log(2.0**0.25)
    np.testing.assert_allclose(out[0], expected, atol=1e-12)
    np.testing.assert_allclose(out[1], np.where(sure | never, 0.0, slope), atol=1e-9)


@pytest.mark.parametrize("seed", range(6))
def test_at_rest_is_what_is_predicted_where_nothing_is_in_flight(seed):
    """On engines unlike each other that are loaded as they may be, and learnt to be off: rest is the forecast over the
    same engines idle, prefix cache and all.
    """
    chance = random.Random(seed)
    ledger, belief = drawn(chance, 20)
    asked = request(prompt_tokens=chance.choice((1, 700, 3000)), output_tokens_max=chance.choice((1, 60, 400)))
    unused = Ledger()
    for joined in ledger.roster.backends:
        unused.join(joined, 0.0)
    idle = Forecast(asked, Fleet(unused, unused.roster.pool("m"), 3.0), belief)
    slots = np.array(sorted(chance.sample(range(20), 9))) if seed % 2 else ledger.roster.pool("m")
    loaded = Forecast(asked, Fleet(ledger, slots, 3.0), belief)
    assert loaded.tokens < ledger.table.columns[KV_TOKENS_MAX][:20].min()
    np.testing.assert_allclose(loaded.rest, idle.means_s[:, slots], rtol=1e-12)
    assert (loaded.rest != loaded.means_s).any()


def test_the_rate_of_prompts_counts_those_of_others():
    """This router's own, faded since the last send, and what each request that others decode there should bring."""
    ledger, _ = drawn(random.Random(3), 9)
    fleet = Fleet(ledger, ledger.roster.pool("m"), 4.0)
    of = {row: fleet.columns[row, :9] for row in (PREFILL_RATE, RATE_AT_S, PEERS + DECODING, UNATTRIBUTED + DECODING)}
    own = of[PREFILL_RATE] * np.exp((of[RATE_AT_S] - 4.0) / RATE_TAU_S)
    others = of[PEERS + DECODING] + of[UNATTRIBUTED + DECODING]
    assert fleet.prompt_tokens_per_s_each > 0.0
    assert others.any()
    assert fleet.prefill_tokens_per_s == pytest.approx(own + others * fleet.prompt_tokens_per_s_each, rel=1e-12)
