"""Core events to a file, one JSON object a line: an incident becomes a trace, and a test.

``router.core.record`` defines what an event is. Must not depend on what it means. The hot path appends to a list;
a thread encodes and writes. A full file is renamed and the one before it removed: both together stay within the bound.

The first line is a header: the seed and the policies a fresh core needs. A file that begins after a rotation says so
("continues"): its arrivals are a workload like any other, but the core's past is missing for a replay to the letter.
"""

import logging
import threading
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from itertools import chain
from math import isfinite
from pathlib import Path
from random import Random
from typing import Any, Final

import orjson

from router.core.dispatcher import Dispatcher
from router.core.errors import RecordError
from router.core.flight import DispatchLimits
from router.core.model_rules import NO_RULES, ModelRules, rules_of
from router.core.record import READABLE, VERSION, Event, replay
from router.gateway.config.policy_spec import of_plain
from router.gateway.rollout.canary import Canary, Split
from router.gateway.rollout.guard import SAFE
from router.gateway.rollout.replayed import Replaced, ReplayedAdmission, ReplayedRouting
from router.gateway.telemetry.record_file import RecordFile

_log = logging.getLogger("headroom")
FLUSH_S: Final = 0.25
BUFFERED_MAX: Final = 100_000  # events; some seconds of the fastest traffic, should the disk stand still


class Recorder:
    """The file sink. Open it before the first event; ``close`` writes what is left.

    ``header`` holds ``seed`` and what ``decisions`` gives: what a fresh core needs to be like the recorded one.
    """

    def __init__(self, path: Path, bytes_max: int, header: Event) -> None:
        """Raises OSError when the file cannot be opened. What cannot be written later is counted, and tried again."""
        self._path = path
        self._header = header
        self._buffer: list[Event] = []
        self._overflowed = self._unwritten = 0  # events: the first is counted by the caller's thread, the other by ours
        self._counted = self._missing = 0  # of those that overflowed, and of both since the last gap in the file
        self._failing = False
        self._wake = threading.Event()
        self._over = False
        self._file = RecordFile(path, bytes_max, self._first_line)
        self._thread = threading.Thread(target=self._run, name="recorder", daemon=True)
        self._thread.start()

    @property
    def dropped(self) -> int:
        """Events that are in no file: the disk was full, slower than the traffic, or gone."""
        return self._overflowed + self._unwritten

    def write(self, event: Event) -> None:
        """Take one event; the caller must not change it afterwards. Over the bound it is counted as dropped."""
        if len(self._buffer) < BUFFERED_MAX:
            self._buffer.append(event)
        else:
            self._overflowed += 1

    def adopted(self, decisions: Event) -> None:
        """The policies were swapped between two requests."""
        self.write({"event": "adopt", **decisions})

    def close(self) -> None:
        """Write what is left and close the file."""
        self._over = True
        self._wake.set()
        self._thread.join()

    def _first_line(self, continues: bool) -> bytes:
        return _line({"record": VERSION, "continues": continues, **self._header})

    def _run(self) -> None:
        while not self._over:
            self._wake.wait(FLUSH_S)
            self._flush()
        self._flush()
        self._flush()  # what overflowed meanwhile
        self._file.close()

    def _flush(self) -> None:
        overflowed, events = self._overflowed, self._buffer
        self._buffer = []
        gap = [_line({"event": "gap", "lost": self._missing})] if self._missing else []
        before, failed = self._file.lines, None
        try:
            if gap or events:
                self._file.append(chain(gap, self._lines(events)))
        except OSError as error:
            failed = error
            for event in events:  # of a swap that could not be written too
                self._follow(event)
        written = self._file.lines - before
        if written and gap:
            self._missing, written = 0, written - 1
        unwritten = len(events) - written
        self._unwritten += unwritten
        self._missing += unwritten + overflowed - self._counted
        self._counted = overflowed
        if gap or events:
            self._log_change(failed)

    def _lines(self, events: list[Event]) -> Iterator[bytes]:
        """Each event as a line. A header states the policies at its place: a swap may be in the same flush."""
        for event in events:
            yield _line(event)
            self._follow(event)

    def _follow(self, event: Event) -> None:
        if event["event"] == "adopt":
            decided = {name: value for name, value in event.items() if name != "event"}
            self._header = {"seed": self._header["seed"], **decided}

    def _log_change(self, failed: OSError | None) -> None:
        if failed is not None and not self._failing:
            _log.error("%s: events cannot be recorded and are dropped: %s", self._path, failed.strerror or failed)
        elif failed is None and self._failing:
            _log.warning("%s: events are recorded again; %d were dropped so far", self._path, self.dropped)
        self._failing = failed is not None


def decisions(named: Mapping[str, Mapping[str, Any]], limits: DispatchLimits, models: ModelRules = NO_RULES) -> Event:
    """Who decides within which bounds; ``named``: by role (routing, admission, canary, and last_good, which decides
    where routing fails), as ``PolicySpec`` holds it, and under ``split`` whose requests are the canary's; ``models``:
    which serve others' requests.
    """
    rules = {"models": models.plain()} if models.rules else {}
    return {**named, **rules, "limits": {name: value for name, value in asdict(limits).items() if isfinite(value)}}


def differences(path: Path) -> Iterator[tuple[int, Event, list[Event]]]:
    """Replay a record on a fresh core: yields (line, event, what the core answers now) wherever that differs.

    Raises RecordError when the file is no record, or begins in the middle of a run.
    """
    lines = _lines(path)
    _, first = next(lines, (0, {}))
    if first.get("record") not in READABLE:
        found = f"one of version {first['record']}" if "record" in first else "no header"
        raise RecordError(f"{path}:1: expected the header of a record of version {VERSION}, found {found}")
    if first.get("continues"):
        raise RecordError(f"{path}:1: begins in the middle of a run; a replay to the letter needs its start")
    replaced = Replaced()
    core = Dispatcher(*_policies(first, replaced), Random(first["seed"]), DispatchLimits(**first["limits"]))
    core.models = rules_of(first.get("models", {}))
    for number, event in lines:
        if event.get("event") == "adopt":
            core.adopt(*_policies(event, replaced))
            core.limits = DispatchLimits(**event["limits"])
            core.models = rules_of(event.get("models", {}))
        elif event.get("event") == "gap":
            raise RecordError(f"{path}:{number}: {event['lost']} events were lost here; the replay ends")
        else:
            replaced.begin(event.get("replaced", ()))
            ((_, answer),) = replay([event], core)
            if answer != event["answer"]:
                yield number, event, answer


def _policies(event: Event, replaced: Replaced) -> tuple[Any, Any]:
    live, admission = (of_plain(kind, event[kind]).make() for kind in ("routing", "admission"))
    last_good = of_plain("routing", event["last_good"]).make() if "last_good" in event else SAFE
    routing: Any = ReplayedRouting(live, last_good, replaced)
    if "canary" in event:
        split = Split(**event["split"] | {"tenants": frozenset(event["split"]["tenants"])})
        canary = ReplayedRouting(of_plain("routing", event["canary"]).make(), live, replaced)
        routing = Canary(routing, canary, split)
    return routing, ReplayedAdmission(admission, replaced)


def _lines(path: Path) -> Iterator[tuple[int, Event]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                event = orjson.loads(line)
            except orjson.JSONDecodeError as error:
                raise RecordError(f"{path}:{number}: not JSON: {error}") from None
            if not isinstance(event, dict):
                raise RecordError(f"{path}:{number}: no event: expected a JSON object")
            yield number, event


def _line(event: Event) -> bytes:
    return orjson.dumps(event, option=orjson.OPT_APPEND_NEWLINE)
