"""Who decides for live traffic: the serving policies in their nets, a canary beside them, a shadow over all.

Believes: a plan that was proved. Must not know why a policy decides as it does. The core is handed one routing and one
admission; what they are made of here changes between two requests. Faults and verdicts are noted at once and acted on
after the decision under way, by whoever was given as ``act``.
"""

import asyncio
import logging
from collections.abc import Callable, Iterator
from time import perf_counter
from typing import Any, Final, Literal

from router.core.decisions import RequestRecord
from router.core.dispatcher import Dispatcher
from router.core.policy import Routing
from router.gateway.config.plan import Plan
from router.gateway.rollout.audit import Audit
from router.gateway.rollout.canary import Canary, Split, Trial
from router.gateway.rollout.guard import SAFE, Bounds, DecisionStats, Fault, Guarded, GuardedAdmission
from router.gateway.rollout.shadow import Comparison, Shadow

_log = logging.getLogger("headroom")

Role = Literal["serving", "canary", "shadow"]
Verdict = Literal["dropped", "promoted", "returned"]
ROLES: Final[tuple[Role, ...]] = ("serving", "canary", "shadow")
Sample = tuple[str, dict[str, str], float]


class PolicyRollout:
    """Puts a plan's policies to work in one core."""

    def __init__(
        self,
        core: Dispatcher,
        audit: Audit,
        act: Callable[[Plan, Verdict, Role, str], None],
        clock: Callable[[], float] = perf_counter,
        trials: int = 1,
    ) -> None:
        """``act`` is called when a role's policy was dropped for its faults, or when its canary's trial has ended.

        ``trials``: that run side by side, one in each worker; the first verdict is for all.
        """
        self._core, self._audit, self._act, self._clock = core, audit, act, clock
        self.books: dict[Role, DecisionStats] = {role: DecisionStats() for role in ROLES}
        self._trials = trials
        self._plan: Plan | None = None
        self._shadow: Shadow | None = None
        self._trial: Trial | None = None
        self._compared = Comparison()

    def adopt(self, plan: Plan, last_good: Routing | None) -> None:
        """Let *plan* decide from the next request on; where its policy fails, *last_good* does."""
        given = plan.settings.policy.guard
        bounds = Bounds(given.budget_ms / 1e3, given.faults_max, given.window_s)
        self._plan = plan
        routing = self._serving(plan, last_good or SAFE, bounds)
        admission = GuardedAdmission(
            plan.admission, bounds, self.books["serving"], self._clock, self._hears("serving", "admission")
        )
        self._core.limits = plan.limits
        self._core.adopt(routing, admission)

    def _serving(self, plan: Plan, last_good: Routing, bounds: Bounds) -> Routing:
        told = (bounds, self.books["serving"], self._clock, self._hears("serving", "routing"))
        routing: Routing = Guarded(plan.routing, last_good, *told)
        self._trial, self._shadow = None, None
        trial, shadow = plan.settings.policy.canary, plan.settings.policy.shadow
        if trial is not None and plan.canary is not None:
            split = Split(trial.share, trial.by, trial.tenants)
            confidence = 1.0 - (1.0 - trial.confidence) / self._trials  # Bonferroni's
            self._trial = Trial(split, trial.attainment_drop_max, confidence, trial.sample_min, trial.sample_max)
            told = (bounds, self.books["canary"], self._clock, self._hears("canary", "routing"))
            routing = Canary(routing, Guarded(plan.canary, plan.routing, *told), split)
        if shadow is not None and plan.shadow is not None:
            told = (bounds, self.books["shadow"], self._clock, self._hears("shadow", "routing"))
            routing = self._shadow = Shadow(
                routing, plan.shadow, shadow.share, self._core.belief, self._compared, *told
            )
        return routing

    def _hears(self, role: Role, kind: str) -> Callable[[Fault], None]:
        """A listener for one policy's faults."""
        return lambda fault: self._faulted(role, kind, fault)

    def _faulted(self, role: Role, kind: str, fault: Fault) -> None:
        self._audit.note("fault", role=role, policy=kind, fault=fault.kind, why=fault.why, dropped=fault.last)
        _log.error("%s %s policy: %s%s", role, kind, fault.why, "; it is not asked again" if fault.last else "")
        if fault.last:
            self._later("dropped", role, fault.why)

    def accounted(self, account: RequestRecord) -> None:
        """One request is over: a trial may be, too."""
        trial = self._trial
        if trial is None or trial.verdict is not None:
            return
        verdict = trial.accounted(account)
        if verdict is not None:
            self._later(verdict, "canary", trial.why)

    def _later(self, verdict: Verdict, role: Role, why: str) -> None:
        """After the decision under way: a swap belongs between two requests."""
        plan = self._plan
        assert plan is not None  # a policy of its decided just now
        asyncio.get_running_loop().call_soon(lambda: self._act(plan, verdict, role, why))

    # -- what is shown -----------------------------------------------------------------------------------------

    def plain(self) -> dict[str, Any]:
        """For /admin/policy."""
        return {
            "roles": {role: self._role(books) for role, books in self.books.items()},
            "canary": self._trial.plain() if self._trial else None,
            "shadow": self._compared.plain() if self._shadow else None,
        }

    @staticmethod
    def _role(books: DecisionStats) -> dict[str, Any]:
        mean_us = round(1e6 * books.seconds / books.decisions, 1) if books.decisions else None
        return {"decisions": books.decisions, "mean_us": mean_us, "faults": dict(books.faults)}

    def samples(self) -> Iterator[Sample]:
        """For the metrics page: name, labels, value."""
        for role, books in self.books.items():
            yield "decisions", {"role": role}, books.decisions
            yield "decision_seconds", {"role": role}, books.seconds
            for kind, count in books.faults.items():
                yield "faults", {"role": role, "kind": kind}, count
        seen = self._compared
        for agreed, count in (("true", seen.agreed), ("false", seen.differed)):
            yield "shadow_decisions", {"agreed": agreed}, count
        for bound, gain_s in seen.gain_s.items():
            yield "shadow_gain_seconds", {"bound": bound}, gain_s / seen.both if seen.both else 0.0
        for name, arm in (self._trial.arms if self._trial else {}).items():
            yield "canary_requests", {"arm": name, "kept": "true"}, arm.kept
            yield "canary_requests", {"arm": name, "kept": "false"}, arm.requests - arm.kept
