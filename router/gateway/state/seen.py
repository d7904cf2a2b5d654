"""The backends that one router has, by variant: what the autoscaler counts, and has the facts of variants from.

A value of its own beside a router's view: peers read views many times a second and have no use for this. Must not
depend on where it is stored.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import isfinite, nan
from typing import Any, Final

import orjson

from router.core import border

_NAME_MOST: Final = 256
_VARIANTS_MOST: Final = 1_000
_BACKENDS_MOST: Final = 10_000  # of all variants together
_MODELS_MOST: Final = 1_000
_FACTS_MOST: Final = 100
_TTFT_MOST_S: Final = 86_400.0


@dataclass(frozen=True, slots=True)
class SeenBackend:
    """``up``: it gets requests; ``first_ttft_s``: the TTFT of its first request at this router, from when it was sent
    (nan: none yet).
    """

    up: bool
    first_ttft_s: float = nan


@dataclass(frozen=True, slots=True)
class SeenVariant:
    """The backends of one variant that serve the same models, by name. ``facts``: the section of one of them, as a
    config would have it, without secrets; ``learnt``: the mean of what the router believes of those that it has learnt
    of (None: of none), as ``Belief.export`` writes one.
    """

    variant: str
    models: tuple[str, ...]
    backends: Mapping[str, SeenBackend]
    facts: Mapping[str, Any] = field(default_factory=dict)
    learnt: Mapping[str, Any] | None = None


def seen_plain(seen: tuple[SeenVariant, ...]) -> list[dict[str, Any]]:
    """As JSON can hold it."""
    return [
        {
            "variant": each.variant,
            "models": each.models,
            "up": {name: _number(one.first_ttft_s) for name, one in each.backends.items() if one.up},
            "down": {name: _number(one.first_ttft_s) for name, one in each.backends.items() if not one.up},
            "facts": each.facts,
            "learnt": each.learnt,
        }
        for each in seen
    ]


def seen_json(seen: tuple[SeenVariant, ...]) -> bytes:
    """The same as JSON."""
    return orjson.dumps(seen_plain(seen))


def seen_from(raw: bytes) -> tuple[SeenVariant, ...] | None:
    """What a router published; None where it published nothing, or nothing that can be read."""
    try:
        return seen_of(orjson.loads(raw)) if raw else None
    except ValueError:
        return None


def seen_of(plain: Any) -> tuple[SeenVariant, ...] | None:
    """The same of what was parsed. One entry that cannot be read makes the whole unknown: a part of it would count
    too few.
    """
    if not isinstance(plain, list) or len(plain) > _VARIANTS_MOST:
        return None
    found = [_variant(each) for each in plain]
    whole = tuple(each for each in found if each is not None)
    if len(whole) < len(found) or sum(len(each.backends) for each in whole) > _BACKENDS_MOST:
        return None
    return whole


def _variant(plain: Any) -> SeenVariant | None:
    if not isinstance(plain, Mapping):
        return None
    variant, models, learnt = plain.get("variant"), plain.get("models"), plain.get("learnt")
    up, down, facts = (_object(plain.get(name)) for name in ("up", "down", "facts"))
    if not isinstance(models, list) or up is None or down is None or facts is None:
        return None
    if len(models) > _MODELS_MOST or len(facts) > _FACTS_MOST or not all(map(_is_name, (variant, *models, *up, *down))):
        return None
    backends = {name: SeenBackend(True, _ttft_s(given)) for name, given in up.items()}
    backends |= {name: SeenBackend(False, _ttft_s(given)) for name, given in down.items()}
    return SeenVariant(str(variant), tuple(models), backends, facts, _object(learnt))


def _object(given: Any) -> Mapping[str, Any] | None:
    return given if isinstance(given, Mapping) else None


def _is_name(given: Any) -> bool:
    return isinstance(given, str) and len(given) <= _NAME_MOST


def _ttft_s(given: Any) -> float:
    seconds = border.number(given)
    return seconds if 0.0 <= seconds <= _TTFT_MOST_S else nan


def _number(seconds: float) -> float | None:
    return round(seconds, 3) if isfinite(seconds) else None
