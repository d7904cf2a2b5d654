"""Offline traces published with ServeGen: one batch job a file, JSONL (github.com/alibaba/ServeGen, data/offline).

All of a job is submitted at once, so every request arrives at 0. Traces a to c have prefix hashes of 16 tokens and no
output lengths, d to f lengths and no hashes.
"""

from collections.abc import Mapping
from typing import Any, Final

from simulator.traces.entry import LeftOut, TraceEntry, TraceFormat
from simulator.traces.fields import by_record, count, text_of


def _read(record: Mapping[str, Any]) -> TraceEntry | LeftOut:
    prompt = count(record, "input_length")
    if "output_length" not in record:
        return LeftOut("have no output_length (traces a to c have hashes alone)")
    output = count(record, "output_length")
    return TraceEntry(0.0, prompt, output, id=text_of(record, "request_id"), slo_class=text_of(record, "type"))


FORMAT: Final = TraceFormat(
    "ServeGen offline",
    line='{"request_id": 0, "type": "text", "input_length": 61, "output_length": 2370, "duration": 14000}',
    arrival="none, all at 0 seconds",
    parser=by_record(_read),
    keys=("duration", "img_ids"),
)
