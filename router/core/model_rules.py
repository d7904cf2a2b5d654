"""Which model serves a request instead of the one that it names: an arm of a split, or a model that it falls back on.

A split gives a name to several models by weight. Which one a request gets follows from a hash of its session, else of
its id: the same in every router and in the simulator, and a session stays with its model for as long as the weights do.
A fallback is for requests that allow it. Must not depend on which backends there are: the dispatcher has those.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from router.core.errors import Reason
from router.core.hashing import hash64
from router.core.types import Request

ALLOW: Final = "allow"
DENY: Final = "deny"

UNSERVED: Final = frozenset(
    {
        Reason.SATURATED,
        Reason.QUEUE_FULL,
        Reason.HOLD_EXPIRED,
        Reason.INFEASIBLE,
        Reason.EVICTED,
        Reason.NO_BACKEND,
        Reason.UNKNOWN_MODEL,
        Reason.TOO_LONG,
        Reason.BACKEND_FAILED,
        Reason.FIRST_BYTE_LATE,
    }
)
"""Reasons of a refusal that another model may not have: no backend of this one could serve the request in time."""


@dataclass(frozen=True, slots=True)
class ModelRule:
    """What a name stands for. ``split``: models with their weights, in order; ``fallback``: models that may serve its
    requests, the first that can; ``everyone``: whether requests that say nothing of it allow that, else those of
    ``tenants`` and of SLO ``classes`` do. ``startable``: the autoscaler knows what its replicas are, so that it is a
    model also while it has none.
    """

    split: tuple[tuple[str, float], ...] = ()
    fallback: tuple[str, ...] = ()
    everyone: bool = False
    tenants: frozenset[str] = frozenset()
    classes: frozenset[str] = frozenset()
    startable: bool = False

    def allows(self, request: Request) -> bool:
        """Whether another model may serve the request: its own word counts before the rule's."""
        if request.fallback:
            return request.fallback == ALLOW
        return self.everyone or request.tenant in self.tenants or request.slo_class in self.classes

    def arm(self, key: str) -> str:
        """The model of the split that a key's hash selects. Of two models, changed weights move as few keys as they
        can; of more, also some between neighbours.
        """
        at = hash64(key) / 2.0**64 * sum(weight for _, weight in self.split)
        for model, weight in self.split:
            at -= weight
            if at < 0.0:
                return model
        return self.split[-1][0]  # rounding

    def plain(self) -> dict[str, Any]:
        """As JSON can hold it."""
        allowed = {"tenants": sorted(self.tenants), "classes": sorted(self.classes)}
        return {"split": [list(each) for each in self.split], "fallback": list(self.fallback)} | (
            ({"everyone": True} if self.everyone else allowed) | ({"startable": True} if self.startable else {})
        )


@dataclass(frozen=True, slots=True)
class ModelRules:
    """The rules by the name that clients use."""

    rules: Mapping[str, ModelRule] = field(default_factory=dict)

    def resolved(self, request: Request) -> Request:
        """The request for the model that its split selects; itself where its model has none, or it was selected."""
        rule = self.rules.get(request.model)
        if rule is None or not rule.split or request.requested_model:
            return request
        name = request.model
        return replace(request, model=self.arm(name, request.session or request.id), requested_model=name)

    def arm(self, model: str, key: str) -> str:
        """The model that serves a key's requests for *model*."""
        return self._arms(model, key)[0]

    def _arms(self, model: str, key: str) -> tuple[str, ...]:
        """That one, then the others that *model* is split into."""
        rule = self.rules.get(model)
        if rule is None or not rule.split:
            return (model,)
        first = rule.arm(f"{model}\n{key}")
        return (first, *(other for other, _ in rule.split if other != first))

    def startable(self, model: str) -> bool:
        """Whether a model without a backend may have one soon."""
        rule = self.rules.get(model)
        return rule is not None and rule.startable

    def other_arms(self, request: Request) -> tuple[str, ...]:
        """The other models of the split that selected the request's, in order."""
        rule = self.rules.get(request.requested_model)
        return () if rule is None else tuple(model for model, _ in rule.split if model != request.model)

    def fallbacks(self, request: Request) -> tuple[str, ...]:
        """The models that may serve the request in place of its own, the best first: by the rule of the name that the
        client used, else by that of the model which a split selected.
        """
        for name in (request.requested_model, request.model):
            rule = self.rules.get(name)
            if rule is not None and rule.fallback:
                if not rule.allows(request):
                    return ()
                key = request.session or request.id
                models = dict.fromkeys(model for each in rule.fallback for model in self._arms(each, key))
                models.pop(request.model, None)  # what cannot serve it is not tried in its own place
                return tuple(models)
        return ()

    def plain(self) -> dict[str, Any]:
        """As JSON can hold it: see ``rules_of``."""
        return {name: rule.plain() for name, rule in self.rules.items()}


NO_RULES: Final = ModelRules()


def rules_of(plain: Mapping[str, Any]) -> ModelRules:
    """The rules of a ``plain``."""
    return ModelRules({name: _rule_of(each) for name, each in plain.items()})


def _rule_of(plain: Mapping[str, Any]) -> ModelRule:
    split = tuple((str(model), float(weight)) for model, weight in plain["split"])
    tenants, classes = (frozenset(plain.get(name, ())) for name in ("tenants", "classes"))
    everyone, startable = plain.get("everyone", False), plain.get("startable", False)
    return ModelRule(split, tuple(plain["fallback"]), everyone, tenants, classes, startable)
