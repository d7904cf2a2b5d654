"""The gateway's own record: JSONL of core events with seconds, as ``router.core.record`` writes them.

A request that never ended in the record has no reply length and is left out.
"""

from collections.abc import Mapping
from typing import Any, Final

from router.core.slo_metrics import SLO_METRICS
from simulator.traces.entry import LineParser, TraceEntry, TraceFormat
from simulator.traces.fields import SEQUENCES_MAX, count, flag, hashes, json_object, many, seconds, slo_given, text_of


class RecordParser:
    """Joins the arrival of each request with its end, which holds the length of the reply."""

    def __init__(self) -> None:
        """``open`` holds the requests whose end has not been read, by id."""
        self.open: dict[str, TraceEntry] = {}

    def read(self, line: str) -> TraceEntry | None:
        """Read one event. Returns the request that it ends, or None. Raises ValueError: what was expected."""
        event = json_object(line)
        kind = event.get("event")
        if kind == "arrived":
            request = event.get("request")
            if not isinstance(request, dict):
                raise ValueError("an event 'arrived' needs its request")
            entry = self.open[str(request.get("id"))] = _recorded(request)
            entry.arrived_s = seconds(event.get("at_s"), "at_s")
        elif kind == "ended":
            ended = self.open.pop(str(event.get("id")), None)
            if ended is not None:
                ended.output_tokens = max(1, int((event.get("usage") or {}).get("output_tokens", 0)))
            return ended
        return None

    def finish(self, _: list[TraceEntry]) -> dict[str, int]:
        """What arrived and has no end here: refused, failed, left by its client, or still running."""
        return (
            {"have no end in the record (refused, failed, left, or still running)": len(self.open)} if self.open else {}
        )


def _recorded(request: Mapping[str, Any]) -> TraceEntry:
    slo = request.get("slo") or {}
    return TraceEntry(
        0.0,
        count(request, "prompt_tokens"),
        1,
        id=text_of(request, "id"),
        model=text_of(request, "model"),
        slo_class=text_of(request, "slo_class"),
        slo=slo_given(
            [slo.get(metric.seconds) for metric in SLO_METRICS],
            slo.get("quantile"),
            slo.get("refuse_infeasible") is True,
        ),
        output_tokens_max=int(request.get("output_tokens_max", 0)),
        priority=int(request.get("priority", 0)),
        tenant=text_of(request, "tenant"),
        session=text_of(request, "session"),
        prefix=hashes(request, "prefix"),
        prefix_block_tokens=int(request.get("prefix_block_tokens", 0)),
        streamed=flag(request, "streamed"),
        sequences=min(many(request, "sequences"), SEQUENCES_MAX),
        prompts=min(many(request, "prompts"), SEQUENCES_MAX),
        fallback=text_of(request, "fallback"),
        requested_model=text_of(request, "requested_model"),
    )


def _parser(_first: str) -> LineParser:
    return RecordParser()


FORMAT: Final = TraceFormat(
    "gateway record",
    line='{"event": "arrived", "at_s": 2.0, "request": {"id": "a", "model": "m", "prompt_tokens": 7, ...}}',
    arrival="seconds",
    parser=_parser,
    keys=("record", "event"),  # the header of a record, and its events
    example='{"event": "arrived", "at_s": 2.0, "request": {"id": "a", "model": "m", "prompt_tokens": 7}}\n'
    '{"event": "ended", "at_s": 9.0, "id": "a", "usage": {"output_tokens": 33}}\n',
    shared_hashes=True,
    note="requests that never ended in the record are left out",
)
