"""The gateway's access log in its JSON form (``log: {access: json}``): one line a request that has ended.

It has no hashes of prompts, which a record of the gateway has (``gateway_record.py``); it costs less to write and keep.
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final

from router.core.slo_metrics import SLO_METRICS
from simulator.traces.entry import LeftOut, Parsed, TraceEntry, TraceFormat
from simulator.traces.fields import (
    SEQUENCES_MAX,
    by_record,
    count,
    fallback_of,
    flag,
    many,
    scaled_seconds,
    slo_given,
    text_of,
)

_EPOCH: Final = datetime(2023, 1, 1, tzinfo=UTC)  # only differences count


def _read(record: Mapping[str, Any]) -> Parsed:
    if record.get("outcome") != "served":
        return LeftOut("were not served, so that the length of their reply is not known")
    bounds_s = [_bound_s(record, f"{metric.name}_slo_ms") for metric in SLO_METRICS]
    return TraceEntry(
        _arrived_s(text_of(record, "time")),
        count(record, "prompt_tokens"),
        max(1, count(record, "output_tokens", 0)),
        id=text_of(record, "id"),
        model=text_of(record, "model"),
        slo_class=text_of(record, "slo_class"),
        slo=slo_given(bounds_s, None),
        output_tokens_max=count(record, "output_tokens_max", 0),
        priority=int(record.get("priority", 0)),
        tenant=text_of(record, "tenant"),
        session=text_of(record, "session"),
        streamed=flag(record, "stream"),
        fallback=fallback_of(record),
        sequences=min(many(record, "sequences"), SEQUENCES_MAX),
    )


def _bound_s(record: Mapping[str, Any], key: str) -> float | None:
    value = record.get(key)
    return None if value is None else scaled_seconds(value, key, "milliseconds", 1e3)


def _arrived_s(text: str) -> float:
    try:
        return (datetime.fromisoformat(text) - _EPOCH).total_seconds()
    except (ValueError, TypeError):
        raise ValueError(f"time must be a date and time with a zone, got {text[:40]!r}") from None


_LINE: Final = (
    '{"access_log": 1, "time": "2026-11-28T09:30:00.125Z", "outcome": "served", "prompt_tokens": 374, '
    '"output_tokens": 44, "output_tokens_max": 0}'
)

FORMAT: Final = TraceFormat(
    "access log",
    line=_LINE,
    arrival="date and time",
    parser=by_record(_read),
    keys=("access_log",),
    note="prompts share no prefix, as the log has no hashes of them",
)
