"""Where the SLO will be met: headroom = what the SLO allows minus what the backend is predicted to take.

A backend fits when it is predicted to keep every bound of this request at the promised quantile **and** the pace of
those already running there. Of those that fit, the one with most headroom (``spread``) or the one where it costs least
(``pack``); near-equals are drawn from at random, so that routers with the same stale view do not all pick one.

When nobody fits: hold while the first token can still come in time, for a sequence that ends makes room. A request that
can no longer make it is served from spare capacity, where it takes nothing from a promise that can still be kept, or
is shed at once: work on it would cost others theirs, which is how overload collapses.

A request that was promised nothing waits while it would cost others their promise; once it has waited ``patience_s`` it
has a turn of its own now and then, in which nobody goes before it, so that it never waits for ever.

Trust goes in steps. A trusted forecast is widened by the error of its model, one that is off by more; and where it is
off or still being learnt, a few requests are sent whatever it says.
"""

from dataclasses import dataclass
from math import inf
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from policies.routing import _headroom
from policies.routing._headroom import BROKEN_MAX, LIKELY, NONE_FITS, OTHERS, PLACES, WEIGHED, Floats
from policies.routing._pick import lowest
from router.core import Choice, Dispatch, Fleet, Forecast, Hold, Reason, Request, Rng, Shed
from router.core.score import TRUSTED

Bools = NDArray[np.bool_]
TURN_S: Final = 0.25  # long enough for a busy engine to end a sequence
TURNS: Final = 20  # so those without a promise hold up the others 5 % of the time at most
PROBES: Final = 4  # in flight at once on a backend whose forecast is not trusted, whatever it says
GENTLE_SHARE: Final = 0.8  # of the time to the first token: as far as a prompt waits for the sake of others' pace
RETRY_S_MIN: Final = 1.0  # Retry-After counts whole seconds
_NO_PRICE: Final = np.empty(0)


@dataclass(frozen=True, slots=True)
class SloHeadroom:
    """``prefer``: ``spread`` over the most headroom, or ``pack`` to where the request costs least;
    ``safety``: factor on every prediction; ``ask_again_s``: how long a hold lasts before the policy is asked again;
    ``best_effort``: what becomes of a request that nobody can serve in time: ``spare`` serves it where that harms no
    promise while nobody waits and sheds it else, ``shed`` always sheds it, ``send`` sends it where it harms least;
    ``patience_s``: how long a request without an SLO may have to give way to all others.
    """

    prefer: Literal["spread", "pack"] = "spread"
    safety: float = 1.0
    ask_again_s: float = 0.05
    best_effort: Literal["spare", "send", "shed"] = "spare"
    patience_s: float = 5.0

    def __post_init__(self) -> None:
        """Refuse parameters that mean nothing."""
        if self.prefer not in ("spread", "pack"):
            raise ValueError(f"slo_headroom: prefer must be 'spread' or 'pack', not {self.prefer!r}")
        if self.best_effort not in ("spare", "send", "shed"):
            raise ValueError(f"slo_headroom: best_effort must be 'spare', 'send' or 'shed', not {self.best_effort!r}")
        if not self.safety > 0 or not self.ask_again_s > 0 or not self.patience_s >= 0:
            raise ValueError("slo_headroom: safety and ask_again_s must be above 0, patience_s not negative")

    def choose(self, request: Request, fleet: Fleet, forecast: Forecast, rng: Rng) -> Choice:
        """Dispatch into headroom, or hold for it, or do the least harm."""
        slo, waited_s, weights = request.slo, fleet.now_s - request.arrived_s, np.empty((WEIGHED, len(fleet)))
        count = _headroom.weigh(
            slo.ttft_s,
            slo.tpot_s,
            slo.e2e_s,
            waited_s,
            self.safety,
            self._urgent_s(request, waited_s),
            forecast.with_broken(),
            forecast.state,
            fleet.columns,
            fleet.slots,
            fleet.price_per_s if self.prefer == "pack" else _NO_PRICE,
            weights,
        )
        if count == NONE_FITS:
            return self._without_headroom(request, fleet, forecast, weights, rng)
        if count == 0:
            return Hold(fleet.now_s + self.ask_again_s, "it would cost a reply that has just begun its pace")
        place = int(weights.item(PLACES, int(rng.random() * count)))
        return Dispatch(fleet.slots.item(place), "keeps every SLO")

    def _urgent_s(self, request: Request, waited_s: float) -> float:
        """A first token that would come sooner than in so long may wait for the sake of others' pace.

        A reply of a few tokens cannot make up for a step that takes a prompt in. Where the first token is not urgent
        it comes a few steps later instead; in the end the prompt goes where it breaks the least.
        """
        if waited_s >= self.patience_s:
            return -inf
        return GENTLE_SHARE * min(request.slo.ttft_s, request.slo.e2e_s) - waited_s

    def _without_headroom(
        self, request: Request, fleet: Fleet, forecast: Forecast, weights: Floats, rng: Rng
    ) -> Choice:
        """Wait while waiting can still help: the first token would be in time once an engine has drained a little."""
        soonest_s, now_s = float(forecast.ttft_s.min()), fleet.now_s
        latest_s = request.first_token_due_s - soonest_s
        if now_s < latest_s:
            until_s = min(now_s + self.ask_again_s, latest_s)
            return Hold(until_s, "no backend has headroom yet", latest_s == inf and self._has_its_turn(request, now_s))
        harmless = (self.safety * weights[OTHERS] <= 1.0) & (forecast.broken <= BROKEN_MAX)
        allowed = self._allowed(fleet, harmless, forecast.state != TRUSTED)
        if allowed.any():
            score = np.where(allowed, weights[LIKELY], inf)
            return Dispatch(int(fleet.slots[lowest(score, rng)]), "too late for its SLO: where it harms least")
        return Shed(Reason.SATURATED, "no backend can keep this SLO in time", max(soonest_s, RETRY_S_MIN))

    def _allowed(self, fleet: Fleet, harmless: Bools, doubtful: Bools) -> Bools:
        """Where a request that will be late is served all the same. A backend whose forecast is not trusted always
        gets a few, or one that is taken for slower than it is would never show it.
        """
        if self.best_effort == "send":
            return harmless if harmless.any() else np.ones(len(fleet), dtype=np.bool_)
        if self.best_effort == "shed":
            return np.zeros(len(fleet), dtype=np.bool_)
        probed: Bools = doubtful & (fleet.requests < PROBES)
        return probed if fleet.held else probed | harmless

    def _has_its_turn(self, request: Request, now_s: float) -> bool:
        """Whether this moment belongs to those without a promise who have waited long: one turn in ``TURNS``."""
        return now_s - request.arrived_s >= self.patience_s and int(now_s / TURN_S) % TURNS == 0


policy = SloHeadroom
