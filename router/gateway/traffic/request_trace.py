"""What a request carries while traces are written: its place in a trace, and when its attempts began and ended.

W3C Trace Context: the client's ``traceparent`` is continued, and each attempt is sent with a span id of its own, so
that an engine's spans stand under it. Must not depend on how traces are written. Without traces none of this is made.
"""

import re
from collections.abc import Callable, Mapping
from random import Random
from typing import Final

from router.core.flight import Failure
from router.gateway.protocols.target import Target

_TRACEPARENT: Final = re.compile(
    rb"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(?:\Z|-)"
)
_IDS: Final = (1 << 64) - 1
_STRIDE: Final = (
    0x9E3779B97F4A7C15  # odd: so many different ids come of one, and none is like those of the next request
)
_SAMPLED: Final = 1
_CONTINUED: Final = frozenset({b"traceparent"})
_BEGUN: Final = frozenset({b"traceparent", b"tracestate"})
ATTEMPT: Final = 0  # of the two kinds of ids that are made of a request's
OTHER: Final = 1 << 20


class TracedAttempt:
    """One attempt: to which engine, when it was sent, and when and why it ended (nan, None: the request's end was its).

    ``aborted``: the router ended it, since another attempt won or the client left.
    """

    __slots__ = ("aborted", "ended_s", "failure", "number", "sent_s", "target")

    def __init__(self, number: int, target: Target, sent_s: float) -> None:
        self.number, self.target, self.sent_s = number, target, sent_s
        self.ended_s = float("nan")
        self.failure: Failure | None = None
        self.aborted = False


class RequestTrace:
    """A request's place in a trace. ``parent_id``: 0 where the client gave none; ``attempts``: of a sampled request."""

    __slots__ = ("attempts", "parent_id", "sampled", "span_id", "state", "trace_id")

    def __init__(self, trace_id: int, span_id: int, parent_id: int, sampled: bool, state: str) -> None:
        self.trace_id, self.span_id, self.parent_id = trace_id, span_id, parent_id
        self.sampled, self.state = sampled, state
        self.attempts: list[TracedAttempt] = []

    @property
    def replaces(self) -> frozenset[bytes]:
        """Fields of the client's head that no engine gets: a ``tracestate`` is nothing without its ``traceparent``."""
        return _CONTINUED if self.parent_id else _BEGUN

    def id_of(self, number: int, kind: int = ATTEMPT) -> int:
        """The span id of an attempt, or of another child."""
        return (self.span_id + (kind + number) * _STRIDE) & _IDS or 1

    def field(self, number: int) -> bytes:
        """The header line that an attempt is sent with."""
        return b"traceparent: 00-%032x-%016x-%02x\r\n" % (self.trace_id, self.id_of(number), self.sampled)

    def sent(self, number: int, target: Target, now_s: float) -> None:
        """An attempt begins."""
        if self.sampled:
            self.attempts.append(TracedAttempt(number, target, now_s))

    def failed(self, number: int, failure: Failure, now_s: float) -> None:
        """An attempt has failed."""
        for attempt in self.attempts:
            if attempt.number == number:
                attempt.ended_s, attempt.failure = now_s, failure

    def aborted(self, number: int, now_s: float) -> None:
        """An attempt is ended by the router."""
        for attempt in self.attempts:
            if attempt.number == number and attempt.failure is None:
                attempt.ended_s, attempt.aborted = now_s, True


class TraceSource:
    """Gives each request its place in a trace, and decides whether that one is written.

    The client's decision is respected, if clients decide. Else a share is sampled by the trace id, as OpenTelemetry's
    TraceIdRatioBased does, so that other services that sample the same share choose the same traces.
    """

    def __init__(self, share: float, clients_decide: bool = True, random: Callable[[int], int] | None = None) -> None:
        """*random*: gives a number of so many bits."""
        self._bound = round(share * (1 << 64))
        self._clients_decide = clients_decide
        self._bits = random or Random().getrandbits

    def begin(self, fields: Mapping[bytes, bytes]) -> RequestTrace:
        """The trace of a request with these header fields. A ``traceparent`` that cannot be read counts as none."""
        given = fields.get(b"traceparent")
        span_id = self._bits(64) or 1
        found = _TRACEPARENT.match(given) if given is not None else None
        if found is None or (given is not None and given.startswith(b"00") and len(given) != found.end()):
            trace_id = self._bits(128) or 1
            return RequestTrace(trace_id, span_id, 0, trace_id & _IDS < self._bound, "")
        state = fields.get(b"tracestate", b"").decode("latin-1")
        trace_id = int(found[1], 16)
        asked = bool(int(found[3], 16) & _SAMPLED)
        sampled = asked if self._clients_decide else trace_id & _IDS < self._bound
        return RequestTrace(trace_id, span_id, int(found[2], 16), sampled, state)
