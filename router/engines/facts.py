"""What an engine says of itself: read from its own pages, and checked before anything believes it.

A value that is missing, of another type or implausible counts as not given (0 or empty). Must not depend on sockets:
``EnginePages`` is passed in.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import orjson

TOKENS_MOST: Final = 10**10  # in one engine's KV cache
CONTEXT_TOKENS_MOST: Final = 10**8
SEQUENCES_MOST: Final = 10**6
CARDS_MOST: Final = 1024
_MODELS_MOST: Final = 256  # of one engine
_CHARS_MOST: Final = 200  # of a name


class EnginePages(ABC):
    """An engine's pages by path. None: it answered with an error status. Raises Unanswered when it did not answer."""

    @abstractmethod
    async def get(self, path: str) -> bytes | None:
        """The body of GET *path*; ``/metrics`` is wherever the kind has its metrics."""

    @abstractmethod
    async def post(self, path: str) -> bytes | None:
        """The body of POST *path* with an empty body."""

    async def json(self, path: str) -> Any:
        """The document at GET *path*; None when there is none."""
        return document(await self.get(path))


@dataclass(frozen=True, slots=True)
class EngineFacts:
    """What one engine reported. ``loaded``: the path or name of the checkpoint; 0 and empty: not reported."""

    models: tuple[str, ...] = ()
    version: str = ""
    loaded: str = ""
    context_tokens_max: int = 0
    kv_tokens_max: int = 0
    seqs_max: int = 0
    chunk_tokens: int = 0
    tp: int = 0
    pp: int = 0


def document(body: bytes | None) -> Any:
    """A JSON body parsed; None for none or for what is not JSON."""
    try:
        return orjson.loads(body or b"")
    except orjson.JSONDecodeError:
        return None


def field(of: Any, name: str) -> Any:
    """A field of a JSON object; None when *of* is none or lacks it."""
    return of.get(name) if isinstance(of, Mapping) else None


def whole(of: Any, name: str, most: int) -> int:
    """A whole number of 1 to *most*, also where it is written ``4096.0``; else 0."""
    value = field(of, name)
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value // 1:
        return 0
    return int(value) if 1 <= value <= most else 0


def text(of: Any, name: str) -> str:
    """A printable text of bounded length; else empty."""
    value = field(of, name)
    return value if isinstance(value, str) and len(value) <= _CHARS_MOST and value.isprintable() else ""


def objects(of: Any, name: str) -> list[Mapping[str, Any]]:
    """The objects of a list, at most as many as an engine may serve models."""
    value = field(of, name)
    return [each for each in value[:_MODELS_MOST] if isinstance(each, Mapping)] if isinstance(value, list) else []


def listed(models: Any, owner: str = "") -> list[Mapping[str, Any]]:
    """The entries of ``/v1/models`` that have a name; only *owner*'s where one is given."""
    entries = [entry for entry in objects(models, "data") if text(entry, "id")]
    return [entry for entry in entries if not owner or field(entry, "owned_by") == owner]


@dataclass(frozen=True, slots=True)
class ListedModel:
    """An entry of an engine's list of models. ``parent``: the model that it adapts, empty: it is none's adapter."""

    name: str
    root: str = ""
    parent: str = ""
    context_tokens_max: int = 0


def model_list(page: bytes) -> tuple[ListedModel, ...]:
    """The entries of ``/v1/models``; empty for anything else."""
    return tuple(
        ListedModel(text(each, "id"), text(each, "root"), _parent(each), longest([each], "max_model_len"))
        for each in listed(document(page))
    )


def _parent(entry: Mapping[str, Any]) -> str:
    parent = text(entry, "parent")
    return parent if parent != text(entry, "id") else ""


def bases(entries: list[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The entries without the adapters, which come and go and state no limits; all, where there are only such."""
    return [entry for entry in entries if not _parent(entry)] or entries


def names(entries: Iterable[Mapping[str, Any]]) -> tuple[str, ...]:
    """Their names, each once."""
    return tuple(dict.fromkeys(text(entry, "id") for entry in entries))


def longest(entries: Iterable[Mapping[str, Any]], *keys: str) -> int:
    """The longest context that all of these models take; 0 when any does not say."""
    lengths = [next((n for key in keys if (n := whole(entry, key, CONTEXT_TOKENS_MOST))), 0) for entry in entries]
    return min(lengths, default=0)
