"""PolyServe's rule (arXiv 2507.17769): the most loaded backend that still attains the SLO.

Load gradient instead of balance: whoever is fullest and still fits is filled further, and the others stay empty enough
to be given away or to take a tighter class. "Attains" is by predicted means, as there; TPOT against the tightest bound
running there. When nobody attains, the backend that would miss by the least.
"""

from dataclasses import dataclass
from math import inf

import numpy as np
from numpy.typing import NDArray

from policies.routing._pick import lowest
from router.core import Choice, Dispatch, Fleet, Forecast, Request, Rng


@dataclass(frozen=True, slots=True)
class PolyServe:
    """``safety``: factor on every prediction before it is held against the SLO."""

    safety: float = 1.0

    def __post_init__(self) -> None:
        """Refuse a factor that means nothing."""
        if not self.safety > 0:
            raise ValueError(f"polyserve: safety must be above 0, not {self.safety}")

    def choose(self, request: Request, fleet: Fleet, forecast: Forecast, rng: Rng) -> Choice:
        """The fullest backend on which every bound is predicted to be kept."""
        use = self.safety * _use(request, fleet, forecast)
        attains = use <= 1.0
        if not attains.any():
            return Dispatch(int(fleet.slots[lowest(use, rng)]), "nobody attains: the smallest miss")
        held = fleet.prefill_tokens + fleet.context_tokens + forecast.tokens
        load = np.maximum((fleet.requests + 1.0) / fleet.seqs_max, held / fleet.kv_tokens_max)
        return Dispatch(int(fleet.slots[lowest(np.where(attains, -load, inf), rng)]), "most loaded that still attains")


def _use(request: Request, fleet: Fleet, forecast: Forecast) -> NDArray[np.float64]:
    """The largest share of any bound that the prediction takes."""
    slo, waited_s = request.slo, fleet.now_s - request.arrived_s
    pace = _share(forecast.tpot_s, np.minimum(fleet.tpot_bound_s, slo.tpot_s))
    first = _share(waited_s + forecast.ttft_s, slo.ttft_s)
    return np.maximum(np.maximum(pace, first), _share(waited_s + forecast.e2e_s, slo.e2e_s))


def _share(predicted_s: NDArray[np.float64], bound_s: float | NDArray[np.float64]) -> NDArray[np.float64]:
    return predicted_s / np.maximum(bound_s, 1e-9)


policy = PolyServe
