"""The policies of a recorded run, guarded as they were then: by what the record states, and not by a clock.

Must not depend on how a record is read.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from router.core import ADMIT, Admit, Choice, Fleet, Forecast, Request, Rng, Shed
from router.core.advances import shares
from router.core.policy import Admission, Memory, Routing, rank_times
from router.gateway.rollout.guard import replacement
from router.gateway.rollout.replacements import DROPPED


class Replaced:
    """What the record states of the decisions of one event."""

    def __init__(self) -> None:
        self._count = 0
        self._why: dict[int, str] = {}

    def begin(self, found: Sequence[Sequence[int | str]]) -> None:
        """The next event; *found*: see ``replacements.Found``."""
        self._count = 0
        self._why = {int(place): str(why) for place, why in found}

    def next(self) -> str:
        """Why the decision that comes now was replaced; empty: it was not."""
        self._count += 1
        return self._why.get(self._count - 1, "")


class ReplayedRouting:
    """A routing policy, and the one that decided where its decisions were replaced."""

    def __init__(self, live: Routing, last_good: Routing, replaced: Replaced) -> None:
        self._live, self._last_good, self._replaced = live, last_good, replaced

    def choose(self, request: Request, fleet: Fleet, forecast: Forecast, rng: Rng) -> Choice:
        """See Routing."""
        why = self._replaced.next()
        if not why:
            return self._live.choose(request, fleet, forecast, rng)
        if why != DROPPED:
            with suppress(Exception, SystemExit):  # it had drawn its random numbers
                self._live.choose(request, fleet, forecast, rng)
        return replacement(why, self._last_good, request, fleet, forecast, rng)[0]


class ReplayedAdmission:
    """An admission policy, in whose place requests were admitted. What it shares with peers, it takes from them."""

    def __init__(self, live: Admission, replaced: Replaced) -> None:
        self._live: Any = live
        self._replaced = replaced
        self.held_max, self.hold_s_max = live.held_max, live.hold_s_max
        self.rank_times = rank_times(live)

    def admit(self, request: Request, fleet: Fleet, forecast: Forecast, memory: Memory) -> tuple[Admit | Shed, Memory]:
        """See Admission."""
        if self._replaced.next():
            return ADMIT, memory
        answer, after = self._live.admit(request, fleet, forecast, self._own(memory))
        return answer, (type(self._live), after)

    def advances(self, memory: Memory) -> Mapping[int, tuple[float, float]]:
        """See ``router.core.advances.shares``; a replay sends nothing."""
        return {}

    def advanced(self, memory: Memory, more: Mapping[int, tuple[float, float]], now_s: float) -> Memory:
        """Likewise; where the policy fails at it, as it did then, the memory stays as it is."""
        if shares(self._live):
            with suppress(Exception, SystemExit):
                return type(self._live), self._live.advanced(self._own(memory), more, now_s)
        return memory

    def _own(self, memory: Memory) -> Memory:
        return memory[1] if memory is not None and memory[0] is type(self._live) else None
