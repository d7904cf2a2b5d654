"""The last requests, found by either of their names."""

from router.gateway.telemetry.journal import Journal
from router.gateway.traffic.request_log import RequestLog
from tests.fakes import backend, core, request


def test_a_request_is_found_by_either_name_the_newest_first_until_it_is_forgotten() -> None:
    """Ours is unique; of two with the client's own name the later is meant; the oldest goes."""
    it, journal = core(backend()), Journal(lines_max=2)
    for name, wire_id in (("r1", "theirs"), ("r2", "theirs"), ("r3", "r3")):
        it.arrived(request(name), 0.0)
        account = it.client_left(name, 0.1)[-1]
        journal.ended(RequestLog(account, "/v1/completions", wire_id, True, 0, 0, 0.0, 0.0))
        found = journal.find(wire_id)
        assert found is not None
        assert found.record.request.id == name
    second = journal.find("r2")
    assert second is not None
    assert second.wire_id == "theirs"
    assert journal.find("r1") is None
    assert [log.record.request.id for log in journal.recent()] == ["r3", "r2"]
