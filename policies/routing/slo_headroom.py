"""Where the SLO will be met: headroom = what the SLO allows minus what the backend is predicted to take.

Of the backends that keep every bound of this request at the promised quantile **and** would not break the pace that
those already running there were promised, take the cheapest (``pack``) or the one with most headroom (``spread``).
When there is none: hold while the first token can still come in time, else send where the least harm is done, or shed.
"""

from dataclasses import dataclass
from math import inf
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from policies.routing._pick import lowest
from router.core import Choice, Dispatch, Fleet, Forecast, Hold, Reason, Request, Rng, Shed

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class SloHeadroom:
    """``prefer``: ``spread`` over the most headroom, or ``pack`` onto the cheapest card that keeps the SLO;
    ``safety``: factor on every prediction; ``ask_again_s``: how long a hold lasts before the policy is asked again;
    ``best_effort``: what becomes of a request that nobody can serve in time: ``send`` it all the same, or ``shed`` it.
    """

    prefer: Literal["spread", "pack"] = "spread"
    safety: float = 1.0
    ask_again_s: float = 0.05
    best_effort: Literal["send", "shed"] = "send"

    def __post_init__(self) -> None:
        """Refuse parameters that mean nothing."""
        if self.prefer not in ("spread", "pack"):
            raise ValueError(f"slo_headroom: prefer must be 'spread' or 'pack', not {self.prefer!r}")
        if self.best_effort not in ("send", "shed"):
            raise ValueError(f"slo_headroom: best_effort must be 'send' or 'shed', not {self.best_effort!r}")
        if not self.safety > 0 or not self.ask_again_s > 0:
            raise ValueError("slo_headroom: safety and ask_again_s must be above 0")

    def choose(self, request: Request, fleet: Fleet, forecast: Forecast, rng: Rng) -> Choice:
        """Dispatch into headroom, or hold for it, or do the least harm."""
        use = self._use(request, fleet, forecast)
        fits = use <= 1.0
        if fits.any():
            score = np.where(fits, self._score(use, fleet, forecast), inf)
            return Dispatch(int(fleet.slots[lowest(score, rng)]), "keeps every SLO")
        return self._without_headroom(request, fleet, forecast, use, rng)

    def _use(self, request: Request, fleet: Fleet, forecast: Forecast) -> Floats:
        """The share of the tightest bound that the prediction uses up, on each backend; over 1 breaks it."""
        slo, waited_s = request.slo, fleet.now_s - request.arrived_s
        pace = forecast.tpot_tail_s(slo.quantile)
        use = pace / np.minimum(fleet.tpot_bound_s, slo.tpot_s)
        if slo.ttft_s != inf:
            use = np.maximum(use, (waited_s + forecast.ttft_tail_s(slo.quantile)) / slo.ttft_s)
        if slo.e2e_s != inf:
            use = np.maximum(use, (waited_s + forecast.e2e_tail_s(slo.quantile)) / slo.e2e_s)
        return use * self.safety

    def _score(self, use: Floats, fleet: Fleet, forecast: Forecast) -> Floats:
        """Among those that fit. Without any bound in force all use is 0: then the soonest end is best."""
        if self.prefer == "pack":
            return fleet.price_per_s * forecast.e2e_s
        return use if use.any() else forecast.e2e_s

    def _without_headroom(self, request: Request, fleet: Fleet, forecast: Forecast, use: Floats, rng: Rng) -> Choice:
        """Wait while waiting can still help: the first token would be in time once an engine has drained a little."""
        soonest_s = float(forecast.ttft_s.min())
        latest_s = request.first_token_due_s - soonest_s
        if fleet.now_s < latest_s and latest_s != inf:
            return Hold(min(fleet.now_s + self.ask_again_s, latest_s), "no backend has headroom yet")
        if self.best_effort == "shed":
            return Shed(Reason.SATURATED, "no backend can keep this SLO in time", max(soonest_s, 1.0))
        return Dispatch(int(fleet.slots[lowest(use, rng)]), "no headroom anywhere: least harm")


policy = SloHeadroom
