"""How long a replica of a variant takes from its order to its first token, as it was seen; in place of what the config
states, the more of it there is.

An order is matched with the backend that appears next; one that was up before and has not left since is none. What a
backend takes from then to its first request is no part of its start: it may just have none to serve; the TTFT of that
request is, for the first one is slow on many engines. Must not depend on targets or on time, which is an argument, in
seconds since the epoch.
"""

from collections import deque
from collections.abc import Collection, Mapping, Sequence
from math import isfinite
from typing import Any, Final

Place = tuple[str, str]  # model and variant

STATED_WEIGHT: Final = 2.0  # as many starts as what the config states counts for
STARTS_MOST: Final = 20  # of a variant that count: the last ones
START_S_MOST: Final = 7_200.0  # what appears later is not what was ordered
VARIANTS_MOST: Final = 1_000
ORDERS_MOST: Final = 1_000  # of one place


class StartTimes:
    """By variant."""

    def __init__(self) -> None:
        self._starts: dict[str, deque[float]] = {}
        self._ordered: dict[Place, deque[float]] = {}  # when each replica was ordered that has not appeared yet
        self._known: dict[Place, frozenset[str]] = {}  # the backends that are up, or were and are still there
        self._waiting: dict[Place, dict[str, float]] = {}  # by backend without a token yet, from its order to there

    def expected_s(self, variant: str, stated_s: float) -> float:
        """The start time to plan with."""
        starts = self._starts.get(variant, ())
        return (STATED_WEIGHT * stated_s + sum(starts)) / (STATED_WEIGHT + len(starts))

    def starts(self, variant: str) -> Sequence[float]:
        """The last ones, oldest first."""
        return tuple(self._starts.get(variant, ()))

    def ordered(self, place: Place, more: int, now_s: float) -> None:
        """So many more replicas were ordered; fewer than none: so many of the last ones were called off."""
        orders = self._ordered.setdefault(place, deque(maxlen=ORDERS_MOST))
        for _ in range(min(-more, len(orders))):
            orders.pop()
        orders.extend([now_s] * min(max(more, 0), ORDERS_MOST))

    def seen(self, place: Place, up: Mapping[str, float], now_s: float, down: Collection[str] = ()) -> None:
        """These backends are up now, each with the TTFT of its first request (nan: it had none), and those are down."""
        known = self._known.get(place)
        self._known[place] = frozenset(up) | (frozenset() if known is None else known.intersection(down))
        orders, waiting = self._ordered.get(place, deque()), self._waiting.setdefault(place, {})
        while orders and now_s - orders[0] > START_S_MOST:
            orders.popleft()
        for name in sorted(up.keys() - known) if known is not None else ():
            if orders:
                waiting[name] = max(0.0, now_s - orders.popleft())
        for name in tuple(waiting):
            if name not in up:
                del waiting[name]
            elif isfinite(up[name]):
                self._add(place[1], waiting.pop(name) + up[name])

    def _add(self, variant: str, start_s: float) -> None:
        if variant not in self._starts and len(self._starts) >= VARIANTS_MOST:
            self._starts.pop(next(iter(self._starts)))
        self._starts.setdefault(variant, deque(maxlen=STARTS_MOST)).append(min(start_s, START_S_MOST))

    # -- through restarts ------------------------------------------------------------------------------------------

    def plain(self) -> dict[str, list[float]]:
        """What was learnt, as JSON can hold it."""
        return {variant: [round(each, 3) for each in starts] for variant, starts in self._starts.items()}

    def adopt(self, plain: Any) -> None:
        """Go on from there; what is no start time is passed over."""
        for variant, starts in plain.items() if isinstance(plain, dict) else ():
            good = [s for s in starts if _is_start(s)] if isinstance(starts, list) else []
            if good and len(self._starts) < VARIANTS_MOST:
                self._starts[variant] = deque(map(float, good), maxlen=STARTS_MOST)


def _is_start(given: Any) -> bool:
    return isinstance(given, int | float) and not isinstance(given, bool) and 0.0 <= given <= START_S_MOST
