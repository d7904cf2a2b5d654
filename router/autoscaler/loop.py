"""The scaling round: from demand to the number of replicas, with the reason; the config's target applies it.

Without an answer of the routers, or while the replicas that there are cannot be observed, the last advice remains;
while a part of the routers cannot be seen, replicas are only added. Must not depend on any one target, on how replicas
are started, or on where the autoscaler runs.
"""

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from time import monotonic, time

import httpx

from router.autoscaler.advice import Existing, advise, variants
from router.autoscaler.applying import Applying
from router.autoscaler.caution import SETTLED_S, Caution
from router.autoscaler.demand import Views, together
from router.autoscaler.election import Election
from router.autoscaler.memory import ScalingMemory
from router.autoscaler.metrics import ScalingMetrics
from router.autoscaler.sharing import shared
from router.core.errors import ConfigError, NotObserved, StoreGone
from router.core.policy import Routing
from router.gateway.config.plan import Plan
from router.gateway.rollout.audit import Audit
from router.gateway.state import ModelDemand
from router.targets import Advice, Applied, Target, TargetSpec

_log = logging.getLogger("headroom")


@dataclass(frozen=True, slots=True)
class Decision:
    """One round: what was read, what was advised and what became of it; ``failure``: why there is no advice.

    ``only_added``: why no replica is taken away now; ``leads``: whether advice was applied here.
    """

    at_s: float
    leads: bool
    demand: Mapping[str, ModelDemand] = field(default_factory=dict)
    only_added: Sequence[str] = ()
    advice: Sequence[Advice] = ()
    applied: Sequence[Applied] = ()
    failure: str = ""


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
        settled_s: float = SETTLED_S,
    ) -> None:
        """``settled_s``: how long all routers have to be seen before replicas are taken away."""
        self.plan = plan
        self.last: Decision | None = None
        self.metrics = metrics or ScalingMetrics()
        self.election = election or Election()
        self._target, self._clock = target, clock
        self._offered: tuple[TargetSpec, Target] | None = None
        self._caution = Caution(settled_s)
        self._memory = ScalingMemory()
        self._applying = Applying(self.metrics, audit or Audit())
        self._one_at_a_time = asyncio.Lock()  # a round is over before its target is replaced

    async def round(self, source: Callable[[], Awaitable[Views]]) -> list[Advice]:
        """Read the demand once and apply what follows; without an answer the gauges stay and nothing is applied."""
        async with self._one_at_a_time:
            self.last = await self._decided(source)
        return list(self.last.advice)

    async def _decided(self, source: Callable[[], Awaitable[Views]]) -> Decision:
        leads = self.election.holds()
        self.metrics.leads.set(leads)
        if leads:
            await self._target.tend()
        try:
            views = await source()
            demand = together([view.demand for view in views.values()])
            existing = await self._observed(sorted(demand))
        except (StoreGone, httpx.HTTPError, ValueError) as error:
            return self._failed(leads, f"the demand of the routers could not be read: {error}")
        except NotObserved as error:
            return self._failed(leads, f"the replicas could not be observed: {error}")
        now_s = self._clock()
        try:  # in a thread: a router's streams go on meanwhile
            advised = await asyncio.to_thread(advise, self.plan, demand, existing, self._memory, now_s)
        except Exception as error:
            return self._failed(leads, f"the scaling policy failed: {error!r}")
        reasons = self._caution.reasons(views, self._clock())
        advice = self._caution.checked(shared(self.plan, advised), reasons)
        self._applying.show(advice)
        applied = await self._applying.apply(advice, self._target, self.election.holds)
        return Decision(time(), leads, demand, reasons, advice, applied)

    def _failed(self, leads: bool, why: str) -> Decision:
        self.metrics.failures.inc()
        _log.warning("%s; the advice stays as it is", why)
        return Decision(time(), leads, failure=why)

    async def _observed(self, models: list[str]) -> Existing:
        """The replicas that the target can observe. Raises NotObserved where it can, and could not now."""
        places = [(model, variant) for model in models for variant in variants(self.plan, model)]
        found = {place: await self._target.observe(*place) for place in places}
        return {place: replicas for place, replicas in found.items() if replicas is not None}

    # -- the running config ------------------------------------------------------------------------------------

    def offered(self, plan: Plan) -> Plan:
        """Check that a plan can replace this one: target made, election unchanged. Raises ConfigError."""
        if plan.settings.autoscale.election != self.plan.settings.autoscale.election:
            raise ConfigError(["autoscale.election: cannot change while running; restart to change it"])
        if plan.target != self.plan.target and (self._offered is None or self._offered[0] != plan.target):
            self._offered = plan.target, make_target(plan.target)
        return plan

    async def adopt(self, plan: Plan, _: Routing | None = None) -> None:
        """Make *plan* the running one, after the round that runs. A target whose options are the same stays."""
        async with self._one_at_a_time:
            if plan.target != self.plan.target:
                before, self._target = self._target, self._taken(plan.target)
                self._applying.restart()
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
