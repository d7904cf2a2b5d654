"""Where the SLO will be met: headroom = what the SLO allows minus what the backend is predicted to take.

A backend fits when it is predicted to meet every bound of this request at the quantile of its SLO **and** the TPOT of
the replies running there. Of those that fit, the policy picks the one with the lowest total cost in time for the share
of the bounds it uses (``spread``), or the cheapest (``pack``). It draws among near-equals at random, so that routers
with the same stale view do not all pick one.

When none fits, waiting may help. It does not improve TTFT; it improves TPOT as sequences end, and E2E if that gains
more than the wait takes. A request is held only while such an event is predicted before its latest start, the requests
ahead of it included. Otherwise the expected number of SLOs met decides at once: a send adds the probability that this
request's bounds are met, and subtracts what it takes from the others. Where no send has a gain, the request is served
from spare capacity, where it harms no SLO in force, or refused, as its work would violate the SLOs of others: that is
how overload collapses.

An idle backend always gets the requests that no other backend can serve in time. A trusted forecast is widened by the
error of its model, one that is off by more; a backend whose forecast is off or still learning gets a few requests
whatever the forecast.
"""

from dataclasses import dataclass
from math import inf
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from policies.routing import _loops
from policies.routing._headroom import (
    CANDIDATES,
    GAIN,
    NONE_FITS,
    PEERS_SLO_USE,
    SLO_USE_MEAN,
    TPOT_S,
    TPOT_VIOLATIONS_MAX,
    TTFT_S,
    WEIGHED,
    divisors,
    slo_shares,
)
from policies.routing._pick import lowest
from router.core import (
    E2E,
    TPOT,
    TRUSTED,
    TTFT,
    Choice,
    Dispatch,
    Fleet,
    Floats,
    Forecast,
    Hold,
    Reason,
    Request,
    Rng,
    Shed,
    Slo,
)

Bools = NDArray[np.bool_]
TURN_S: Final = 0.25  # long enough for a busy engine to end a sequence
TURNS: Final = 20  # so those without an SLO hold up the others 5 % of the time at most
PROBES: Final = 4  # in flight at once on a backend whose forecast is not trusted, whatever it says
TRICKLE: Final = 0.05  # of what is refused on principle goes to an idle backend all the same: a forecast must be tried
SLOWED: Final = 1.5  # times what the data sheet says: more than sheets are off, so something ails the backend
GENTLE_SHARE: Final = 0.8  # of the time to the first token: as far as a prompt waits for the sake of others' TPOT
CHANCE_MIN: Final = 0.1  # a reply that is less likely to end in time even on an idle backend cannot
GAIN_MIN: Final = 0.1  # of SLOs met, as a probability: a send that gains less is not worth its work
GAIN_NEAR: Final = 0.05  # gains this close are equal
SPARE: Final = 1.5  # times what an idle backend takes: one that takes no more has capacity to spare
RETRY_S_MIN: Final = 1.0  # Retry-After counts whole seconds
_NO_PRICE: Final = np.empty(0)
_NO_END: Final = np.empty((2, 0))  # by which a reply would have to be complete


@dataclass(frozen=True, slots=True)
class SloHeadroom:
    """``prefer``: ``spread`` to where the request takes least time from all, or ``pack`` to where it costs least;
    ``safety``: factor on every prediction; ``ask_again_s``: how long a hold lasts before the policy decides anew;
    ``best_effort``: what becomes of a request whose SLO no backend can meet: ``spare`` serves it where that harms none
    of the SLOs in force and capacity is to spare, else refuses it; ``shed`` refuses it but for a trickle to idle
    backends; ``send`` sends it where it harms least; ``patience_s``: how long a request without an SLO may have to give
    way to all others.
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
        reply_tokens = forecast.reply_tokens(slo.quantile) if slo.e2e_s < inf else 1.0
        count = _loops.weigh(
            slo.ttft_s,
            slo.tpot_s,
            slo.e2e_s,
            reply_tokens,
            waited_s,
            self.safety,
            self._urgent_s(request, fleet, waited_s),
            forecast.with_tpot_violations(),
            forecast.state,
            fleet.columns,
            fleet.slots,
            fleet.price_per_s if self.prefer == "pack" else _NO_PRICE,
            weights,
        )
        if count == NONE_FITS or fleet.ahead:
            return self._without_headroom(request, fleet, forecast, weights, reply_tokens, rng)
        if count == 0:
            return Hold(fleet.now_s + self.ask_again_s, "it would cost a reply that has just begun its TPOT SLO")
        place = int(weights.item(CANDIDATES, int(rng.random() * count)))
        if request.prefix:
            best = self._most_gained(request, fleet, forecast, waited_s, weights)
            if weights.item(GAIN, best) > weights.item(GAIN, place) + GAIN_NEAR:
                return Dispatch(fleet.slots.item(best), "most of its prompt is cached there")
        return Dispatch(fleet.slots.item(place), "keeps every SLO")

    def _urgent_s(self, request: Request, fleet: Fleet, waited_s: float) -> float:
        """A first token that would come sooner than in so long may wait for the sake of others' TPOT.

        A reply of a few tokens cannot make up for a step that takes a prompt in. Where the first token is not urgent
        it comes a few steps later instead; in the end the prompt goes where it breaks the least.
        """
        if waited_s >= self.patience_s or fleet.hold_s <= self.ask_again_s:
            return -inf
        return GENTLE_SHARE * min(request.slo.ttft_s, request.slo.e2e_s) - waited_s

    def _without_headroom(
        self, request: Request, fleet: Fleet, forecast: Forecast, weights: Floats, reply_tokens: float, rng: Rng
    ) -> Choice:
        """Wait, where waiting will make it fit; else send it where that gains something; else it is too late.

        E2E is different: it runs out while the request waits, so first comes what a send would gain.
        """
        slo, now_s, waited_s = request.slo, fleet.now_s, fleet.now_s - request.arrived_s
        idle = self._fits_idle(request, fleet, forecast, waited_s)
        if idle.any():
            return self._least_harm(fleet, weights, idle, "keeps every SLO: nothing else is there", rng)
        recovered = self._recovered(request, fleet, forecast, rng)
        if recovered.any():
            return self._least_harm(fleet, weights, recovered, "tried: it may have recovered", rng)
        likely = self._likely(request, fleet, forecast, waited_s, weights) if slo.e2e_s < inf else -1
        if likely < 0 and self._room_comes(request, fleet, forecast, weights, reply_tokens):
            turn = slo.ttft_s == inf == slo.e2e_s and self._has_its_turn(waited_s, now_s)
            likely = self._likely(request, fleet, forecast, waited_s, weights) if turn else -1
            if likely < 0:
                return Hold(now_s + self.ask_again_s, "no backend has headroom yet", turn)
        elif likely < 0 and slo.e2e_s == inf:
            likely = self._likely(request, fleet, forecast, waited_s, weights)
        if likely >= 0:
            return Dispatch(fleet.slots.item(likely), "likely to keep its SLO")
        return self._too_late(request, fleet, forecast, weights, rng)

    def _fits_idle(self, request: Request, fleet: Fleet, forecast: Forecast, waited_s: float) -> Bools:
        """Idle backends that keep every bound: what was sent there lately is done with, and waiting changes nothing."""
        idle: Bools = fleet.requests < 1.0
        if not idle.any():
            return idle
        return idle & _meets(request.slo, waited_s, self.safety * forecast.rest)

    def _room_comes(
        self, request: Request, fleet: Fleet, forecast: Forecast, weights: Floats, reply_tokens: float
    ) -> bool:
        """Whether waiting will make it fit. A request without an SLO has all the time that admission gives it."""
        slo = request.slo
        if slo.ttft_s == slo.tpot_s == slo.e2e_s == inf:
            return True
        room_s = _loops.room_in_s(
            slo.ttft_s,
            slo.tpot_s,
            slo.e2e_s,
            reply_tokens,
            forecast.mean_reply_tokens,
            fleet.now_s - request.arrived_s,
            self.safety,
            fleet.hold_s,
            float(fleet.ahead),
            forecast.rows,
            forecast.rest,
            fleet.columns,
            fleet.slots,
            weights,
        )
        return room_s < inf

    def _likely(self, request: Request, fleet: Fleet, forecast: Forecast, waited_s: float, weights: Floats) -> int:
        """The candidate with most to gain in SLOs met; -1 where there is nothing to gain."""
        best = self._most_gained(request, fleet, forecast, waited_s, weights)
        return best if weights.item(GAIN, best) > GAIN_MIN else -1

    def _most_gained(self, request: Request, fleet: Fleet, forecast: Forecast, waited_s: float, weights: Floats) -> int:
        """Fill GAIN of ``weights``; the candidate where it is most."""
        slo, in_time = request.slo, _NO_END
        if slo.e2e_s < inf:
            left_s = slo.e2e_s - waited_s - forecast.ttft_s
            in_time = forecast.in_time(np.maximum(1.0 + left_s / forecast.tpot_s, 0.0))
        return _loops.most_gained(
            slo.ttft_s,
            slo.tpot_s,
            slo.e2e_s,
            waited_s,
            self.safety,
            forecast.rows,
            forecast.tails_s(0.9),
            forecast.rest,
            in_time,
            forecast.state,
            fleet.columns,
            fleet.slots,
            forecast.reply_sharing,
            weights,
        )

    def _too_late(self, request: Request, fleet: Fleet, forecast: Forecast, weights: Floats, rng: Rng) -> Choice:
        """Nothing that is predicted to come would keep this SLO."""
        infeasible = self._infeasible(request, forecast, forecast.rest)
        refused = infeasible and request.slo.refuse_infeasible
        if refused and self._infeasible(request, forecast, forecast.rest_by_sheet):
            allowed = np.zeros(len(fleet), dtype=np.bool_)  # nor ever could: there is nothing to find out
        elif refused or self.best_effort == "shed":
            allowed = self._trickle(fleet, forecast, rng)
        else:
            waited_s = fleet.now_s - request.arrived_s
            late = infeasible or waited_s >= GENTLE_SHARE * min(request.slo.ttft_s, request.slo.e2e_s)
            allowed = self._allowed(fleet, forecast, weights, late)
        if allowed.any():
            return self._least_harm(fleet, weights, allowed, "too late for its SLO: where it harms least", rng)
        why = self._missed(request, fleet, forecast, weights, infeasible)
        reason = Reason.INFEASIBLE if refused else Reason.SATURATED
        return Shed(reason, why, max(float(forecast.ttft_s.min()), RETRY_S_MIN))

    def _infeasible(self, request: Request, forecast: Forecast, rest: Floats) -> bool:
        """Whether no backend could keep the bounds with nothing else in flight, as ``rest`` says."""
        slo = request.slo
        longest = _loops.longest_reply(slo.ttft_s, slo.tpot_s, slo.e2e_s, self.safety * rest)
        return longest < 1.0 or forecast.in_time(np.array([longest])).item(0) < CHANCE_MIN

    def _least_harm(self, fleet: Fleet, weights: Floats, allowed: Bools, why: str, rng: Rng) -> Choice:
        """One of the backends that are allowed: where the request uses least of the bounds."""
        return Dispatch(fleet.slots.item(lowest(np.where(allowed, weights[SLO_USE_MEAN], inf), rng)), why)

    def _recovered(self, request: Request, fleet: Fleet, forecast: Forecast, rng: Rng) -> Bools:
        """Idle backends that are taken for too slow, while by their data sheets they would do: now and then one is sent
        a request that no backend has headroom for, as nothing else would show that it has recovered.
        """
        idle: Bools = fleet.requests < 1.0
        if fleet.ahead or not idle.any() or rng.random() >= TRICKLE:
            return idle & False
        sheet = forecast.rest_by_sheet
        slow = (forecast.rest > SLOWED * sheet).any(axis=0)
        tried: Bools = idle & slow & _meets(request.slo, 0.0, sheet)
        return tried

    def _trickle(self, fleet: Fleet, forecast: Forecast, rng: Rng) -> Bools:
        """Idle backends that get a request all the same: without traffic a recovery would never be observed."""
        idle: Bools = fleet.requests < 1.0
        return idle if rng.random() < TRICKLE else idle & (forecast.state != TRUSTED)

    def _allowed(self, fleet: Fleet, forecast: Forecast, weights: Floats, late: bool) -> Bools:
        """Where a request that will miss its SLO is served all the same: on an idle backend; a few where the forecast
        is not trusted, as observations alone correct a forecast; and, where it is ``late`` whatever the load, wherever
        it harms no SLO in force and capacity is to spare while no request is held. A new request that an idle backend
        could serve in time misses because of the load: then there is no spare capacity.
        """
        gentle = forecast.expected_tpot_violations <= TPOT_VIOLATIONS_MAX
        harmless = gentle & (self.safety * weights[PEERS_SLO_USE] <= 1.0)
        if self.best_effort == "send":
            return harmless if harmless.any() else np.ones(len(fleet), dtype=np.bool_)
        tried: Bools = (fleet.requests < 1.0) | ((forecast.state != TRUSTED) & (fleet.requests < PROBES))
        if fleet.held or not late:
            return tried
        rest = forecast.rest
        spare = (forecast.tpot_s <= SPARE * rest[TPOT]) & (forecast.ttft_s <= SPARE * rest[TTFT] + forecast.tpot_s)
        served: Bools = tried | (harmless & spare)
        return served

    def _missed(self, request: Request, fleet: Fleet, forecast: Forecast, weights: Floats, infeasible: bool) -> str:
        """The bound that cannot be met, and by how much, on the backend that comes closest."""
        slo, waited_s = request.slo, fleet.now_s - request.arrived_s
        counted = forecast.rest if infeasible else np.vstack((weights[TTFT_S], weights[TPOT_S], forecast.e2e_s))
        seconds = counted + np.array([[waited_s], [0.0], [waited_s]])
        bounds = divisors(slo.ttft_s, slo.tpot_s, slo.e2e_s)
        used = np.vstack(slo_shares(seconds[TTFT], seconds[TPOT], seconds[E2E], bounds))
        best = int(used.max(axis=0).argmin())
        bound = int(used[:, best].argmax())
        if used[bound, best] <= 1.0 < weights.item(PEERS_SLO_USE, best):
            tpot_s = weights.item(TPOT_S, best)
            bound_s = tpot_s / weights.item(PEERS_SLO_USE, best)
            return f"no backend can meet its replies' TPOT SLO of {bound_s:.3g} s: {tpot_s:.3g} s expected"
        name, expected_s = ("TTFT", "TPOT", "E2E")[bound], seconds.item(bound, best)
        even = " even on an idle backend" if infeasible else ""
        return f"no backend can meet the {name} SLO of {bounds[bound]:.3g} s: {expected_s:.3g} s expected{even}"

    def _has_its_turn(self, waited_s: float, now_s: float) -> bool:
        """Whether requests without an SLO that have waited long are served now: one turn in ``TURNS``."""
        return waited_s >= self.patience_s and int(now_s / TURN_S) % TURNS == 0


def _meets(slo: Slo, waited_s: float, rest: Floats) -> Bools:
    """Where every bound is met on an idle backend, by ``rest``."""
    fits = (waited_s + rest[TTFT] <= slo.ttft_s) & (rest[TPOT] <= slo.tpot_s)
    met: Bools = fits & (waited_s + rest[E2E] <= slo.e2e_s)
    return met


policy = SloHeadroom
