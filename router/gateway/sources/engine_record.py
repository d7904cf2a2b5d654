"""What an engine announces of itself, as the shared state holds it: one field of the pool's hash ``engines``.

A record is alive while its ``beat`` changes, so that no clocks of two machines are compared. Must not depend on how it
is written or read.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from router.gateway.sources.endpoint import Endpoint

VERSION: Final = 1
RECORD_BYTES_MAX: Final = 1 << 14
TTL_S_MIN, TTL_S_MAX = 0.5, 3600.0


@dataclass(frozen=True, slots=True)
class EngineRecord:
    """``beat``: another one with every renewal; ``ttl_s``: how long it is good without one."""

    endpoint: Endpoint
    beat: str
    ttl_s: float


def hash_key(pool: str) -> str:
    """The key of a pool's engines, in the slot of the pool's other keys."""
    return f"{{headroom:{pool}}}:engines"


def written(record: EngineRecord) -> bytes:
    """As JSON."""
    given = record.endpoint
    plain = {"v": VERSION, "url": given.url, "labels": dict(given.labels), "terminating": given.terminating}
    return json.dumps(plain | {"beat": record.beat, "ttl_s": record.ttl_s}).encode()


def read(name: bytes, value: bytes) -> EngineRecord | None:
    """The record of an engine of that name; None for what is none."""
    if len(value) > RECORD_BYTES_MAX:
        return None
    try:
        plain = json.loads(value)
        given = plain["v"], plain["url"], plain["labels"], plain["terminating"], plain["beat"], plain["ttl_s"]
        text = name.decode()
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    return _record(text, *given)


def _record(
    name: str, version: Any, url: Any, labels: Any, terminating: Any, beat: Any, ttl_s: Any
) -> EngineRecord | None:
    good = (
        version == VERSION
        and isinstance(url, str)
        and isinstance(labels, Mapping)
        and isinstance(terminating, bool)
        and isinstance(beat, str)
        and isinstance(ttl_s, int | float)
        and TTL_S_MIN <= ttl_s <= TTL_S_MAX
    )
    return EngineRecord(Endpoint(name, url, labels, terminating), beat, float(ttl_s)) if good else None
