"""Where the SLO will be met: headroom = what the SLO allows minus what the backend is predicted to take.

A backend fits when it is predicted to keep every bound of this request at the promised quantile **and** the pace of
those already running there. Of those that fit, the one with most headroom (``spread``) or the one where it costs least
(``pack``); near-equals are drawn from at random, so that routers with the same stale view do not all pick one.

When nobody fits: hold while the first token can still come in time, for a sequence that ends makes room. A request that
can no longer make it is served from spare capacity, where it takes nothing from a promise that can still be kept, or
is shed at once: work on it would cost others theirs, which is how overload collapses.

Trust goes in steps. A forecast that is being learnt is believed for ranking and holding, never for shedding; one that
is off is not believed at all: such a backend is asked after the others, by what is in flight there.
"""

from dataclasses import dataclass
from math import inf
from typing import Final, Literal

import numpy as np

from policies.routing._headroom import Floats, used, used_of_others
from policies.routing._pick import lowest, near_lowest
from router.core import Choice, Dispatch, Fleet, Forecast, Hold, Reason, Request, Rng, Shed

NEAR: Final = 0.05  # scores this close are equal: the forecast is no better than that


@dataclass(frozen=True, slots=True)
class SloHeadroom:
    """``prefer``: ``spread`` over the most headroom, or ``pack`` to where the request costs least;
    ``safety``: factor on every prediction; ``ask_again_s``: how long a hold lasts before the policy is asked again;
    ``best_effort``: what becomes of a request that nobody can serve in time: ``spare`` serves it where that harms no
    promise while nobody waits and sheds it else, ``shed`` always sheds it, ``send`` sends it where it harms least.
    """

    prefer: Literal["spread", "pack"] = "spread"
    safety: float = 1.0
    ask_again_s: float = 0.05
    best_effort: Literal["spare", "send", "shed"] = "spare"

    def __post_init__(self) -> None:
        """Refuse parameters that mean nothing."""
        if self.prefer not in ("spread", "pack"):
            raise ValueError(f"slo_headroom: prefer must be 'spread' or 'pack', not {self.prefer!r}")
        if self.best_effort not in ("spare", "send", "shed"):
            raise ValueError(f"slo_headroom: best_effort must be 'spare', 'send' or 'shed', not {self.best_effort!r}")
        if not self.safety > 0 or not self.ask_again_s > 0:
            raise ValueError("slo_headroom: safety and ask_again_s must be above 0")

    def choose(self, request: Request, fleet: Fleet, forecast: Forecast, rng: Rng) -> Choice:
        """Dispatch into headroom, or hold for it, or do the least harm."""
        quantile = request.slo.quantile
        pace_s = forecast.tpot_tail_s(quantile)
        own = used(request, fleet, forecast.ttft_tail_s(quantile), pace_s, forecast.e2e_tail_s(quantile))
        others = used_of_others(fleet, pace_s)
        use = self.safety * np.maximum(own, others)
        fits = use <= 1.0
        if fits.any():
            score = np.where(fits, self._score(use, fleet, forecast), inf)
            return Dispatch(int(fleet.slots[near_lowest(score, NEAR, rng)]), "keeps every SLO")
        return self._without_headroom(request, fleet, forecast, use, others, rng)

    def _score(self, use: Floats, fleet: Fleet, forecast: Forecast) -> Floats:
        """Among those that fit. Without any bound in force all use is 0: then the soonest end is best."""
        if self.prefer == "pack":
            return fleet.price_per_s * forecast.e2e_s * use / (fleet.requests + 1.0)
        return use if use.any() else forecast.e2e_s

    def _without_headroom(
        self, request: Request, fleet: Fleet, forecast: Forecast, use: Floats, others: Floats, rng: Rng
    ) -> Choice:
        """Wait while waiting can still help: the first token would be in time once an engine has drained a little."""
        soonest_s = float(forecast.ttft_s.min())
        latest_s = request.first_token_due_s - soonest_s
        if fleet.now_s < latest_s:
            return Hold(min(fleet.now_s + self.ask_again_s, latest_s), "no backend has headroom yet")
        harmless = self.safety * others <= 1.0
        if self.best_effort == "send" or (self.best_effort == "spare" and not fleet.held and harmless.any()):
            score = np.where(harmless, use, inf) if harmless.any() else use
            return Dispatch(int(fleet.slots[lowest(score, rng)]), "too late for its SLO: from spare capacity")
        return Shed(Reason.SATURATED, "no backend can keep this SLO in time", max(soonest_s, 1.0))


policy = SloHeadroom
