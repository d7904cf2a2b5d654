"""How much of what was promised a prediction uses up: the quantity that headroom policies score by.

1 is the bound itself, less is headroom, more is a miss. No bound at all uses nothing.
"""

from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from router.core import Fleet, Forecast, Request
from router.core.compiling import compiled, part
from router.core.kernels import DECODING, PREFILLING
from router.core.lessons import OFF

Floats = NDArray[np.float64]
BOUND_MIN_S: Final = 1e-9  # a promise of 0 s is broken by any prediction, without dividing by it
FIRST_TAIL_MAX: Final = 1.3  # doubt of a first token that is worth waiting for: more load drains, doubt does not
PACE_TAIL_MAX: Final = 1.2  # error of a step's model and drift of an engine; see _pace_s
PACE_TAIL_MAX_OFF: Final = 1.5


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


class Uses(NamedTuple):
    """What every candidate would use up of what was promised. ``likely``: of this request's bounds and of those of
    others there, with as much doubt of its first token as waiting could lessen; ``doubted``: with all doubt;
    ``others``: of those of others alone; ``fits``: 1 where every bound will be kept, else 0.
    """

    likely: Floats
    doubted: Floats
    others: Floats
    fits: Floats


def uses(request: Request, fleet: Fleet, forecast: Forecast, safety: float) -> Uses:
    """The same at the quantile of the request's SLO, with a factor on every prediction."""
    slo, quantile = request.slo, request.slo.quantile
    rows = np.empty((4, len(fleet)))
    _uses(
        max(slo.ttft_s, BOUND_MIN_S),
        max(slo.tpot_s, BOUND_MIN_S),
        max(slo.e2e_s, BOUND_MIN_S),
        fleet.now_s - request.arrived_s,
        safety,
        forecast.means_s,
        forecast.tails_s(quantile),
        forecast.state,
        fleet.load,
        fleet.tpot_bound_s,
        rows,
    )
    return Uses(*rows)


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


@compiled("void(f8, f8, f8, f8, f8, f8[:, ::1], f8[:, ::1], i1[::1], f8[:, ::1], f8[::1], f8[:, ::1])")
def _uses(
    ttft_s: float, tpot_s: float, e2e_s: float, waited_s: float, safety: float, means_s: Floats, tails_s: Floats,
    states: NDArray[np.int8], load: Floats, bounds_s: Floats, out: Floats,
) -> None:  # fmt: skip
    """Fill the rows of ``Uses``. ``means_s`` and ``tails_s``: rows TTFT, TPOT, E2E; ``bounds_s``: of others' pace.

    Where nothing is in flight the mean decides whether it fits: a tail learnt in a bad hour would otherwise keep a
    backend from ever being sent what it could be learnt anew from.
    """
    for i in range(out.shape[1]):
        first_s, mean_pace_s, end_s = means_s[0, i], means_s[1, i], means_s[2, i]
        first_tail_s, end_tail_s = waited_s + tails_s[0, i], waited_s + tails_s[2, i]
        pace_s = _pace_s(mean_pace_s, tails_s[1, i], states[i])
        likely_s = waited_s + min(tails_s[0, i], FIRST_TAIL_MAX * first_s)
        others = pace_s / max(bounds_s[i], BOUND_MIN_S)
        out[0, i] = safety * max(_share(likely_s, pace_s, end_tail_s, ttft_s, tpot_s, e2e_s), others)
        out[1, i] = max(_share(first_tail_s, pace_s, end_tail_s, ttft_s, tpot_s, e2e_s), others)
        out[2, i] = others
        idle = load[PREFILLING, i] + load[DECODING, i] < 1.0
        alone = safety * _share(waited_s + first_s, mean_pace_s, waited_s + end_s, ttft_s, tpot_s, e2e_s)
        out[3, i] = 1.0 if out[0, i] <= 1.0 or (idle and alone <= 1.0) else 0.0
