"""Advice for several models on the same replicas: one number, the largest that any of them needs.

Pure. Without it a target would get one number after the other for the same replicas, and take away what another model
needs.
"""

from collections.abc import Sequence
from dataclasses import replace

from router.gateway.config.plan import Plan
from router.targets import Advice


def shared(plan: Plan, advice: Sequence[Advice]) -> list[Advice]:
    """The advice, with the same number for models that the same replicas of a variant serve."""
    return [_with_others(plan, one, advice) for one in advice]


def _with_others(plan: Plan, one: Advice, advice: Sequence[Advice]) -> Advice:
    others = [each for each in advice if each.variant == one.variant and _together(plan, one, each)]
    most = max(others, key=lambda each: each.replicas, default=one)
    if most.replicas <= one.replicas:
        return one
    return replace(
        one, replicas=most.replicas, why=f"{one.why}; {most.model} on the same replicas needs {most.replicas}"
    )


def _together(plan: Plan, one: Advice, other: Advice) -> bool:
    backends = (*plan.patterns.values(), *plan.backends)
    return any(
        backend.variant == one.variant and one.model in backend.models and other.model in backend.models
        for backend in backends
    )
