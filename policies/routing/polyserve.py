"""PolyServe's rule (arXiv 2507.17769): the most loaded backend that still attains the SLO.

Load gradient instead of balance: the fullest backend that still fits is filled further, and the others stay empty
enough to be given away or to take a tighter class. "Attains" is by predicted means, as there; TPOT against the
tightest bound running there. When none attains, the backend that would miss by the least.
"""

from dataclasses import dataclass
from math import inf

import numpy as np

from policies.routing._headroom import BOUND_MIN_S, divisors, slo_shares
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
        """The fullest backend on which every bound is predicted to be met."""
        slo, waited_s, tpot_s = request.slo, fleet.now_s - request.arrived_s, forecast.tpot_s
        bounds_s = divisors(slo.ttft_s, slo.tpot_s, slo.e2e_s)
        own = slo_shares(waited_s + forecast.ttft_s, tpot_s, waited_s + forecast.e2e_s, bounds_s)
        peers = tpot_s / np.maximum(fleet.tpot_bound_s, BOUND_MIN_S)
        use = self.safety * np.maximum.reduce((*own, peers))
        attains = use <= 1.0
        if not attains.any():
            return Dispatch(int(fleet.slots[lowest(use, rng)]), "no backend attains: the smallest miss")
        held = fleet.prefill_tokens + fleet.context_tokens + forecast.tokens
        load = np.maximum((fleet.requests + 1.0) / fleet.seqs_max, held / fleet.kv_tokens_max)
        return Dispatch(int(fleet.slots[lowest(np.where(attains, -load, inf), rng)]), "most loaded that still attains")


policy = PolyServe
