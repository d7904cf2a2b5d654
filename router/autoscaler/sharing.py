"""Advice for several models on the same replicas: one number, the largest that any of them needs.

Pure. Without it a target would get one number after the other for the same replicas, and take away what another model
needs.
"""

from collections.abc import Collection, Sequence
from dataclasses import replace

from router.gateway.config.plan import Plan
from router.targets import Advice


def shared(plan: Plan, advice: Sequence[Advice], without: Collection[str] = ()) -> list[Advice]:
    """The advice, with the same number for models that the same replicas of a variant serve, and with no fewer than
    run where one of those models is *without* advice now.
    """
    return [_kept_for(plan, _with_others(plan, one, advice), without) for one in advice]


def _kept_for(plan: Plan, one: Advice, without: Collection[str]) -> Advice:
    others = [model for model in sorted(without) if one.replicas < one.running and _serve_both(plan, one, model)]
    if not others:
        return one
    why = f"{one.why}; not fewer while {others[0]}, on the same replicas, has no advice"
    return replace(one, replicas=one.running, why=why)


def _with_others(plan: Plan, one: Advice, advice: Sequence[Advice]) -> Advice:
    others = [each for each in advice if each.variant == one.variant and _serve_both(plan, one, each.model)]
    most = max(others, key=lambda each: each.replicas, default=one)
    if most.replicas <= one.replicas:
        return one
    return replace(
        one, replicas=most.replicas, why=f"{one.why}; {most.model} on the same replicas needs {most.replicas}"
    )


def _serve_both(plan: Plan, one: Advice, other: str) -> bool:
    backends = (*plan.patterns.values(), *plan.backends)
    return any(
        backend.variant == one.variant and one.model in backend.models and other in backend.models
        for backend in backends
    )
