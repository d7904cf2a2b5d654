"""How much of what was promised a prediction uses up: the quantity that headroom policies score by.

1 is the bound itself, less is headroom, more is a miss. No bound at all uses nothing.
"""

from math import inf
from typing import Final

import numpy as np
from numpy.typing import NDArray

from router.core import Fleet, Forecast, Request
from router.core.compiling import compiled, part
from router.core.kernels import DECODING, OTHERS_BOUND_S, PREFILLING, TPOT_BOUND_S
from router.core.lessons import OFF

Floats = NDArray[np.float64]
Slots = NDArray[np.intp]
BOUND_MIN_S: Final = 1e-9  # a promise of 0 s is broken by any prediction, without dividing by it
FIRST_TAIL_MAX: Final = 1.3  # doubt of a first token that is worth waiting for: more load drains, doubt does not
PACE_TAIL_MAX: Final = 1.2  # error of a step's model and drift of an engine; see _pace_s
PACE_TAIL_MAX_OFF: Final = 1.5
NEAR: Final = 0.05  # scores this close are equal: the forecast is no better than that
BROKEN_MAX: Final = 0.01  # replies that a prompt may be expected to cost their pace: less is chance


def used(request: Request, fleet: Fleet, ttft_s: Floats, tpot_s: Floats, e2e_s: Floats) -> Floats:
    """The largest share of any of the request's own bounds that these predictions take, waiting so far included."""
    slo, waited_s = request.slo, fleet.now_s - request.arrived_s
    share = tpot_s / max(slo.tpot_s, BOUND_MIN_S)
    np.maximum(share, (waited_s + ttft_s) / max(slo.ttft_s, BOUND_MIN_S), out=share)
    np.maximum(share, (waited_s + e2e_s) / max(slo.e2e_s, BOUND_MIN_S), out=share)
    return share


def used_of_others(fleet: Fleet, tpot_s: Floats) -> Floats:
    """The share of the tightest pace promised to anybody running there that this pace takes."""
    share: Floats = tpot_s / np.maximum(fleet.tpot_bound_s, BOUND_MIN_S)
    return share


LIKELY, DOUBTED, OTHERS, FITS = range(4)
"""Rows of ``weighed``: what every candidate would use up of what was promised. ``LIKELY``: of this request's bounds and
of those of others there, with as much doubt of its first token as waiting could lessen; ``DOUBTED``: with all doubt;
``OTHERS``: of those of others alone; ``FITS``: 1 where every bound will be kept, else 0.
"""
NONE_FITS: Final = -1


def weighed(
    request: Request, fleet: Fleet, forecast: Forecast, safety: float, urgent_s: float, price_per_s: Floats
) -> tuple[Floats, Slots, int]:
    """Those rows at the quantile of the request's SLO; places to choose among; and how many these are, or NONE_FITS.

    ``safety``: a factor on every prediction. Of those that fit, those remain that break nobody's pace, or the fewest
    (``_bearable``; none where the first token comes so early, before ``urgent_s``, that it may wait for others' sake);
    of these the ones within ``NEAR`` of the best: of where most is left, or, given prices, of where it costs least.
    """
    slo = request.slo
    tails_s = forecast.tails_s(slo.quantile)  # before the means: both are made at once
    rows, places = np.empty((4, len(fleet))), np.empty(len(fleet), np.intp)
    count: int = _weighed(
        max(slo.ttft_s, BOUND_MIN_S),
        max(slo.tpot_s, BOUND_MIN_S),
        max(slo.e2e_s, BOUND_MIN_S),
        fleet.now_s - request.arrived_s,
        safety,
        urgent_s,
        forecast.means_s,
        tails_s,
        forecast.state,
        fleet.load,
        fleet.columns,
        fleet.slots,
        forecast.broken,
        price_per_s,
        rows,
        places,
    )
    return rows, places, count


@part
def _pace_s(mean_s: float, tail_s: float, state: int) -> float:
    """The pace to count with.

    The tail of TPOT is mostly what came after the send: load that grew. That is no chance but our own later decisions,
    and each of those keeps the pace of whoever runs there. So the mean is widened by no more than the error of a step's
    model, and by more where that is off.
    """
    return min(tail_s, (PACE_TAIL_MAX_OFF if state == OFF else PACE_TAIL_MAX) * mean_s)


@part
def _share(first_s: float, pace_s: float, end_s: float, ttft_s: float, tpot_s: float, e2e_s: float) -> float:
    """The largest share of any bound that predictions take."""
    return max(first_s / ttft_s, pace_s / tpot_s, end_s / e2e_s)


@part
def _bearable(rows: Floats, broken: Floats, means_s: Floats, urgent_s: float) -> float:
    """How many replies the prompt may break the pace of (``broken``: on each candidate).

    None, within chance, or the fewest that one of those that fit would; but where even that is some and the soonest
    first token is before ``urgent_s``, less than none.
    """
    least, soonest_s = inf, inf
    for i in range(len(broken)):
        if rows[FITS, i] > 0.0:
            least, soonest_s = min(least, broken[i]), min(soonest_s, means_s[0, i])
    if least > BROKEN_MAX and soonest_s < urgent_s:
        return -1.0
    return max(least, BROKEN_MAX)


@part
def _score(rows: Floats, means_s: Floats, load: Floats, price_per_s: Floats, anything: bool, i: int) -> float:
    """What is lowest where it is best: see ``weighed``. With no bound in force all use is 0: then the soonest end."""
    if len(price_per_s) > 0:
        in_flight = load[PREFILLING, i] + load[DECODING, i]
        return float(price_per_s[i] * means_s[2, i] * rows[DOUBTED, i] / (in_flight + 1.0))
    return float(rows[DOUBTED, i] if anything else means_s[2, i])


@part
def _nearest(
    rows: Floats, broken: Floats, bearable: float, means_s: Floats, load: Floats, price_per_s: Floats, places: Slots
) -> int:
    """Fill ``places`` with those that fit, break no more than is bearable and score near the lowest; how many."""
    anything, lowest = False, inf
    for i in range(len(broken)):
        anything = anything or rows[DOUBTED, i] > 0.0
    for i in range(len(broken)):
        if rows[FITS, i] > 0.0 and broken[i] <= bearable:
            lowest = min(lowest, _score(rows, means_s, load, price_per_s, anything, i))
    found = 0
    for i in range(len(broken)):
        remains = rows[FITS, i] > 0.0 and broken[i] <= bearable
        if remains and _score(rows, means_s, load, price_per_s, anything, i) <= lowest * (1.0 + NEAR):
            places[found] = i
            found += 1
    return found


@compiled(
    "i8(f8, f8, f8, f8, f8, f8, f8[:, ::1], f8[:, ::1], i1[::1], f8[:, ::1], f8[:, ::1], i8[::1], f8[::1], f8[::1],"
    " f8[:, ::1], i8[::1])"
)
def _weighed(
    ttft_s: float, tpot_s: float, e2e_s: float, waited_s: float, safety: float, urgent_s: float, means_s: Floats,
    tails_s: Floats, states: NDArray[np.int8], load: Floats, columns: Floats, slots: Slots, broken: Floats,
    price_per_s: Floats, rows: Floats, places: Slots,
) -> int:  # fmt: skip
    """Fill what ``weighed`` gives; returns the count. ``means_s`` and ``tails_s``: rows TTFT, TPOT, E2E.

    Where nothing is in flight the mean decides whether it fits: a tail learnt in a bad hour would otherwise keep a
    backend from ever being sent what it could be learnt anew from.
    """
    fit = 0
    for i in range(len(slots)):
        first_s, mean_pace_s, end_s = means_s[0, i], means_s[1, i], means_s[2, i]
        first_tail_s, end_tail_s = waited_s + tails_s[0, i], waited_s + tails_s[2, i]
        pace_s = _pace_s(mean_pace_s, tails_s[1, i], states[i])
        likely_s = waited_s + min(tails_s[0, i], FIRST_TAIL_MAX * first_s)
        bound_s = min(columns[TPOT_BOUND_S, slots[i]], columns[OTHERS_BOUND_S, slots[i]])
        others = pace_s / max(bound_s, BOUND_MIN_S)
        rows[LIKELY, i] = safety * max(_share(likely_s, pace_s, end_tail_s, ttft_s, tpot_s, e2e_s), others)
        rows[DOUBTED, i] = max(_share(first_tail_s, pace_s, end_tail_s, ttft_s, tpot_s, e2e_s), others)
        rows[OTHERS, i] = others
        idle = load[PREFILLING, i] + load[DECODING, i] < 1.0
        alone = safety * _share(waited_s + first_s, mean_pace_s, waited_s + end_s, ttft_s, tpot_s, e2e_s)
        fits = rows[LIKELY, i] <= 1.0 or (idle and alone <= 1.0)
        rows[FITS, i] = 1.0 if fits else 0.0
        fit += 1 if fits else 0
    if fit == 0:
        return NONE_FITS
    bearable = _bearable(rows, broken, means_s, urgent_s)
    return _nearest(rows, broken, bearable, means_s, load, price_per_s, places)
