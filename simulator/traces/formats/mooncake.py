"""Mooncake traces: JSONL with milliseconds; a prefix hash covers 512 tokens (github.com/kvcache-ai/Mooncake)."""

from collections.abc import Mapping
from typing import Any, Final

from simulator.traces.entry import TraceEntry, TraceFormat
from simulator.traces.fields import by_record, count, hashes, seconds

BLOCK_TOKENS: Final = 512


def _read(record: Mapping[str, Any]) -> TraceEntry:
    prefix = hashes(record, "hash_ids")
    return TraceEntry(
        seconds(record.get("timestamp"), "timestamp") / 1e3,
        count(record, "input_length"),
        count(record, "output_length"),
        prefix=prefix,
        prefix_block_tokens=BLOCK_TOKENS if prefix else 0,
    )


FORMAT: Final = TraceFormat(
    "Mooncake",
    line='{"timestamp": 3052, "input_length": 1300, "output_length": 6, "hash_ids": [46, 47, 48]}',
    arrival="milliseconds",
    parser=by_record(_read),
    keys=("input_length",),
    not_keys=("chat_id",),  # a Bailian trace
)
