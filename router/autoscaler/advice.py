"""The call of the scaling policy: from the demand for a model to advice on the replicas of its variants.

The only place where the policy is called. Pure: must not depend on where demand comes from, on time or on targets.
"""

from collections.abc import Mapping
from math import nan

from router.core.decisions import ScaleTo
from router.core.policy import Demand
from router.core.types import Backend
from router.gateway.config.plan import Plan
from router.gateway.state import ModelDemand
from router.targets import Advice, Replicas

Existing = Mapping[tuple[str, str], Replicas]  # by model and variant, where a target can observe them


def advise(plan: Plan, demand: Mapping[str, ModelDemand], existing: Existing) -> list[Advice]:
    """The advice of the plan's scaling policy for this demand, by model, within the variants' bounds.

    *existing*: the replicas that there are; where it has none of a variant, the configured backends count.
    """
    return [one for model, each in sorted(demand.items()) for one in _advise_model(plan, model, each, existing)]


def variants(plan: Plan, model: str) -> dict[str, Backend]:
    """The variants that serve a model, each with a pattern: one of its backends, or what the config states of one."""
    patterns = (*plan.patterns.values(), *plan.backends)
    return {backend.variant: backend for backend in patterns if model in backend.models}


def _advise_model(plan: Plan, model: str, demand: ModelDemand, existing: Existing) -> list[Advice]:
    patterns = variants(plan, model)
    if not patterns or demand.output_tokens <= 0:
        return []
    running = {name: _running(plan, model, name, existing) for name in patterns}
    answers = plan.scaling.scale(_demand(plan, model, demand, running, patterns))
    return [_bounded(plan, model, answer, running.get(answer.variant, 0)) for answer in answers]


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
    )


def _bounded(plan: Plan, model: str, answer: ScaleTo, running: int) -> Advice:
    bounds = plan.settings.autoscale.variants.get(answer.variant)
    replicas, why = answer.replicas, answer.why
    if bounds is not None and not bounds.min_replicas <= replicas <= bounds.max_replicas:
        replicas = min(max(replicas, bounds.min_replicas), bounds.max_replicas)
        why += f"; {answer.replicas} is outside {bounds.min_replicas} to {bounds.max_replicas}"
    return Advice(model, answer.variant, replicas, running, why)
