"""Token counts that engines state, wherever in a reply they stand, and what is estimated where they state none.

Must not depend on sockets or on how events are framed; keeps a few KB of a reply at most.
"""

import re
from typing import Any, Final

import orjson

from router.gateway.protocols.json_members import value_end
from router.gateway.traffic.chunk_view import CHUNK_SEAM

_MOST: Final = 10**12  # more tokens than this are none: the border judges what is below
_USAGE: Final = re.compile(rb'"usage"\s*:\s*(?=\{)')
_USAGE_BYTES: Final = 2048  # of one usage object
_EDGE_BYTES: Final = 24  # of the read before, in which the object may begin
_DETAILS: Final = ("prompt_tokens_details", "input_tokens_details")
_NONE: Final = -1
_TOKENS_TO_LEARN: Final = 8
_FIRST: Final = 32
_EVERY: Final = 16
_MODELS_MAX: Final = 64
_LEAST: Final = 0.5  # bytes a token: of replies whose reasoning is not shown
_MOST_BYTES: Final = 32.0
_STEP: Final = 0.1


def _count(usage: dict[str, Any], name: str, other: str) -> int:
    count = _valid(usage.get(name))
    return count if count >= 0 else _valid(usage.get(other))


def _valid(value: Any) -> int:
    if isinstance(value, float) and value.is_integer():
        return int(value) if 0.0 <= value < _MOST else _NONE
    whole = isinstance(value, int) and not isinstance(value, bool)
    return value if whole and 0 <= value < _MOST else _NONE


def _later(stated: int, before: int) -> int:
    return stated if stated > 0 or before < 0 else before


class StatedUsage:
    """Counts as one reply states them, the last ones where it states several. -1: not stated."""

    __slots__ = ("_cache_read", "_cache_written", "_details", "_input", "output")

    def __init__(self) -> None:
        self.output = self._input = self._details = self._cache_read = self._cache_written = _NONE

    def take(self, usage: dict[str, Any]) -> None:
        """A usage object: OpenAI's, that of /v1/responses or Anthropic's, of which each event may have a part."""
        output = _count(usage, "completion_tokens", "output_tokens")
        if output >= 0:
            self.output = output
        self._input = _later(_count(usage, "prompt_tokens", "input_tokens"), self._input)
        self._cache_read = _later(_valid(usage.get("cache_read_input_tokens")), self._cache_read)
        self._cache_written = _later(_valid(usage.get("cache_creation_input_tokens")), self._cache_written)
        self._details = _later(_count(usage, "cached_tokens", "prompt_cache_hit_tokens"), self._details)
        for name in _DETAILS:
            details = usage.get(name)
            if isinstance(details, dict):
                self._details = _later(_valid(details.get("cached_tokens")), self._details)

    @property
    def prompt(self) -> int:
        """All of the prompt; Anthropic's ``input_tokens`` leave out what was read from the cache or written to it."""
        return max(self._input, 0) + max(self._cache_read, 0) + max(self._cache_written, 0)

    @property
    def cached(self) -> int:
        """Of the prompt, what the engine had; -1: not stated."""
        return max(self._details, self._cache_read)


class UsageSearch:
    """Finds usage in a body that is not parsed: its reads in turn, then ``finish``."""

    __slots__ = ("_edge", "_framed", "_open", "_stated")

    def __init__(self, stated: StatedUsage) -> None:
        self._stated = stated
        self._edge = b""
        self._open = b""  # an object whose end has not come

    def feed(self, data: bytes) -> None:
        """More of the body, with or without its chunk framing."""
        if self._open:
            self._complete(self._open + data[:_USAGE_BYTES])
        joined = self._edge + data
        for found in _USAGE.finditer(joined):
            self._complete(joined[found.end() : found.end() + _USAGE_BYTES])
        self._edge = joined[-_EDGE_BYTES:]

    def _complete(self, text: bytes) -> None:
        """What follows ``"usage":``, as far as it is there."""
        plain = CHUNK_SEAM.sub(b"", text)
        end = value_end(plain, 0)
        self._open = text if end < 0 and len(text) < _USAGE_BYTES else b""
        if end > 0:
            self._stated.take(_object(plain[:end]))


def _object(text: bytes) -> dict[str, Any]:
    try:
        found = orjson.loads(text)
    except orjson.JSONDecodeError:
        return {}
    return found if isinstance(found, dict) else {}


class TextDensity:
    """Bytes of generated text a token, by model, learnt from the replies that state their tokens."""

    __slots__ = ("_by_model", "_replies")

    def __init__(self) -> None:
        self._by_model: dict[str, float] = {}
        self._replies = 0

    def due(self) -> bool:
        """Whether to learn from this reply: each of the first, later a sample, since the text has to be measured."""
        self._replies += 1
        return self._replies <= _FIRST or self._replies % _EVERY == 0

    def bytes_per_token(self, model: str) -> float:
        """As learnt so far; 0: not at all."""
        return self._by_model.get(model, 0.0)

    def learn(self, model: str, text_bytes: int, tokens: int) -> None:
        """A reply of that many bytes of text had that many tokens."""
        if tokens < _TOKENS_TO_LEARN or text_bytes <= 0:
            return
        if model not in self._by_model and len(self._by_model) >= _MODELS_MAX:
            return
        ratio = min(max(text_bytes / tokens, _LEAST), _MOST_BYTES)
        before = self._by_model.get(model)
        self._by_model[model] = ratio if before is None else before + _STEP * (ratio - before)
