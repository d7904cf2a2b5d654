"""A net under the policy that serves: what raises, overruns its time or answers nonsense decides nothing.

Believes: the last good policy. Must not know what either decides, or why. For such a request the last good policy is
asked instead, and should that fail too, whoever has fewest requests gets it. Faults are counted; a policy that goes on
failing is not asked again. A policy cannot be interrupted while it decides: an overrun is seen when it is over, so
what keeps a slow policy out is the proof, and the guard is for what the proof did not show.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, cast

import policies
from router.core import ADMIT, Admit, Choice, Dispatch, Fleet, Forecast, Hold, Reason, Request, Rng, Shed
from router.core.policy import Admission, Memory, Routing

GROSS: Final = 100.0  # times the budget: one such decision is enough
LATE: Final = (5, 20)  # so many overruns among so many decisions: a busy machine makes a few of anybody's late
SAFE: Final[Routing] = policies.find("routing", "least_request")


@dataclass(frozen=True, slots=True)
class Bounds:
    """What a live policy may do: ``budget_s`` a decision; ``faults_max`` times within ``window_s`` raise or answer
    nonsense before it is dropped. Overruns drop it when they are frequent (``LATE``) or gross (``GROSS``).
    """

    budget_s: float = 0.005
    faults_max: int = 3
    window_s: float = 60.0


@dataclass(slots=True)
class DecisionStats:
    """What one role (serving, canary, shadow) did, for as long as the process lives."""

    decisions: int = 0
    seconds: float = 0.0
    faults: dict[str, int] = field(default_factory=lambda: {"raised": 0, "overran": 0, "invalid": 0})


@dataclass(frozen=True, slots=True)
class Fault:
    """``kind``: raised, overran or invalid; ``why`` says it in full; ``last``: the policy is not asked again."""

    kind: str
    why: str
    last: bool


class Faults:
    """The faults of one policy lately, and whether it has had its last."""

    __slots__ = ("_books", "_bounds", "_clock", "_late", "_lately", "_on_fault", "dropped")

    def __init__(
        self, bounds: Bounds, books: DecisionStats, clock: Callable[[], float], on_fault: Callable[[Fault], None]
    ) -> None:
        """``on_fault`` is told each fault while the core decides: it must only note or schedule."""
        self._bounds, self._books, self._clock, self._on_fault = bounds, books, clock, on_fault
        self._lately: deque[float] = deque(maxlen=bounds.faults_max)
        self._late: deque[int] = deque(maxlen=LATE[0])
        self.dropped = False

    def add(self, kind: str, why: str) -> None:
        """One that raised or answered nonsense; says to who listens whether it was the last."""
        now_s = self._clock()
        self._lately.append(now_s)
        many = len(self._lately) == self._bounds.faults_max and now_s - self._lately[0] <= self._bounds.window_s
        self._count(kind, why, many)

    def overran(self, took_s: float) -> None:
        """One that took too long."""
        asked = self._books.decisions
        self._late.append(asked)
        often = len(self._late) == LATE[0] and asked - self._late[0] < LATE[1]
        gross = took_s > GROSS * self._bounds.budget_s
        self._count("overran", f"a decision took {took_s * 1e3:.1f} ms", often or gross)

    def _count(self, kind: str, why: str, enough: bool) -> None:
        last = enough and not self.dropped
        self.dropped = self.dropped or last
        self._books.faults[kind] += 1
        self._on_fault(Fault(kind, why, last))


class Guarded:
    """A routing policy with a net under it; the core calls it as any other."""

    __slots__ = ("_books", "_budget_s", "_clock", "_fallback", "_live", "faults")

    def __init__(
        self,
        live: Routing,
        fallback: Routing,
        bounds: Bounds,
        books: DecisionStats,
        clock: Callable[[], float],
        on_fault: Callable[[Fault], None],
    ) -> None:
        """``fallback`` decides where ``live`` does not; ``clock``: monotonic seconds, fine enough for microseconds."""
        self._live: Any = live  # it may answer anything
        self._fallback: Any = fallback
        self._books = books
        self._budget_s, self._clock = bounds.budget_s, clock
        self.faults = Faults(bounds, books, clock, on_fault)

    def choose(self, request: Request, fleet: Fleet, forecast: Forecast, rng: Rng) -> Choice:
        """See Routing."""
        if self.faults.dropped:
            return self._last_good(request, fleet, forecast, rng)
        clock, books = self._clock, self._books
        began_s = clock()
        try:
            choice = self._live.choose(request, fleet, forecast, rng)
        except (Exception, SystemExit) as problem:
            self.faults.add("raised", f"{type(problem).__name__}: {problem}")
            return self._last_good(request, fleet, forecast, rng)
        took_s = clock() - began_s
        books.decisions += 1
        books.seconds += took_s
        if took_s > self._budget_s:
            self.faults.overran(took_s)
        elif is_valid(choice, fleet):
            return cast("Choice", choice)
        else:
            self.faults.add("invalid", f"answered {choice!r}")
        return self._last_good(request, fleet, forecast, rng)

    def _last_good(self, request: Request, fleet: Fleet, forecast: Forecast, rng: Rng) -> Choice:
        try:
            choice = self._fallback.choose(request, fleet, forecast, rng)
            if is_valid(choice, fleet):
                return cast("Choice", choice)
        except (Exception, SystemExit) as problem:
            self.faults.add("raised", f"the last good policy too: {type(problem).__name__}: {problem}")
        return SAFE.choose(request, fleet, forecast, rng)


class GuardedAdmission:
    """An admission policy with a net under it: what fails lets the request through to routing.

    Its memory is kept beside the kind of policy that made it, and is dropped when another kind comes.
    """

    __slots__ = ("_bounds", "_clock", "_kind", "_live", "faults", "held_max", "hold_s_max")

    def __init__(
        self,
        live: Admission,
        bounds: Bounds,
        books: DecisionStats,
        clock: Callable[[], float],
        on_fault: Callable[[Fault], None],
    ) -> None:
        self._live: Any = live  # it may answer anything
        self._kind, self._bounds, self._clock = type(live), bounds, clock
        self.held_max, self.hold_s_max = live.held_max, live.hold_s_max
        self.faults = Faults(bounds, books, clock, on_fault)

    def admit(self, request: Request, fleet: Fleet, forecast: Forecast, memory: Memory) -> tuple[Admit | Shed, Memory]:
        """See Admission."""
        if self.faults.dropped:
            return ADMIT, memory
        own = memory[1] if memory is not None and memory[0] is self._kind else None
        began_s = self._clock()
        try:
            answer, after = self._live.admit(request, fleet, forecast, own)
        except (Exception, SystemExit) as problem:
            self.faults.add("raised", f"admission: {type(problem).__name__}: {problem}")
            return ADMIT, memory
        took_s = self._clock() - began_s
        if took_s > self._bounds.budget_s:
            self.faults.overran(took_s)
        elif type(answer) in (Admit, Shed):
            return answer, (self._kind, after)
        else:
            self.faults.add("invalid", f"admission: answered {answer!r}")
        return ADMIT, memory


def is_valid(choice: object, fleet: Fleet) -> bool:
    """Whether the core can do what the policy says: a candidate, a moment to come, a reason that there is."""
    if isinstance(choice, Dispatch):
        return _is_candidate(choice.slot, fleet)
    if isinstance(choice, Hold):
        return choice.until_s > fleet.now_s
    return isinstance(choice, Shed) and isinstance(choice.reason, Reason)


def _is_candidate(slot: int, fleet: Fleet) -> bool:
    slots = fleet.slots
    if type(slot) is not int or slot < 0:
        return False
    if slot < slots.size and slots.item(slot) == slot:  # nobody before it is out: so it is nearly always
        return True
    return bool((slots == slot).any())
