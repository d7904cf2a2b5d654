"""What is wrong with backends that are up: failures by kind, ejections, what they refuse, each with since when.

Reads the core and changes nothing; the times are seconds since the epoch. Metrics, the fleet page and the log show it.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from time import localtime, strftime, time
from typing import Any, Final

from router.core.dispatcher import Dispatcher
from router.core.ejection import BackendFailures
from router.core.refusals import Refusal

AGAIN_S: Final = 60.0  # what goes on is logged so often
_log = logging.getLogger("headroom")


@dataclass(frozen=True, slots=True)
class LastFailure:
    """The last failure that says something about the backend."""

    kind: str
    why: str
    at_s: float


@dataclass(frozen=True, slots=True)
class Span:
    """From when to when a backend is not chosen; ``what``: a model or an endpoint, empty: for nothing."""

    what: str
    why: str
    since_s: float
    until_s: float


@dataclass(frozen=True, slots=True)
class Trouble:
    """``by_kind``: failed attempts; ``in_a_row``: faults since the backend last answered; ``ejections``: how many."""

    by_kind: Mapping[str, int]
    in_a_row: int
    ejections: int
    last: LastFailure | None
    ejected: Span | None
    refuses: tuple[Span, ...]

    def plain(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return asdict(self)


NONE: Final = Trouble({}, 0, 0, None, None, ())
Troubles = Mapping[str, Trouble]
"""By backend name; none for one without a failure so far."""


def troubles(core: Dispatcher, now_s: float, wall: Callable[[], float] = time) -> Troubles:
    """The troubles of all backends; *now_s*: the core's time."""
    epoch_s = wall() - now_s
    return {name: _trouble(failures, core.refusals(name), epoch_s) for name, failures in core.failures.items()}


def _trouble(failures: BackendFailures, refusals: tuple[Refusal, ...], epoch_s: float) -> Trouble:
    last = LastFailure(failures.kind.value, failures.why, round(epoch_s + failures.at_s, 3)) if failures.why else None
    ejected = None
    if failures.ejected:
        ejected = _span("", failures.why, failures.ejected_s, failures.readmitted_s, epoch_s)
    return Trouble(
        {kind.value: count for kind, count in failures.counts.items()},
        failures.in_a_row,
        failures.ejections,
        last,
        ejected,
        tuple(_span(each.what, each.why, each.since_s, each.until_s, epoch_s) for each in refusals),
    )


def _span(what: str, why: str, since_s: float, until_s: float, epoch_s: float) -> Span:
    return Span(what, why, round(epoch_s + since_s, 3), round(epoch_s + until_s, 3))


class TroubleLog:
    """Logs what changes: an ejection, its end, a refusal, a failure of another kind. What goes on is logged again once
    a minute, with how often it happened.
    """

    def __init__(self, read: Callable[[], Troubles], clock: Callable[[], float]) -> None:
        """``read``: the troubles now."""
        self._read, self._clock = read, clock
        self._ejections: dict[str, int] = {}
        self._ejected: set[str] = set()
        self._logged: dict[tuple[str, str], tuple[float, int]] = {}  # when last, and how many failures there were then

    def sweep(self, _: float) -> None:
        """Look once; call it about every second."""
        now = self._read()
        for name in self._ejections.keys() - now.keys():
            self._forget(name)
        for name, trouble in now.items():
            self._failures(name, trouble)
            self._ejection(name, trouble)
            for refusal in trouble.refuses:
                if self._due(name, f"refuses {refusal.what}", 0):
                    _log.warning("backend %s: not chosen for %s until %s", name, refusal.what, _at(refusal.until_s))

    def _failures(self, name: str, trouble: Trouble) -> None:
        last = trouble.last
        if last is None:
            return
        count = trouble.by_kind[last.kind]
        _, before = self._logged.get((name, last.kind), (0.0, 0))
        if count > before and self._due(name, last.kind, count):
            _log.warning(
                "backend %s: %s: %s (%d of the kind since the last line)", name, last.kind, last.why, count - before
            )

    def _ejection(self, name: str, trouble: Trouble) -> None:
        if trouble.ejections > self._ejections.get(name, 0):
            span, until = trouble.ejected, ""
            until = f" until {_at(span.until_s)}" if span is not None else ", and back by now"
            _log.warning("backend %s: ejected%s after %d faults in a row", name, until, trouble.in_a_row)
        elif trouble.ejected is None and name in self._ejected:
            _log.info("backend %s: no longer ejected", name)
        self._ejections[name] = trouble.ejections
        (self._ejected.add if trouble.ejected is not None else self._ejected.discard)(name)

    def _due(self, name: str, what: str, count: int) -> bool:
        """Whether to log this now, which is noted."""
        now_s = self._clock()
        logged_s, _ = self._logged.get((name, what), (-AGAIN_S, 0))
        if now_s - logged_s < AGAIN_S:
            return False
        self._logged[name, what] = now_s, count
        return True

    def _forget(self, name: str) -> None:
        del self._ejections[name]
        self._ejected.discard(name)
        for key in [key for key in self._logged if key[0] == name]:
            del self._logged[key]


def _at(seconds: float) -> str:
    return strftime("%H:%M:%S", localtime(seconds))
