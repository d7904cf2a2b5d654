"""The call of the scaling policy: from the demand for a model to advice on the replicas of its variants.

The only place where the policy is called. Pure: must not depend on where demand comes from, on time or on targets.
"""

import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from math import nan
from typing import Final

from router.autoscaler.memory import ScalingMemory
from router.config.settings import Variant
from router.core.decisions import ScaleTo
from router.core.scaling import Demand, KindDemand, ReplicaLoad, ScalingDecision, Supply
from router.core.types import Backend
from router.gateway.config.plan import Plan
from router.gateway.state import KindOfDemand, ModelDemand
from router.targets import Advice, Replicas

Existing = Mapping[tuple[str, str], Replicas]  # by model and variant, where a target can observe them

Loads = Mapping[tuple[str, str], tuple[ReplicaLoad, ...]]  # by model and variant, of the replicas that serve

NO_LOADS: Final[Loads] = {}
UNBOUNDED: Final = 1_000_000  # replicas of a variant that the config states no bounds of

_log = logging.getLogger("headroom")


@dataclass(frozen=True, slots=True)
class Advised:
    """The advice for all models; by model, ``failed``: why there is none, ``decided``: what the policy stated of its
    decision.
    """

    advice: list[Advice] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    decided: dict[str, ScalingDecision] = field(default_factory=dict)


def advise(
    plan: Plan,
    demand: Mapping[str, ModelDemand],
    existing: Existing,
    memory: ScalingMemory | None = None,
    now_s: float = 0.0,
    age_s: float = 0.0,
    without: Collection[str] = (),
    loads: Loads = NO_LOADS,
    at_s: float = 0.0,
) -> Advised:
    """The advice of the plan's scaling policy for this demand, by model, within the variants' bounds. A policy that
    fails for one model fails for that one alone.

    *existing*: the replicas that there are; where it has none of a variant, the configured backends count. *memory*: of
    earlier rounds, to which this one is added (None: this is the only one). ``age_s``: of the demand; *without*: models
    that get no advice; *loads*: what runs on each replica, where it is known; ``at_s``: now, since the epoch.
    """
    known, whole = memory or ScalingMemory(), Advised()
    for model, each in sorted(demand.items()):
        if model in without:
            continue
        try:
            advice, decided = _advise_model(plan, model, each, existing, known, now_s, age_s, loads, at_s)
        except Exception as error:
            _log.warning("%s: the scaling policy failed: %r; its advice stays as it is", model, error)
            whole.failed[model] = f"the scaling policy failed: {error!r}"
            continue
        whole.advice.extend(advice)
        if decided is not None:
            known.decisions[model] = whole.decided[model] = decided
    return whole


def variants(plan: Plan, model: str) -> dict[str, Backend]:
    """The variants that serve a model, each with a pattern: one of its backends, or what the config states of one."""
    patterns = (*plan.patterns.values(), *plan.backends)
    return {backend.variant: backend for backend in patterns if model in backend.models}


def unstated(plan: Plan) -> list[str]:
    """The variants of the config whose facts neither it nor a backend states."""
    known = {backend.variant for backend in (*plan.patterns.values(), *plan.backends)}
    return [name for name in plan.settings.autoscale.variants if name not in known]


def _advise_model(
    plan: Plan,
    model: str,
    demand: ModelDemand,
    existing: Existing,
    memory: ScalingMemory,
    now_s: float,
    age_s: float,
    loads: Loads,
    at_s: float,
) -> tuple[list[Advice], ScalingDecision | None]:
    patterns = variants(plan, model)
    if not patterns or (demand.output_tokens <= 0 and not demand.arrivals):
        return [], None
    running = {name: _running(plan, model, name, existing) for name in patterns}
    supply = {
        name: _supply(plan, pattern, existing.get((model, name)), memory, loads.get((model, name), ()))
        for name, pattern in patterns.items()
    }
    ahead_s = max(each.start_s for each in supply.values()) + plan.settings.autoscale.period_s
    seasonal = memory.histories.forecast(model, at_s, ahead_s)
    shortfalls = memory.histories.shortfalls(model)
    serving = sum(running[name] - supply[name].starting for name in patterns)
    seen = replace(
        _demand(plan, model, demand, running, patterns),
        supply=supply,
        age_s=age_s,
        seasonal_per_s=seasonal.rate_per_s,
        seasonal_error_per_s=seasonal.error_per_s,
        settled_s=memory.settled_s(model, serving, now_s),
        last=memory.decisions.get(model),
        beyond=shortfalls.beyond(),
        highest_per_s=shortfalls.highest_per_s,
    )
    answers = plan.scaling.scale(seen)
    decided = next((answer.decision for answer in answers if answer.decision is not None), None)
    if decided is not None:
        memory.histories.planned(model, decided.planned_per_s, at_s + ahead_s)
    return [_bounded(plan, model, answer, running.get(answer.variant, 0)) for answer in answers], decided


def _running(plan: Plan, model: str, variant: str, existing: Existing) -> int:
    found = existing.get((model, variant))
    if found is not None:
        return found.ready + found.starting
    return sum(backend.variant == variant and model in backend.models for backend in plan.backends)


def _demand(
    plan: Plan, model: str, demand: ModelDemand, running: Mapping[str, int], patterns: Mapping[str, Backend]
) -> Demand:
    classes = plan.ingress.classes
    return Demand(
        model=model,
        requests_per_s=demand.requests_per_s,
        prompt_tokens=demand.prompt_tokens,
        output_tokens=demand.output_tokens,
        slo=classes.get(demand.slo_class, classes[plan.ingress.default_class]).slo,
        replicas=running,
        variants=patterns,
        attainment=demand.attained / demand.ended if demand.ended else nan,
        kinds=tuple(_kind(plan, kind) for kind in demand.kinds),
        arrivals=demand.arrivals,
        bucket_s=demand.bucket_s,
        in_flight=demand.in_flight,
        held=demand.held,
        shed_per_s=demand.shed_per_s,
        period_s=plan.settings.autoscale.period_s,
        replicas_min=int(any(bounds_of(plan, name).min_replicas for name in patterns)),
    )


def _kind(plan: Plan, kind: KindOfDemand) -> KindDemand:
    classes = plan.ingress.classes
    return KindDemand(
        kind.slo_class,
        classes.get(kind.slo_class, classes[plan.ingress.default_class]).slo,
        kind.requests_per_s,
        kind.prompt_tokens,
        kind.output_tokens,
        kind.ended,
        kind.attained,
    )


def bounds_of(plan: Plan, variant: str) -> Variant:
    """What the config states of a variant, or what holds where it states nothing."""
    return plan.settings.autoscale.variants.get(variant, Variant(max_replicas=UNBOUNDED))


def _supply(
    plan: Plan, pattern: Backend, found: Replicas | None, memory: ScalingMemory, running: tuple[ReplicaLoad, ...]
) -> Supply:
    variant = pattern.variant
    bounds = bounds_of(plan, variant)
    listed = variant in plan.settings.autoscale.variants
    return Supply(
        start_s=memory.starts.expected_s(variant, bounds.start_s),
        replicas_min=bounds.min_replicas if listed else 0,
        replicas_max=bounds.max_replicas,
        start_usd=bounds.start_usd,
        loss_per_hour=bounds.loss_per_hour,
        starting=found.starting if found is not None else 0,
        running=running,
        learnt=memory.beliefs.of(pattern),
    )


def _bounded(plan: Plan, model: str, answer: ScaleTo, running: int) -> Advice:
    bounds = plan.settings.autoscale.variants.get(answer.variant)
    replicas, why = answer.replicas, answer.why
    if bounds is not None and not bounds.min_replicas <= replicas <= bounds.max_replicas:
        replicas = min(max(replicas, bounds.min_replicas), bounds.max_replicas)
        why += f"; {answer.replicas} is outside {bounds.min_replicas} to {bounds.max_replicas}"
    return Advice(model, answer.variant, replicas, running, why, tuple(answer.drain))
