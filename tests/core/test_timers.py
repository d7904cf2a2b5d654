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


def test_one_long_deadline_does_not_keep_all_that_were_set_after_it():
    """Timers whose reason is gone are removed once they are most of all, wherever they stand."""
    live = {"first", "later"}
    timers = Timers(lambda timer: timer.subject in live)
    timers.set(600.0, "first", 0, Due.FIRST_BYTE)
    for number in range(100_000):
        timers.set(60.0 + number % 600, f"r{number}", 0, Due.FIRST_BYTE)
        timers.set(700.0 + number, f"s{number}", 0, Due.FIRST_BYTE)
    timers.set(650.0, "later", 0, Due.FIRST_BYTE)
    assert len(timers._heap) + len(timers._line) <= 1_025
    assert timers.next_s == 600.0
    first, second = timers.pop(1e9), timers.pop(1e9)
    assert (first.subject, second.subject, timers.next_s) == ("first", "later", float("inf"))
