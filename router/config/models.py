"""The config's section of models: names that stand for several by weight, and models that others fall back on.

Both config files have it, the gateway's and the simulator's. Must not depend on the rest of either.
"""

from collections.abc import Collection, Iterator, Mapping
from typing import Annotated, Final, Literal, Self

from pydantic import BeforeValidator, model_validator

from router.config.section import Name, PositiveFloat, Section, some
from router.config.text import ConfigProblem, Loc, unknown
from router.core import model_rules

EVERYONE: Final = "everyone"


class FallbackFor(Section):
    """Whose requests allow it that do not state it themselves."""

    tenants: frozenset[Name] = frozenset()
    classes: frozenset[Name] = frozenset()


class ModelRule(Section):
    """What becomes of requests for a model.

    ``split``: the models that serve them, each with its weight; a session stays with its model. ``fallback``: models
    that serve them, the first that can, when no backend of their own is expected to meet the SLO or none is up, for
    requests that allow it: by the header ``x-headroom-fallback: allow``, by their key, or by ``fallback_for``.
    """

    split: Annotated[dict[Name, PositiveFloat], BeforeValidator(some)] | None = None
    fallback: Annotated[tuple[Name, ...], BeforeValidator(some)] = ()
    fallback_for: FallbackFor | Literal["everyone"] | None = None

    @model_validator(mode="after")
    def _some_rule(self) -> Self:
        if not self.fallback and self.split is None:
            raise ValueError("needs split or fallback")
        if self.fallback_for is not None and not self.fallback:
            raise ValueError("fallback_for has no use without fallback")
        twice = next((name for name in self.fallback if self.fallback.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"fallback names {twice!r} twice")
        return self

    def rule(self) -> model_rules.ModelRule:
        """As the core has it."""
        allowed = self.fallback_for if isinstance(self.fallback_for, FallbackFor) else FallbackFor()
        return model_rules.ModelRule(
            tuple((self.split or {}).items()),
            self.fallback,
            self.fallback_for == EVERYONE,
            allowed.tenants,
            allowed.classes,
        )


def rules(given: Mapping[str, ModelRule]) -> model_rules.ModelRules:
    """As the core has them."""
    return model_rules.ModelRules({name: each.rule() for name, each in given.items()})


def faults(
    given: Mapping[str, ModelRule], served: frozenset[str], classes: Collection[str] | None = None
) -> Iterator[ConfigProblem]:
    """What is wrong between the rules. *served*: all models that backends serve, empty where that is not known;
    *classes*: the SLO classes there are, None where any may come.
    """
    split = {name for name, each in given.items() if each.split is not None}
    for name, each in given.items():
        at = ("models", name)
        for arm in each.split or {}:
            if arm != name and arm in split:
                yield ConfigProblem((*at, "split", arm), "is split itself; name the models that it is split into")
            elif served and arm not in served:
                yield ConfigProblem((*at, "split", arm), _unserved(arm, served))
        for place, other in enumerate(each.fallback):
            if other == name:
                yield ConfigProblem((*at, "fallback", place), "is the model itself")
            elif served and other not in served | split:
                yield ConfigProblem((*at, "fallback", place), _unserved(other, served))
        yield from _strange_classes(at, each, classes)


def _strange_classes(at: Loc, each: ModelRule, classes: Collection[str] | None) -> Iterator[ConfigProblem]:
    if isinstance(each.fallback_for, FallbackFor) and classes is not None:
        for slo_class in sorted(each.fallback_for.classes - set(classes)):
            yield ConfigProblem((*at, "fallback_for", "classes"), unknown("class", slo_class, classes))


def _unserved(name: str, served: Collection[str]) -> str:
    found = unknown("model", name, served)
    return f"no backend serves {name!r}: {found}; an adapter that is loaded later is named in its backend's models"
