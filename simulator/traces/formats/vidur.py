"""Vidur's processed traces: CSV with seconds (github.com/microsoft/vidur, data/processed_traces)."""

from collections.abc import Mapping
from typing import Final

from simulator.traces.entry import TraceEntry, TraceFormat
from simulator.traces.fields import by_columns, count, seconds


def _read(row: Mapping[str, str]) -> TraceEntry:
    return TraceEntry(
        seconds(row["arrived_at"], "arrived_at"), count(row, "num_prefill_tokens"), count(row, "num_decode_tokens")
    )


FORMAT: Final = TraceFormat(
    "Vidur",
    line="arrived_at,num_prefill_tokens,num_decode_tokens",
    arrival="seconds",
    parser=by_columns(_read),
    columns=("arrived_at", "num_prefill_tokens", "num_decode_tokens"),
    example="arrived_at,num_prefill_tokens,num_decode_tokens\n4.314579,396,109\n",
)
