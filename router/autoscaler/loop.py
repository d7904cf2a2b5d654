"""The scaling round: from demand to the number of replicas, with the reason; the config's target applies it.

Without an answer of the routers the last advice remains; a model of which it is not known what runs has none, and the
others go on; while a part of the routers cannot be seen, replicas are only added. Must not depend on any one target, on
how replicas are started, or on where the autoscaler runs.
"""

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import inf
from time import monotonic, time
from typing import Final

import httpx

from router.autoscaler.advice import Advised, advise, bounds_of, unstated, variants
from router.autoscaler.applying import Applying
from router.autoscaler.caution import SETTLED_S, Caution
from router.autoscaler.counting import Counting, Counts, seen_in, with_patterns
from router.autoscaler.demand import Views, fresh, together
from router.autoscaler.election import Election
from router.autoscaler.keeping import HISTORY, MEMORY, Keeper, NoKeeper
from router.autoscaler.memory import Decided, DecisionAge, ScalingMemory, decided_from
from router.autoscaler.metrics import ScalingMetrics
from router.autoscaler.sharing import shared
from router.core.errors import ConfigError, StoreGone
from router.core.scaling import ScalingDecision
from router.gateway.config.plan import Plan
from router.gateway.rollout.audit import Audit
from router.gateway.state import ModelDemand
from router.gateway.state.wire import UNREADABLE
from router.targets import Advice, Applied, Outcome, Target, TargetSpec

HISTORY_S: Final = 300.0  # between two stores of the history; routers publish the arrivals of more than that
_log = logging.getLogger("headroom")


@dataclass(frozen=True, slots=True)
class StartTime:
    """What a replica of a variant takes from its order to its first token: ``expected_s`` is what was planned with."""

    expected_s: float
    starts: int


@dataclass(frozen=True, slots=True)
class Decision:
    """One round: what was read, what was advised and what became of it; ``failure``: why there is no advice at all.

    ``only_added``: why no replica is taken away now; ``leads``: whether advice was applied here; ``counts``: what runs,
    and by whom it was counted; ``without``: by model, why it has no advice; ``starts``: by variant; ``decided``: by
    model, what the policy stated of its decision.
    """

    at_s: float
    leads: bool
    demand: Mapping[str, ModelDemand] = field(default_factory=dict)
    only_added: Sequence[str] = ()
    advice: Sequence[Advice] = ()
    applied: Sequence[Applied] = ()
    failure: str = ""
    counts: Counts = field(default_factory=Counts)
    without: Mapping[str, str] = field(default_factory=dict)
    starts: Mapping[str, StartTime] = field(default_factory=dict)
    decided: Mapping[str, ScalingDecision] = field(default_factory=dict)


def make_target(spec: TargetSpec, environment: Mapping[str, str] = os.environ) -> Target:
    """The target of a config, with its secrets. Raises ConfigError."""
    try:
        return spec.make(environment)
    except ValueError as error:
        raise ConfigError([f"autoscale.target: {error}"]) from None


class Autoscaler:
    """Reads the demand, computes the advice, sets the gauges, and applies the advice to the target."""

    def __init__(
        self,
        plan: Plan,
        target: Target,
        *,
        election: Election | None = None,
        audit: Audit | None = None,
        metrics: ScalingMetrics | None = None,
        clock: Callable[[], float] = monotonic,
        wall_clock: Callable[[], float] = time,
        settled_s: float = SETTLED_S,
        keeper: Keeper | None = None,
    ) -> None:
        """``settled_s``: how long all routers have to be seen before replicas are taken away; *keeper*: of what passes
        from one autoscaler to the next.
        """
        self.plan = plan
        self.last: Decision | None = None
        self.metrics = metrics or ScalingMetrics()
        self.election = election or Election()
        self.memory = ScalingMemory()
        self._target, self._clock, self._wall_clock = target, clock, wall_clock
        self._offered: tuple[TargetSpec, Target] | None = None
        self._caution = Caution(settled_s)
        self._counting = Counting()
        self._keeper: Keeper = keeper or NoKeeper()
        self._applying = Applying(self.metrics, audit or Audit())
        self._history_s = -inf  # when the history of arrivals was stored last
        self._unstated: set[str] = set()  # variants that no facts are known of, as it was logged
        self._decision_age = DecisionAge()
        self._turn: tuple[bool, int] | None = None  # whether this one applied in the last round, and in which term
        self._one_at_a_time = asyncio.Lock()  # a round is over before its target is replaced

    async def round(self, source: Callable[[], Awaitable[Views]]) -> list[Advice]:
        """Read the demand once and apply what follows; without an answer the gauges stay and nothing is applied."""
        async with self._one_at_a_time:
            self.last = await self._decided(source)
        return list(self.last.advice)

    async def _decided(self, source: Callable[[], Awaitable[Views]]) -> Decision:
        leads = self.election.holds()
        self.metrics.leads.set(leads)
        try:
            await self._take_turn(leads)
        except StoreGone as error:
            return self._failed(leads, f"what the last autoscaler stored could not be read: {error}")
        if leads:
            await self._target.tend()
        try:
            views = fresh(await source())
            demand = together([view.demand for view in views.values()])
        except (StoreGone, httpx.HTTPError, ValueError) as error:
            return self._failed(leads, f"the demand of the routers could not be read: {error}")
        return await self._advised(leads, views, demand)

    async def _advised(self, leads: bool, views: Views, demand: Mapping[str, ModelDemand]) -> Decision:
        seen, at_s = seen_in(views) or (), self._wall_clock()
        plan = with_patterns(self.plan, seen)
        self._warn_of_unstated(plan)
        counts = await self._counting.counts(plan, sorted(demand), self._target, views, self.memory, at_s)
        now_s, age_s = self._clock(), min((view.age_s for view in views.values() if view.demand), default=0.0)
        patterns = {name: pattern for model in demand for name, pattern in variants(plan, model).items()}

        def advised() -> Advised:  # in a thread: a router's streams go on meanwhile
            self.memory.beliefs.update(seen, patterns, now_s)
            self._add_arrivals(plan, views, demand, at_s)
            known = counts.existing, self.memory
            return advise(plan, demand, *known, now_s, age_s, counts.unknown, counts.loads, at_s)

        try:
            found = await asyncio.to_thread(advised)
        except Exception as error:
            return self._failed(leads, f"the advice could not be computed: {error!r}")
        without = {**counts.unknown, **found.failed}
        self.metrics.failures.inc(bool(without))
        reasons = self._caution.reasons(views, self._clock())
        advice = self._caution.checked(shared(plan, found.advice, without), reasons)
        self._applying.show(advice)
        applied = await self._applying.apply(advice, self._target, self.election.holds)
        self._note_orders(advice, applied)
        if leads and self.election.holds():
            await self._keep(Decided(advice, at_s))
        starts = {name: self._start_time(name) for name in patterns}
        return Decision(
            at_s,
            leads,
            demand,
            reasons,
            advice,
            applied,
            counts=counts,
            without=without,
            starts=starts,
            decided=found.decided,
        )

    def _add_arrivals(self, plan: Plan, views: Views, demand: Mapping[str, ModelDemand], at_s: float) -> None:
        """To the history. Not while a router cannot be read, whose part is then read later; nor of models without
        variants, for clients may request any name while there is no backend.
        """
        if any(view is UNREADABLE for view in views.values()):
            return
        for model, each in demand.items():
            if variants(plan, model):
                self.memory.histories.add(model, each.arrivals, each.bucket_s, at_s)

    def _warn_of_unstated(self, plan: Plan) -> None:
        """Log the variants that get no advice, for their facts are stated nowhere."""
        found = set(unstated(plan))
        for name in sorted(found - self._unstated):
            _log.warning(
                "variant %s gets no advice: no backend, in the config or of a router, states what it is; give "
                "autoscale.variants.%s.replica",
                name,
                name,
            )
        self._unstated = found

    def _start_time(self, variant: str) -> StartTime:
        known = self.memory.starts
        return StartTime(known.expected_s(variant, bounds_of(self.plan, variant).start_s), len(known.starts(variant)))

    def _failed(self, leads: bool, why: str) -> Decision:
        self.metrics.failures.inc()
        _log.warning("%s; the advice stays as it is", why)
        return Decision(self._wall_clock(), leads, failure=why)

    # -- from one autoscaler to the next ------------------------------------------------------------------------

    async def _take_turn(self, leads: bool) -> None:
        """Go on where the autoscaler before this one was, or follow the one that applies. Raises StoreGone."""
        turn = (leads, self.election.terms)
        if turn == self._turn and leads:
            return
        raw = await self._keeper.kept(MEMORY)
        self.memory.adopt(raw, self._wall_clock())
        if turn != self._turn:
            self.memory.histories.adopt(await self._keeper.kept(HISTORY))
        if leads and self._turn is not None:
            self._applying.restart()
        decided = decided_from(raw) if self._keeper.shared and not leads else None
        if not leads or self._turn is not None:
            age_s = 0.0
            if decided is not None:
                age_s = self._decision_age.of(decided.at_s, self._wall_clock(), self._clock())
            await self._target.stand_by(decided.advice if decided is not None else None, age_s)
        self._turn = turn

    async def _keep(self, decided: Decided) -> None:
        try:
            await self._keeper.keep(MEMORY, self.memory.written(decided))
            if not 0.0 <= decided.at_s - self._history_s < HISTORY_S:
                await self._keeper.keep(HISTORY, self.memory.histories.written())
                self._history_s = decided.at_s
        except StoreGone as gone:
            _log.warning("what the autoscaler has learnt cannot be stored: %s", gone)

    def _note_orders(self, advice: Sequence[Advice], applied: Sequence[Applied]) -> None:
        if not self.plan.target.acts:
            return
        for one, done in zip(advice, applied, strict=True):
            if done.outcome is Outcome.APPLIED:
                self.memory.ordered((one.model, one.variant), one.replicas, one.running, self._wall_clock())

    # -- the running config ------------------------------------------------------------------------------------

    def offered(self, plan: Plan) -> Plan:
        """Check that a plan can replace this one: target made, election unchanged. Raises ConfigError."""
        for name in ("election", "memory_file"):
            if getattr(plan.settings.autoscale, name) != getattr(self.plan.settings.autoscale, name):
                raise ConfigError([f"autoscale.{name}: cannot change while running; restart to change it"])
        if plan.target != self.plan.target and (self._offered is None or self._offered[0] != plan.target):
            self._offered = plan.target, make_target(plan.target)
        return plan

    async def adopt(self, plan: Plan, _: Plan | None = None) -> None:
        """Make *plan* the running one, after the round that runs. A target whose options are the same stays."""
        async with self._one_at_a_time:
            if plan.target != self.plan.target:
                before, self._target = self._target, self._taken(plan.target)
                self._applying.restart()
                self._counting.restart()
                await before.close()
            self.plan = plan

    def _taken(self, spec: TargetSpec) -> Target:
        offered, self._offered = self._offered, None
        return offered[1] if offered is not None and offered[0] == spec else make_target(spec)

    async def close(self) -> None:
        """Give the lease back and release the target."""
        await self.election.close()
        async with self._one_at_a_time:
            await self._target.close()
            if self._offered is not None:
                await self._offered[1].close()
