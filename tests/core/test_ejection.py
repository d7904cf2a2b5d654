"""What is known of a backend's failures: counted by kind, the last one, and since and until when it is ejected."""

from router.core.flight import DispatchLimits, Failure, FailureKind
from tests.fakes import backend, core, request

FAULT = Failure("a answered 500: out of memory")
BUSY = Failure("a answered 503: busy", backend_fault=False, kind=FailureKind.BUSY)
CLIENTS = Failure("a answered 400: no", backend_fault=False, retryable=False, kind=FailureKind.CLIENT_ERROR)


def fail(it, *failures, at_s=1.0):
    """One request for each, sent to the only backend there is."""
    for failure in failures:
        it.arrived(request("r", arrived_s=at_s), at_s)
        it.failed("r", 1, failure, at_s)


def test_failures_are_counted_by_kind_and_the_last_one_is_kept():
    """A client's own error is counted, and says nothing about the backend."""
    it = core(backend("a"))
    assert not it.failures
    fail(it, FAULT, BUSY, CLIENTS, CLIENTS)
    known = it.failures["a"]
    assert dict(known.counts) == {FailureKind.FAULT: 1, FailureKind.BUSY: 1, FailureKind.CLIENT_ERROR: 2}
    assert (known.kind, known.why, known.at_s, known.in_a_row) == (FailureKind.BUSY, BUSY.why, 1.0, 1)


def test_an_ejection_is_known_with_its_beginning_and_its_end():
    """And that it is over; how many there were stays."""
    it = core(backend("a"), limits=DispatchLimits(failures_max=2, eject_s=3.0))
    fail(it, FAULT, FAULT, at_s=10.0)
    known = it.failures["a"]
    assert (known.ejected, known.ejected_s, known.readmitted_s, known.in_a_row) == (True, 10.0, 13.0, 2)
    it.ticked(13.0)
    assert (known.ejected, known.ejections, known.in_a_row) == (False, 1, 2)
    it.arrived(request("s", arrived_s=14.0), 14.0)
    it.first_token("s", 1, 14.1)
    assert known.in_a_row == 0


def test_a_deadline_that_passed_is_a_failure_like_any():
    """The core alone sees it."""
    it = core(backend("a"))
    it.arrived(request("r"), 0.0)
    it.ticked(60.0)
    known = it.failures["a"]
    assert (dict(known.counts), known.kind) == ({FailureKind.LATE: 1}, FailureKind.LATE)
    assert known.why == "a sent no first byte in 60.00 s"


def test_what_is_kept_of_an_engines_words_is_bounded():
    """Whatever it wrote."""
    it = core(backend("a"))
    fail(it, Failure("x" * 10**6))
    assert len(it.failures["a"].why) == 300


def test_a_backend_that_left_leaves_nothing():
    """Nor do failures of its attempts that end after it has."""
    it = core(backend("a"), backend("b"))
    it.backend_draining("b", True, 0.0)
    it.arrived(request("r"), 0.0)
    it.backend_left("a", 1.0)
    it.failed("r", 1, Failure("a was removed", backend_fault=False, kind=FailureKind.WITHDRAWN), 1.0)
    assert not it.failures
