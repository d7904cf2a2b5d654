"""The list of models in OpenAI's form, with what vLLM states beside it: where a model comes from, and its context.

Must not depend on how requests are routed.
"""

from collections.abc import Mapping
from typing import Any

from router.core.model_rules import ModelRule
from router.core.types import Backend
from router.engines import ListedModel
from router.gateway.config.plan import Plan

Lists = Mapping[str, tuple[ListedModel, ...]]


def served(plan: Plan) -> dict[str, list[Backend]]:
    """Model names with the backends that serve them, in the config's order; then those that are split into others, with
    the backends of those. A name that only has a fallback is served by nobody.
    """
    own: dict[str, list[Backend]] = {}
    for backend in plan.backends:
        for name in backend.models:
            own.setdefault(name, []).append(backend)
    found = dict(own)
    for name, rule in plan.ingress.models.rules.items():
        backends = {each.name: each for model, _ in rule.split for each in own.get(model, [])}
        if backends:
            found[name] = list(backends.values())
    return found


def entry(plan: Plan, lists: Lists, name: str, backends: list[Backend]) -> dict[str, Any]:
    """One model. ``max_model_len``: the longest context that any of its backends takes; null: not known."""
    rule = plan.ingress.models.rules.get(name)
    if rule is not None and rule.split:
        return _split(plan, lists, name, rule, backends)
    return _served(plan, lists, name, backends)


def _served(plan: Plan, lists: Lists, name: str, backends: list[Backend]) -> dict[str, Any]:
    root, parent, context_tokens = "", "", 0
    names = {given.name: given.models for given in plan.addresses}
    for backend in backends:
        own = names.get(backend.name, {})
        listed = {each.name: each for each in lists.get(backend.name, ())}
        model = listed.get(own.get(name, name), ListedModel(name))
        base = listed.get(model.parent, model)
        root = root or model.root
        parent = parent or next((ours for ours, theirs in own.items() if theirs == model.parent), "")
        own_tokens = model.context_tokens_max or base.context_tokens_max or backend.context_tokens_max
        context_tokens = max(context_tokens, own_tokens)
    return {
        "id": name,
        "object": "model",
        "created": 0,
        "owned_by": "headroom",
        "root": root or name,
        "parent": parent or None,
        "max_model_len": context_tokens or None,
        "backends": [backend.name for backend in backends],
    }


def _split(plan: Plan, lists: Lists, name: str, rule: ModelRule, backends: list[Backend]) -> dict[str, Any]:
    """A name that is split into others: a request for it may come to any, so it has the shortest of their contexts."""
    arms = {model: [each for each in backends if model in each.models] for model, _ in rule.split}
    known = [_served(plan, lists, model, there)["max_model_len"] for model, there in arms.items() if there]
    shortest = min((tokens for tokens in known if tokens), default=None)
    own = {"id": name, "root": name, "parent": None, "max_model_len": shortest, "split": dict(rule.split)}
    return _served(plan, lists, name, backends) | own
