"""What outcomes teach, compiled: the filter of a backend's factors, scores in order, promises kept, and trust.

Believes: ``regression.py``, ``tails.py`` and ``score.py`` say why; here is how. Must not know: what was predicted, or
who asked.
"""

from math import ceil, exp, log, sqrt
from typing import Final

import numpy as np
from numpy.typing import NDArray

from router.core.columns import (
    CHANGES,
    CUSUM_ABOVE,
    CUSUM_BELOW,
    KEPT_QUANTILES,
    LEVELS,
    OFF,
    RANKED,
    SEEN,
    SEEN_SCORES,
    SPREADS,
    STATS_COVERAGE,
    STATS_ERROR,
    STATS_MET,
    STATS_SEEN,
    TPOT,
    TRUSTED,
    TTFT,
    WINDOW,
)
from router.core.compiling import compiled, part
from router.core.kernels import Floats

QUANTILES: Final = (0.5, 0.75, 0.9, 0.95, 0.99)  # the kept ones
assert len(QUANTILES) == KEPT_QUANTILES

# -- how to learn ----------------------------------------------------------------------------------------------------

LOG_FACTOR_MOST: Final = 6.0  # of a learnt factor, either way: 400 times, beyond which no data sheet is of any use
SCORE_MOST: Final = 10.0  # of an outcome, either way: spreads read of such scores stay below kernels.SPREAD_MOST
CLIP: Final = 2.5  # standard deviations of an innovation that count in full
SLACK, ALARM = 0.75, 6.0  # CUSUM: what is chance, and what is a change; false alarms about once in 8,000 outcomes
CHANGE_ALL: Final = 0.5  # what a change may do to all factors at once (restart, half speed: log 2 = 0.7)
CHANGE_EACH: Final = 0.5  # and to each of them, as a share of its data sheet's error
NOISE_MIN, NOISE_MAX = 0.02**2, 1.0
NOISE_GAIN: Final = 0.04
WANDER_EVERY: Final = 4  # outcomes that wander at once: cheaper, and as far
BOUND_EVERY: Final = 32  # outcomes between two checks that doubt has not outgrown the data sheet's
FEW: Final = 20  # below so many scores of its own a backend's band borrows from its pool
SETTLED: Final = 64  # from then on the columns follow every REFRESH scores
REFRESH: Final = 4
ACI_GAIN: Final = 0.01  # step of the level for a broken promise; Gibbs & Candes use 0.005
LEVEL_MAX: Final = 0.9995
ONLY_WIDER: Final = 0.95  # the level of a promise this high is only ever raised: one broken says too little
BEYOND: Final = 0.35  # above the largest score there is only a guess: this share of what lies above the median
TRUSTED_AFTER: Final = 20  # first tokens seen
TTFT_ERROR_OFF, TPOT_ERROR_OFF = 0.7, 0.5  # median size of the log error from which on a forecast misleads
COVERAGE_OFF: Final = 0.7  # a promised 0.9 that is kept so rarely is no promise
RECOVERED: Final = 0.8  # an error must fall below this share of its limit before it counts as recovered
ERROR_UP: Final = 1.08  # a step of the running median: a tenfold change takes 30 outcomes
COVERAGE_GAIN: Final = 1.0 / 32
_P90: Final = 2  # the place of 0.9 among the kept quantiles


@compiled("void(f8[:, :, ::1], f8[:, ::1], f8[:, ::1], i8)")
def doubt(covariance: Floats, variance: Floats, watch: Floats, slot: int) -> None:
    """What was learnt of a backend may hold no longer, as a whole and term by term."""
    watch[slot, CUSUM_ABOVE] = watch[slot, CUSUM_BELOW] = 0.0
    for j in range(covariance.shape[1]):
        for k in range(covariance.shape[1]):
            covariance[slot, j, k] += CHANGE_ALL**2
        covariance[slot, j, j] += CHANGE_EACH**2 * variance[slot, j]


@part
def _bound(covariance: Floats, variance: Floats, slot: int) -> None:
    """A term that outcomes say nothing of must not grow ever more uncertain (covariance wind-up)."""
    shrink = np.empty(covariance.shape[1])
    for j in range(covariance.shape[1]):
        largest = variance[slot, j] + CHANGE_ALL**2
        shrink[j] = min(1.0, sqrt(largest / max(covariance[slot, j, j], 1e-12)))
    for j in range(covariance.shape[1]):
        for k in range(covariance.shape[1]):
            covariance[slot, j, k] *= shrink[j] * shrink[k]


@part
def _watch(covariance: Floats, wander: Floats, variance: Floats, watch: Floats, slot: int, z: float) -> None:
    """Doubt what was learnt when innovations keep to one side; keep doubt within the data sheet's."""
    watch[slot, CUSUM_ABOVE] = max(0.0, watch[slot, CUSUM_ABOVE] + z - SLACK)
    watch[slot, CUSUM_BELOW] = max(0.0, watch[slot, CUSUM_BELOW] - z - SLACK)
    watch[slot, SEEN] += 1.0
    if watch[slot, CUSUM_ABOVE] > ALARM or watch[slot, CUSUM_BELOW] > ALARM:
        watch[slot, CHANGES] += 1.0
        doubt(covariance, variance, watch, slot)
    elif watch[slot, SEEN] % WANDER_EVERY == 0.0:
        for j in range(covariance.shape[1]):
            for k in range(covariance.shape[1]):
                covariance[slot, j, k] += wander[slot, j, k]
        if watch[slot, SEEN] % BOUND_EVERY == 0.0:
            _bound(covariance, variance, slot)


@compiled(
    "f8(f8[:, ::1], f8[:, ::1], f8[:, :, ::1], f8[:, :, ::1], f8[:, ::1], f8[:, ::1], f8[:, ::1], i8, i8, f8[::1],"
    " f8, f8, f8)"
)
def learn(
    factor: Floats, log_factor: Floats, covariance: Floats, wander: Floats, variance: Floats, noise: Floats,
    watch: Floats, slot: int, kind: int, terms_s: Floats, beside_s: float, actual_s: float, doubtful: float,
) -> float:  # fmt: skip
    """One step of the filter that ``Regression.saw`` describes; arrays by slot, all but ``terms_s``, which may be
    followed by more.
    """
    terms = factor.shape[1]
    predicted_s = beside_s
    for j in range(terms):
        predicted_s += terms_s[j] * factor[slot, j]
    spread, believed = np.zeros(terms), 0.0
    for j in range(terms):
        share = terms_s[j] * factor[slot, j] / predicted_s
        for k in range(terms):
            spread[k] += covariance[slot, k, j] * share
    for j in range(terms):
        believed += terms_s[j] * factor[slot, j] / predicted_s * spread[j]
    total = believed + noise[slot, kind] + doubtful
    deviation, error = sqrt(total), log(actual_s / predicted_s)
    z = min(CLIP, max(-CLIP, error / deviation))
    for j in range(terms):
        moved = log_factor[slot, j] + z * deviation / total * spread[j]
        log_factor[slot, j] = min(LOG_FACTOR_MOST, max(-LOG_FACTOR_MOST, moved))
        factor[slot, j] = exp(log_factor[slot, j])
        for k in range(terms):
            covariance[slot, j, k] -= spread[j] * (spread[k] / total)
    excess = (z * deviation) ** 2 - believed - doubtful - noise[slot, kind]
    noise[slot, kind] = min(NOISE_MAX, max(NOISE_MIN, noise[slot, kind] + NOISE_GAIN * excess))
    _watch(covariance, wander, variance, watch, slot, z)
    return float(error - z * deviation * believed / total)


# -- scores ----------------------------------------------------------------------------------------------------------


@part
def _place(ranked: Floats, count: int, score: float) -> int:
    """The first place, in order, of those not below a score."""
    low, high = 0, count
    while low < high:
        middle = (low + high) // 2
        if ranked[middle] < score:
            low = middle + 1
        else:
            high = middle
    return low


@part
def _add(scores: Floats, score: float) -> None:
    """The newest score; the oldest makes room."""
    seen = int(scores[SEEN_SCORES])
    count, ranked = min(seen, WINDOW), scores[RANKED:LEVELS]
    place = _place(ranked, count, score)
    gap = count if seen < WINDOW else _place(ranked, count, scores[seen % WINDOW])
    while gap > place:
        ranked[gap] = ranked[gap - 1]
        gap -= 1
    while gap < place - 1:
        ranked[gap] = ranked[gap + 1]
        gap += 1
    ranked[gap] = score
    scores[seen % WINDOW] = score
    scores[SEEN_SCORES] += 1.0


@compiled("void(f8[::1], f8[:])")
def spreads(scores: Floats, out: Floats) -> None:
    """Fill ``out`` with the score at the finite-sample rank of each quantile's level, never falling from one to the
    next; above the largest seen stands a guess that grows with spread.
    """
    count, ranked = int(min(scores[SEEN_SCORES], float(WINDOW))), scores[RANKED:LEVELS]
    for i in range(KEPT_QUANTILES):
        rank = ceil((count + 1) * scores[LEVELS + i])
        if rank <= count:
            out[i] = ranked[rank - 1]
        else:
            out[i] = ranked[count - 1] + BEYOND * (ranked[count - 1] - ranked[count // 2])
        if i > 0:
            out[i] = max(out[i], out[i - 1])


@part
def _adapt(scores: Floats, score: float, told: Floats, promised: int) -> None:
    """Move each level by whether its promise was kept; promises are in ``told`` from ``promised`` on."""
    for i in range(KEPT_QUANTILES):
        quantile = QUANTILES[i]
        least = quantile if quantile >= ONLY_WIDER else max(0.3, 1.5 * quantile - 0.5)
        if score <= told[promised + i]:
            scores[LEVELS + i] = max(least, scores[LEVELS + i] - ACI_GAIN * (1.0 - quantile))
        else:
            scores[LEVELS + i] = min(LEVEL_MAX, scores[LEVELS + i] + ACI_GAIN * quantile)


@part
def _score(
    own: Floats, pooled: Floats, spread: Floats, borrows: NDArray[np.bool_], metric: int, band: int, slot: int,
    score: float, told: Floats,
) -> bool:  # fmt: skip
    """Fold one score into a backend's own and, of the new and now and then of the old, into its pool's; returns whether
    the pool has something new to lend.
    """
    _add(own, score)
    _adapt(own, score, told, SPREADS + KEPT_QUANTILES * metric)
    seen = int(own[SEEN_SCORES])
    if seen >= FEW and (seen < SETTLED or seen % REFRESH == 0):
        spreads(own, spread[metric, :, band, slot])
        borrows[metric, band, slot] = False
    if seen >= FEW and seen % FEW != 0:
        return False
    _add(pooled, score)
    return bool(pooled[SEEN_SCORES] >= FEW and int(pooled[SEEN_SCORES]) % REFRESH == 0)


@part
def _trust(books: Floats, slot: int, before: int) -> int:
    """Whether a forecast may be trusted now; it takes more to come back than to stay."""
    if books[slot, STATS_SEEN + TTFT] < TRUSTED_AFTER:
        return before
    strict = RECOVERED if before == OFF else 1.0
    wrong = (
        books[slot, STATS_ERROR + TTFT] > strict * TTFT_ERROR_OFF
        or books[slot, STATS_ERROR + TPOT] > strict * TPOT_ERROR_OFF
        or books[slot, STATS_COVERAGE] < COVERAGE_OFF / strict
    )
    return OFF if wrong else TRUSTED


@part
def _note(
    books: Floats, state: NDArray[np.int8], slot: int, metric: int, score: float, told: Floats, width: float, sure: bool
) -> None:  # fmt: skip
    """Book an outcome ``score`` widths off its prediction; how far off only where that is ``sure`` to say something."""
    promised = SPREADS + KEPT_QUANTILES * metric
    books[slot, STATS_SEEN + metric] += 1.0
    for i in range(KEPT_QUANTILES):
        if score <= told[promised + i]:
            books[slot, STATS_MET + KEPT_QUANTILES * metric + i] += 1.0
    size, error = abs(score) * width, books[slot, STATS_ERROR + metric]
    if sure:  # up when above and down when below settles where half are above
        books[slot, STATS_ERROR + metric] = error * ERROR_UP if size > error else error / ERROR_UP
    if metric == TTFT:
        kept = 1.0 if score <= told[promised + _P90] else 0.0
        books[slot, STATS_COVERAGE] += COVERAGE_GAIN * (kept - books[slot, STATS_COVERAGE])
        state[slot] = _trust(books, slot, state[slot])


@compiled("b1(f8[::1], f8[::1], f8[:, :, :, ::1], b1[:, :, ::1], f8[:, ::1], i1[::1], i8, i8, i8, f8, f8, f8[::1], b1)")
def judge(
    own: Floats, pooled: Floats, spread: Floats, borrows: NDArray[np.bool_], books: Floats, state: NDArray[np.int8],
    metric: int, band: int, slot: int, score: float, width: float, told: Floats, sure: bool,
) -> bool:  # fmt: skip
    """An outcome ``score`` widths off its prediction, with which was ``told`` what ``kernels.expected`` fills in: fold
    it into the scores, and book whether promises were kept and, where ``sure``, how large errors are of late; returns
    whether the pool has something new to lend.
    """
    score = min(SCORE_MOST, max(-SCORE_MOST, score))
    _note(books, state, slot, metric, score, told, width, sure)
    return _score(own, pooled, spread, borrows, metric, band, slot, score, told)


# -- lengths ---------------------------------------------------------------------------------------------------------
