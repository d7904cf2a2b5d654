"""The policies that decide for live traffic: the serving ones behind guards, a canary, and a shadow.

Takes a plan that was validated. Must not depend on how a policy decides. The core gets one routing and one admission
policy; what they consist of changes between two requests. Faults and verdicts are noted at once; ``act`` is called with
them after the decision under way.
"""

import asyncio
import logging
from collections.abc import Callable, Iterator
from time import perf_counter
from typing import Any, Final, Literal

from router.core.decisions import RequestRecord
from router.core.dispatcher import Dispatcher
from router.core.policy import Routing
from router.core.types import Request
from router.gateway.config.plan import Plan
from router.gateway.rollout.audit import Audit
from router.gateway.rollout.canary import Canary, Split, Trial
from router.gateway.rollout.guard import SAFE, Bounds, DecisionStats, Fault, Faults, Guarded, GuardedAdmission
from router.gateway.rollout.replacements import Replacements
from router.gateway.rollout.shadow import Comparison, Shadow

_log = logging.getLogger("headroom")

Role = Literal["serving", "canary", "shadow"]
Verdict = Literal["dropped", "promoted", "returned"]
ROLES: Final[tuple[Role, ...]] = ("serving", "canary", "shadow")
Sample = tuple[str, dict[str, str], float]


class PolicyRollout:
    """Installs a plan's policies in one core."""

    def __init__(
        self,
        core: Dispatcher,
        audit: Audit,
        act: Callable[[Plan, Verdict, Role, str], None],
        clock: Callable[[], float] = perf_counter,
        trials: int = 1,
        replacements: Replacements | None = None,
    ) -> None:
        """``act`` is called when a role's policy is dropped for its faults, and when its canary's trial has ended.

        ``trials``: run in parallel, one in each worker; the first verdict decides for all. ``replacements``: where the
        guards note whose decisions they replaced (None: nowhere).
        """
        self._core, self._audit, self._act, self._clock = core, audit, act, clock
        self.stats: dict[Role, DecisionStats] = {role: DecisionStats() for role in ROLES}
        self._trials, self._replacements = trials, replacements
        self._plan: Plan | None = None
        self._shadow: Shadow | None = None
        self._trial: Trial | None = None
        self._compared = Comparison()

    def adopt(self, plan: Plan, last_good: Routing | None) -> None:
        """Use the policies of *plan* from the next request on, and *last_good* where its routing fails."""
        given = plan.settings.policy.guard
        bounds = Bounds(given.budget_ms / 1e3, given.faults_max, given.window_s)
        self._plan = plan
        routing = self._serving(plan, last_good or SAFE, bounds)
        faults = self._faults("serving", "admission", bounds)
        admission = GuardedAdmission(plan.admission, faults, self._replacements)
        self._core.limits = plan.limits
        self._core.adopt(routing, admission)

    def _serving(self, plan: Plan, last_good: Routing, bounds: Bounds) -> Routing:
        faults = self._faults("serving", "routing", bounds)
        routing: Routing = Guarded(plan.routing, last_good, faults, self._replacements)
        self._trial, self._shadow = None, None
        trial, shadow = plan.settings.policy.canary, plan.settings.policy.shadow
        if trial is not None and plan.canary is not None:
            split = Split(trial.share, trial.by, trial.tenants)
            confidence = 1.0 - (1.0 - trial.confidence) / self._trials  # Bonferroni's
            self._trial = Trial(split, trial.attainment_drop_max, confidence, trial.sample_min, trial.sample_max)
            faults = self._faults("canary", "routing", bounds)
            routing = Canary(routing, Guarded(plan.canary, plan.routing, faults, self._replacements), split)
        if shadow is not None and plan.shadow is not None:
            faults = self._faults("shadow", "routing", bounds)
            routing = self._shadow = Shadow(
                routing, plan.shadow, shadow.share, self._core.belief, self._compared, faults
            )
        return routing

    def _faults(self, role: Role, kind: str, bounds: Bounds) -> Faults:
        """The record of the faults of one policy."""
        return Faults(bounds, self.stats[role], self._clock, lambda fault: self._faulted(role, kind, fault))

    def _faulted(self, role: Role, kind: str, fault: Fault) -> None:
        self._audit.note("fault", role=role, policy=kind, fault=fault.kind, why=fault.why, dropped=fault.last)
        _log.error("%s %s policy: %s%s", role, kind, fault.why, "; dropped: it decides no more" if fault.last else "")
        if fault.last:
            self._later("dropped", role, fault.why)

    def accounted(self, account: RequestRecord) -> None:
        """Count one finished request for the trial, and act on its verdict."""
        trial = self._trial
        if trial is None or trial.verdict is not None:
            return
        verdict = trial.accounted(account)
        if verdict is not None:
            self._later(verdict, "canary", trial.why)

    def _later(self, verdict: Verdict, role: Role, why: str) -> None:
        """Call ``act`` after the decision under way: policies change between two requests."""
        plan = self._plan
        assert plan is not None  # the fault or verdict is of one of its policies
        asyncio.get_running_loop().call_soon(lambda: self._act(plan, verdict, role, why))

    # -- what is shown -----------------------------------------------------------------------------------------

    def plain(self) -> dict[str, Any]:
        """The content of /admin/policy."""
        return {
            "roles": {role: self._role(stats) for role, stats in self.stats.items()},
            "canary": self._trial.plain() if self._trial else None,
            "shadow": self._compared.plain() if self._shadow else None,
        }

    @staticmethod
    def _role(stats: DecisionStats) -> dict[str, Any]:
        mean_us = round(1e6 * stats.seconds / stats.decisions, 1) if stats.decisions else None
        return {"decisions": stats.decisions, "mean_us": mean_us, "faults": dict(stats.faults)}

    def arm(self, request: Request) -> str:
        """Which of a running trial's two policies decides about this request; empty without a trial."""
        if self._trial is None or self._trial.verdict is not None:
            return ""
        return "canary" if self._trial.split.takes(request) else "serving"

    def samples(self) -> Iterator[Sample]:
        """The samples of the metrics page: name, labels, value."""
        for role, stats in self.stats.items():
            yield "decisions", {"role": role}, stats.decisions
            yield "decision_seconds", {"role": role}, stats.seconds
            for kind, count in stats.faults.items():
                yield "faults", {"role": role, "kind": kind}, count
        seen = self._compared
        for agreed, count in (("true", seen.agreed), ("false", seen.differed)):
            yield "shadow_decisions", {"agreed": agreed}, count
        for bound, gain_s in seen.gain_s.items():
            yield "shadow_gain_seconds", {"bound": bound}, gain_s / seen.both if seen.both else 0.0
        for name, arm in (self._trial.arms if self._trial else {}).items():
            yield "canary_requests", {"arm": name, "met": "true"}, arm.met
            yield "canary_requests", {"arm": name, "met": "false"}, arm.requests - arm.met
