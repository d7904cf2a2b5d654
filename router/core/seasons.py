"""The rate of arrivals as the same time of earlier days and weeks lets expect, with its error.

Rates are kept in slots of ten minutes, two weeks of them. A day ago and a week ago are each a forecast, at the level of
the last hours; what they missed by during the last day is their error. The better one counts, and of near equals the
week, which has weekends too. Where neither misses by less than the slot before does, history foretells nothing. Times
may be of any clock, as long as it is the same one. Must not depend on what is done with a forecast.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf, isfinite, nan, sqrt
from statistics import median
from typing import Any, Final

SLOT_S: Final = 600.0
DAY: Final = 144  # slots
WEEK: Final = 7 * DAY
KEPT: Final = 2 * WEEK
LEVEL: Final = 12  # slots that the level of today is read from
LEVEL_MAX: Final = 2.0  # times as much, or as little, as then
JUDGED_MIN: Final = DAY // 4  # slots that a lag was tried on, before it is used
SEEN_MIN: Final = 0.5  # share of a slot that was seen, for its rate to count
RATE_MAX: Final = 1e9
NEAR: Final = 2.0  # times the variance: as good
CHI_SQUARED_MEDIAN: Final = 0.455  # of one degree of freedom
VERSION: Final = 1


@dataclass(frozen=True, slots=True)
class SeasonalForecast:
    """The highest rate to be expected, and its standard error (nan: history foretells nothing)."""

    rate_per_s: float = nan
    error_per_s: float = nan


NO_FORECAST: Final = SeasonalForecast()


@dataclass(slots=True)
class _Slot:
    requests: float = 0.0
    seconds: float = 0.0


class RateHistory:
    """The rates of one model."""

    def __init__(self) -> None:
        self._slots: dict[int, _Slot] = {}
        self._judged = -1  # the newest slot that the lags below were judged by
        self._lags: list[tuple[int, float, float]] = []  # slots ago, level, variance; the better one first

    def add(self, requests: float, seconds: float, now_s: float) -> None:
        """So many requests arrived in the seconds before now, at most a slot's. Numbers that are none are left out."""
        if not (0.0 <= requests <= RATE_MAX * SLOT_S and 0.0 < seconds <= SLOT_S and isfinite(now_s)):
            return
        number = int((now_s - seconds / 2.0) // SLOT_S)
        slot = self._slots.get(number)
        if slot is None:
            slot = self._slots[number] = _Slot()
            for old in [each for each in self._slots if each <= number - KEPT]:
                del self._slots[old]
        slot.requests += requests
        slot.seconds += seconds

    def forecast(self, from_s: float, to_s: float) -> SeasonalForecast:
        """The highest rate between two times, the first of which is now."""
        now, last = int(from_s // SLOT_S), int(to_s // SLOT_S)
        if now != self._judged:
            self._judge(now)
        found = [self._expected(number) for number in range(now, min(last, now + DAY) + 1)]
        return max(found, key=lambda each: each.rate_per_s if isfinite(each.rate_per_s) else -1.0)

    def _expected(self, number: int) -> SeasonalForecast:
        """By the first lag whose slot is known."""
        for lag, level, variance in self._lags:
            rate = level * self._rate(number - lag)
            if isfinite(rate):
                return SeasonalForecast(rate, sqrt(variance))
        return NO_FORECAST

    def _judge(self, now: int) -> None:
        """What each lag would have foretold of the slots of the last day, from what was known one slot before."""
        self._judged = now
        simple = self._variance(now, 1)
        judged = [(lag, self._level(now, lag), self._variance(now, lag)) for lag in (DAY, WEEK)]
        known = [each for each in judged if each[2] < simple]
        self._lags = sorted(known, key=lambda each: each[2] / (NEAR if each[0] == WEEK else 1.0))

    def _variance(self, now: int, lag: int) -> float:
        """Of what a lag misses by; inf where it was not tried often enough. A median, so that one jump is no rule."""
        missed = []
        for number in range(now - DAY, now):
            foretold = self._rate(number - lag) * (self._level(number, lag) if lag > 1 else 1.0)
            actual = self._rate(number)
            if isfinite(foretold) and isfinite(actual):
                missed.append((actual - foretold) ** 2 + actual / SLOT_S)  # the count itself is chance
        return median(missed) / CHI_SQUARED_MEDIAN if len(missed) >= JUDGED_MIN else inf

    def _level(self, number: int, lag: int) -> float:
        """How much more arrived in the slots before than in those a lag before them."""
        pairs = [(self._rate(at), self._rate(at - lag)) for at in range(number - LEVEL, number)]
        both = [(now, then) for now, then in pairs if isfinite(now) and isfinite(then)]
        now, then = sum(pair[0] for pair in both), sum(pair[1] for pair in both)
        return min(max(now / then, 1.0 / LEVEL_MAX), LEVEL_MAX) if now > 0.0 and then > 0.0 else 1.0

    def _rate(self, number: int) -> float:
        slot = self._slots.get(number)
        return slot.requests / slot.seconds if slot is not None and slot.seconds >= SEEN_MIN * SLOT_S else nan

    # ---- over restarts -----------------------------------------------------------------

    def export(self) -> dict[str, Any]:
        """As plain values, for ``adopt``."""
        slots = [[number, slot.requests, slot.seconds] for number, slot in self._slots.items()]
        return {"version": VERSION, "slot_s": SLOT_S, "slots": slots}

    def adopt(self, plain: Mapping[str, Any]) -> None:
        """Take over what ``export`` gave. Raises ValueError for anything else, and changes nothing then."""
        if plain.get("version") != VERSION or plain.get("slot_s") != SLOT_S:
            raise ValueError(f"a history of rates must have version {VERSION} and slots of {SLOT_S:g} s")
        slots = plain.get("slots")
        if not isinstance(slots, Sequence) or len(slots) > KEPT + 1:
            raise ValueError(f"a history of rates has at most {KEPT + 1} slots")
        self._slots = dict(_slot(each) for each in slots)
        self._judged = -1


def _slot(plain: Any) -> tuple[int, _Slot]:
    match plain:
        case [int(number), requests, seconds]:
            pass
        case _:
            raise ValueError(f"a slot of a history of rates must be [number, requests, seconds], not {plain!r}")
    numbers = all(isinstance(each, int | float) and not isinstance(each, bool) for each in (requests, seconds))
    if not (numbers and 0.0 <= requests <= RATE_MAX * SLOT_S and 0.0 < seconds <= 2.0 * SLOT_S):
        raise ValueError(f"a slot of a history of rates must have requests and seconds in range, not {plain!r}")
    return number, _Slot(float(requests), float(seconds))
