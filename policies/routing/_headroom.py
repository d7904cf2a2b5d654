"""How much of what was promised a prediction uses up: the quantity that headroom policies score by.

1 is the bound itself, less is headroom, more is a miss. No bound at all uses nothing.
"""

import numpy as np
from numpy.typing import NDArray

from router.core import Fleet, Request

Floats = NDArray[np.float64]
BOUND_MIN_S = 1e-9  # a promise of 0 s is broken by any prediction, without dividing by it


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
