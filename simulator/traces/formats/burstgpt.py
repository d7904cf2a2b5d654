"""BurstGPT traces: CSV with seconds (github.com/HPMLL/BurstGPT). Rows without response tokens failed there."""

from collections.abc import Mapping
from typing import Final

from simulator.traces.entry import LeftOut, TraceEntry, TraceFormat
from simulator.traces.fields import by_columns, count, seconds


def _read(row: Mapping[str, str]) -> TraceEntry | LeftOut:
    at_s = seconds(row["timestamp"], "Timestamp")
    prompt = count(row, "request tokens", 0)
    output = count(row, "response tokens", 0)
    if not output or not prompt:
        return LeftOut("failed there (no response tokens)" if prompt else "have no prompt tokens")
    return TraceEntry(at_s, prompt, output, tenant=row.get("model", ""), session=row.get("session id", ""))


FORMAT: Final = TraceFormat(
    "BurstGPT",
    line="Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type",
    arrival="seconds",
    parser=by_columns(_read),
    example="Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
    "5,ChatGPT,472,18,490,Conversation log\n",
    columns=("Timestamp", "Request tokens", "Response tokens"),
    note="failed requests (no response tokens) are left out",
)
