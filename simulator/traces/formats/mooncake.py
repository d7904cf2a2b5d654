"""Mooncake's form: JSONL with milliseconds, and hashes of blocks that each cover all text before them too.

Mooncake's own traces (github.com/kvcache-ai/Mooncake) have blocks of 512 tokens; others of the same form do not state
theirs, so it is inferred from all rows: so many hashes for so many tokens. A row that contradicts the others is bad.

NVIDIA Dynamo (lib/data-gen) and AIPerf add closed loops. Rows of one ``session_id`` are turns: a later one arrives
``delay`` (or ``delay_ms``, or the difference of the timestamps) after the end of the one before it. A row with
``wait_for`` arrives ``delay`` plus ``tool_wait_ms`` after the last of these requests has ended; in a file with such
rows a session is a name alone. Dynamo's rows state whole prompts, AIPerf's only what a turn adds: if turns of a session
cannot hold those before them, each prompt of that session is put together from all of its turns.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from math import inf
from typing import Any, Final

from simulator.traces.entry import TraceEntry, TraceFormat
from simulator.traces.fields import count, hashes, items, json_object, scaled_seconds, text_of

BLOCK_TOKENS: Final = 512
_COMMON: Final = (BLOCK_TOKENS, 16, 32, 64, 128, 256, 1_024, 2_048, 4_096)
_OWN_HASHES: Final = 1 << 62  # of blocks that a trace does not name; its own ones are numbered from 0
_SESSION_BLOCKS: Final = 1 << 24


class BlockSize:
    """Which sizes of a block fit the rows so far; the last block of a prompt may be left out or not be full."""

    def __init__(self) -> None:
        """Any."""
        self.low, self.high = 1.0, inf
        self._full_low, self._full_high = 1.0, inf  # if the last block is always there

    def narrow(self, tokens: int, blocks: int) -> None:
        """A row has so many hashes for so many tokens. Raises ValueError if no size fits all rows."""
        if not blocks:
            return
        most = -(-tokens // (blocks - 1)) - 1 if blocks > 1 else inf
        low, high = max(self.low, tokens // (blocks + 1) + 1), min(self.high, most)
        if low > high:
            raise ValueError(f"hash_ids has {blocks} hashes for {tokens} tokens; {self._expected(tokens)}")
        self.low, self.high = low, high
        self._full_low = max(self._full_low, -(-tokens // blocks))
        self._full_high = min(self._full_high, most)

    def _expected(self, tokens: int) -> str:
        if self.high == inf and self.low == 1.0:
            return "expected no more than tokens"
        size = self.tokens()
        return f"the rows before have blocks of {size} tokens, expected {-(-tokens // size)}"

    def tokens(self) -> int:
        """Mooncake's own size if that fits, else a common one, else the smallest; with a last block if possible."""
        full = (self._full_low, self._full_high)
        for low, high in (full, (self.low, self.high)):
            for size in _COMMON:
                if low <= size <= high:
                    return size
        return int(self._full_low if self._full_low <= self._full_high else self.low)


class _Parser:
    """Rows of one file, and the sessions in it."""

    def __init__(self) -> None:
        self._blocks = BlockSize()
        self._turns: dict[str, list[TraceEntry]] = {}
        self._delays: dict[str, list[float | None]] = {}
        self._ids: set[str] = set()
        self._waits = False

    def read(self, line: str) -> TraceEntry:
        record = json_object(line)
        prompt = count(record, _named(record, "input_length", "input_tokens"))
        output = count(record, _named(record, "output_length", "output_tokens"))
        prefix, session, after = hashes(record, "hash_ids"), text_of(record, "session_id"), _waits(record)
        delay_s = _seconds(record, "delay", "delay_ms")
        tool_s = _seconds(record, "tool_wait_ms") or 0.0
        at_s = _seconds(record, "timestamp", "created_time")
        turns = self._turns.get(session, []) if session else []
        if at_s is None and not session and not after:
            raise ValueError("timestamp must be a number of milliseconds, or the row needs a session_id or wait_for")
        if at_s is not None and turns and at_s < turns[-1].arrived_s:
            raise ValueError("timestamp must not be before that of the turn before it")
        name = text_of(record, "request_id") or (f"{session}#{len(turns)}" if session else "")
        if name and name in self._ids:
            raise ValueError(f"request_id {name!r} is in the file twice")
        self._blocks.narrow(prompt, len(prefix))
        entry = TraceEntry(
            at_s if at_s is not None else turns[-1].arrived_s if turns else 0.0,
            prompt,
            output,
            id=name,
            session=session,
            prefix=prefix,
            after=after,
            delay_s=(delay_s or 0.0) + tool_s if after else 0.0,
        )
        self._ids.add(name)
        self._waits = self._waits or bool(after)
        if session:
            since_s = at_s - turns[-1].arrived_s if at_s is not None and turns else None
            self._turns.setdefault(session, []).append(entry)
            self._delays.setdefault(session, []).append(delay_s if delay_s is not None else since_s)
        return entry

    def finish(self, entries: list[TraceEntry]) -> dict[str, int]:
        size = self._blocks.tokens()
        for entry in entries:
            if entry.prefix:
                entry.prefix_block_tokens = size
            for name in entry.after:
                if name not in self._ids:
                    raise ValueError(f"request {entry.id!r} waits for {name!r}, which is not in the file")
        if not self._waits:
            for number, (session, turns) in enumerate(self._turns.items()):
                _chain(turns, self._delays[session])
                if not _whole(turns):
                    _put_together(turns, size, _OWN_HASHES + number * _SESSION_BLOCKS)
                _know_replies(turns, size)
        return {}


def _named(record: Mapping[str, Any], *keys: str) -> str:
    return next((key for key in keys if key in record), keys[0])


def _seconds(record: Mapping[str, Any], *keys: str) -> float | None:
    key = _named(record, *keys)
    value = record.get(key)
    return None if value is None else scaled_seconds(value, key, "milliseconds", 1e3)


def _waits(record: Mapping[str, Any]) -> tuple[str, ...]:
    names = items(record, "wait_for")
    if not all(isinstance(name, str) for name in names):
        raise ValueError("wait_for must be a list of request ids")
    return tuple(names)


# ---- sessions -------------------------------------------------------------------


def _chain(turns: Sequence[TraceEntry], delays_s: Sequence[float | None]) -> None:
    """Each turn arrives after the end of the one before it."""
    for before, turn, delay_s in zip(turns, turns[1:], delays_s[1:], strict=False):
        turn.after, turn.delay_s = (before.id,), delay_s or 0.0


def _whole(turns: Sequence[TraceEntry]) -> bool:
    """Whether prompts hold those before them: by their hashes if they have some, else by their lengths."""
    pairs = list(pairwise(turns))
    hashed = [before.prefix[0] == turn.prefix[0] for before, turn in pairs if before.prefix and turn.prefix]
    if hashed:
        return any(hashed)  # an agent may begin anew at times
    return all(turn.prompt_tokens >= before.prompt_tokens + before.output_tokens for before, turn in pairs)


def _put_together(turns: Sequence[TraceEntry], size: int, own: int) -> None:
    """Of turns that state what they add: whole prompts, with the hashes of the first turn and further ones of *own*."""
    tokens = 0
    first = turns[0].prefix[: turns[0].prompt_tokens // size]
    for turn in turns:
        turn.prompt_tokens += tokens
        tokens = turn.prompt_tokens + turn.output_tokens
        blocks = turn.prompt_tokens // size
        turn.prefix = (*first, *(own + n for n in range(len(first), blocks)))
        turn.prefix_block_tokens = size if turn.prefix else 0


def _know_replies(turns: Sequence[TraceEntry], size: int) -> None:
    """What a later prompt repeats of a reply is in the cache by then: those hashes are of the reply's blocks too."""
    for turn, later in pairwise(turns):
        blocks = (turn.prompt_tokens + turn.output_tokens) // size
        full = turn.prompt_tokens // size
        if full and len(later.prefix) >= blocks and later.prefix[:full] == turn.prefix[:full]:
            turn.known_prefix = later.prefix[:blocks]


FORMAT: Final = TraceFormat(
    "Mooncake",
    line='{"timestamp": 3052, "input_length": 1300, "output_length": 6, "hash_ids": [46, 47, 48]}',
    arrival="milliseconds",
    parser=lambda _first: _Parser(),
    keys=("input_length", "input_tokens"),
    not_keys=("chat_id", "duration", "img_ids"),  # a Bailian trace, an offline trace of ServeGen
    example='{"timestamp": 3052, "input_length": 1300, "output_length": 6, "hash_ids": [46, 47, 48]}\n'
    '{"session_id": "s", "timestamp": 4000, "input_length": 600, "output_length": 40, "hash_ids": [46, 49]}\n'
    '{"session_id": "s", "delay": 250, "input_length": 900, "output_length": 6, "hash_ids": [46, 50]}\n',
)
