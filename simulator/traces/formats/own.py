"""Headroom's own trace format: JSONL, ``{"arrived_s": 1.5, "prompt_tokens": 800, "output_tokens": 120, ...}``.

Optional keys: id, model, slo_class, ttft_slo_s, tpot_slo_s, e2e_slo_s and so on (one a metric of ``SLO_METRICS``),
slo_quantile, slo_infeasible (refuse or best_effort: how a request is treated whose SLO no backend could meet even when
idle), output_tokens_max, priority, tenant, session, prefix (hashes, each covering all text before it too),
prefix_block_tokens (tokens a hash), streamed (true or false: whether the client receives tokens as they are generated),
n (choices for each prompt), prompts (so many in one request); tokens are of all choices and of all prompts together;
fallback (allow or deny: whether another model may serve it, where the pool has ``models``).
Any other key is an error, so that a misspelt SLO is not taken for no SLO.
"""

from collections.abc import Mapping
from typing import Any, Final

from router.core.slo_metrics import SLO_METRICS
from router.core.types import Slo
from router.spelling import suggestion
from simulator.traces.entry import INFEASIBLE, TraceEntry, TraceFormat
from simulator.traces.fields import (
    SEQUENCES_MAX,
    by_record,
    count,
    fallback_of,
    flag,
    hashes,
    many,
    seconds,
    slo_given,
    text_of,
    whole,
)

_BOUNDS: Final = tuple(metric.trace_key for metric in SLO_METRICS)
_KEYS: Final = (
    "arrived_s",
    "prompt_tokens",
    "output_tokens",
    "id",
    "model",
    "slo_class",
    *_BOUNDS,
    "slo_quantile",
    "slo_infeasible",
    "output_tokens_max",
    "priority",
    "tenant",
    "session",
    "prefix",
    "prefix_block_tokens",
    "streamed",
    "n",
    "prompts",
    "fallback",
)


def _read(record: Mapping[str, Any]) -> TraceEntry:
    for key in record:
        if key not in _KEYS:
            raise ValueError(f"unknown key {key!r}; {suggestion(key, _KEYS)}")
    prefix, prompts, choices = hashes(record, "prefix"), many(record, "prompts"), many(record, "n")
    if prompts * choices > SEQUENCES_MAX:
        raise ValueError(f"n x prompts must be at most {SEQUENCES_MAX}, got {choices} x {prompts}")
    size = count(record, "prefix_block_tokens") if prefix else 0
    prompt = count(record, "prompt_tokens")
    if (len(prefix) - 1) * size >= prompt:
        raise ValueError(f"prefix has {len(prefix)} hashes of {size} tokens, more than prompt_tokens {prompt} have")
    return TraceEntry(
        seconds(record.get("arrived_s"), "arrived_s"),
        prompt,
        count(record, "output_tokens"),
        id=text_of(record, "id"),
        model=text_of(record, "model"),
        slo_class=text_of(record, "slo_class"),
        slo=_slo(record),
        output_tokens_max=count(record, "output_tokens_max", 0) if "output_tokens_max" in record else 0,
        priority=whole(record.get("priority", 0), "priority", -(1 << 31)),
        tenant=text_of(record, "tenant"),
        session=text_of(record, "session"),
        prefix=prefix,
        prefix_block_tokens=size,
        streamed=flag(record, "streamed"),
        sequences=prompts * choices,
        prompts=prompts,
        fallback=fallback_of(record),
    )


def _slo(record: Mapping[str, Any]) -> Slo | None:
    bounds_s = [_bound(record, key) for key in _BOUNDS]
    infeasible = record.get("slo_infeasible", INFEASIBLE[0])
    if infeasible not in INFEASIBLE:
        raise ValueError(f"slo_infeasible must be {' or '.join(INFEASIBLE)}, got {infeasible!r}")
    if "slo_infeasible" in record and not any(bounds_s):  # a bound is above 0
        raise ValueError(f"slo_infeasible needs a bound: {', '.join(_BOUNDS[:-1])} or {_BOUNDS[-1]}")
    return slo_given(bounds_s, _bound(record, "slo_quantile"), infeasible == INFEASIBLE[1])


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


FORMAT: Final = TraceFormat(
    "own JSONL",
    line='{"arrived_s": 1.5, "prompt_tokens": 800, "output_tokens": 120, ...}',
    arrival="seconds",
    parser=by_record(_read),
    keys=("arrived_s",),
    example='{"arrived_s": 1.5, "prompt_tokens": 800, "output_tokens": 120}',
)
