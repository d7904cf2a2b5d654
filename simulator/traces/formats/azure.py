"""Azure LLM inference traces, 2023 and 2024: CSV with date and time (github.com/Azure/AzurePublicDataset)."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Final

from simulator.traces.entry import LineParser, TraceEntry, TraceFormat
from simulator.traces.fields import by_columns, count

_EPOCH: Final = datetime(2023, 1, 1)  # noqa: DTZ001 - only differences count


class _Rows:
    """Rows with dates. A file has a zone in every row or in none: rows without one cannot be ordered among others."""

    def __init__(self) -> None:
        self._zoned: bool | None = None

    def read(self, row: Mapping[str, str]) -> TraceEntry:
        text = row["timestamp"].strip()
        try:
            at = datetime.fromisoformat(text)
        except ValueError:
            raise ValueError(f"TIMESTAMP must be a date and time, got {text[:40]!r}") from None
        zoned = at.tzinfo is not None
        if self._zoned is None:
            self._zoned = zoned
        elif self._zoned != zoned:
            expected = "with a zone, as in the rows before" if self._zoned else "without a zone, as in the rows before"
            raise ValueError(f"TIMESTAMP must be {expected}, got {text[:40]!r}")
        since_s = (at.astimezone(UTC).replace(tzinfo=None) if zoned else at) - _EPOCH
        return TraceEntry(since_s.total_seconds(), count(row, "contexttokens"), count(row, "generatedtokens"))


def _parser(header: str) -> LineParser:
    return by_columns(_Rows().read)(header)


FORMAT: Final = TraceFormat(
    "Azure",
    line="TIMESTAMP,ContextTokens,GeneratedTokens",
    arrival="date and time",
    parser=_parser,
    example="TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.6805900,374,44\n",
    columns=("TIMESTAMP", "ContextTokens", "GeneratedTokens"),
)
