"""The guard of a live policy: a failed decision is replaced and counted, and repeated failures drop the policy."""

import random
from collections.abc import Callable
from typing import Any

import pytest

import policies
from router.core import ADMIT, Choice, Dispatch, Fleet, Forecast, Hold, Reason, Shed, decisions
from router.core.dispatcher import Dispatcher
from router.gateway.rollout.guard import Bounds, DecisionStats, Fault, Faults, Guarded, GuardedAdmission, is_valid
from tests import fakes

WRONG_KIND = "invalid" if decisions.__file__.endswith(".py") else "raised"
"""A decision with a field of the wrong type; compiled code raises where it is made."""


class Answers:
    """A policy with scripted decisions; ``clock`` moves by ``takes_s`` with each decision, and so does its CPU time,
    unless it ``waits`` (it sleeps) or is ``starved`` (the machine runs something else).
    """

    def __init__(self, answer: Callable[[Any], Choice], takes_s: float = 0.0) -> None:
        self.answer, self.takes_s = answer, takes_s
        self.now_s, self.asked = 0.0, 0
        self.ran_s, self.waited, self.waits, self.starved = 0.0, 0, False, False

    def clock(self) -> float:
        return self.now_s

    def used(self) -> tuple[float, int]:
        return self.ran_s, self.waited

    def choose(self, request: Any, fleet: Any, forecast: Any, rng: Any) -> Choice:
        self.asked += 1
        self.now_s += self.takes_s
        self.ran_s += 0.0 if self.waits or self.starved else self.takes_s
        self.waited += self.waits
        return self.answer(fleet)


def to_slot(slot: int) -> Callable[[Any], Choice]:
    """Always there."""
    return lambda fleet: Dispatch(slot, "so")


def broken(fleet: Any) -> Choice:
    """Raises."""
    raise KeyError("odd")


def guarded(
    live: Answers, last_good: Any = None, bounds: Bounds | None = None
) -> tuple[Dispatcher, DecisionStats, list[Fault]]:
    """A core whose routing is *live*, guarded, with *last_good* (always slot 1) as fallback."""
    core, books, on_fault = fakes.core(fakes.backend("a"), fakes.backend("b")), DecisionStats(), []
    safe = last_good or Answers(to_slot(1))
    faults = Faults(bounds or Bounds(), books, live.clock, on_fault.append, live.used)
    core.adopt(Guarded(live, safe, faults), core.admission)
    return core, books, on_fault


def test_a_policy_that_does_well_is_left_alone() -> None:
    """Its choice is used, and counted with its time."""
    live = Answers(to_slot(0), takes_s=0.001)
    core, books, on_fault = guarded(live)
    assert fakes.sent(core.arrived(fakes.request(), 0.0)).backend == "a"
    assert (books.decisions, books.seconds, on_fault) == (1, pytest.approx(0.001), [])


@pytest.mark.parametrize(
    ("answer", "takes_s", "kind"),
    [
        (broken, 0.0, "raised"),
        (to_slot(0), 0.006, "overran"),
        (to_slot(7), 0.0, "invalid"),
        (lambda fleet: Dispatch(fleet.slots[0], "numpy"), 0.0, WRONG_KIND),
        (lambda fleet: Hold(fleet.now_s, "for ever now"), 0.0, "invalid"),
        (lambda fleet: Shed("whim", "no"), 0.0, "invalid"),
        (lambda fleet: None, 0.0, "invalid"),
    ],
)
def test_a_fault_is_counted_and_the_last_good_policy_decides(answer: Any, takes_s: float, kind: str) -> None:
    """The fallback decides that request alone; the policy decides the next one."""
    live = Answers(answer, takes_s)
    core, books, on_fault = guarded(live)
    assert fakes.sent(core.arrived(fakes.request(), 0.0)).backend == "b"
    assert books.faults[kind] == 1
    assert [(fault.kind, fault.last) for fault in on_fault] == [(kind, False)]
    core.arrived(fakes.request(), 0.0)
    assert live.asked == 2


def test_a_policy_that_goes_on_failing_is_dropped() -> None:
    """After three faults within the window the policy is not called again."""
    live = Answers(broken)
    core, _, on_fault = guarded(live)
    for _ in range(5):
        assert fakes.sent(core.arrived(fakes.request(), 0.0)).backend == "b"
    assert live.asked == 3
    assert [fault.last for fault in on_fault] == [False, False, True]


def test_faults_far_apart_do_not_drop_a_policy() -> None:
    """Rare faults leave a policy in place."""
    live = Answers(broken)
    core, _, on_fault = guarded(live)
    for _ in range(5):
        live.now_s += 40.0
        core.arrived(fakes.request(), 0.0)
    assert live.asked == 5
    assert not any(fault.last for fault in on_fault)


def test_a_policy_that_is_often_late_is_dropped_and_one_that_seldom_is_is_not() -> None:
    """Five overruns among twenty decisions drop it; fewer are normal on a busy machine."""
    often, seldom = Answers(to_slot(0)), Answers(to_slot(0))
    for live, every in ((often, 4), (seldom, 6)):
        core, books, on_fault = guarded(live)
        for number in range(100):
            live.takes_s = 0.0 if number % every else 0.006
            core.arrived(fakes.request(), 0.0)
        assert books.faults["overran"] == (5 if live is often else 17)
        assert any(fault.last for fault in on_fault) is (live is often)


@pytest.mark.parametrize("waits", [False, True])
def test_the_second_decision_of_a_second_is_the_last(waits: bool) -> None:
    """One of a hundred budgets drops a policy that has overrun before, as every request waited for it: whether it
    computes or waits. Of the first it is not known whether the machine stood still.
    """
    live = Answers(to_slot(0), takes_s=1.0)
    live.waits = waits
    core, _, on_fault = guarded(live)
    for _ in range(4):
        core.arrived(fakes.request(), 0.0)
    assert live.asked == 2
    assert [fault.last for fault in on_fault] == [False, True]


@pytest.mark.parametrize("takes_s", [0.006, 1.0])
def test_a_busy_machine_drops_no_policy(takes_s: float) -> None:
    """Each decision that came too late is replaced and counted; the policy neither computed nor waited for so long."""
    live = Answers(to_slot(0), takes_s)
    live.starved = True
    core, books, on_fault = guarded(live)
    for _ in range(50):
        assert fakes.sent(core.arrived(fakes.request(), 0.0)).backend == "b"
    assert (live.asked, books.faults["overran"]) == (50, 50)
    assert not any(fault.last for fault in on_fault)
    assert "the machine is busy" in on_fault[-1].why


def test_a_policy_that_sleeps_a_little_each_time_is_dropped() -> None:
    """It computes nothing, and its waits are its own: five overruns, as of one that computes too long."""
    live = Answers(to_slot(0), takes_s=0.006)
    live.waits = True
    core, _, on_fault = guarded(live)
    for _ in range(10):
        core.arrived(fakes.request(), 0.0)
    assert live.asked == 5
    assert on_fault[-1].last


def test_when_the_last_good_policy_fails_too_the_request_is_still_served() -> None:
    """The backend with the fewest requests gets it."""
    core, books, _ = guarded(Answers(broken), last_good=Answers(broken))
    assert fakes.sent(core.arrived(fakes.request(), 0.0)).backend in {"a", "b"}
    assert books.faults["raised"] == 2


def test_an_admission_policy_that_fails_lets_through() -> None:
    """Routing still decides; a policy of another class does not get its memory."""

    core, request = fakes.core(fakes.backend("a")), fakes.request()
    fleet = Fleet(core.ledger, core.ledger.roster.pool(request.model), 0.0)

    class Odd:
        held_max, hold_s_max = 5, 1.0

        def __init__(self, answer: Any) -> None:
            self.answer = answer

        def admit(self, request: Any, fleet: Any, forecast: Any, memory: Any) -> Any:
            return self.answer(memory)

    class Other(Odd):
        pass

    def one(kind: type[Odd], answer: Any, memory: Any) -> Any:
        books = DecisionStats()
        net = GuardedAdmission(kind(answer), Faults(Bounds(), books, lambda: 0.0, lambda fault: None))
        assert (net.held_max, net.hold_s_max) == (5, 1.0)
        return net.admit(request, fleet, Forecast(request, fleet, core.belief), memory), books

    (answer, memory), _ = one(Odd, lambda m: (ADMIT, (m or 0) + 1), None)
    (answer, memory), _ = one(Odd, lambda m: (ADMIT, (m or 0) + 1), memory)
    assert memory[1] == 2
    (answer, fresh), _ = one(Other, lambda m: (ADMIT, (m or 0) + 1), memory)
    assert fresh[1] == 1
    (answer, kept), books = one(Odd, lambda m: 1 / 0, memory)
    assert (answer, kept, books.faults["raised"]) == (ADMIT, memory, 1)
    (answer, _), books = one(Odd, lambda m: (None, 1), memory)
    assert (answer, books.faults["invalid"]) == (ADMIT, 1)


class Sharing:
    """An admission policy that shares what it counts, and may fail at it."""

    held_max, hold_s_max, rank_times = 5, 1.0, (0,)

    def __init__(self, factor: float | None) -> None:
        self.factor = factor

    def admit(self, request: Any, fleet: Any, forecast: Any, memory: Any) -> Any:
        return ADMIT, (memory or 0.0) + 1.0

    def advances(self, memory: Any) -> dict[int, tuple[float, float]]:
        return {1: (memory * self.factor, 1.0)}

    def advanced(self, memory: Any, more: Any, now_s: float) -> Any:
        return (memory or 0.0) + more[1][0] * self.factor


def test_what_an_admission_policy_shares_passes_the_guard() -> None:
    """A policy that fails at it shares nothing and keeps its memory; so does one that has nothing to share."""

    def guarded(policy: Any) -> tuple[GuardedAdmission, DecisionStats]:
        seen = DecisionStats()
        return GuardedAdmission(policy, Faults(Bounds(), seen, lambda: 0.0, lambda fault: None)), seen

    net, _ = guarded(Sharing(2.0))
    memory = net.advanced(None, {1: (3.0, 1.0)}, 0.0)
    assert (net.rank_times, dict(net.advances(memory))) == ((0,), {1: (12.0, 1.0)})
    assert net.advances(None) == net.advances((Answers, 1.0)) == {}
    net, seen = guarded(Sharing(None))
    assert net.advances((Sharing, 1.0)) == {}
    assert net.advanced((Sharing, 1.0), {1: (3.0, 1.0)}, 0.0) == (Sharing, 1.0)
    assert seen.faults["raised"] == 2
    net, _ = guarded(policies.find("admission", "deadline"))
    assert net.advances(("any", 1.0)) == {}
    assert net.advanced(("any", 1.0), {1: (3.0, 1.0)}, 0.0) == ("any", 1.0)


def test_a_choice_is_valid_for_candidates_alone() -> None:
    """The same in a full pool and in one with gaps."""
    core = fakes.core(*(fakes.backend(name) for name in "abc"))
    seen = Answers(to_slot(0))

    def look(fleet: Any) -> Choice:
        seen.fleet = fleet  # type: ignore[attr-defined]
        return Dispatch(int(fleet.slots[0]), "first")

    seen.answer = look
    core.adopt(seen, core.admission)
    core.backend_health("a", False, 0.0)
    core.arrived(fakes.request(), 0.0)
    fleet = seen.fleet  # type: ignore[attr-defined]
    valid = [is_valid(Dispatch(slot, "so"), fleet) for slot in (-1, 0, 1, 2, 3)]
    assert valid == [False, False, True, True, False]
    assert is_valid(Hold(fleet.now_s + 0.1, "soon"), fleet)
    assert is_valid(Shed(Reason.SATURATED, "no"), fleet)


def test_the_guard_draws_no_chance() -> None:
    """The same seed gives the same choices with and without the guard."""
    plain = fakes.core(fakes.backend("a"), fakes.backend("b"), routing="random")
    net = fakes.core(fakes.backend("a"), fakes.backend("b"), routing="random")
    net.adopt(
        Guarded(net.routing, net.routing, Faults(Bounds(), DecisionStats(), lambda: 0.0, lambda f: None)), net.admission
    )
    draw = random.Random(3)
    for _ in range(50):
        asked = fakes.request(prompt_tokens=1 + int(draw.random() * 500))
        assert fakes.sent(plain.arrived(asked, 0.0)).backend == fakes.sent(net.arrived(asked, 0.0)).backend
