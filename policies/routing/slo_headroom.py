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
from policies.routing._headroom import BROKEN_MAX, FIRST_S, LIKELY, NONE_FITS, OTHERS, OVERLAP, PACE_S, PLACES, WEIGHED, Floats
from router.core.kernels import E2E, TOLL, TPOT, TTFT
from policies.routing._pick import lowest
from router.core import Choice, Dispatch, Fleet, Forecast, Hold, Reason, Request, Rng, Shed
from router.core.score import TRUSTED

Bools = NDArray[np.bool_]
TURN_S: Final = 0.25  # long enough for a busy engine to end a sequence
TURNS: Final = 20  # so those without a promise hold up the others 5 % of the time at most
PROBES: Final = 4  # in flight at once on a backend whose forecast is not trusted, whatever it says
GENTLE_SHARE: Final = 0.8  # of the time to the first token: as far as a prompt waits for the sake of others' pace
CHANCE_MIN: Final = 0.1  # a reply that is less likely to end in time is too late
SPARE: Final = 1.5  # times what an idle backend takes: with less than that it has capacity to spare
GAIN_MIN: Final = 0.1  # of the SLOs met, as a probability: a send that gains less is not worth its work
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
        tokens = forecast.reply_tokens(slo.quantile) if slo.e2e_s < inf else 1.0
        count = self._weigh(request, fleet, forecast, tokens, waited_s, weights)
        if count == NONE_FITS and slo.e2e_s < inf:
            tokens, count = self._shorter(request, fleet, forecast, tokens, waited_s, weights)
        if count == NONE_FITS or fleet.ahead:
            return self._without_headroom(request, fleet, forecast, weights, tokens, rng)
        if count == 0:
            return Hold(fleet.now_s + self.ask_again_s, "it would cost a reply that has just begun its pace")
        place = int(weights.item(PLACES, int(rng.random() * count)))
        return Dispatch(fleet.slots.item(place), "keeps every SLO")

    def _weigh(
        self, request: Request, fleet: Fleet, forecast: Forecast, tokens: float, waited_s: float, weights: Floats
    ) -> int:
        slo = request.slo
        return _headroom.weigh(
            slo.ttft_s,
            slo.tpot_s,
            slo.e2e_s,
            tokens,
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

    def _shorter(
        self, request: Request, fleet: Fleet, forecast: Forecast, tokens: float, waited_s: float, weights: Floats
    ) -> tuple[float, int]:
        """Where even an idle backend would not finish a reply of so many ``tokens`` in time, E2E is judged at a shorter
        one: as likely, in proportion, as the quantile of the SLO.
        """
        slo = request.slo
        longest = _headroom.longest_reply(slo.ttft_s, slo.tpot_s, slo.e2e_s, waited_s, forecast.rest)
        if longest >= tokens:
            return tokens, NONE_FITS
        within = forecast.reply_within(longest) if longest >= 1.0 else 0.0
        if within < CHANCE_MIN:
            return tokens, NONE_FITS
        shorter = min(forecast.reply_tokens(slo.quantile * within), longest)
        return shorter, self._weigh(request, fleet, forecast, shorter, waited_s, weights)

    def _urgent_s(self, request: Request, waited_s: float) -> float:
        """A first token that would come sooner than in so long may wait for the sake of others' pace.

        A reply of a few tokens cannot make up for a step that takes a prompt in. Where the first token is not urgent
        it comes a few steps later instead; in the end the prompt goes where it breaks the least.
        """
        if waited_s >= self.patience_s:
            return -inf
        return GENTLE_SHARE * min(request.slo.ttft_s, request.slo.e2e_s) - waited_s

    def _without_headroom(
        self, request: Request, fleet: Fleet, forecast: Forecast, weights: Floats, tokens: float, rng: Rng
    ) -> Choice:
        """Wait while waiting can still help: the first token would be in time once an engine has drained a little."""
        slo, now_s, waited_s = request.slo, fleet.now_s, fleet.now_s - request.arrived_s
        room_s = _headroom.room_in_s(
            slo.ttft_s, slo.tpot_s, slo.e2e_s, tokens, forecast.mean_reply_tokens, waited_s, fleet.hold_s,
            float(fleet.ahead), forecast.rows, forecast.rest, fleet.columns, fleet.slots, weights,
        )  # fmt: skip
        if slo.e2e_s < inf and not fleet.ahead:
            index = self._likely(request, forecast, weights, waited_s)
            if index >= 0:
                return Dispatch(int(fleet.slots[index]), "most likely in time")
        if room_s < inf:
            turn = slo.ttft_s == inf == slo.e2e_s and self._has_its_turn(request, now_s)
            return Hold(now_s + self.ask_again_s, "no backend has headroom yet", turn)
        idle = fleet.requests < 1.0
        allowed = self._allowed(fleet, forecast, weights) | (idle if self.best_effort != "shed" else idle & False)
        if allowed.any():
            score = np.where(allowed, weights[LIKELY], inf)
            return Dispatch(int(fleet.slots[lowest(score, rng)]), "too late for its SLO: where it harms least")
        return Shed(Reason.SATURATED, "no backend can keep this SLO in time", max(float(forecast.ttft_s.min()), RETRY_S_MIN))

    def _likely(self, request: Request, forecast: Forecast, weights: Floats, waited_s: float) -> int:
        """The candidate with most to gain: the probability that the reply ends in time, less what the send takes from
        that of the others there; -1 where there is nothing to gain.
        """
        slo, rows = request.slo, forecast.rows
        left_s = slo.e2e_s - waited_s - weights[FIRST_S]
        chance, slope = forecast.in_time(np.maximum(1.0 + left_s / rows[TPOT], 0.0))
        gain = chance - OVERLAP * slope * rows[TOLL] / rows[E2E]
        kept = (weights[FIRST_S] + waited_s <= slo.ttft_s) & (weights[PACE_S] <= slo.tpot_s)
        gain[~(kept & (self.safety * weights[OTHERS] <= 1.0))] = -inf
        best = int(gain.argmax())
        return best if gain[best] > GAIN_MIN else -1

    def _allowed(self, fleet: Fleet, forecast: Forecast, weights: Floats) -> Bools:
        """Where a request that will be late is served all the same. A backend whose forecast is not trusted always
        gets a few, or one that is taken for slower than it is would never show it.
        """
        harmless = (self.safety * weights[OTHERS] <= 1.0) & (forecast.broken <= BROKEN_MAX)
        if self.best_effort == "send":
            return harmless if harmless.any() else np.ones(len(fleet), dtype=np.bool_)
        if self.best_effort == "shed":
            return np.zeros(len(fleet), dtype=np.bool_)
        probed: Bools = (forecast.state != TRUSTED) & (fleet.requests < PROBES)
        rest = forecast.rest
        spare = (forecast.tpot_s <= SPARE * rest[TPOT]) & (forecast.ttft_s <= SPARE * rest[TTFT] + forecast.tpot_s)
        return probed if fleet.held else probed | (harmless & spare)

    def _has_its_turn(self, request: Request, now_s: float) -> bool:
        """Whether this moment belongs to those without a promise who have waited long: one turn in ``TURNS``."""
        return now_s - request.arrived_s >= self.patience_s and int(now_s / TURN_S) % TURNS == 0


policy = SloHeadroom
