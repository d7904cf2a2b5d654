"""The list of models in OpenAI's form, with what vLLM states beside it: where a model comes from, and its context.

Must not depend on how requests are routed.
"""

from collections.abc import Mapping
from typing import Any

from router.core.types import Backend
from router.engines import ListedModel
from router.gateway.config.plan import Plan

Lists = Mapping[str, tuple[ListedModel, ...]]


def served(plan: Plan) -> dict[str, list[Backend]]:
    """Model names with the backends that serve them, in the config's order."""
    found: dict[str, list[Backend]] = {}
    for backend in plan.backends:
        for name in backend.models:
            found.setdefault(name, []).append(backend)
    return found


def entry(plan: Plan, lists: Lists, name: str, backends: list[Backend]) -> dict[str, Any]:
    """One model. ``max_model_len``: the longest context that any of its backends takes; null: not known."""
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
