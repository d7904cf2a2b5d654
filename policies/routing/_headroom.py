"""How much of its SLO a prediction uses up: the quantity that headroom policies score by, and the loops that weigh it.

1 is the bound itself, less is headroom, more is a miss. No bound at all uses nothing. The loops over candidates are the
reference: ``_headroom_loops.c`` has the same in C, equal bit for bit, and ``_loops.py`` says which of them run. What is
changed here has to be changed there.
"""

from math import erf, inf, pi, sqrt
from typing import Final, TypeVar

from router.core import (
    DECODING,
    E2E,
    E2E_TPOT_BOUND_S,
    EXPECTED_TPOT_VIOLATIONS,
    IMPOSED_DELAY_S,
    LOADS,
    OFF,
    PREFILL_SHARE,
    PREFILLING,
    TAILS,
    TPOT,
    TPOT_BOUND_S,
    TTFT,
    Floats,
)
from router.core.arithmetic import Cells, Places, exp, log, over

_Seconds = TypeVar("_Seconds", float, Floats)
BOUND_MIN_S: Final = 1e-9  # an SLO of 0 s is violated by any prediction, without a division by it
TTFT_TAIL_MAX: Final = 1.3  # times the mean: a wider tail is no reason to wait, for waiting does not narrow it
TTFT_MARGIN_MIN: Final = 0.04  # of the mean: a backend drifts so far while its outcomes are under way
PREFILL_MARGIN: Final = 2.0  # times the margin more on an engine that does nothing but prompts; see _usable_ttft_s
TPOT_TAIL_MAX: Final = 1.2  # error of a step's model and drift of an engine; see _usable_tpot_s
TPOT_TAIL_MAX_OFF: Final = 1.5
NEAR_SHARE: Final = 0.05  # scores this close are equal: the forecast is no better than that
EDGE: Final = 0.3  # of a bound: how far from it a share of it begins to weigh more than in proportion
OVERLAP: Final = 2.0  # times the delay imposed on those there: as many again will come while the request runs
Z_90: Final = 1.2816  # standard deviations to the 0.9 quantile of a normal distribution
SIGMA_MIN, SIGMA_MAX = 0.03, 0.5  # of the log of a prediction
SQRT_2: Final = sqrt(2.0)
SQRT_2_PI: Final = sqrt(2.0 * pi)
TPOT_VIOLATIONS_MAX: Final = 0.01  # replies whose TPOT SLO a prompt may be expected to violate: less is chance


def slo_shares(
    ttft_s: _Seconds, tpot_s: _Seconds, e2e_s: _Seconds, bounds_s: tuple[float, float, float]
) -> tuple[_Seconds, _Seconds, _Seconds]:
    """The shares of the bounds of TTFT, TPOT and E2E that predictions take, for one backend or for all at once.

    TTFT and E2E count from the request's arrival; ``bounds_s``: see ``divisors``.
    """
    return ttft_s / bounds_s[0], tpot_s / bounds_s[1], e2e_s / bounds_s[2]


def divisors(ttft_s: float, tpot_s: float, e2e_s: float) -> tuple[float, float, float]:
    """The bounds of an SLO as ``slo_shares`` divides by them."""
    return max(ttft_s, BOUND_MIN_S), max(tpot_s, BOUND_MIN_S), max(e2e_s, BOUND_MIN_S)


SLO_USE_MEAN, SLO_USE_TAIL, PEERS_SLO_USE, FITS, CANDIDATES, TTFT_S, TPOT_S, GAIN = range(8)
WEIGHED: Final = 8
"""Rows that ``weigh`` fills, one column a candidate: the largest share of any bound that it would use.
``SLO_USE_MEAN``: of this request's bounds and of those of others there, with as much of the tail of its TTFT as
waiting could lessen; ``SLO_USE_TAIL``: with the whole tail; ``PEERS_SLO_USE``: of those of others alone; ``FITS``: 1
where every bound will be met, else 0; ``CANDIDATES``: the places of those to choose among, as many as ``weigh`` counts;
``TTFT_S``, ``TPOT_S``: the TTFT and TPOT that were counted with; ``GAIN``: see ``most_gained``.
"""
NONE_FITS: Final = -1


def _usable_tpot_s(mean_s: float, tail_s: float, state: float) -> float:
    """The TPOT to count with.

    The tail of TPOT is mostly what came after the send: load that grew. That is no chance but our own later decisions,
    and each of those keeps the TPOT SLOs of the replies there. So the mean is widened by no more than the error of a
    step's model, and by more where that is off.
    """
    return min(tail_s, (TPOT_TAIL_MAX_OFF if state == OFF else TPOT_TAIL_MAX) * mean_s)


def _usable_ttft_s(mean_s: float, tail_s: float, busy: float) -> float:
    """The TTFT to count with: the mean and the part of its tail that waiting could lessen. An engine that is busy with
    prompts has others to come, which a request that misses keeps from being served in time: the busier, the wider the
    margin.
    """
    margin = max(over(tail_s, mean_s) - 1.0, TTFT_MARGIN_MIN) * (1.0 + PREFILL_MARGIN * busy)
    return min(1.0 + margin, TTFT_TAIL_MAX) * mean_s


def _bound_s(columns: Cells, slot: int, ends: bool) -> float:
    """The time per token that those on a backend leave to a newcomer. One that has an E2E itself (``ends``) is weighed
    against theirs as equals are, in SLOs met; others have to leave them their time per token.
    """
    bound_s = columns[TPOT_BOUND_S, slot]
    return bound_s if ends else min(bound_s, columns[E2E_TPOT_BOUND_S, slot])


def _bearable(weights: Cells, rows: Cells, count: int, urgent_s: float) -> float:
    """How many replies' TPOT SLO the prompt may violate.

    None, within chance, or the fewest that one of those that fit would; but where even that is some and the soonest
    first token is before ``urgent_s``, less than none.
    """
    least, soonest_s = inf, inf
    for i in range(count):
        if weights[FITS, i] > 0.0:
            least, soonest_s = min(least, rows[EXPECTED_TPOT_VIOLATIONS, i]), min(soonest_s, rows[TTFT, i])
    if least > TPOT_VIOLATIONS_MAX and soonest_s < urgent_s:
        return -1.0
    return max(least, TPOT_VIOLATIONS_MAX)


def _in_flight(rows: Cells, i: int) -> float:
    """Requests of any phase."""
    return rows[LOADS + PREFILLING, i] + rows[LOADS + DECODING, i]


def _score(weights: Cells, rows: Cells, price_per_s: Cells, anything: bool, i: int) -> float:
    """Lower is better: the time that the send costs all requests, times the use of the bounds.

    With no bound in force the use is 0: then the time alone.
    """
    if len(price_per_s) > 0:
        return over(price_per_s[i] * rows[E2E, i] * weights[SLO_USE_TAIL, i], _in_flight(rows, i) + 1.0)
    cost_s = rows[E2E, i] + OVERLAP * rows[IMPOSED_DELAY_S, i]
    use = weights[SLO_USE_TAIL, i]
    return use * cost_s / max(1.0 + EDGE - use, EDGE) if anything else cost_s


def _nearest(weights: Cells, rows: Cells, count: int, bearable: float, price_per_s: Cells) -> int:
    """Fill CANDIDATES with those that fit, violate no more than ``bearable`` and score near the lowest; returns how
    many. Before that CANDIDATES holds the scores; inf for those ruled out.
    """
    anything, lowest = False, inf
    for i in range(count):
        anything = anything or weights[SLO_USE_TAIL, i] > 0.0
    for i in range(count):
        weights[CANDIDATES, i] = inf
        if weights[FITS, i] > 0.0 and rows[EXPECTED_TPOT_VIOLATIONS, i] <= bearable:
            weights[CANDIDATES, i] = _score(weights, rows, price_per_s, anything, i)
            lowest = min(lowest, weights[CANDIDATES, i])
    near, found = lowest * (1.0 + NEAR_SHARE), 0
    for i in range(count):
        remains = weights[FITS, i] > 0.0 and rows[EXPECTED_TPOT_VIOLATIONS, i] <= bearable
        if remains and weights[CANDIDATES, i] <= near:
            weights[CANDIDATES, found] = i
            found += 1
    return found


def weigh(
    ttft_s: float, tpot_s: float, e2e_s: float, reply_tokens: float, waited_s: float, safety: float, urgent_s: float,
    rows: Cells, states: Cells, columns: Cells, slots: Places, price_per_s: Cells, weights: Cells,
) -> int:  # fmt: skip
    """Fill ``weights``; returns the number of candidates to choose among, or NONE_FITS.

    The bounds are the request's; ``reply_tokens``: the length that its E2E is judged at; ``safety``: a factor on every
    prediction; ``rows``: of its forecast, EXPECTED_TPOT_VIOLATIONS filled. Of those that fit, those remain that violate
    no TPOT SLO, or the fewest (``_bearable``; none where the first token comes so early, before ``urgent_s``, that the
    request can wait); of these the ones within ``NEAR_SHARE`` of the lowest ``_score``.

    On an idle backend the mean decides whether the request fits: a tail learnt during a fault would otherwise keep
    every request away, and with it every new observation.
    """
    bounds_s = divisors(ttft_s, tpot_s, e2e_s)
    after = max(reply_tokens - 1.0, 0.0)
    fit = 0
    for i in range(len(slots)):
        mean_ttft_s, mean_tpot_s = rows[TTFT, i], rows[TPOT, i]
        tail_ttft_s = rows[TAILS + TTFT, i]
        usable_tpot_s = _usable_tpot_s(mean_tpot_s, rows[TAILS + TPOT, i], states[i])
        used_ttft_s = _usable_ttft_s(mean_ttft_s, tail_ttft_s, rows[PREFILL_SHARE, i])
        peers = usable_tpot_s / max(_bound_s(columns, slots[i], e2e_s < inf), BOUND_MIN_S)
        end_s = waited_s + after * usable_tpot_s
        use = max(slo_shares(waited_s + used_ttft_s, usable_tpot_s, end_s + used_ttft_s, bounds_s))
        weights[SLO_USE_MEAN, i] = safety * max(use, peers)
        use = max(slo_shares(waited_s + tail_ttft_s, usable_tpot_s, end_s + tail_ttft_s, bounds_s))
        weights[SLO_USE_TAIL, i] = max(use, peers)
        weights[PEERS_SLO_USE, i], weights[TTFT_S, i], weights[TPOT_S, i] = peers, used_ttft_s, usable_tpot_s
        end_s = waited_s + mean_ttft_s + after * mean_tpot_s
        alone = safety * max(slo_shares(waited_s + mean_ttft_s, mean_tpot_s, end_s, bounds_s))
        fits = weights[SLO_USE_MEAN, i] <= 1.0 or (_in_flight(rows, i) < 1.0 and alone <= 1.0)
        weights[FITS, i] = 1.0 if fits else 0.0
        fit += 1 if fits else 0
    if fit == 0:
        return NONE_FITS
    return _nearest(weights, rows, len(slots), _bearable(weights, rows, len(slots), urgent_s), price_per_s)


# -- what waiting can change -----------------------------------------------------------------------------------------


def longest_reply(ttft_s: float, tpot_s: float, e2e_s: float, rest: Cells) -> float:
    """The longest reply, in tokens, with which every bound is met on some candidate where nothing else is in flight:
    0 where there is none, inf where no bound depends on it. ``rest``: ``Forecast.rest``.
    """
    longest = 0.0
    for i in range(rest.shape[1]):
        if rest[TTFT, i] <= ttft_s and rest[TPOT, i] <= tpot_s and rest[TTFT, i] <= e2e_s:
            longest = max(longest, 1.0 + (e2e_s - rest[TTFT, i]) / max(rest[TPOT, i], BOUND_MIN_S))
    return longest


def _tpot_in_s(tpot_s: float, rest_s: float, bound_s: float, shrinks: float, life_s: float) -> float:
    """Seconds until a TPOT that falls to ``rest_s`` as those there end within ``life_s`` is inside a bound that falls
    itself by ``shrinks`` a second; inf where it never is.
    """
    if tpot_s <= bound_s:
        return 0.0
    gain = over(tpot_s - rest_s, life_s) - shrinks
    return min((tpot_s - bound_s) / gain, life_s) if gain > 0.0 else inf


def room_in_s(
    ttft_s: float, tpot_s: float, e2e_s: float, reply_tokens: float, mean_reply_tokens: float, waited_s: float,
    safety: float, hold_s: float, ahead: float, rows: Cells, rest: Cells, columns: Cells, slots: Places,
    weights: Cells,
) -> float:  # fmt: skip
    """Seconds until enough sequences have ended on some candidate that every bound could be met there, after ``ahead``
    requests before this one; inf where that is too late on all of them, or waiting does not help.

    Waiting does not improve TTFT: the prompts ahead take as long either way. It improves TPOT, as sequences end, and so
    E2E, if that gains more than the wait takes. Assumes that sequences end evenly over their lives.
    """
    after = max(reply_tokens - 1.0, 0.0)
    ends_per_s = 0.0
    for i in range(len(slots)):
        ends_per_s += over(_in_flight(rows, i), mean_reply_tokens * rows[TPOT, i])
    queue_s = ahead / ends_per_s if ends_per_s > 0.0 else 0.0
    soonest_s = inf
    for i in range(len(slots)):
        first_s, own_tpot_s = safety * weights[TTFT_S, i], safety * weights[TPOT_S, i]
        rest_s = over(own_tpot_s * rest[TPOT, i], rows[TPOT, i])
        left_s = e2e_s - waited_s - first_s
        own_s = min(tpot_s, left_s / after if after > 0.0 else inf)
        bound_s = min(own_s, _bound_s(columns, slots[i], e2e_s < inf))
        latest_s = min(ttft_s - waited_s - first_s, hold_s)
        if e2e_s < inf:
            latest_s = min(latest_s, left_s - after * min(own_tpot_s, bound_s))
        if latest_s < 0.0 or rest_s > own_s:
            continue
        shrinks = over(1.0, after) if bound_s < tpot_s and bound_s == own_s else 0.0
        in_s = queue_s + _tpot_in_s(own_tpot_s, rest_s, bound_s, shrinks, mean_reply_tokens * rows[TPOT, i])
        if in_s <= latest_s:
            soonest_s = min(soonest_s, in_s)
    return soonest_s


# -- what a send gains -----------------------------------------------------------------------------------------------


def _normal(z: float) -> float:
    """The standard normal distribution function."""
    return 0.5 * (1.0 + erf(z / SQRT_2))


def _density(z: float) -> float:
    """Its density."""
    return exp(-0.5 * z * z) / SQRT_2_PI


def _sigma(mean_s: float, tail_s: float) -> float:
    """Standard deviation of the log of a prediction of this mean and 0.9 quantile."""
    return min(max(log(over(tail_s, mean_s)) / Z_90, SIGMA_MIN), SIGMA_MAX)


def most_gained(
    ttft_s: float, tpot_s: float, e2e_s: float, waited_s: float, safety: float, rows: Cells, tails: Cells,
    rest: Cells, in_time: Cells, states: Cells, columns: Cells, slots: Places, sharing: float,
    weights: Cells,
) -> int:  # fmt: skip
    """Fill GAIN of ``weights``, the expected gain of a send in SLOs met (-inf: it violates a TPOT bound); returns the
    candidate with the highest.

    It gains the probability that every bound of the request is met. It costs each other reply there what that reply's
    probability falls by for the time that the send adds; and the prompts that come before the queue is empty again what
    theirs falls by for its own prompt. Their slopes are not known: this request's own stand for them. ``in_time``:
    probability that the reply ends in time, and its slope (no columns: it has all the time); ``tails``: at the quantile
    0.9; ``sharing``: see ``Forecast.reply_sharing``.
    """
    best, bounded = 0, in_time.shape[1] > 0
    for i in range(len(slots)):
        first_s, mean_s = rows[TTFT, i], rows[TPOT, i]
        bound_s = _bound_s(columns, slots[i], e2e_s < inf)
        weights[GAIN, i] = -inf
        if safety * mean_s > min(bound_s, tpot_s):
            continue
        chance, slope = (in_time[0, i], sharing * in_time[1, i]) if bounded else (1.0, 0.0)
        others = queue = 0.0
        sigma = _sigma(mean_s, _usable_tpot_s(mean_s, tails[TPOT, i], states[i]))
        if tpot_s < inf:
            at = log(over(tpot_s, safety * mean_s)) / sigma
            met = _normal(at)
            slope = slope * met + chance * _density(at) / sigma
            chance *= met
        if bound_s < inf:
            others = _density(log(over(bound_s, safety * mean_s)) / sigma) / sigma
        if ttft_s < inf:
            total_s, sigma = waited_s + safety * first_s, _sigma(first_s, tails[TTFT, i])
            if total_s > ttft_s:
                continue
            at = log(over(ttft_s - waited_s, safety * first_s)) / sigma
            busy = rows[PREFILL_SHARE, i]
            queue = over(busy, 1.0 - busy) * max(first_s - rest[TTFT, i], 0.0)
            queue = over(queue, total_s) * _density(at) / sigma
            chance *= _normal(at)
        harm = over(rows[IMPOSED_DELAY_S, i], rows[E2E, i]) * max(slope, others) + queue
        harm += rows[EXPECTED_TPOT_VIOLATIONS, i]
        weights[GAIN, i] = chance - harm
        if weights[GAIN, i] > weights[GAIN, best]:
            best = i
    return best
