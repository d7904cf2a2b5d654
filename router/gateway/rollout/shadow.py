"""A policy that decides on live traffic without effect: how often it agrees, what it would gain, what it costs.

Believes: nothing it is told goes back. It has a forecast and a source of chance of its own, so that the core, its
belief and a record of them are what they would be without it. Must not know which policy is better.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any

from router.core import Choice, Dispatch, Fleet, Forecast, Request, Rng
from router.core.belief import Belief
from router.core.policy import Routing
from router.gateway.rollout.guard import Bounds, DecisionStats, Fault, Faults, is_valid


@dataclass(slots=True)
class Comparison:
    """Serving and shadow beside each other. ``gain_s``: by bound (ttft, e2e), the sum over decisions in which both
    dispatched of what serving's backend was predicted to take minus shadow's; ``kept``: by policy, how many of those
    were predicted to keep the SLO in the mean.
    """

    agreed: int = 0
    differed: int = 0
    both: int = 0
    gain_s: dict[str, float] = field(default_factory=lambda: {"ttft": 0.0, "e2e": 0.0})
    kept: dict[str, int] = field(default_factory=lambda: {"serving": 0, "shadow": 0})

    def plain(self) -> dict[str, Any]:
        """For people: means in milliseconds."""
        asked = self.agreed + self.differed
        return {
            "decisions": asked,
            "agreement": round(self.agreed / asked, 4) if asked else None,
            "gain_ms": {k: round(1e3 * s / self.both, 3) if self.both else None for k, s in self.gain_s.items()},
            "predicted_kept": {k: round(n / self.both, 4) if self.both else None for k, n in self.kept.items()},
        }


class Shadow:
    """The serving policy, with another asked beside it for a share of the decisions."""

    def __init__(
        self,
        serving: Routing,
        candidate: Routing,
        share: float,
        belief: Belief,
        seen: Comparison,
        bounds: Bounds,
        books: DecisionStats,
        clock: Callable[[], float],
        on_fault: Callable[[Fault], None],
    ) -> None:
        self._serving, self._candidate, self._share, self._belief = serving, candidate, share, belief
        self._bounds, self._books, self._clock = bounds, books, clock
        self._faults = Faults(bounds, books, clock, on_fault)
        self._draw = Random(0)  # the core's own chance must stay as it would be without us
        self._due = 0.0
        self.seen = seen

    def choose(self, request: Request, fleet: Fleet, forecast: Forecast, rng: Rng) -> Choice:
        """What the serving policy chose, whatever the other thinks."""
        choice = self._serving.choose(request, fleet, forecast, rng)
        self._due += self._share
        if self._due >= 1.0:
            self._due -= 1.0
            if not self._faults.dropped:
                self._ask(choice, request, fleet)
        return choice

    def _ask(self, choice: Choice, request: Request, fleet: Fleet) -> None:
        forecast, clock = Forecast(request, fleet, self._belief), self._clock
        began_s = clock()
        try:
            other = self._candidate.choose(request, fleet, forecast, self._draw)
        except (Exception, SystemExit) as problem:
            self._faults.add("raised", f"{type(problem).__name__}: {problem}")
            return
        took_s = clock() - began_s
        self._books.decisions += 1
        self._books.seconds += took_s
        if took_s > self._bounds.budget_s:
            self._faults.overran(took_s)
        if not is_valid(other, fleet):
            self._faults.add("invalid", f"answered {other!r}")
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
            seen.kept[who] += slo.met(waited_s + seconds.ttft_s, seconds.tpot_s, waited_s + seconds.e2e_s)
