"""Requests that inference-perf sent: ``per_request_lifecycle_metrics.json``, where ``per_request`` reports are on.

See github.com/kubernetes-sigs/inference-perf. A JSON array, with times of a clock of its own. The real arrivals and
lengths are replayed.
"""

from collections.abc import Mapping
from typing import Any, Final

from simulator.traces.entry import LeftOut, TraceEntry, TraceFormat
from simulator.traces.fields import by_record, member, seconds, whole


def _read(record: Mapping[str, Any]) -> TraceEntry | LeftOut:
    at_s = seconds(record.get("start_time"), "start_time")
    if record.get("error") is not None:
        return LeftOut("failed there (error)")
    info = member(record, "info")
    text = member(member(info, "request_metrics"), "text")
    prompt = whole(text.get("input_tokens", info.get("input_tokens", 0)), "input_tokens", 0)
    response = member(info, "response_metrics")
    output = whole(response.get("output_tokens", info.get("output_tokens", 0)), "output_tokens", 0)
    if not prompt or not output:
        return LeftOut("have no tokens of prompt or reply")
    return TraceEntry(at_s, prompt, output)


FORMAT: Final = TraceFormat(
    "inference-perf",
    line='[{"start_time": 101.25, "end_time": 103.5, "info": {"request_metrics": {"text": {"input_tokens": 512}}, '
    '"response_metrics": {"output_tokens": 128}}, "error": null}]',
    arrival="seconds",
    parser=by_record(_read),
    keys=("info",),
)
