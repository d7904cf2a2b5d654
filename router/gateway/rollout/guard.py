"""A guard around a live policy: a decision that raises, takes too long or is invalid is replaced.

Must not depend on what a policy decides, or why. The last good policy decides such a request instead; if that fails
too, the backend with the fewest requests gets it. Faults are counted, and a policy with too many is dropped. A running
decision cannot be interrupted: an overrun is seen when it is over. Validation keeps slow policies out; the guard is for
what validation did not show. Time that the machine took for something else drops no policy: after an overrun, what the
thread used is read around each decision, which costs as much as the rest of the guard.
"""

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, cast

import policies
from router.core import ADMIT, Admit, Choice, Dispatch, Fleet, Forecast, Hold, Reason, Request, Rng, Shed
from router.core.advances import shares
from router.core.policy import Admission, Memory, Routing, rank_times
from router.gateway.rollout.replacements import DROPPED, INVALID, OVERRAN, RAISED, Replacements
from router.thread_usage import Usage, own_s, usage

GROSS: Final = 100.0  # times the budget: one such decision is enough, after another overrun
READ: Final = 10_000  # decisions after an overrun around which it is read what the thread used
LATE: Final = (5, 20)  # so many overruns among so many decisions; on a busy machine a few are normal
_DID: Final = {
    RAISED: "raised an exception",
    OVERRAN: "took too long",
    INVALID: "gave no valid answer",
    DROPPED: "is dropped",
}
SAFE: Final[Routing] = policies.find("routing", "least_request")


@dataclass(frozen=True, slots=True)
class Bounds:
    """Limits of a live policy: ``budget_s`` a decision; ``faults_max`` exceptions or invalid answers within
    ``window_s`` drop it. Overruns drop it when they are frequent (``LATE``) or gross (``GROSS``), by what the policy
    itself computed or waited for.
    """

    budget_s: float = 0.005
    faults_max: int = 3
    window_s: float = 60.0


@dataclass(slots=True)
class DecisionStats:
    """Decisions of one role (serving, canary, shadow) since the process started."""

    decisions: int = 0
    seconds: float = 0.0
    faults: dict[str, int] = field(default_factory=lambda: {RAISED: 0, OVERRAN: 0, INVALID: 0})


@dataclass(frozen=True, slots=True)
class Fault:
    """``kind``: raised, overran or invalid; ``why``: the message; ``last``: the policy is dropped."""

    kind: str
    why: str
    last: bool


class Faults:
    """The recent faults of one policy in one role, and whether it is dropped.

    ``bounds``, ``stats`` and ``clock`` are those that the policy's decisions are measured by.
    """

    __slots__ = ("_late", "_lately", "_on_fault", "_read_to", "_usage", "bounds", "clock", "dropped", "stats")

    def __init__(
        self,
        bounds: Bounds,
        stats: DecisionStats,
        clock: Callable[[], float],
        on_fault: Callable[[Fault], None],
        used: Callable[[], Usage] = usage,
    ) -> None:
        """``clock``: monotonic seconds, fine enough for microseconds. ``on_fault`` is called with each fault while the
        core decides: it must only note or schedule. ``used``: what this thread has used.
        """
        self.bounds, self.stats, self.clock, self._on_fault = bounds, stats, clock, on_fault
        self._usage, self._read_to = used, 0
        self._lately: deque[float] = deque(maxlen=bounds.faults_max)
        self._late: deque[int] = deque(maxlen=LATE[0])
        self.dropped = False

    def add(self, kind: str, why: str) -> None:
        """Count an exception or an invalid answer."""
        now_s = self.clock()
        self._lately.append(now_s)
        many = len(self._lately) == self.bounds.faults_max and now_s - self._lately[0] <= self.bounds.window_s
        self._count(kind, why, many)

    def used(self) -> Usage | None:
        """Before a decision: what the thread has used; None for a policy that has not overrun lately."""
        return self._usage() if self.stats.decisions < self._read_to else None

    def overran(self, took_s: float, before: Usage | None) -> None:
        """Count a decision that took too long. *before*: what ``used`` was when it began; None: it counts in whole, but
        does not drop the policy alone.
        """
        budget_s, self._read_to = self.bounds.budget_s, self.stats.decisions + READ
        own = took_s if before is None else own_s(took_s, before, self._usage())
        why = f"a decision took {took_s * 1e3:.1f} ms, and policy.guard.budget_ms is {budget_s * 1e3:g}"
        if own <= budget_s:
            why = f"{why}; it ran for {own * 1e3:.1f} ms of them and waited for nothing: the machine is busy"
            self._count(OVERRAN, why, enough=False)
            return
        decisions = self.stats.decisions
        self._late.append(decisions)
        often = len(self._late) == LATE[0] and decisions - self._late[0] < LATE[1]
        gross = before is not None and own > GROSS * budget_s
        self._count(OVERRAN, why, often or gross)

    def _count(self, kind: str, why: str, enough: bool) -> None:
        last = enough and not self.dropped
        self.dropped = self.dropped or last
        self.stats.faults[kind] += 1
        self._on_fault(Fault(kind, why, last))


class Guarded:
    """A routing policy with a guard; the core calls it like any other."""

    __slots__ = ("_budget_s", "_clock", "_fallback", "_live", "_replacements", "_stats", "faults")

    def __init__(
        self, live: Routing, fallback: Routing, faults: Faults, replacements: Replacements | None = None
    ) -> None:
        """``fallback`` decides where ``live`` does not; ``faults``: of ``live``; ``replacements``: where it is noted
        which decisions are the fallback's (None: nowhere).
        """
        self._live: Any = live  # its answers are not trusted
        self._fallback = fallback
        self._replacements = replacements
        self._stats, self._clock, self._budget_s = faults.stats, faults.clock, faults.bounds.budget_s
        self.faults = faults

    def choose(self, request: Request, fleet: Fleet, forecast: Forecast, rng: Rng) -> Choice:
        """See Routing."""
        if self.faults.dropped:
            return self._last_good(DROPPED, request, fleet, forecast, rng)
        clock, stats = self._clock, self._stats
        before = self.faults.used()
        began_s = clock()
        try:
            choice = self._live.choose(request, fleet, forecast, rng)
        except (Exception, SystemExit) as problem:
            self.faults.add(RAISED, f"{type(problem).__name__}: {problem}")
            return self._last_good(RAISED, request, fleet, forecast, rng)
        took_s = clock() - began_s
        stats.decisions += 1
        stats.seconds += took_s
        if took_s > self._budget_s:
            self.faults.overran(took_s, before)
            return self._last_good(OVERRAN, request, fleet, forecast, rng)
        if is_valid(choice, fleet):
            if self._replacements is not None:
                self._replacements.add("")
            return cast("Choice", choice)
        self.faults.add(INVALID, f"answered {choice!r}")
        return self._last_good(INVALID, request, fleet, forecast, rng)

    def _last_good(self, why: str, request: Request, fleet: Fleet, forecast: Forecast, rng: Rng) -> Choice:
        if self._replacements is not None:
            self._replacements.add(why)
        choice, problem = replacement(why, self._fallback, request, fleet, forecast, rng)
        if problem:
            self.faults.add(RAISED, f"the last good policy failed too: {problem}")
        return choice


class GuardedAdmission:
    """An admission policy with a guard: where it fails, the request is admitted.

    The memory is stored with the class of the policy that made it, and dropped for a policy of another class.
    """

    __slots__ = ("_clock", "_kind", "_live", "_replacements", "faults", "held_max", "hold_s_max", "rank_times")

    def __init__(self, live: Admission, faults: Faults, replacements: Replacements | None = None) -> None:
        self._live: Any = live  # its answers are not trusted
        self._replacements = replacements
        self._kind, self._clock = type(live), faults.clock
        self.held_max, self.hold_s_max = live.held_max, live.hold_s_max
        self.rank_times = rank_times(live)
        self.faults = faults

    def admit(self, request: Request, fleet: Fleet, forecast: Forecast, memory: Memory) -> tuple[Admit | Shed, Memory]:
        """See Admission."""
        if self.faults.dropped:
            return self._admit(DROPPED), memory
        own = memory[1] if memory is not None and memory[0] is self._kind else None
        before = self.faults.used()
        began_s = self._clock()
        try:
            answer, after = self._live.admit(request, fleet, forecast, own)
        except (Exception, SystemExit) as problem:
            self.faults.add(RAISED, f"admission: {type(problem).__name__}: {problem}")
            return self._admit(RAISED), memory
        took_s = self._clock() - began_s
        if took_s > self.faults.bounds.budget_s:
            self.faults.overran(took_s, before)
            return self._admit(OVERRAN), memory
        if type(answer) in (Admit, Shed):
            if self._replacements is not None:
                self._replacements.add("")
            return answer, (self._kind, after)
        self.faults.add(INVALID, f"admission: answered {answer!r}")
        return self._admit(INVALID), memory

    def _admit(self, why: str) -> Admit:
        if self._replacements is not None:
            self._replacements.add(why)
        return ADMIT

    def advances(self, memory: Memory) -> Mapping[int, tuple[float, float]]:
        """See ``router.core.advances.shares``; of a policy that does not share or fails at it, nothing."""
        if memory is None or memory[0] is not self._kind or not shares(self._live):
            return {}
        try:
            return dict(self._live.advances(memory[1]))
        except (Exception, SystemExit) as problem:
            self.faults.add(RAISED, f"admission: {type(problem).__name__}: {problem}")
        return {}

    def advanced(self, memory: Memory, more: Mapping[int, tuple[float, float]], now_s: float) -> Memory:
        """Likewise; the memory stays as it is then."""
        if not shares(self._live):
            return memory
        own = memory[1] if memory is not None and memory[0] is self._kind else None
        try:
            return self._kind, self._live.advanced(own, more, now_s)
        except (Exception, SystemExit) as problem:
            self.faults.add(RAISED, f"admission: {type(problem).__name__}: {problem}")
        return memory


def replacement(
    why: str, last_good: Routing, request: Request, fleet: Fleet, forecast: Forecast, rng: Rng
) -> tuple[Choice, str]:
    """The choice of the last good policy, or where that fails of the one that is safe; and why it failed, if so.

    *why*: the live policy's decision is replaced; the choice states it.
    """
    failed = ""
    try:
        choice: Any = last_good.choose(request, fleet, forecast, rng)
        if is_valid(choice, fleet):
            return _noted(cast("Choice", choice), why), ""
    except (Exception, SystemExit) as problem:
        failed = f"{type(problem).__name__}: {problem}"
    return _noted(SAFE.choose(request, fleet, forecast, rng), why), failed


def _noted(choice: Choice, why: str) -> Choice:
    """The choice of another policy, whose reason is not the live one's."""
    if isinstance(choice, Dispatch):
        return Dispatch(choice.slot, f"{choice.why} (by the last good policy: the live one {_DID.get(why, why)})")
    return choice


def is_valid(choice: object, fleet: Fleet) -> bool:
    """Whether the core can carry out the choice: a candidate's slot, a time in the future, an existing reason."""
    if isinstance(choice, Dispatch):
        return _is_candidate(choice.slot, fleet)
    if isinstance(choice, Hold):
        return choice.until_s > fleet.now_s
    return isinstance(choice, Shed) and isinstance(choice.reason, Reason)


def _is_candidate(slot: int, fleet: Fleet) -> bool:
    slots = fleet.slots
    if type(slot) is not int or slot < 0:
        return False
    if slot < slots.size and slots.item(slot) == slot:  # no slot before it is out: the usual case
        return True
    return bool((slots == slot).any())
