"""Azure LLM inference traces, 2023 and 2024: CSV with date and time (github.com/Azure/AzurePublicDataset)."""

from collections.abc import Mapping
from datetime import datetime
from typing import Final

from simulator.traces.entry import TraceEntry, TraceFormat
from simulator.traces.fields import by_columns, count

_EPOCH: Final = datetime(2023, 1, 1)  # noqa: DTZ001 - only differences count


def _read(row: Mapping[str, str]) -> TraceEntry:
    text = row["timestamp"].strip()
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(f"TIMESTAMP must be a date and time, got {text[:40]!r}") from None
    since_s = (at.replace(tzinfo=None) - _EPOCH).total_seconds()
    return TraceEntry(since_s, count(row, "contexttokens"), count(row, "generatedtokens"))


FORMAT: Final = TraceFormat(
    "Azure",
    line="TIMESTAMP,ContextTokens,GeneratedTokens",
    arrival="date and time",
    parser=by_columns(_read),
    columns=("TIMESTAMP", "ContextTokens", "GeneratedTokens"),
)
