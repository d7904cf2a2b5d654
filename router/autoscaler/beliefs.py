"""What the routers have learnt of each variant, for its capacity: the mean over routers and over the last minutes.

A belief is checked against the pattern of its variant; one of other physics or another release is left out. Must not
depend on where it was published.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from router.core.belief import Belief
from router.core.capacity import VariantBelief
from router.core.types import Backend
from router.gateway.state.seen import SeenVariant


class VariantBeliefs:
    """By variant."""

    def __init__(self) -> None:
        self._means: dict[str, VariantBelief] = {}
        self._learnt: dict[str, Mapping[str, Any] | None] = {}

    def update(self, seen: Iterable[SeenVariant], patterns: Mapping[str, Backend], now_s: float) -> None:
        """Fold in what the routers published now."""
        published: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
        for each in seen:
            pattern = patterns.get(each.variant)
            if pattern is not None and each.learnt is not None and _is_of(each.learnt, pattern):
                published[each.variant].append(each.learnt)
        for variant, beliefs in published.items():
            self._learnt[variant] = self._means.setdefault(variant, VariantBelief()).update(beliefs, now_s)

    def of(self, pattern: Backend) -> Mapping[str, Any] | None:
        """What was learnt of the variant of this pattern; None: nothing, or nothing that is of it as it is now."""
        learnt = self._learnt.get(pattern.variant)
        return learnt if learnt is not None and _is_of(learnt, pattern) else None


def _is_of(learnt: Mapping[str, Any], pattern: Backend) -> bool:
    trial = Belief(1)
    trial.joined(0, pattern)
    try:
        trial.adopt(0, {**learnt, "lengths": {}})
    except (ValueError, KeyError, TypeError, IndexError):
        return False
    return True
