"""Requests that AIPerf sent: ``profile_export.jsonl``, one record a line (github.com/ai-dynamo/aiperf).

Their real arrivals and lengths are replayed; those of the warm-up, cancelled and failed ones are left out.
"""

from collections.abc import Mapping
from typing import Any, Final

from simulator.traces.entry import LeftOut, TraceEntry, TraceFormat
from simulator.traces.fields import by_record, member, scaled_seconds, text_of, whole

_NS: Final = 1e9


def _read(record: Mapping[str, Any]) -> TraceEntry | LeftOut:
    metadata, metrics = member(record, "metadata"), member(record, "metrics")
    at_s = scaled_seconds(metadata.get("request_start_ns"), "metadata.request_start_ns", "nanoseconds", _NS)
    if metadata.get("benchmark_phase") == "warmup":
        return LeftOut("are of the warm-up")
    if record.get("error") is not None or metadata.get("was_cancelled") is True:
        return LeftOut("failed there or were cancelled")
    prompt = _tokens(metrics, "input_sequence_length")
    output = _tokens(metrics, "output_sequence_length") or _tokens(metrics, "output_token_count")
    if not prompt or not output:
        return LeftOut("have no tokens of prompt or reply")
    return TraceEntry(
        at_s, prompt, output, id=text_of(metadata, "x_request_id"), session=text_of(metadata, "x_correlation_id")
    )


def _tokens(metrics: Mapping[str, Any], key: str) -> int:
    value = member(metrics, key).get("value")
    return 0 if value is None else whole(value, f"metrics.{key}.value", 0)


FORMAT: Final = TraceFormat(
    "AIPerf records",
    line='{"metadata": {"x_request_id": "a", "request_start_ns": 1759813207532900363}, "metrics": '
    '{"input_sequence_length": {"value": 550, "unit": "tokens"}, "output_sequence_length": {"value": 9, "unit": '
    '"tokens"}}, "error": null}',
    arrival="nanoseconds, read as seconds",
    parser=by_record(_read),
    keys=("metrics",),
)
