"""Scheduler worlds, as a file has them: small engines, each with a few requests.

A world is an engine's limits and its requests. Every step takes one unit of time. A request that arrives while a step
is under way is seen when that step ends; an idle engine starts at the arrival. So what our scheduler does in a world
can be compared with what a real engine's own scheduler does in it. ``stepping.py`` walks them. Must not depend on
routers, policies or step times.
"""

import json
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Final

from simulator.replica.sequence import EngineLimits, Sequence
from simulator.traces.fields import SEQUENCES_MAX, seconds, text_of, whole

_LIMITS: Final = {  # by a world's name: the engine's limit
    "block_tokens": "block_tokens",
    "step_tokens": "chunk_tokens",
    "seqs_max": "seqs_max",
    "kv_blocks": "kv_blocks",
    "active_max": "active_max",
    "long_prompt_chunk": "long_prompt_chunk",
    "queue_max": "queue_max",
    "queue_tokens_max": "queue_tokens_max",
    "adapters_max": "adapters_max",
}
_FLAGS: Final = ("priority", "prefix_caching", "reserve_prompt", "long_prompt_adaptive", "async_scheduling")
_REQUIRED: Final = ("block_tokens", "step_tokens", "seqs_max", "kv_blocks")
_NAMES: Final = (*_LIMITS, *_FLAGS, "watermark", "prefix", "requests")
_REQUEST_NAMES: Final = ("id", "at", "prompt", "output", "priority", "group", "depth", "unit", "n", "adapter", "eos")


@dataclass(frozen=True, slots=True)
class WorldRequest:
    """A request of a world. ``at``: in steps. Its text begins with *depth* units of *unit* tokens that its group has
    in common. ``n``: choices, each a sequence of its own over the same prompt. ``adapter``: that of the request, empty
    for none. ``eos``: the reply ends by itself, and not by its cap.
    """

    id: str
    at: float
    prompt: int
    output: int
    priority: int = 0
    group: int = 0
    depth: int = 0
    unit: int = 0
    n: int = 1
    adapter: str = ""
    eos: bool = False

    def sequences(self) -> list[Sequence]:
        """As an engine has it: one of that id, or those of its choices, which find each other's prompt in the cache."""
        prefix: tuple[Hashable, ...] = tuple((self.group, self.adapter, unit) for unit in range(self.depth))
        known, unit = self.depth * self.unit, self.unit
        if self.n == 1:
            return [self._sequence(self.id, prefix, unit, known)]
        unit = unit or self.prompt
        prefix += tuple((self.id, number) for number in range(len(prefix), -(-self.prompt // unit)))
        return [self._sequence(f"{number}_{self.id}", prefix, unit, self.prompt) for number in range(self.n)]

    def _sequence(self, name: str, prefix: tuple[Hashable, ...], unit: int, known: int) -> Sequence:
        found = Sequence(name, self.prompt, self.output, 1, self.priority, prefix, unit_tokens=unit, known_tokens=known)
        found.adapter, found.ends_itself = self.adapter, self.eos
        return found


@dataclass(frozen=True, slots=True)
class SchedulerWorld:
    """An engine and its requests, in order of arrival."""

    limits: EngineLimits
    requests: tuple[WorldRequest, ...]


# ---- reading -------------------------------------------------------------------------


def read_worlds(path: Path, started_as: EngineLimits | None = None) -> list[SchedulerWorld]:
    """The worlds in a file; what they do not state is as in *started_as*. Raises ValueError, which names the place."""
    try:
        document = json.loads(path.read_bytes())
    except json.JSONDecodeError as problem:
        raise ValueError(f"{path}:{problem.lineno}:{problem.colno}: expected JSON, {problem.msg}") from None
    except UnicodeDecodeError:
        raise ValueError(f"{path}: expected JSON in UTF-8") from None
    if not isinstance(document, list):
        raise ValueError(f"{path}: expected a list of worlds, got {type(document).__name__}")  # noqa: TRY004 - a bad file
    worlds = []
    for number, entry in enumerate(document):
        try:
            worlds.append(_world(entry, started_as or EngineLimits()))
        except ValueError as problem:
            raise ValueError(f"{path}: world {number}: {problem}") from None
    return worlds


def _world(entry: object, started_as: EngineLimits) -> SchedulerWorld:
    record = _record(entry, _NAMES, (*_REQUIRED, "requests"))
    limits = _limits(record, started_as)
    entries = record["requests"]
    if not isinstance(entries, list):
        raise ValueError(f"requests must be a list, got {type(entries).__name__}")  # noqa: TRY004 - a bad file
    requests: dict[str, WorldRequest] = {}
    latest = 0.0
    for number, one in enumerate(entries):
        try:
            request = _request(one, limits)
            _in_order(request, requests, latest)
        except ValueError as problem:
            raise ValueError(f"request {number}: {problem}") from None
        requests[request.id], latest = request, request.at
    return SchedulerWorld(limits, tuple(requests.values()))


def _limits(record: Mapping[str, Any], started_as: EngineLimits) -> EngineLimits:
    given: dict[str, Any] = {limit: whole(record[name], name, 0) for name, limit in _LIMITS.items() if name in record}
    given |= {name: _flag(record, name) for name in _FLAGS if name in record}
    if "watermark" in record:
        given["watermark"] = seconds(record["watermark"], "watermark")
    return replace(started_as, **given)


def _in_order(request: WorldRequest, before: Mapping[str, WorldRequest], latest: float) -> None:
    if request.id in before:
        raise ValueError(f"id {request.id!r} is there twice")
    if request.at < latest:
        raise ValueError(f"at must be {latest:g} or later, as the request before, got {request.at:g}")


def _request(entry: object, limits: EngineLimits) -> WorldRequest:
    record = _record(entry, _REQUEST_NAMES, ("id", "at", "prompt", "output"))
    name = record["id"]
    if not isinstance(name, str) or not name:
        raise ValueError(f"id must be a text that is not empty, got {name!r}")
    priority = record.get("priority", 0)
    if not isinstance(priority, int):
        raise ValueError(f"priority must be a whole number, got {priority!r}")  # noqa: TRY004 - a bad file
    prompt, output = whole(record["prompt"], "prompt"), whole(record["output"], "output")
    depth, unit = whole(record.get("depth", 0), "depth", 0), whole(record.get("unit", 0), "unit", 0)
    if depth * unit > prompt:
        raise ValueError(f"depth x unit must be at most prompt ({prompt}), got {depth} x {unit}")
    room = limits.kv_blocks * limits.block_tokens
    if prompt + output > room + 1:
        raise ValueError(f"prompt + output must be at most {room + 1}: kv_blocks hold {room} tokens")
    group = whole(record.get("group", 0), "group", 0)
    choices = whole(record.get("n", 1), "n")
    if choices > SEQUENCES_MAX:
        raise ValueError(f"n must be at most {SEQUENCES_MAX}, got {choices}")
    eos = _flag(record, "eos") if "eos" in record else False
    adapter, at = text_of(record, "adapter"), seconds(record["at"], "at")
    return WorldRequest(
        name, at, prompt, output, int(priority), group, depth if unit else 0, unit, choices, adapter, eos
    )


def _record(entry: object, names: tuple[str, ...], required: tuple[str, ...]) -> Mapping[str, Any]:
    if not isinstance(entry, dict):
        raise ValueError(f"expected an object, got {type(entry).__name__}")  # noqa: TRY004 - a bad file
    for name in entry:
        if name not in names:
            close = get_close_matches(name, names, 1)
            raise ValueError(f"{name} is not known" + (f"; did you mean {close[0]}?" if close else ""))
    for name in required:
        if name not in entry:
            raise ValueError(f"{name} is missing")
    return entry


def _flag(record: Mapping[str, Any], name: str) -> bool:
    value = record[name]
    if not isinstance(value, bool):
        raise ValueError(f"{name} must be true or false, got {value!r}")  # noqa: TRY004 - a bad file
    return value
