"""The attempts on each backend in a gateway's record: when each was sent, and its times and token counts.

Reads lines of JSON as `router.core.record` writes them, a header first. Must not depend on routing decisions or step
times.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from math import inf, nan
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from router.core.record import READABLE, VERSION, backend_of
from router.core.types import Backend
from simulator.calibration.files import opened
from simulator.errors import BadRecord

Event = Mapping[str, Any]


@dataclass(slots=True)
class AttemptTimes:
    """One attempt on one backend, on the gateway's clock: seconds, ``inf`` for what never came.

    ``ended_s``: its last token, where the record states that, else its end.
    ``uncached_tokens``: prompt tokens the engine had to prefill. ``output_tokens`` is nan for a stream that did not end
    by itself or whose engine stated no count: it counts as load, but is not fitted to.
    """

    sent_s: float
    prompt_tokens: float
    first_s: float = inf
    ended_s: float = inf
    uncached_tokens: float = nan
    output_tokens: float = nan


@dataclass(slots=True)
class BackendLog:
    """One backend and all attempts on it."""

    backend: Backend
    attempts: list[AttemptTimes] = field(default_factory=list)

    def columns(self) -> NDArray[np.float64]:
        """The attempts that reached a first token, one row a field of ``AttemptTimes``; one still open at the end of
        the record lasts to infinity.
        """
        rows = [
            (f.sent_s, f.prompt_tokens, f.first_s, f.ended_s, f.uncached_tokens, f.output_tokens)
            for f in self.attempts
            if f.first_s < inf
        ]
        return np.array(rows, dtype=np.float64).reshape(-1, 6).T


_OVER: Final = ("failed", "client_left", "served_by")  # the last on the backend chosen: it goes on at another one


class _Reader:
    """Events in order, to logs by backend."""

    def __init__(self) -> None:
        self.logs: dict[str, BackendLog] = {}
        self._prompts: dict[str, float] = {}
        self._several: set[str] = set()  # requests of several sequences, whose lengths are not known one by one
        self._open: dict[str, AttemptTimes] = {}

    def take(self, event: Event) -> None:
        """One event and the commands it was answered with."""
        kind, now_s = event.get("event"), float(event.get("at_s", nan))
        if kind == "backend_joined":
            joined = backend_of(event["backend"])
            self.logs.setdefault(joined.name, BackendLog(joined))
        elif kind == "arrived":
            self._prompts[event["request"]["id"]] = float(event["request"]["prompt_tokens"])
            if event["request"].get("sequences", 1) != 1:
                self._several.add(event["request"]["id"])
        elif kind == "first_token" and event["id"] in self._open:
            self._open[event["id"]].first_s = now_s
        elif kind == "ended" and event["id"] in self._open:
            several = event["id"] in self._several
            self._ended(self._open.pop(event["id"]), event["usage"], several, event.get("last_token_s", now_s))
        elif kind in _OVER and event["id"] in self._open:
            self._open.pop(event["id"]).ended_s = now_s
        for command in event.get("answer", ()):
            self._answered(command, now_s)

    def _ended(self, attempt: AttemptTimes, usage: Event, several: bool, last_token_s: float) -> None:
        attempt.ended_s = float(last_token_s)
        attempt.output_tokens = nan if several or usage.get("estimated") else float(usage["output_tokens"])
        attempt.prompt_tokens = float(usage.get("prompt_tokens") or attempt.prompt_tokens)
        attempt.uncached_tokens = max(attempt.prompt_tokens - float(usage.get("cached_tokens", 0)), 1.0)

    def _answered(self, command: Event, now_s: float) -> None:
        request = command.get("request_id", "")
        if command.get("command") == "Send" and command["backend"] in self.logs:
            prompt = self._prompts.get(request, nan)
            attempt = AttemptTimes(now_s, prompt, uncached_tokens=prompt)
            self.logs[command["backend"]].attempts.append(attempt)
            self._open[request] = attempt
        elif command.get("command") == "Abort" and request in self._open:
            self._open.pop(request).ended_s = now_s


def read_attempts(path: Path) -> dict[str, BackendLog]:
    """The log of every backend in the record at *path* (plain or .gz). Raises BadRecord, which names the line."""
    reader, version = _Reader(), VERSION
    for number, line in _lines(path):
        try:
            event = json.loads(line)
            if "record" not in event:
                reader.take(event)
            else:
                version = event["record"]
        except (ValueError, KeyError, TypeError, AttributeError) as problem:
            raise BadRecord(f"{path}:{number}: expected an event of a gateway's record: {problem!r}") from None
        if version not in READABLE:
            raise BadRecord(f"{path}:{number}: expected a record of version {VERSION}, found {version!r}")
    return reader.logs


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Lines that hold something, numbered from 1."""
    with opened(path) as lines:
        yield from ((number, line) for number, line in enumerate(lines, start=1) if line.strip())
