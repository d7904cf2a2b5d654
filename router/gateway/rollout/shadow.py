"""A shadow: a policy that decides on live traffic without effect, to see how often it agrees, what it gains and costs.

It has a forecast and a random generator of its own, so that the core, its belief and its record are the same as without
it. Must not depend on which policy is better.
"""

from dataclasses import dataclass, field
from random import Random
from typing import Any

from router.core import Choice, Dispatch, Fleet, Forecast, Request, Rng
from router.core.belief import Belief
from router.core.policy import Routing
from router.gateway.rollout.guard import Faults, is_valid


@dataclass(slots=True)
class Comparison:
    """Serving policy and shadow compared. Over the decisions in which both dispatched: ``gain_s`` is the sum, by bound
    (ttft, e2e), of the predicted seconds of serving's backend minus those of the shadow's; ``met``: by policy, how many
    were predicted to meet the SLO in the mean.
    """

    agreed: int = 0
    differed: int = 0
    both: int = 0
    gain_s: dict[str, float] = field(default_factory=lambda: {"ttft": 0.0, "e2e": 0.0})
    met: dict[str, int] = field(default_factory=lambda: {"serving": 0, "shadow": 0})

    def plain(self) -> dict[str, Any]:
        """Plain JSON values, means in milliseconds."""
        decisions = self.agreed + self.differed
        return {
            "decisions": decisions,
            "agreement": round(self.agreed / decisions, 4) if decisions else None,
            "gain_ms": {k: round(1e3 * s / self.both, 3) if self.both else None for k, s in self.gain_s.items()},
            "predicted_met": {k: round(n / self.both, 4) if self.both else None for k, n in self.met.items()},
        }


class Shadow:
    """The serving policy, and another one that also decides a share of the requests, without effect."""

    def __init__(
        self,
        serving: Routing,
        candidate: Routing,
        share: float,
        belief: Belief,
        seen: Comparison,
        faults: Faults,
    ) -> None:
        """``share``: of the requests that *candidate* decides too; ``faults``: of *candidate*."""
        self._serving, self._candidate, self._share, self._belief = serving, candidate, share, belief
        self._faults = faults
        self._draw = Random(0)  # the core's generator must stay as it is without a shadow
        self._due = 0.0
        self.seen = seen

    def choose(self, request: Request, fleet: Fleet, forecast: Forecast, rng: Rng) -> Choice:
        """The choice of the serving policy."""
        choice = self._serving.choose(request, fleet, forecast, rng)
        self._due += self._share
        if self._due >= 1.0:
            self._due -= 1.0
            if not self._faults.dropped:
                self._decide(choice, request, fleet)
        return choice

    def _decide(self, choice: Choice, request: Request, fleet: Fleet) -> None:
        forecast, faults, clock = Forecast(request, fleet, self._belief), self._faults, self._faults.clock
        before = faults.used()
        began_s = clock()
        try:
            other = self._candidate.choose(request, fleet, forecast, self._draw)
        except (Exception, SystemExit) as problem:
            faults.add("raised", f"{type(problem).__name__}: {problem}")
            return
        took_s = clock() - began_s
        faults.stats.decisions += 1
        faults.stats.seconds += took_s
        if took_s > faults.bounds.budget_s:
            faults.overran(took_s, before)
        if not is_valid(other, fleet):
            faults.add("invalid", f"answered {other!r}")
            return
        self._compare(choice, other, request, fleet, forecast)

    def _compare(self, ours: Choice, other: Choice, request: Request, fleet: Fleet, forecast: Forecast) -> None:
        seen = self.seen
        if type(ours) is not type(other):
            seen.differed += 1
            return
        if not (isinstance(ours, Dispatch) and isinstance(other, Dispatch)):
            seen.agreed += 1
            return
        same = ours.slot == other.slot
        seen.agreed += same
        seen.differed += not same
        seen.both += 1
        slo = request.slo
        waited_s = fleet.now_s - request.arrived_s
        here, there = (forecast.at(int(fleet.slots.searchsorted(each.slot))) for each in (ours, other))
        seen.gain_s["ttft"] += here.ttft_s - there.ttft_s
        seen.gain_s["e2e"] += here.e2e_s - there.e2e_s
        for who, seconds in (("serving", here), ("shadow", there)):
            times_s = waited_s + seconds.ttft_s, seconds.tpot_s, waited_s + seconds.e2e_s
            seen.met[who] += slo.met(*times_s, request.prompt_tokens, forecast.output_tokens)
