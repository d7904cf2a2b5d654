"""The time of the core's next timer."""

from hypothesis import given
from hypothesis import strategies as st

from router.core.timers import Due, Timer, Timers

STEPS = st.lists(st.tuples(st.sampled_from(("set", "die", "pop", "ask")), st.integers(0, 20)), max_size=60)


@given(STEPS)
def test_timers_come_in_order_and_the_soonest_is_never_told_too_late(steps: list[tuple[str, int]]) -> None:
    """Against a plain list, whatever is set, loses its reason, comes due or is read."""
    alive: set[str] = set()
    line: list[tuple[int, int, str]] = []

    def stands(timer: Timer) -> bool:
        return timer.subject in alive

    it = Timers(stands)
    for number, (step, when) in enumerate(steps):
        if step == "set":
            alive.add(str(number))
            line.append((when, number, str(number)))
            it.set(float(when), str(number), 1, Due.FIRST_BYTE)
        elif step == "die" and line:
            alive.discard(line.pop(when % len(line))[2])
        elif step == "pop":
            due = min((each for each in line if each[0] <= when), default=None)
            found = it.pop(float(when))
            assert (found.subject if found else None) == (due[2] if due else None)
            if due is not None:
                line.remove(due)
                alive.discard(due[2])
        first_s = min((each[0] for each in line), default=float("inf"))
        assert it.soonest_s <= first_s
        if step == "ask":
            assert it.next_s == it.soonest_s == first_s
