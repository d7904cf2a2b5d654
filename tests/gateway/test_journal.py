"""The last requests, found by either of their names."""

import logging

import pytest

from router.core.decisions import EndState, Refuse, RequestRecord
from router.core.errors import Reason
from router.gateway.telemetry.journal import Journal
from router.gateway.telemetry.refusal_log import RefusalLog
from router.gateway.traffic.request_log import RequestLog
from tests.fakes import backend, core, request
from tests.gateway.test_metrics import account


def test_a_request_is_found_by_either_name_the_newest_first_until_it_is_forgotten() -> None:
    """Its own id is unique, whatever ids clients give; all that bear a client's are found; the oldest goes."""
    it, journal = core(backend()), Journal(lines_max=2)
    for name, wire_id in (("r1", "theirs"), ("r2", "theirs"), ("r3", "r3"), ("r4", "r3")):
        it.arrived(request(name), 0.0)
        account = it.client_left(name, 0.1)[-1]
        journal.ended(RequestLog(account, "/v1/completions", wire_id, True, 0, 0, 0.0, 0.0))
        names = [log.record.request.id for log in journal.find(wire_id)]
        assert names == {"r1": ["r1"], "r2": ["r2", "r1"], "r3": ["r3"], "r4": ["r3"]}[name]
    assert [log.wire_id for log in journal.find("r4")] == ["r3"]
    assert journal.find("r1") == []
    assert journal.find("theirs") == []
    assert [log.record.request.id for log in journal.recent()] == ["r4", "r3"]


def test_the_log_states_once_a_minute_what_is_refused_and_why(caplog: pytest.LogCaptureFixture) -> None:
    """At once for the first one; what was served is in no line."""
    refusals = RefusalLog()
    why = Refuse("r", Reason.SATURATED, "no backend can meet the TPOT SLO", 1.0)

    def ended(record: RequestRecord, *decisions: Refuse) -> None:
        refusals.ended(RequestLog(record, "/v1/completions", "r", True, 429, 0, 0.0, 0.0, decisions))

    refused = account(EndState.REFUSED, Reason.SATURATED)
    with caplog.at_level(logging.WARNING, "headroom"):
        refusals.sweep(5.0)
        for record, *decisions in ((refused, why), (refused, why), (account(),), (refused,)):
            ended(record, *decisions)
        refusals.sweep(6.0)
        ended(refused, why)
        for now_s in (65.0, 66.5, 200.0):
            refusals.sweep(now_s)
    last = "; the last one, of class chat: no backend can meet the TPOT SLO"
    assert caplog.messages == [f"requests refused since the last such line: {n} saturated{last}" for n in (3, 1)]
