"""When replicas may not be taken away: while a part of the routers cannot be seen, or has not been seen for long.

A router that cannot be read may serve as much as ever, and one that has just started reports less demand than it will.
Must not depend on policies or targets; the time is an argument.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from router.autoscaler.demand import Views
from router.gateway.state.wire import UNREADABLE
from router.targets import Advice

MISSING_S: Final = 60.0  # as long as a window of demand: then what a router served that is gone shows at the others


class Caution:
    """Which routers were read and when, and the last advice, below which nothing goes meanwhile."""

    def __init__(self) -> None:
        self._read_s: dict[str, float] = {}  # by router, when its demand was read last
        self._last: dict[tuple[str, str], int] = {}  # by model and variant, the replicas of the last advice

    def missing(self, views: Views, now_s: float) -> list[str]:
        """The routers whose demand was read in the last minute and cannot be read now, and those whose never could."""
        read = {name for name, view in views.items() if view is not UNREADABLE}
        self._read_s |= dict.fromkeys(read, now_s)
        self._read_s = {name: at_s for name, at_s in self._read_s.items() if now_s - at_s < MISSING_S}
        return sorted((self._read_s.keys() | views.keys()) - read)

    def checked(self, advice: Sequence[Advice], missing: Sequence[str]) -> list[Advice]:
        """The advice, with no fewer replicas than before while routers are missing."""
        allowed = [self._no_fewer(one, missing) for one in advice] if missing else list(advice)
        self._last |= {(one.model, one.variant): one.replicas for one in allowed}
        return allowed

    def _no_fewer(self, one: Advice, missing: Sequence[str]) -> Advice:
        least = self._last.get((one.model, one.variant), one.running)
        if one.replicas >= least:
            return one
        why = f"{one.why}; not fewer while the demand of {', '.join(missing)} cannot be read"
        return replace(one, replicas=least, why=why)
