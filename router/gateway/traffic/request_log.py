"""The log of one request: what the gateway observed, beside the core's record. Depends on no part of a socket."""

from collections.abc import Sequence

from router.core.decisions import Refuse, RequestRecord, Send
from router.core.types import Slo
from router.gateway.traffic.request_trace import RequestTrace


class RequestLog:
    """One request that has ended. Never changed.

    ``decisions``: the core's decisions about it, in order; ``status``: the HTTP status sent (0: the client left before
    any); ``events``: data lines of the stream; ``gap_max_s``: the longest silence between two reads with tokens;
    ``connect_s``: opening a connection, 0 when one was idle; ``wire_id``: the client's ``x-request-id`` or ours;
    ``class_slo``: the SLO of its class, whatever its headers set (None: the same as the request's); ``peer``: address
    and port of the client; ``request_bytes``, ``reply_bytes``: of the bodies, as they were received and as sent;
    ``trace``: its place in a trace.
    No dataclass: one is made for every request, and a dataclass's own constructor is never compiled.
    """

    __slots__ = (
        "class_slo", "connect_s", "decisions", "events", "gap_max_s", "path", "peer", "record", "reply_bytes",
        "request_bytes", "status", "stream", "trace", "wire_id",
    )  # fmt: skip

    def __init__(
        self,
        record: RequestRecord,
        path: str,
        wire_id: str,
        stream: bool,
        status: int,
        events: int,
        gap_max_s: float,
        connect_s: float,
        decisions: Sequence[Send | Refuse] = (),
        class_slo: Slo | None = None,
        peer: tuple[str, int] | None = None,
        request_bytes: int = 0,
        reply_bytes: int = 0,
        trace: RequestTrace | None = None,
    ) -> None:
        self.record = record
        self.path = path
        self.wire_id = wire_id
        self.stream = stream
        self.status = status
        self.events = events
        self.gap_max_s = gap_max_s
        self.connect_s = connect_s
        self.decisions = decisions
        self.class_slo = record.request.slo if class_slo is None else class_slo
        self.peer = peer
        self.request_bytes = request_bytes
        self.reply_bytes = reply_bytes
        self.trace = trace

    @property
    def slo_source(self) -> str:
        """``class``: the request's SLO is that of its class; ``header``: its headers changed it."""
        slo = self.record.request.slo
        return "class" if slo is self.class_slo or slo == self.class_slo else "header"
