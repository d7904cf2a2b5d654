"""Bailian traces of Qwen usage: JSONL with seconds; a prefix hash covers 16 tokens
(github.com/alibaba-edu/qwen-bailian-usagetraces-anon).

Each turn of a chat names its parent; the first turn names the session.
"""

from typing import Any, Final

from simulator.traces.entry import LineParser, TraceEntry, TraceFormat
from simulator.traces.fields import count, hashes, json_object, seconds, text_of

BLOCK_TOKENS: Final = 16


class _Sessions:
    """Follows each chat back to its first turn."""

    def __init__(self) -> None:
        self.roots: dict[Any, str] = {}

    def read(self, line: str) -> TraceEntry:
        record = json_object(line)
        chat, parent = record.get("chat_id"), record.get("parent_chat_id")
        root = self.roots.get(parent) or str(chat)
        self.roots[chat] = root
        prefix = hashes(record, "hash_ids")
        return TraceEntry(
            seconds(record.get("timestamp"), "timestamp"),
            count(record, "input_length"),
            count(record, "output_length"),
            session=root,
            slo_class=text_of(record, "type"),
            prefix=prefix,
            prefix_block_tokens=BLOCK_TOKENS if prefix else 0,
        )

    def finish(self, _: list[TraceEntry]) -> dict[str, int]:
        return {}


def _parser(_first: str) -> LineParser:
    return _Sessions()


FORMAT: Final = TraceFormat(
    "Bailian",
    line='{"chat_id": 2, "parent_chat_id": 1, "timestamp": 9.0, "input_length": 40, "output_length": 8, ...}',
    arrival="seconds",
    parser=_parser,
    keys=("chat_id",),
    example='{"chat_id": 1, "parent_chat_id": -1, "timestamp": 0.5, "input_length": 20, "output_length": 9, "type": '
    '"text", "turn": 1, "hash_ids": [1, 2]}',
)
