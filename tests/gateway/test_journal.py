"""The last requests, found by either of their names."""

from router.gateway.telemetry.journal import Journal
from router.gateway.traffic.request_log import RequestLog
from tests.fakes import backend, core, request


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
