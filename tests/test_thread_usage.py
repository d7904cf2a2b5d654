"""What a thread used: what it computed and waited for is its own, and not what the machine took from it."""

from time import perf_counter, sleep

from router.thread_usage import own_s, usage


def test_what_waited_is_its_own_in_whole() -> None:
    """A sleep uses no CPU time."""
    before, began_s = usage(), perf_counter()
    sleep(0.01)
    took_s = perf_counter() - began_s
    assert own_s(took_s, before, usage()) == took_s


def test_of_what_computed_the_cpu_time_is_its_own() -> None:
    """No more than the wall clock shows; and no other thread's."""
    before = usage()
    assert own_s(1.0, before, (before[0] + 0.25, before[1])) == 0.25
    assert own_s(0.1, before, (before[0] + 0.25, before[1])) == 0.1
    assert usage()[0] >= before[0]
