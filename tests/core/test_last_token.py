"""A stream's time per token runs to its last token; what the engine sends after that is no token's time."""

import json
from math import inf, isnan, nan

import pytest

from router.core.dispatcher import Dispatcher
from router.core.flight import Failure
from router.core.record import Recording, replay
from router.core.types import Slo, Usage
from tests.fakes import account, backend, core, request, sent


def ended(it: Dispatcher, last_token_s: float, *, at_s: float = 3.0, **facts):
    """The record of a reply of 11 tokens: the first at 1 s, the last as given, the end at *at_s*."""
    send = sent(it.arrived(request("r", **facts), 0.0))
    it.first_token("r", send.attempt, 1.0)
    return account(it.ended("r", send.attempt, Usage(11), at_s, last_token_s))


def test_tpot_runs_to_the_last_token_and_e2e_to_the_end():
    """A proxy that counts tokens before it ends the reply is no slower by token."""
    done = ended(core(backend()), 2.0, slo=Slo(tpot_s=0.15))
    assert (done.tpot_s, done.e2e_s, done.last_token_s) == (pytest.approx(0.1), 3.0, 2.0)
    assert done.slo_met
    late = ended(core(backend()), nan, slo=Slo(tpot_s=0.15))
    assert (late.tpot_s, isnan(late.last_token_s), late.slo_met) == (pytest.approx(0.2), True, False)


@pytest.mark.parametrize(
    ("given_s", "kept_s"), [(0.5, 1.0), (-inf, nan), (inf, nan), (nan, nan), (9.0, 3.0), (1.5, 1.5)]
)
def test_a_last_token_stands_between_the_first_and_the_end(given_s: float, kept_s: float):
    """Whatever the shell's clock shows."""
    kept = ended(core(backend()), given_s).last_token_s
    assert kept == kept_s or (isnan(kept) and isnan(kept_s))


def test_a_reply_without_a_token_or_in_one_piece_has_no_last_one():
    """Nor has it a TPOT."""
    for streamed in (True, False):
        it = core(backend())
        send = sent(it.arrived(request("r", streamed=streamed), 0.0))
        done = account(it.ended("r", send.attempt, Usage(0 if streamed else 5), 2.0, nan))
        assert isnan(done.last_token_s)
        assert isnan(done.tpot_s)


def test_a_stream_that_fails_or_is_left_states_its_last_token():
    """A stall of a minute is not in its time per token."""
    for fails in (True, False):
        it = core(backend())
        send = sent(it.arrived(request("r"), 0.0))
        it.first_token("r", send.attempt, 1.0)
        if fails:
            commands = it.failed("r", send.attempt, Failure("silent"), 61.0, Usage(11), 2.0)
        else:
            commands = it.client_left("r", 61.0, Usage(11), 2.0)
        assert account(commands).tpot_s == pytest.approx(0.1)


def test_what_is_learnt_of_tpot_does_not_depend_on_how_late_the_reply_ends():
    """The work that the backend did meanwhile is counted up to the last token too."""
    beliefs = []
    for end_s, last_s in ((1.2, nan), (1.2, 1.2), (1.9, 1.2)):
        it = core(backend(), routing="slo_headroom")
        others = [sent(it.arrived(request(f"o{n}"), 0.0)) for n in range(3)]
        for send in others:
            it.first_token(send.request_id, send.attempt, 0.5)
        ended(it, last_s, at_s=end_s)
        beliefs.append(it.belief.export(0)["regression"]["log_factor"])
    assert beliefs[1] == beliefs[0]
    assert beliefs[2] == pytest.approx(beliefs[0])


def test_a_record_that_states_no_last_token_replays_to_the_letter():
    """As those of version 3: nothing in the answers is new then. With one, it is in both."""
    for last_token_s in (nan, 2.0):
        lines: list[str] = []
        it = Recording(core(), lambda event, to=lines: to.append(json.dumps(event, allow_nan=False)))
        it.backend_joined(backend(), 0.0)
        for number in range(3):
            it.arrived(request(f"r{number}"), 0.0)
            it.first_token(f"r{number}", 1, 1.0)
        it.ended("r0", 1, Usage(11), 3.0, last_token_s)
        it.failed("r1", 1, Failure("gone"), 3.0, Usage(11), last_token_s)
        it.client_left("r2", 3.0, Usage(11), last_token_s)
        events = [json.loads(line) for line in lines]
        assert all(("last_token_s" in event) == (last_token_s == 2.0) for event in events[-3:])
        assert all(('"last_token_s": 2.0' in line) == (last_token_s == 2.0) for line in lines[-3:])
        for event, commands in replay(events, core()):
            assert json.loads(json.dumps(commands)) == event["answer"]
