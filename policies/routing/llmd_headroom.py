"""llm-d's predicted-latency scorer: headroom tiers, a blend of TTFT and TPOT, a weighted draw.

As its documentation describes it: headroom is the SLO minus the prediction; the TPOT bound of an endpoint is the
tightest of the request and those running there. Endpoints with both headrooms at or above 0 form the first tier,
drawn from 99 % of the time, the rest the second. Within a tier each headroom is scaled to 0..1 and blended 0.8 TTFT +
0.2 TPOT; ``least`` prefers little headroom (pack), ``most`` much; the draw is weighted by the blend.
Predictions here are Headroom's own, means as there; a request without an SLO has its prediction as headroom's measure.
"""

from dataclasses import dataclass
from math import isfinite
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from policies.routing._pick import weighted
from router.core import Choice, Dispatch, Fleet, Forecast, Request, Rng

Floats = NDArray[np.float64]
WEIGHT_MIN = 0.01  # llm-d gives its lowest weight 1 of 100, so that every endpoint is drawn at times


@dataclass(frozen=True, slots=True)
class LlmdHeadroom:
    """``prefer``: ``least`` headroom (llm-d's default) or ``most``; ``explore``: how often the second tier is drawn
    from although the first is not empty; ``ttft_weight``: TTFT's part of the blend, TPOT has the rest.
    """

    prefer: Literal["least", "most"] = "least"
    explore: float = 0.01
    ttft_weight: float = 0.8

    def __post_init__(self) -> None:
        """Refuse parameters that mean nothing."""
        if self.prefer not in ("least", "most"):
            raise ValueError(f"llmd_headroom: prefer must be 'least' or 'most', not {self.prefer!r}")
        if not 0 <= self.explore <= 1 or not 0 <= self.ttft_weight <= 1:
            raise ValueError("llmd_headroom: explore and ttft_weight must be from 0 to 1")

    def choose(self, request: Request, fleet: Fleet, forecast: Forecast, rng: Rng) -> Choice:
        """Draw the tier, then the backend."""
        ttft = _headroom_s(request.slo.ttft_s - (fleet.now_s - request.arrived_s), forecast.ttft_s)
        tpot = _headroom_s(np.minimum(fleet.tpot_bound_s, request.slo.tpot_s), forecast.tpot_s)
        good = (ttft >= 0) & (tpot >= 0)
        first = bool(good.any()) and (bool(good.all()) or rng.random() >= self.explore)
        tier = good if first else ~good
        blend = self.ttft_weight * _scaled(ttft, tier) + (1 - self.ttft_weight) * _scaled(tpot, tier)
        # Without headroom anywhere llm-d takes those that lack the least, whatever is preferred.
        most = self.prefer == "most" or not good.any()
        weight = np.where(tier, WEIGHT_MIN + (blend if most else 1.0 - blend), 0.0)
        why = "drawn from those with headroom" if first else "drawn from those without headroom"
        return Dispatch(int(fleet.slots[weighted(weight, rng)]), why)


def _headroom_s(bound_s: float | Floats, predicted_s: Floats) -> Floats:
    """What is left under the bound; where there is none, the faster the more."""
    bounds = np.broadcast_to(np.asarray(bound_s, dtype=np.float64), predicted_s.shape)
    finite = np.isfinite(bounds)
    longest = float(predicted_s.max())
    spare = longest if isfinite(longest) else 0.0
    return np.where(finite, bounds, spare) - predicted_s


def _scaled(headroom_s: Floats, tier: NDArray[np.bool_]) -> Floats:
    """0 for the least headroom of the tier, 1 for the most; all 0.5 when they are equal."""
    low, high = float(headroom_s[tier].min()), float(headroom_s[tier].max())
    if high <= low:
        return np.full(len(headroom_s), 0.5)
    return np.clip((headroom_s - low) / (high - low), 0.0, 1.0)


policy = LlmdHeadroom
