"""A pause of the shell is no silence of the engines."""

import pytest

from router.core.decisions import Abort, Send
from router.core.flight import DispatchLimits
from router.core.types import Slo, Usage
from tests.fakes import backend, core, request, sent

LIMITS = DispatchLimits(first_byte_s_max=2.0, failures_max=1, hedge_slo_share=0.5, hedges_max_share=1.0)


def test_deadlines_move_on_by_the_pause():
    """What has come is read before anybody is late; who stays silent after that is."""
    it = core(backend("a"), backend("b"), limits=LIMITS)
    it.arrived(request("r"), 0.0)
    assert it.paused(100.0, 101.0) == ()
    assert it.wake_s == 102.0
    assert not it.ticked(101.9)
    abort, send = it.ticked(102.0)[:2]
    assert isinstance(abort, Abort)
    assert isinstance(send, Send)


def test_no_hedge_starts_for_a_pause():
    """Its share of the SLO passed while nobody looked."""
    it = core(backend("a"), backend("b"), limits=LIMITS)
    it.arrived(request("r", slo=Slo(ttft_s=1.0)), 0.0)
    it.paused(0.9, 1.0)
    assert not it.ticked(1.3)
    assert sent(it.ticked(1.4)).attempt == 2


def test_what_was_measured_across_a_pause_teaches_no_times():
    """Neither the first token's nor those after it; how long the reply was is as true as ever."""
    for paused_at_s in (0.5, 1.5):
        it = core(backend(), routing="slo_headroom")
        it.arrived(request("r"), 0.0)
        if paused_at_s < 1.0:
            it.paused(50.0, 50.5)
        it.first_token("r", 1, 51.0)
        if paused_at_s > 1.0:
            it.paused(50.0, 101.5)
        seen = it.belief.seen(0)
        it.ended("r", 1, Usage(20), 102.0)
        score = it.score("a")
        assert (score.tpot.seen, score.e2e.seen) == (0, 0)
        assert score.ttft.seen == seen == (0 if paused_at_s < 1.0 else 1)


@pytest.mark.parametrize("odd", [float("nan"), float("inf"), -1.0, 0.0])
def test_an_odd_pause_moves_nothing(odd):
    """Deadlines must not go to infinity, nor come sooner."""
    it = core(backend("a"), limits=LIMITS)
    it.arrived(request("r"), 0.0)
    it.paused(odd, 1.0)
    assert it.wake_s == 2.0


def test_timers_of_backends_stay_where_they_are():
    """An ejection ends when it should."""
    it = core(backend("a"), backend("b"), limits=LIMITS)
    it.arrived(request("r"), 0.0)
    it.ticked(2.0)
    it.paused(100.0, 102.5)
    assert it.wake_s == 3.0
