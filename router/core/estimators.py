"""Online estimation, the numeric loops: the filter of a backend's factors, ranked scores, forecast statistics, trust.

These are the reference: ``_estimators.c`` has the same loops in C, equal bit for bit, and ``loops.py`` selects which of
the two runs. A change here must be made there too. ``regression.py``, ``tails.py`` and ``score.py`` explain the
methods. Must not depend on what was predicted, or for which request.
"""

from math import inf
from typing import Final

from router.core.arithmetic import Cells, Order, ceil, exp, log, over, root
from router.core.columns import (
    CHANGES,
    CUSUM_ABOVE,
    CUSUM_BELOW,
    KEPT_QUANTILES,
    LEVELS,
    OFF,
    SEEN,
    SEEN_SCORES,
    SPREADS,
    STATS_COVERAGE,
    STATS_ERROR,
    STATS_MET,
    STATS_SEEN,
    TERMS,
    TPOT,
    TRUSTED,
    TTFT,
    WINDOW,
)

QUANTILES: Final = (0.5, 0.75, 0.9, 0.95, 0.99)  # those that are tracked
assert len(QUANTILES) == KEPT_QUANTILES

# -- how to learn ----------------------------------------------------------------------------------------------------

LOG_FACTOR_MOST: Final = 6.0  # of a learnt factor, either way: 400 times, beyond which no data sheet is of any use
SCORE_MOST: Final = 10.0  # of an outcome, either way: spreads read of such scores stay below kernels.SPREAD_MOST
CLIP: Final = 2.5  # standard deviations of an innovation that count in full
SLACK, ALARM = 0.75, 6.0  # CUSUM: what is chance, and what is a change; false alarms about once in 8,000 outcomes
CHANGE_ALL: Final = 0.5  # what a change may do to all factors at once (restart, half speed: log 2 = 0.7)
CHANGE_EACH: Final = 0.5  # and to each of them, as a share of its data sheet's error
VARIANCE_MIN: Final = 1e-12  # of a term: no square root of a negative one
NOISE_MIN, NOISE_MAX = 0.02**2, 1.0
NOISE_GAIN: Final = 0.04
WANDER_EVERY: Final = 4  # outcomes that wander at once: cheaper, and as far
BOUND_EVERY: Final = 32  # outcomes between two checks that the variance has not outgrown the data sheet's
FEW: Final = 20  # below so many scores of its own a backend's band borrows from its pool
SETTLED: Final = 64  # from then on the columns follow every REFRESH scores
REFRESH: Final = 4
ACI_GAIN: Final = 0.01  # step of the level for an outcome above its quantile; Gibbs & Candes use 0.005
LEVEL_MAX: Final = 0.9995
ONLY_WIDER: Final = 0.95  # the level of a quantile this high is only raised: one outcome above it says too little
BEYOND: Final = 0.35  # above the largest score there is only a guess: this share of what lies above the median
TRUSTED_AFTER: Final = 20  # first tokens seen
TTFT_ERROR_OFF, TPOT_ERROR_OFF = 0.7, 0.5  # median size of the log error from which on a forecast misleads
COVERAGE_OFF: Final = 0.7  # a 0.9 quantile that covers fewer outcomes than this misleads
RECOVERED: Final = 0.8  # an error must fall below this share of its limit before it counts as recovered
ERROR_UP: Final = 1.08  # a step of the running median: a tenfold change takes 30 outcomes
COVERAGE_GAIN: Final = 1.0 / 32
_P90: Final = 2  # the place of 0.9 among them


def widen(covariance: Cells, variance: Cells, watch: Cells, slot: int) -> None:
    """Raise the variance of what was learnt of a backend, as a whole and term by term: it may have changed."""
    watch[slot, CUSUM_ABOVE] = watch[slot, CUSUM_BELOW] = 0.0
    for j in range(TERMS):
        for k in range(TERMS):
            covariance[slot, j, k] += CHANGE_ALL * CHANGE_ALL
        covariance[slot, j, j] += CHANGE_EACH * CHANGE_EACH * variance[slot, j]


def _bound(covariance: Cells, variance: Cells, slot: int) -> None:
    """Limit the variance of a term that no outcome informs (covariance wind-up)."""
    shrink = [1.0] * TERMS
    for j in range(TERMS):
        largest = variance[slot, j] + CHANGE_ALL * CHANGE_ALL
        shrink[j] = min(1.0, root(largest / max(covariance[slot, j, j], VARIANCE_MIN)))
    for j in range(TERMS):
        for k in range(TERMS):
            covariance[slot, j, k] *= shrink[j] * shrink[k]


def _watch(covariance: Cells, wander: Cells, variance: Cells, watch: Cells, slot: int, z: float) -> None:
    """Widen the variance when innovations stay on one side; keep it within the data sheet's."""
    watch[slot, CUSUM_ABOVE] = max(0.0, watch[slot, CUSUM_ABOVE] + z - SLACK)
    watch[slot, CUSUM_BELOW] = max(0.0, watch[slot, CUSUM_BELOW] - z - SLACK)
    watch[slot, SEEN] += 1.0
    if watch[slot, CUSUM_ABOVE] > ALARM or watch[slot, CUSUM_BELOW] > ALARM:
        watch[slot, CHANGES] += 1.0
        widen(covariance, variance, watch, slot)
    elif watch[slot, SEEN] % WANDER_EVERY == 0.0:
        for j in range(TERMS):
            for k in range(TERMS):
                covariance[slot, j, k] += wander[slot, j, k]
        if watch[slot, SEEN] % BOUND_EVERY == 0.0:
            _bound(covariance, variance, slot)


def learn(
    factor: Cells, log_factor: Cells, covariance: Cells, wander: Cells, variance: Cells, noise: Cells,
    watch: Cells, slot: int, kind: int, terms_s: Cells, constant_s: float, actual_s: float, log_variance: float,
) -> float:  # fmt: skip
    """One step of the filter that ``Regression.update`` describes; arrays by slot, all but ``terms_s``, which may be
    followed by more.
    """
    predicted_s = constant_s
    for j in range(TERMS):
        predicted_s += terms_s[j] * factor[slot, j]
    spread, believed = [0.0] * TERMS, 0.0
    for j in range(TERMS):
        share = over(terms_s[j] * factor[slot, j], predicted_s)
        for k in range(TERMS):
            spread[k] += covariance[slot, k, j] * share
    for j in range(TERMS):
        believed += over(terms_s[j] * factor[slot, j], predicted_s) * spread[j]
    total = believed + noise[slot, kind] + log_variance
    deviation, error = root(total), log(over(actual_s, predicted_s))
    z = min(CLIP, max(-CLIP, over(error, deviation)))
    for j in range(TERMS):
        moved = log_factor[slot, j] + over(z * deviation, total) * spread[j]
        log_factor[slot, j] = min(LOG_FACTOR_MOST, max(-LOG_FACTOR_MOST, moved))
        factor[slot, j] = exp(log_factor[slot, j])
        for k in range(TERMS):
            covariance[slot, j, k] -= spread[j] * over(spread[k], total)
    moved = z * deviation
    excess = moved * moved - believed - log_variance - noise[slot, kind]
    noise[slot, kind] = min(NOISE_MAX, max(NOISE_MIN, noise[slot, kind] + NOISE_GAIN * excess))
    _watch(covariance, wander, variance, watch, slot, z)
    return error - over(z * deviation * believed, total)


# -- scores ----------------------------------------------------------------------------------------------------------


def _rank(scores: Cells, order: Order, count: int, score: float) -> int:
    """The first rank by size of those not below a score."""
    low, high = 0, count
    while low < high:
        middle = (low + high) // 2
        if scores[order[middle]] < score:
            low = middle + 1
        else:
            high = middle
    return low


def _add(scores: Cells, order: Order, score: float) -> None:
    """Insert the newest score; it replaces the oldest once the window is full."""
    seen = int(scores[SEEN_SCORES])
    count, place = min(seen, WINDOW), seen % WINDOW
    rank = _rank(scores, order, count, score)
    gap = count
    if seen >= WINDOW:
        gap = min(_rank(scores, order, count, scores[place]), WINDOW - 1)  # of an oldest that is not found in order
        while gap < WINDOW - 1 and order[gap] != place:  # of equal ones it may be any
            gap += 1
    while gap > rank:
        order[gap] = order[gap - 1]
        gap -= 1
    while gap < rank - 1:
        order[gap] = order[gap + 1]
        gap += 1
    order[gap] = place
    scores[place] = score
    scores[SEEN_SCORES] += 1.0


def _spread(scores: Cells, order: Order, q: int, below: float) -> float:
    """The score at the finite-sample rank of one tracked quantile's level, no less than what is ``below``; above the
    largest seen stands a guess that grows with spread.
    """
    count = int(min(scores[SEEN_SCORES], float(WINDOW)))
    rank, largest = ceil((count + 1) * scores[LEVELS + q]), scores[order[count - 1]]
    if rank <= count:
        score = scores[order[int(max(rank, 1.0)) - 1]]
    else:
        score = largest + BEYOND * (largest - scores[order[count // 2]])
    return max(score, below)


def spreads(scores: Cells, order: Order, out: Cells) -> None:
    """Fill ``out`` with the spread of each tracked quantile (``_spread``), never falling from one to the next. At least
    one score was seen.
    """
    least = -inf
    for q in range(KEPT_QUANTILES):
        out[q] = least = _spread(scores, order, q, least)


def _adapt(scores: Cells, score: float, expectation: Cells, spreads_at: int) -> None:
    """Move each level by whether the outcome stayed within its spread: of ``expectation`` from ``spreads_at`` on."""
    for i in range(KEPT_QUANTILES):
        quantile = QUANTILES[i]
        least = quantile if quantile >= ONLY_WIDER else max(0.3, 1.5 * quantile - 0.5)
        if score <= expectation[spreads_at + i]:
            scores[LEVELS + i] = max(least, scores[LEVELS + i] - ACI_GAIN * (1.0 - quantile))
        else:
            scores[LEVELS + i] = min(LEVEL_MAX, scores[LEVELS + i] + ACI_GAIN * quantile)


def _score(
    own: Cells, own_order: Order, pooled: Cells, pooled_order: Order, spread: Cells, borrows: Cells, metric: int,
    band: int, slot: int, score: float, expectation: Cells,
) -> bool:  # fmt: skip
    """Fold one score into a backend's own and, of the new and now and then of the old, into its pool's; returns whether
    the pool's spreads have to be read anew.
    """
    _add(own, own_order, score)
    _adapt(own, score, expectation, SPREADS + KEPT_QUANTILES * metric)
    seen = int(own[SEEN_SCORES])
    if seen >= FEW and (seen < SETTLED or seen % REFRESH == 0):
        least = -inf
        for q in range(KEPT_QUANTILES):
            spread[metric, q, band, slot] = least = _spread(own, own_order, q, least)
        borrows[metric, band, slot] = False
    if seen >= FEW and seen % FEW != 0:
        return False
    _add(pooled, pooled_order, score)
    return bool(pooled[SEEN_SCORES] >= FEW and int(pooled[SEEN_SCORES]) % REFRESH == 0)


def _trust(stats: Cells, slot: int, before: int) -> int:
    """Whether a forecast is trusted; the limits to regain trust are stricter than those to keep it."""
    if stats[slot, STATS_SEEN + TTFT] < TRUSTED_AFTER:
        return before
    strict = RECOVERED if before == OFF else 1.0
    wrong = (
        stats[slot, STATS_ERROR + TTFT] > strict * TTFT_ERROR_OFF
        or stats[slot, STATS_ERROR + TPOT] > strict * TPOT_ERROR_OFF
        or stats[slot, STATS_COVERAGE] < COVERAGE_OFF / strict
    )
    return OFF if wrong else TRUSTED


def _note(
    stats: Cells, state: Cells, slot: int, metric: int, score: float, expectation: Cells, width: float, sure: bool
) -> None:  # fmt: skip
    """Count an outcome ``score`` widths off its prediction; its error counts only where ``sure``."""
    spreads_at = SPREADS + KEPT_QUANTILES * metric
    stats[slot, STATS_SEEN + metric] += 1.0
    for i in range(KEPT_QUANTILES):
        if score <= expectation[spreads_at + i]:
            stats[slot, STATS_MET + KEPT_QUANTILES * metric + i] += 1.0
    size, error = abs(score) * width, stats[slot, STATS_ERROR + metric]
    if sure:  # up when above and down when below settles where half are above
        stats[slot, STATS_ERROR + metric] = error * ERROR_UP if size > error else error / ERROR_UP
    if metric == TTFT:
        q = 1.0 if score <= expectation[spreads_at + _P90] else 0.0
        stats[slot, STATS_COVERAGE] += COVERAGE_GAIN * (q - stats[slot, STATS_COVERAGE])
        state[slot] = _trust(stats, slot, int(state[slot]))


def judge(
    own: Cells, own_order: Order, pooled: Cells, pooled_order: Order, spread: Cells, borrows: Cells, stats: Cells,
    state: Cells, metric: int, band: int, slot: int, score: float, width: float, expectation: Cells, sure: bool,
) -> bool:  # fmt: skip
    """An outcome ``score`` widths off its prediction, of which ``kernels.expected`` filled ``expectation``: fold it
    into the scores, and count whether it stayed within each spread and, where ``sure``, how large errors are of late;
    returns whether the pool's spreads have to be read anew.
    """
    score = min(SCORE_MOST, max(-SCORE_MOST, score))
    _note(stats, state, slot, metric, score, expectation, width, sure)
    return _score(own, own_order, pooled, pooled_order, spread, borrows, metric, band, slot, score, expectation)
