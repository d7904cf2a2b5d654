"""The forms of trace that are known, and how each says what came when.

| form | line | arrival |
| --- | --- | --- |
| own JSONL | ``{"arrived_s": 1.5, "prompt_tokens": 800, "output_tokens": 120, ...}`` | seconds |
| Azure LLM inference 2023, 2024 | ``TIMESTAMP,ContextTokens,GeneratedTokens`` | date and time |
| Mooncake | ``{"timestamp": ms, "input_length": n, "output_length": n, "hash_ids": [...]}``, 512 tokens a hash | ms |
| Bailian (qwen usage traces) | the same with ``chat_id``, ``turn``, 16 tokens a hash | seconds |
| BurstGPT | ``Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type`` | seconds |
| the gateway's own record | core events, one a line (``router.core.record``) | seconds |

The optional keys of our own JSONL: id, model, slo_class, ttft_slo_s, tpot_slo_s, e2e_slo_s, slo_quantile,
slo_infeasible (refuse or best_effort: what becomes of bounds that no backend could keep even when idle),
output_tokens_max, priority, tenant, session, prefix (hashes, each covering all before it), prefix_block_tokens,
streamed (true or false: whether the client sees tokens as they come).
Any other key is refused, so that a misspelt SLO is not silently no SLO.
"""

import csv
import json
from collections.abc import Callable, Mapping
from datetime import datetime
from difflib import get_close_matches
from typing import Any, Final

from router.core.types import Slo
from simulator.traces.reading import INFEASIBLE, Form, Parse, TraceEntry, count, seconds, slo_of, whole

MOONCAKE_BLOCK_TOKENS: Final = 512
BAILIAN_BLOCK_TOKENS: Final = 16


def form_of(first: str) -> Form:
    """The form whose first line this is; ValueError lists the forms there are."""
    text = first.strip()
    if text.startswith("{"):
        record = _json(text)
        for wanted, form in _JSONL.items():
            if wanted in record:
                return form
        raise ValueError(f"expected a key among {', '.join(_JSONL)}; found {', '.join(list(record)[:6]) or 'none'}")
    columns = {_plain(name) for name in next(csv.reader([text]))}
    for needed, form in _CSV.items():
        if columns >= needed:
            return form
    raise ValueError(
        "expected a JSON object or a header of Azure's (TIMESTAMP,ContextTokens,GeneratedTokens) "
        f"or BurstGPT's (Timestamp,Model,Request tokens,Response tokens,...) form, found {text[:60]!r}"
    )


def _plain(column: str) -> str:
    return column.strip().lstrip("\ufeff").lower()


def _json(line: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as problem:
        raise ValueError(f"expected a JSON object, {problem.msg} at column {problem.colno}") from None
    if not isinstance(record, dict):
        raise ValueError(f"expected a JSON object, got {type(record).__name__}")  # noqa: TRY004 - a bad line
    return record


def _by_record(read: Callable[[Mapping[str, Any]], TraceEntry | None]) -> Callable[[str], Parse]:
    return lambda _first: lambda line: read(_json(line))


def _by_columns(read: Callable[[Mapping[str, str]], TraceEntry | None]) -> Callable[[str], Parse]:
    def parser(header: str) -> Parse:
        columns = [_plain(name) for name in next(csv.reader([header]))]

        def parse(line: str) -> TraceEntry | None:
            cells = next(csv.reader([line])) if '"' in line else line.rstrip("\r\n").split(",")
            if len(cells) != len(columns):
                raise ValueError(f"expected {len(columns)} columns ({', '.join(columns)}), got {len(cells)}")
            return read(dict(zip(columns, cells, strict=True)))

        return parse

    return parser


# ---- our own ------------------------------------------------------------------

_OWN: Final = (
    "arrived_s",
    "prompt_tokens",
    "output_tokens",
    "id",
    "model",
    "slo_class",
    "ttft_slo_s",
    "tpot_slo_s",
    "e2e_slo_s",
    "slo_quantile",
    "slo_infeasible",
    "output_tokens_max",
    "priority",
    "tenant",
    "session",
    "prefix",
    "prefix_block_tokens",
    "streamed",
)


def _own(record: Mapping[str, Any]) -> TraceEntry:
    for key in record:
        if key not in _OWN:
            near = get_close_matches(key, _OWN, n=1)
            raise ValueError(f"unknown key {key!r}" + (f", did you mean {near[0]!r}?" if near else ""))
    prefix = _hashes(record, "prefix")
    return TraceEntry(
        seconds(record.get("arrived_s"), "arrived_s"),
        count(record, "prompt_tokens"),
        count(record, "output_tokens"),
        id=_text(record, "id"),
        model=_text(record, "model"),
        slo_class=_text(record, "slo_class"),
        slo=_own_slo(record),
        output_tokens_max=count(record, "output_tokens_max", 0) if "output_tokens_max" in record else 0,
        priority=whole(record.get("priority", 0), "priority", -(1 << 31)),
        tenant=_text(record, "tenant"),
        session=_text(record, "session"),
        prefix=prefix,
        prefix_block_tokens=count(record, "prefix_block_tokens") if prefix else 0,
        streamed=_whether(record, "streamed"),
    )


def _own_slo(record: Mapping[str, Any]) -> Slo | None:
    ttft_s, tpot_s, e2e_s = (_bound(record, key) for key in ("ttft_slo_s", "tpot_slo_s", "e2e_slo_s"))
    infeasible = record.get("slo_infeasible", INFEASIBLE[0])
    if infeasible not in INFEASIBLE:
        raise ValueError(f"slo_infeasible must be {' or '.join(INFEASIBLE)}, got {infeasible!r}")
    if "slo_infeasible" in record and ttft_s is tpot_s is e2e_s is None:
        raise ValueError("slo_infeasible needs a bound: ttft_slo_s, tpot_slo_s or e2e_slo_s")
    return slo_of(ttft_s, tpot_s, e2e_s, _bound(record, "slo_quantile"), infeasible == INFEASIBLE[1])


def _text(record: Mapping[str, Any], key: str) -> str:
    value = record.get(key, "")
    if not isinstance(value, str | int):
        raise ValueError(f"{key} must be text, got {type(value).__name__}")  # noqa: TRY004 - a bad line
    return str(value)


def _whether(record: Mapping[str, Any], key: str) -> bool:
    value = record.get(key, True)
    if not isinstance(value, bool):
        raise ValueError(f"{key} must be true or false, got {value!r}")  # noqa: TRY004 - a bad line
    return value


def _bound(record: Mapping[str, Any], key: str) -> float | None:
    value = record.get(key)
    if value is None:
        return None
    bound = seconds(value, key)
    if bound <= 0 or (key == "slo_quantile" and bound >= 1):
        raise ValueError(
            f"{key} must be above 0" + (" and below 1" if key == "slo_quantile" else "") + f", got {value}"
        )
    return bound


def _hashes(record: Mapping[str, Any], key: str) -> tuple[int, ...]:
    value = record.get(key) or []
    if not isinstance(value, list) or not all(isinstance(item, int) for item in value):
        raise ValueError(f"{key} must be a list of whole numbers")
    return tuple(value)


# ---- others' ---------------------------------------------------------------------


def _azure(row: Mapping[str, str]) -> TraceEntry:
    text = row["timestamp"].strip()
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(f"TIMESTAMP must be a date and time, got {text[:40]!r}") from None
    since_s = (at.replace(tzinfo=None) - _EPOCH).total_seconds()
    return TraceEntry(since_s, count(row, "contexttokens"), count(row, "generatedtokens"))


_EPOCH: Final = datetime(2023, 1, 1)  # noqa: DTZ001 - only differences count


def _mooncake(record: Mapping[str, Any]) -> TraceEntry:
    prefix = _hashes(record, "hash_ids")
    return TraceEntry(
        seconds(record.get("timestamp"), "timestamp") / 1e3,
        count(record, "input_length"),
        count(record, "output_length"),
        prefix=prefix,
        prefix_block_tokens=MOONCAKE_BLOCK_TOKENS if prefix else 0,
    )


class _Bailian:
    """Turns name their parent; the first of a chat names the session."""

    def __init__(self) -> None:
        self.roots: dict[Any, str] = {}

    def read(self, record: Mapping[str, Any]) -> TraceEntry:
        chat, parent = record.get("chat_id"), record.get("parent_chat_id")
        root = self.roots.get(parent) or str(chat)
        self.roots[chat] = root
        prefix = _hashes(record, "hash_ids")
        return TraceEntry(
            seconds(record.get("timestamp"), "timestamp"),
            count(record, "input_length"),
            count(record, "output_length"),
            session=root,
            slo_class=_text(record, "type"),
            prefix=prefix,
            prefix_block_tokens=BAILIAN_BLOCK_TOKENS if prefix else 0,
        )


def _bailian_parser(_first: str) -> Parse:
    read = _Bailian().read
    return lambda line: read(_json(line))


def _burstgpt(row: Mapping[str, str]) -> TraceEntry | None:
    at_s = seconds(row["timestamp"], "Timestamp")
    prompt = count(row, "request tokens", 0)
    output = count(row, "response tokens", 0)
    if not output or not prompt:
        return None
    return TraceEntry(at_s, prompt, output, tenant=row.get("model", ""), session=row.get("session id", ""))


class RecordParser:
    """Arrivals wait for their end, which says how long the reply was; what never ended has no length to replay."""

    def __init__(self) -> None:
        """Nothing read yet; ``open`` are the requests whose end has not come."""
        self.open: dict[str, TraceEntry] = {}

    def read_line(self, line: str) -> TraceEntry | None:
        """One event; the request that it ends, if it ends one. ValueError says what was expected."""
        event = _json(line)
        kind = event.get("event")
        if kind == "arrived":
            request = event.get("request")
            if not isinstance(request, dict):
                raise ValueError("an event 'arrived' needs its request")
            entry = self.open[str(request.get("id"))] = _recorded(request)
            entry.arrived_s = seconds(event.get("at_s"), "at_s")
        elif kind == "ended":
            ended = self.open.pop(str(event.get("id")), None)
            if ended is not None:
                ended.output_tokens = max(1, int((event.get("usage") or {}).get("output_tokens", 0)))
            return ended
        return None


def _recorded(request: Mapping[str, Any]) -> TraceEntry:
    slo = request.get("slo") or {}
    return TraceEntry(
        0.0,
        count(request, "prompt_tokens"),
        1,
        id=_text(request, "id"),
        model=_text(request, "model"),
        slo_class=_text(request, "slo_class"),
        slo=slo_of(
            slo.get("ttft_s"),
            slo.get("tpot_s"),
            slo.get("e2e_s"),
            slo.get("quantile"),
            slo.get("refuse_infeasible") is True,
        ),
        output_tokens_max=int(request.get("output_tokens_max", 0)),
        priority=int(request.get("priority", 0)),
        tenant=_text(request, "tenant"),
        session=_text(request, "session"),
        prefix=_hashes(request, "prefix"),
        prefix_block_tokens=int(request.get("prefix_block_tokens", 0)),
        streamed=_whether(request, "streamed"),
    )


def _record_parser(_first: str) -> Parse:
    return RecordParser().read_line


_RECORD: Final = Form("gateway record", False, _record_parser, "requests that never ended in the record are left out")
_JSONL: Final[Mapping[str, Form]] = {
    "arrived_s": Form("own JSONL", False, _by_record(_own)),
    "chat_id": Form("Bailian", False, _bailian_parser),
    "input_length": Form("Mooncake", False, _by_record(_mooncake)),
    "record": _RECORD,  # the header that a record begins with
    "event": _RECORD,
}
_CSV: Final[Mapping[frozenset[str], Form]] = {
    frozenset({"timestamp", "contexttokens", "generatedtokens"}): Form("Azure", True, _by_columns(_azure)),
    frozenset({"timestamp", "request tokens", "response tokens"}): Form(
        "BurstGPT", True, _by_columns(_burstgpt), "failed requests (no response tokens) are left out"
    ),
}
