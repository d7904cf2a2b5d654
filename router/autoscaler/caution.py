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
SETTLED_S: Final = 60.0  # the same: until then the demand of a router that has just started is not whole


class Caution:
    """Which routers were read and since when, and the last advice, below which nothing goes meanwhile."""

    def __init__(self, settled_s: float = SETTLED_S) -> None:
        self._settled_s = settled_s
        self._first_s: dict[str, float] = {}  # by router, when its demand was read first
        self._read_s: dict[str, float] = {}  # the same, last
        self._last: dict[tuple[str, str], int] = {}  # by model and variant, the replicas of the last advice

    def reasons(self, views: Views, now_s: float) -> list[str]:
        """Why replicas are only added now; nothing where all routers are read and were for long enough."""
        read = {name for name, view in views.items() if view is not UNREADABLE}
        self._read_s |= dict.fromkeys(read, now_s)
        self._read_s = {name: at_s for name, at_s in self._read_s.items() if now_s - at_s < MISSING_S}
        self._first_s = {name: self._first_s.get(name, now_s) for name in self._read_s}
        missing = sorted((self._read_s.keys() | views.keys()) - read)
        new = sorted(name for name in read if now_s - self._first_s[name] < self._settled_s)
        reasons = [f"the demand of {', '.join(missing)} cannot be read"] if missing else []
        return reasons + ([f"{', '.join(new)} was seen first less than {self._settled_s:g} s ago"] if new else [])

    def checked(self, advice: Sequence[Advice], reasons: Sequence[str]) -> list[Advice]:
        """The advice, with no fewer replicas than before where there are reasons for that."""
        allowed = [self._no_fewer(one, reasons) for one in advice] if reasons else list(advice)
        self._last |= {(one.model, one.variant): one.replicas for one in allowed}
        return allowed

    def _no_fewer(self, one: Advice, reasons: Sequence[str]) -> Advice:
        least = self._last.get((one.model, one.variant), one.running)
        if one.replicas >= least:
            return one
        return replace(one, replicas=least, why=f"{one.why}; not fewer while {', and '.join(reasons)}")
