"""The rate of arrivals as the same time of earlier days and weeks lets expect, with its error.

Rates are kept in slots of ten minutes, two weeks of them. Yesterday, the median of the last seven days, and a week ago
are each a forecast, at the level of the last slot, half hour or two hours; what they missed by during the last day is
their error. The best one counts, and of near equals the week, which has weekends too. Where none misses by clearly less
than the slot before does, history foretells nothing. Times may be of any clock, as long as it is the same one. Must not
depend on what is done with a forecast.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf, isfinite, nan, sqrt
from statistics import median
from typing import Any, Final

import numpy as np

from router.core.arrays import Floats
from router.core.shortfalls import Shortfalls

SLOT_S: Final = 600.0
DAY: Final = 144  # slots
WEEK: Final = 7 * DAY
KEPT: Final = 2 * WEEK
LAGS: Final = ((DAY,), tuple(DAY * days for days in range(1, 8)), (WEEK,))  # slots ago: one, or the median of several
MEDIAN_MIN: Final = 3  # of several
LEVELS: Final = (1, 3, 12)  # slots that the level of today is read from
LEVEL_MAX: Final = 2.0  # times as much, or as little, as then
JUDGED_MIN: Final = DAY // 4  # slots that a lag was tried on, before it is used
SEEN_MIN: Final = 0.5  # share of a slot that was seen, for its rate to count
RATE_MAX: Final = 1e9
NEAR: Final = 2.0  # times the variance: as good
CLEARLY: Final = 0.9  # times the variance of the slot before: less is no chance, in a day of slots
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


@dataclass(frozen=True, slots=True)
class _Season:
    """A forecast by so many slots ago, at the ``levels`` that today has by each of them; ``variance`` of its error."""

    lags: tuple[int, ...]
    levels: tuple[float, ...]
    variance: float

    def worth(self) -> float:
        """To sort by: the least is the best."""
        return self.variance / (NEAR if self.lags == (WEEK,) else 1.0)


class RateHistory:
    """The rates of one model."""

    def __init__(self) -> None:
        self.shortfalls = Shortfalls()
        self._slots: dict[int, _Slot] = {}
        self._judged = -1  # the newest slot that the seasons below were judged by
        self._seasons: list[_Season] = []  # the best first

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
        self.shortfalls.add(requests, seconds, now_s)

    def forecast(self, from_s: float, to_s: float) -> SeasonalForecast:
        """The highest rate between two times, the first of which is now."""
        now, last = int(from_s // SLOT_S), int(to_s // SLOT_S)
        if now != self._judged:
            self._judge(now)
        found = [self._expected(number) for number in range(now, min(last, now + DAY) + 1)]
        return max(found, key=lambda each: each.rate_per_s if isfinite(each.rate_per_s) else -1.0)

    def _expected(self, number: int) -> SeasonalForecast:
        """By the best season whose slots are known."""
        for season in self._seasons:
            pairs = zip(season.lags, season.levels, strict=True)
            rates = [rate for lag, level in pairs if isfinite(rate := level * self._rate(number - lag))]
            if len(rates) >= min(len(season.lags), MEDIAN_MIN):
                return SeasonalForecast(median(rates), sqrt(season.variance))
        return NO_FORECAST

    def _judge(self, now: int) -> None:
        """What each season would have foretold of the slots of the last day, from what was known one slot before."""
        self._judged = now
        rates = np.array([self._rate(number) for number in range(now - KEPT, now + 1)])
        day = np.arange(KEPT - DAY, KEPT + 1)  # the last of these is the slot of now
        simple = _variance(rates[day - 1][:-1], rates[day][:-1])
        found = []
        for lags in LAGS:
            for level in LEVELS:
                levels = [_levels(rates, day, lag, level) for lag in lags]
                foretold = _medians([rates[day - lag] * by for lag, by in zip(lags, levels, strict=True)])
                variance = _variance(foretold[:-1], rates[day][:-1])
                found.append(_Season(lags, tuple(float(by[-1]) for by in levels), variance))
        self._seasons = sorted((each for each in found if each.variance < CLEARLY * simple), key=_Season.worth)

    def _rate(self, number: int) -> float:
        slot = self._slots.get(number)
        return slot.requests / slot.seconds if slot is not None and slot.seconds >= SEEN_MIN * SLOT_S else nan

    # ---- over restarts -----------------------------------------------------------------

    def export(self) -> dict[str, Any]:
        """As plain values, for ``adopt``."""
        slots = [[number, slot.requests, slot.seconds] for number, slot in self._slots.items()]
        return {"version": VERSION, "slot_s": SLOT_S, "slots": slots, "shortfalls": self.shortfalls.export()}

    def adopt(self, plain: Mapping[str, Any]) -> None:
        """Take over what ``export`` gave. Raises ValueError for anything else, and changes nothing then."""
        if plain.get("version") != VERSION or plain.get("slot_s") != SLOT_S:
            raise ValueError(f"a history of rates must have version {VERSION} and slots of {SLOT_S:g} s")
        slots = plain.get("slots")
        if not isinstance(slots, Sequence) or len(slots) > KEPT + 1:
            raise ValueError(f"a history of rates has at most {KEPT + 1} slots")
        read, shortfalls = dict(_slot(each) for each in slots), Shortfalls()
        if "shortfalls" in plain:  # since it was counted
            shortfalls.adopt(plain["shortfalls"])
        self._slots, self.shortfalls = read, shortfalls
        self._judged = -1


def _levels(rates: Floats, places: Any, lag: int, level: int) -> Floats:
    """How much more arrived in the slots before each place than in those a lag before them."""
    now, then = np.zeros(len(places)), np.zeros(len(places))
    for ago in range(1, level + 1):
        here, there = rates[places - ago], rates[places - ago - lag]
        both = np.isfinite(here) & np.isfinite(there)
        now += np.where(both, here, 0.0)
        then += np.where(both, there, 0.0)
    known = (now > 0.0) & (then > 0.0)
    ratios: Floats = np.where(known, now / np.where(known, then, 1.0), 1.0)
    return np.clip(ratios, 1.0 / LEVEL_MAX, LEVEL_MAX)


def _medians(rates: Sequence[Floats]) -> Floats:
    """Of what is known at each place; nan where that is too little."""
    if len(rates) == 1:
        return rates[0]
    found = np.sort(np.stack(rates), axis=0)  # what is not known comes last
    known = np.isfinite(found).sum(axis=0)
    columns = np.arange(found.shape[1])
    enough = known >= MEDIAN_MIN
    middles: Floats = 0.5 * (found[np.maximum(known - 1, 0) // 2, columns] + found[known // 2, columns])
    return np.where(enough, middles, nan)


def _variance(foretold: Floats, actual: Floats) -> float:
    """Of what a season misses by; inf where it was not tried often enough. A median, so that one jump is no rule."""
    known = np.isfinite(foretold) & np.isfinite(actual)
    if known.sum() < JUDGED_MIN:
        return inf
    actual = actual[known]
    missed = (actual - foretold[known]) ** 2 + actual / SLOT_S  # the count itself is chance
    return float(np.median(missed)) / CHI_SQUARED_MEDIAN


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
