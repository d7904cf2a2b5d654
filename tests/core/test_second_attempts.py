"""Hedging and re-routing before the first byte keep to one budget, on virtual time."""

from router.core.decisions import Abort, Send
from router.core.flight import DispatchLimits
from router.core.types import Slo
from tests.fakes import backend, core, request

SLO = Slo(ttft_s=1.0)


def silent_pool(limits, requests=40):
    """Three engines that never answer, and requests that each came 10 ms after the last."""
    it = core(backend("a"), backend("b"), backend("c"), limits=limits)
    for number in range(requests):
        it.arrived(request(f"r{number}", arrived_s=number / 100, slo=SLO), number / 100)
    return it


def commands_until(it, until_s):
    """Everything commanded by timers up to then."""
    commands = []
    while it.wake_s <= until_s:
        commands.extend(it.ticked(it.wake_s))
    return commands


def test_a_pool_that_is_slow_as_a_whole_is_not_asked_everything_twice():
    """Of 40 silent requests 10 % of the sends are hedges, whichever backend is late."""
    it = silent_pool(DispatchLimits(hedge_slo_share=0.5, hedges_max_share=0.1))
    hedges = [c for c in commands_until(it, 5.0) if isinstance(c, Send)]
    assert 3 <= len(hedges) <= 5
    assert all(send.attempt == 2 and send.why.startswith("hedge") for send in hedges)


def test_re_routing_at_the_slos_own_deadline_keeps_to_the_same_budget():
    """The others stay where they are, silent, until the deadline that holds for every policy."""
    limits = DispatchLimits(first_byte_slo_factor=0.8, hedges_max_share=0.1, first_byte_s_max=20.0, failures_max=1000)
    it = silent_pool(limits)
    moved = commands_until(it, 5.0)
    assert 3 <= sum(isinstance(c, Send) for c in moved) <= 5
    assert sum(isinstance(c, Abort) for c in moved) == sum(isinstance(c, Send) for c in moved)
    assert it.in_flight == 40
    assert any(isinstance(c, Abort) for c in commands_until(it, 21.0))
