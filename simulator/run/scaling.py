"""A scaling policy in a run: demand is measured at the routers, replicas are ordered and drained.

Depends on past arrivals and ends, and on what the routers have learnt. Must not depend on the lengths of replies still
to come.
"""

from collections.abc import Mapping, Sequence
from math import nan
from typing import Any, Final, Protocol

from router.core.capacity import VariantBelief
from router.core.decisions import RequestRecord, ScaleTo
from router.core.demand import DemandMeter, MeasuredDemand
from router.core.dispatcher import Dispatcher
from router.core.policy import Scaling
from router.core.scaling import Demand, KindDemand, ReplicaLoad, ScalingDecision, Supply
from router.core.seasons import RateHistory
from router.core.types import NO_SLO, Backend, Request
from simulator.pool import Member, Pool
from simulator.run.fleet import ReplicaFleet, SimulatedEngine
from simulator.run.kernel import Kernel
from simulator.world import Autoscaling

LEARNT_MIN: Final = 20  # first tokens of a replica, before what was learnt of it stands for its variant
LEARNT_FROM: Final = 8  # replicas of a variant


class Router(Protocol):
    """A router as scaling sees it."""

    core: Dispatcher


class Autoscaler:
    """Evaluates the scaling policy, orders replicas and drains them."""

    def __init__(
        self, kernel: Kernel, fleet: ReplicaFleet, routers: Sequence[Router], settings: Autoscaling, policy: Scaling
    ) -> None:
        """Active from now until ``stop``."""
        self._kernel, self._fleet, self._routers = kernel, fleet, routers
        self._settings, self._policy = settings, policy
        self._meter = DemandMeter()
        self._history: dict[str, RateHistory] = {}
        self._arrived: dict[str, int] = {}  # by model, since the last evaluation
        self._members = _members(fleet.pool)
        self._patterns = {name: _pattern(fleet, member) for name, member in self._members.items()}
        self._beliefs = {name: VariantBelief() for name in self._members}
        self._settled: dict[str, tuple[int, float]] = {}  # by model: the replicas that serve, and since when
        self._last: dict[str, ScalingDecision | None] = {}  # by model
        self._going = True
        kernel.at(settings.every_s, self._evaluate)

    def stop(self) -> None:
        """Evaluate no more."""
        self._going = False

    # ---- measuring ------------------------------------------------------------------

    def arrived(self, request: Request) -> None:
        """A request has arrived."""
        self._meter.arrived(request, self._kernel.now_s)
        self._arrived[request.model] = self._arrived.get(request.model, 0) + 1

    def ended(self, record: RequestRecord) -> None:
        """A request is over, for now: its client may try again."""
        self._meter.ended(record, self._kernel.now_s)

    def _demand(self, model: str) -> Demand:
        measured = self._meter.view(model, self._kernel.now_s)
        engines = {name: self._engines(name) for name in self._patterns if model in self._patterns[name].models}
        now_s, settings = self._kernel.now_s, self._settings
        history = self._history.setdefault(model, RateHistory())
        history.add(self._arrived.pop(model, 0), settings.every_s, now_s)
        seasonal = history.forecast(now_s, now_s + settings.cold_start_s + settings.every_s)
        return Demand(
            model,
            sum(kind.requests_per_s for kind in measured.kinds),
            _mean(measured, [kind.prompt_tokens for kind in measured.kinds]),
            _mean(measured, [kind.output_tokens for kind in measured.kinds]),
            min((kind.slo for kind in measured.kinds), key=lambda slo: slo.bounds_s(), default=NO_SLO),
            {name: len(there) for name, there in engines.items()},
            {name: self._patterns[name] for name in engines},
            _attainment(measured.kinds),
            measured.kinds,
            measured.arrivals,
            measured.bucket_s,
            measured.in_flight,
            sum(router.core.held_of(model) for router in self._routers),
            measured.shed_per_s,
            {name: self._supply(name, there, len(engines)) for name, there in engines.items()},
            settled_s=self._settled_s(model, sum(e.joined for there in engines.values() for e in there)),
            period_s=settings.every_s,
            seasonal_per_s=seasonal.rate_per_s,
            seasonal_error_per_s=seasonal.error_per_s,
            replicas_min=settings.replicas_min,
            last=self._last.get(model),
            beyond=history.shortfalls.beyond(),
            highest_per_s=history.shortfalls.highest_per_s,
        )

    def _engines(self, variant: str) -> list[SimulatedEngine]:
        """Those that serve, or start."""
        there = self._fleet.serving()
        return [e for e in there if e.site.backend.variant == variant and (e.alive or not e.joined)]

    def _supply(self, variant: str, there: Sequence[SimulatedEngine], variants: int) -> Supply:
        settings, running = self._settings, [engine for engine in there if engine.joined]
        loads = [ReplicaLoad(engine.name, engine.replica.running + engine.replica.waiting) for engine in running]
        return Supply(
            settings.cold_start_s,
            settings.replicas_min if variants == 1 else 0,
            settings.replicas_max,
            starting=len(there) - len(running),
            running=tuple(loads),
            learnt=self._beliefs[variant].update(self._learnt(running), self._kernel.now_s),
        )

    def _learnt(self, running: Sequence[SimulatedEngine]) -> list[Mapping[str, Any]]:
        core = self._routers[0].core
        slots = [core.ledger.roster.slot(engine.name) for engine in running]
        known = [slot for slot in slots if slot is not None and core.belief.seen(slot) >= LEARNT_MIN]
        return [core.belief.export(slot) for slot in known[:LEARNT_FROM]]

    def _settled_s(self, model: str, serving: int) -> float:
        now_s = self._kernel.now_s
        before, since_s = self._settled.get(model, (serving, now_s))
        self._settled[model] = (serving, since_s if before == serving else now_s)
        return now_s - self._settled[model][1]

    # ---- turning ----------------------------------------------------------------------

    def _evaluate(self, _: object) -> None:
        if not self._going:
            return
        for model in self._meter.models():
            demand = self._demand(model)
            for answer in self._policy.scale(demand) if demand.variants else ():
                self._last[model] = answer.decision
                self._scale(answer)
            self._planned(model)
        self._kernel.at(self._kernel.now_s + self._settings.every_s, self._evaluate)

    def _planned(self, model: str) -> None:
        """What is ordered now serves after the cold start."""
        decision, settings = self._last.get(model), self._settings
        if decision is not None:
            from_s = self._kernel.now_s + settings.cold_start_s
            self._history[model].shortfalls.planned(decision.planned_per_s, from_s)

    def _scale(self, answer: ScaleTo) -> None:
        there = self._engines(answer.variant)
        for _ in range(answer.replicas - len(there)):
            self._fleet.add_replica(self._members[answer.variant], self._settings.cold_start_s)
        if answer.replicas < len(there):
            for engine in _dispensable(there, answer.drain)[: len(there) - answer.replicas]:
                self._fleet.drain(engine)


def _dispensable(there: Sequence[SimulatedEngine], first: Sequence[str]) -> list[SimulatedEngine]:
    """Those that do not serve yet, then those that the policy names, then the newest."""
    named = {name: place for place, name in enumerate(first)}
    newest = list(reversed(there))
    return sorted(newest, key=lambda engine: (engine.joined, named.get(engine.name, len(named))))


def _members(pool: Pool) -> dict[str, Member]:
    """By variant, the member that more replicas of it are ordered as."""
    return {member.variant or member.name: member for member in reversed(pool.members)}


def _pattern(fleet: ReplicaFleet, member: Member) -> Backend:
    return fleet.pool.site(member, member.name, fleet.seed).backend


def _mean(measured: MeasuredDemand, values: Sequence[float]) -> float:
    whole = sum(kind.requests_per_s for kind in measured.kinds)
    pairs = zip(measured.kinds, values, strict=True)
    return sum(kind.requests_per_s * value for kind, value in pairs) / whole if whole else 0.0


def _attainment(kinds: Sequence[KindDemand]) -> float:
    ended = sum(kind.ended for kind in kinds)
    return sum(kind.attained for kind in kinds) / ended if ended else nan
