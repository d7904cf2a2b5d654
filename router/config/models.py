"""The config's section of models: names that stand for several by weight, and models that others fall back on.

Both config files have it, the gateway's and the simulator's. Must not depend on the rest of either.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Annotated, Any, Final, Self

from pydantic import BeforeValidator, Field, model_validator

from router.config.section import Name, Section, listed, some
from router.config.text import ConfigProblem, Loc, unknown
from router.core import model_rules

EVERYONE: Final = "everyone"
Weight = Annotated[float, Field(gt=0, le=1e9, allow_inf_nan=False)]


class FallbackFor(Section):
    """Whose requests allow it that do not state it themselves: those of ``tenants`` and of SLO ``classes``, or of
    ``everyone``, a word that may stand in place of the section.
    """

    everyone: bool = False
    tenants: Annotated[frozenset[Name], BeforeValidator(listed)] = frozenset()
    classes: Annotated[frozenset[Name], BeforeValidator(listed)] = frozenset()


def _whose(value: Any) -> Any:
    """The word, as the section that it stands for."""
    if isinstance(value, dict | FallbackFor) or value is None:
        return value
    if value == EVERYONE:
        return {EVERYONE: True}
    raise ValueError(f"expected everyone, or tenants and classes whose requests allow it, not {value!r}")


class ModelRule(Section):
    """What becomes of requests for a model.

    ``split``: the models that serve them, each with its weight; a session stays with its model. ``fallback``: models
    that serve them, the first that can, when no backend of their own is expected to meet the SLO or none is up, for
    requests that allow it: by the header ``x-headroom-fallback: allow``, by their key, or by ``fallback_for``.
    """

    split: Annotated[dict[Name, Weight], BeforeValidator(some)] | None = None
    fallback: Annotated[tuple[Name, ...], BeforeValidator(listed)] = ()
    fallback_for: Annotated[FallbackFor | None, BeforeValidator(_whose)] = None

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
        allowed = self.fallback_for or FallbackFor()
        return model_rules.ModelRule(
            tuple((self.split or {}).items()), self.fallback, allowed.everyone, allowed.tenants, allowed.classes
        )


def rules(given: Mapping[str, ModelRule], startable: Iterable[str] = ()) -> model_rules.ModelRules:
    """As the core has them; *startable*: models that may have no backend for a while."""
    found = {name: each.rule() for name, each in given.items()}
    known = {name: replace(found.get(name, model_rules.ModelRule()), startable=True) for name in startable}
    return model_rules.ModelRules(found | known)


def faults(
    given: Mapping[str, ModelRule],
    served: frozenset[str],
    classes: Collection[str] = (),
    tenants: Collection[str] = (),
) -> Iterator[ConfigProblem]:
    """What is wrong between the rules. *served*: all models that backends serve, *classes*: the SLO classes there are,
    *tenants*: of API keys; each empty where that is not known, or any may come.
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
        allowed = each.fallback_for or FallbackFor()
        yield from _strange((*at, "fallback_for", "classes"), "class", allowed.classes, classes)
        yield from _strange((*at, "fallback_for", "tenants"), "tenant", allowed.tenants, tenants)


def _strange(at: Loc, what: str, names: frozenset[str], known: Collection[str]) -> Iterator[ConfigProblem]:
    for name in sorted(names - set(known)) if known else ():
        yield ConfigProblem(at, unknown(what, name, known))


def _unserved(name: str, served: Collection[str]) -> str:
    found = unknown("model", name, served)
    return f"no backend serves {name!r}: {found}; an adapter that is loaded later is named in its backend's models"
