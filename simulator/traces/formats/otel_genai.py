"""OpenTelemetry's spans of calls to models: OTLP as JSON, a document or one a line (as the Collector's file exporter).

The attributes are those of the GenAI semantic conventions; ``gen_ai.usage.prompt_tokens`` and ``completion_tokens``
are their older names, which vLLM still writes. Without a usage, tokens are estimated from the messages, where those are
recorded. Of spans within each other, such as a client's and the engine's, the inner one counts. Documents with a list
``spans`` whose attributes are plain objects, as inference-perf replays them, are read too.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Any, Final

from simulator.traces.entry import LeftOut, Parsed, TraceEntry, TraceFormat
from simulator.traces.fields import SEQUENCES_MAX, estimated_tokens, items, member, scaled_seconds, text_of, whole

_CALLS: Final = ("chat", "text_completion", "generate_content")
_PROMPT: Final = ("gen_ai.usage.input_tokens", "gen_ai.usage.prompt_tokens")
_OUTPUT: Final = ("gen_ai.usage.output_tokens", "gen_ai.usage.completion_tokens")
_CHOICES: Final = ("gen_ai.request.choice.count", "gen_ai.request.n")
_ERROR: Final = (2, "2", "STATUS_CODE_ERROR")
_NS: Final = 1e9

Span = Mapping[str, Any]


def _document(document: Mapping[str, Any]) -> Iterator[tuple[str, Callable[[], Parsed]]]:
    spans = list(_spans(document))
    parents = {_text(span, "spanId", "span_id"): _text(span, "parentSpanId", "parent_span_id") for _, span in spans}
    calls = [(place, span) for place, span in spans if _is_call(_attributes(span))]
    outer = set()
    for _, span in calls:
        above = _text(span, "parentSpanId", "parent_span_id")
        while above and above not in outer:
            outer.add(above)
            above = parents.get(above, "")
    for place, span in calls:
        yield place, partial(_read, span, outer)


def _spans(document: Mapping[str, Any]) -> Iterator[tuple[str, Span]]:
    for number, span in enumerate(_objects(items(document, "spans"), "spans")):
        yield f"spans[{number}]", span
    for r, resource in enumerate(_objects(items(document, "resourceSpans"), "resourceSpans")):
        for s, scope in enumerate(_objects(items(resource, "scopeSpans"), "scopeSpans")):
            for number, span in enumerate(_objects(items(scope, "spans"), "spans")):
                yield f"resourceSpans[{r}].scopeSpans[{s}].spans[{number}]", span


def _objects(values: Sequence[object], key: str) -> list[Span]:
    found: list[Span] = [value for value in values if isinstance(value, dict)]
    if len(found) < len(values):
        raise ValueError(f"{key} must be a list of objects")
    return found


def _text(span: Span, *keys: str) -> str:
    return next((text_of(span, key) for key in keys if key in span), "")


def _attributes(span: Span) -> dict[str, Any]:
    """By name: OTLP has a list of pairs with typed values, others a plain object."""
    given = span.get("attributes")
    if isinstance(given, dict):
        return given
    pairs = [pair for pair in given or () if isinstance(pair, dict)]
    return {str(pair.get("key")): _value(pair.get("value")) for pair in pairs}


def _value(typed: object) -> object:
    return next(iter(typed.values()), None) if isinstance(typed, dict) else typed


def _is_call(attributes: Mapping[str, Any]) -> bool:
    operation = attributes.get("gen_ai.operation.name")
    return operation in _CALLS if operation is not None else any(key in attributes for key in (*_PROMPT, *_OUTPUT))


def _read(span: Span, outer: set[str]) -> Parsed:
    attributes = _attributes(span)
    if _text(span, "spanId", "span_id") in outer:
        return LeftOut("hold a span of the same call inside")
    if member(span, "status").get("code") in _ERROR:
        return LeftOut("failed there (status)")
    prompt = _count(attributes, _PROMPT) or _estimated(attributes, ("gen_ai.input.messages",))
    output = _count(attributes, _OUTPUT) or _estimated(attributes, ("gen_ai.output.messages", "gen_ai.output.text"))
    if not prompt or not output:
        return LeftOut("have neither gen_ai.usage nor messages")
    return TraceEntry(
        _start(span),
        prompt,
        output,
        output_tokens_max=_count(attributes, ("gen_ai.request.max_tokens",)),
        tenant=text_of(attributes, "gen_ai.request.model"),
        session=text_of(attributes, "gen_ai.conversation.id"),
        sequences=min(max(1, _count(attributes, _CHOICES)), SEQUENCES_MAX),
    )


def _count(attributes: Mapping[str, Any], keys: Sequence[str]) -> int:
    key = next((key for key in keys if key in attributes), "")
    return whole(attributes[key], key, 0) if key else 0


def _estimated(attributes: Mapping[str, Any], keys: Sequence[str]) -> int:
    """Tokens of messages, which an attribute holds as JSON; 0 where there are none."""
    value = next((attributes[key] for key in keys if attributes.get(key)), None)
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        try:
            value = json.loads(value)
        except json.JSONDecodeError:
            return 0  # cut by the exporter
    return estimated_tokens(value) if value else 0


def _start(span: Span) -> float:
    if "startTimeUnixNano" in span:
        return scaled_seconds(span["startTimeUnixNano"], "startTimeUnixNano", "nanoseconds", _NS)
    text = _text(span, "start_time")
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(f"startTimeUnixNano must be nanoseconds, or start_time a date, got {text[:40]!r}") from None
    return (at if at.tzinfo is not None else at.replace(tzinfo=UTC)).timestamp()


FORMAT: Final = TraceFormat(
    "OpenTelemetry GenAI",
    line='{"resourceSpans": [{"scopeSpans": [{"spans": [{"spanId": "a1", "startTimeUnixNano": "1764288000500000000", '
    '"attributes": [{"key": "gen_ai.operation.name", "value": {"stringValue": "chat"}}, {"key": '
    '"gen_ai.usage.input_tokens", "value": {"intValue": "512"}}, {"key": "gen_ai.usage.output_tokens", "value": '
    '{"intValue": "128"}}]}]}]}]}',
    arrival="nanoseconds, read as seconds",
    document=_document,
    caution="calls without gen_ai.usage get tokens estimated from their messages",
    keys=("resourceSpans", "spans"),
)
