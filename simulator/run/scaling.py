"""A scaling policy in a run: demand is measured at the routers, replicas are ordered and drained.

Depends on past arrivals and ends. Must not depend on the lengths of replies still to come.
"""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import nan

from router.core.policy import Demand, Scaling
from router.core.types import Slo
from simulator.run.fleet import ReplicaFleet, SimulatedEngine
from simulator.run.kernel import Kernel
from simulator.workload.arrivals import Arrival
from simulator.world import Autoscaling


@dataclass(slots=True)
class Tally:
    """Requests for one model in one interval."""

    arrived: int = 0
    prompt_tokens: int = 0
    ended: int = 0
    output_tokens: int = 0
    met: int = 0


@dataclass(slots=True)
class ModelDemand:
    """The tallies of one model, newest last, and the SLO of its requests."""

    slo: Slo
    tallies: deque[Tally] = field(default_factory=deque)


class Autoscaler:
    """Evaluates the scaling policy, orders replicas and drains them."""

    def __init__(self, kernel: Kernel, fleet: ReplicaFleet, settings: Autoscaling, policy: Scaling) -> None:
        """Active from now until ``stop``."""
        self._kernel, self._fleet, self._settings, self._policy = kernel, fleet, settings, policy
        self._models: dict[str, ModelDemand] = {}
        self._low_since_s: dict[str, float] = {}
        self._kept = max(1, round(settings.window_s / settings.every_s))
        self._going = True
        kernel.at(settings.every_s, self._evaluate)

    def stop(self) -> None:
        """Evaluate no more."""
        self._going = False

    # ---- measuring ------------------------------------------------------------------

    def arrived(self, arrival: Arrival) -> None:
        """A request has arrived."""
        request = arrival.request
        measured = self._models.setdefault(request.model, ModelDemand(request.slo, deque([Tally()])))
        tally = measured.tallies[-1]
        tally.arrived += 1
        tally.prompt_tokens += request.prompt_tokens

    def ended(self, model: str, output_tokens: int, met: bool) -> None:
        """A request is over."""
        measured = self._models.get(model)
        if measured is not None:
            tally = measured.tallies[-1]
            tally.ended += 1
            tally.output_tokens += output_tokens
            tally.met += met

    def _demand(self, model: str, measured: ModelDemand, engines: Mapping[str, list[SimulatedEngine]]) -> Demand:
        tallies = measured.tallies
        arrived = sum(t.arrived for t in tallies)
        ended = sum(t.ended for t in tallies)
        return Demand(
            model,
            arrived / (len(tallies) * self._settings.every_s),
            sum(t.prompt_tokens for t in tallies) / max(1, arrived),
            sum(t.output_tokens for t in tallies) / max(1, ended),
            measured.slo,
            {variant: len(there) for variant, there in engines.items()},
            {variant: there[0].site.backend for variant, there in engines.items()},
            sum(t.met for t in tallies) / ended if ended else nan,
        )

    # ---- turning ----------------------------------------------------------------------

    def _evaluate(self, _: object) -> None:
        if not self._going:
            return
        for model, measured in self._models.items():
            engines = self._engines(model)
            if engines and any(t.ended for t in measured.tallies):
                for answer in self._policy.scale(self._demand(model, measured, engines)):
                    self._scale(engines[answer.variant], answer.replicas)
            measured.tallies.append(Tally())
            while len(measured.tallies) > self._kept:
                measured.tallies.popleft()
        self._kernel.at(self._kernel.now_s + self._settings.every_s, self._evaluate)

    def _engines(self, model: str) -> dict[str, list[SimulatedEngine]]:
        engines: dict[str, list[SimulatedEngine]] = {}
        for engine in self._fleet.serving():
            if model in engine.site.backend.models:
                engines.setdefault(engine.site.backend.variant, []).append(engine)
        return engines

    def _scale(self, there: list[SimulatedEngine], replicas: int) -> None:
        settings, now_s = self._settings, self._kernel.now_s
        member = there[0].site.member
        replicas = min(max(replicas, settings.replicas_min), settings.replicas_max)
        if replicas >= len(there):
            self._low_since_s.pop(member.name, None)
            for _ in range(replicas - len(there)):
                self._fleet.add_replica(member, settings.cold_start_s)
        elif now_s - self._low_since_s.setdefault(member.name, now_s) >= settings.calm_s:
            del self._low_since_s[member.name]
            self._fleet.drain(there[-1])
