"""Replies that are no streams have a limit of their own: their silence says nothing of the engine."""

import pytest

from router.core.decisions import Abort, Send
from router.core.errors import Reason
from router.core.flight import DispatchLimits
from router.core.types import Slo, Usage
from tests.fakes import account, backend, core, refused, request, sent


def whole(*backends, **limits):
    """A core with these limits, and a request for a whole reply that was sent at 0 s."""
    return core(*map(backend, backends or "ab"), limits=DispatchLimits(**limits))


def test_a_whole_reply_may_take_longer_than_the_first_byte_of_a_stream():
    """Ten minutes where nothing else is said."""
    it = whole()
    assert sent(it.arrived(request("r", streamed=False), 0.0)).first_byte_due_s == 600.0
    assert not it.ticked(599.9)
    assert account(it.ended("r", 1, Usage(9), 599.95)).slo_met


def test_a_whole_reply_that_takes_too_long_is_a_timeout_and_not_started_again():
    """Another engine would take as long: three times ten minutes help nobody. The backend is to blame for one."""
    it = whole(whole_reply_s_max=100.0, failures_max=1)
    it.arrived(request("r", streamed=False), 0.0)
    commands = it.ticked(100.0)
    assert [type(command) for command in commands][:1] == [Abort]
    assert not [command for command in commands if isinstance(command, Send)]
    assert refused(commands).reason is Reason.FIRST_BYTE_LATE
    assert len(it.ledger.roster.pool("m")) == 1


@pytest.mark.parametrize(("e2e_s", "due_s"), [(0.001, 60.0), (59.0, 60.0), (120.0, 120.0), (1800.0, 1800.0)])
def test_the_e2e_slo_is_the_limit_of_a_whole_reply(e2e_s, due_s):
    """Shorter or longer than the default, though a bound that nobody can meet leaves the time that a stream has."""
    it = whole()
    assert sent(it.arrived(request("r", streamed=False, slo=Slo(e2e_s=e2e_s)), 0.0)).first_byte_due_s == due_s


def test_a_tight_e2e_slo_ejects_no_backend():
    """What a client wrote into a header is no evidence against an engine."""
    it = whole(failures_max=1)
    it.arrived(request("r", streamed=False, slo=Slo(e2e_s=90.0)), 0.0)
    refused(it.ticked(90.0))
    assert len(it.ledger.roster.pool("m")) == 2


def test_neither_the_ttft_slo_nor_hedging_cuts_a_whole_reply_short():
    """It has no first token that anybody could see."""
    it = whole(first_byte_slo_factor=1.0, hedge_slo_share=0.5, hedges_max_share=1.0)
    assert sent(it.arrived(request("r", streamed=False, slo=Slo(ttft_s=1.0)), 0.0)).first_byte_due_s == 600.0
    assert not [command for command in it.ticked(50.0) if isinstance(command, Send)]


def test_a_stream_keeps_its_own_limit():
    """The first byte within a minute, as ever, and another backend after it."""
    it = whole()
    assert sent(it.arrived(request("r"), 0.0)).first_byte_due_s == 60.0
    assert sent(it.ticked(60.0)).attempt == 2
