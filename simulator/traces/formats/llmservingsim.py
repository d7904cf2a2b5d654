"""Workloads of LLMServingSim: JSONL with nanoseconds (github.com/casys-kaist/LLMServingSim, docs/docs/workloads).

A line is a request, or a session: ``sub_requests`` of which each arrives ``tool_duration_ns`` after the end of the one
before it. Token ids, where a line has them, give prefix hashes in blocks of 16. Its benchmark of a real engine writes
``requests.jsonl`` with ``arrival_time`` in seconds instead.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from simulator.traces.entry import Parsed, TraceEntry, TraceFormat
from simulator.traces.fields import count, items, json_object, scaled_seconds, text_of

BLOCK_TOKENS: Final = 16
_NS: Final = 1e9


class _Parser:
    """Requests and sessions of one file."""

    def __init__(self) -> None:
        self._sessions: set[str] = set()

    def read(self, line: str) -> Parsed:
        record = json_object(line)
        at_s = _arrival(record)
        if "sub_requests" not in record:
            return _request(record, at_s, text_of(record, "request_id"))
        session = text_of(record, "session_id") or f"session_{len(self._sessions)}"
        if session in self._sessions:
            raise ValueError(f"session_id {session!r} is in the file twice")
        calls: list[TraceEntry] = []
        delay_s = 0.0
        for number, each in enumerate(items(record, "sub_requests")):
            call = _of_session(each, at_s, f"{session}#{number}", number)
            if calls:
                call.after, call.delay_s = (calls[-1].id,), delay_s
            call.session = session
            delay_s = scaled_seconds(each.get("tool_duration_ns", 0), "tool_duration_ns", "nanoseconds", _NS)
            calls.append(call)
        self._sessions.add(session)
        return calls

    def finish(self, _: list[TraceEntry]) -> dict[str, int]:
        return {}


def _arrival(record: Mapping[str, Any]) -> float:
    if "arrival_time_ns" not in record and "arrival_time" in record:
        return scaled_seconds(record["arrival_time"], "arrival_time", "seconds", 1.0)
    return scaled_seconds(record.get("arrival_time_ns"), "arrival_time_ns", "nanoseconds", _NS)


def _of_session(record: object, at_s: float, name: str, number: int) -> TraceEntry:
    if not isinstance(record, dict):
        raise ValueError(f"sub_requests[{number}] must be an object")  # noqa: TRY004 - a bad line
    try:
        return _request(record, at_s, name)
    except ValueError as problem:
        raise ValueError(f"sub_requests[{number}]: {problem}") from None


def _request(record: Mapping[str, Any], at_s: float, name: str) -> TraceEntry:
    prompt, output = count(record, "input_toks"), count(record, "output_toks")
    read, written = _ids(record, "input_tok_ids", prompt), _ids(record, "output_tok_ids", output)
    whole = block_hashes([*read, *written]) if read else ()
    prefix = whole[: prompt // BLOCK_TOKENS]
    known = whole if written and len(whole) > len(prefix) else ()
    return TraceEntry(
        at_s,
        prompt,
        output,
        id=name,
        prefix=prefix,
        prefix_block_tokens=BLOCK_TOKENS if whole else 0,
        known_prefix=known,
    )


def _ids(record: Mapping[str, Any], key: str, tokens: int) -> list[int]:
    ids = items(record, key)
    if ids and len(ids) != tokens:
        raise ValueError(f"{key} has {len(ids)} ids for {tokens} tokens")
    if not all(isinstance(one, int) for one in ids):
        raise ValueError(f"{key} must be a list of whole numbers")
    return ids


def block_hashes(ids: Sequence[int]) -> tuple[int, ...]:
    """A hash for each whole block of token ids, which covers those before it too. Equal in every process."""
    hashes: list[int] = []
    for start in range(0, len(ids) - BLOCK_TOKENS + 1, BLOCK_TOKENS):
        hashes.append(hash((hashes[-1] if hashes else 0, *ids[start : start + BLOCK_TOKENS])))
    return tuple(hashes)


FORMAT: Final = TraceFormat(
    "LLMServingSim",
    line='{"input_toks": 1472, "output_toks": 133, "arrival_time_ns": 4059740}',
    arrival="nanoseconds, read as seconds",
    parser=lambda _first: _Parser(),
    keys=("input_toks", "sub_requests"),
    example='{"input_toks": 1472, "output_toks": 133, "arrival_time_ns": 4059740}\n'
    '{"session_id": "session_0", "arrival_time_ns": 4059740, "sub_requests": ['
    '{"input_toks": 1472, "output_toks": 133, "tool_duration_ns": 127348767}, '
    '{"input_toks": 1582, "output_toks": 125, "tool_duration_ns": 0}]}\n',
    shared_hashes=True,
)
