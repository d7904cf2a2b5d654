"""Corrections of the tables by a user's own measurements, shrunk level by level: what a profile holds.

The committed tables are the starting point. The logarithm of a factor on each term of a step is normal with mean 0 a
priori, at every level of ``router.core.profile.LEVELS``: wide where the tables are unsure (a guessed family, an engine
that few sources measured), narrow where they are not. Few rows move what they agree on, many rows decide. Whether the
corrections help is judged on rows that were left out of finding them. Must not depend on files.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from router.core.cards import Card
from router.core.efficiency import Efficiency
from router.core.physics import Ideal, belongs_to, combine, corrected
from router.core.profile import LEVELS, LOG_MOST, TERMS, Correction, Profile, tables_version
from router.core.step import StepCoefficients
from simulator.calibration.design import Column, Design, design
from simulator.calibration.expect import expected
from simulator.calibration.fit import COMMITTED, Tables, used
from simulator.calibration.measurements import Measurement
from simulator.calibration.posterior import Posterior

FOLDS: Final = 5
ENOUGH: Final = 8
"""Rows without which nothing can be left out to judge by."""
_ROUNDS: Final = 25
_ALIKE: Final = 10.0
"""Rows of one setup and model weigh as no more than these: they share what is not modelled."""
_BAND_LEAST: Final = 0.03
_COVERED: Final = 0.9
_Z: Final = 1.645
_WIDTH: Final[Mapping[str, float]] = {"precision": 0.15, "kind": 0.15, "model": 0.2, "setup": 0.3}
_TERM_WIDTH: Final[Mapping[str, float]] = {
    "overhead": 1.2, "read": 0.8, "compute": 1.0, "context": 1.0, "sequence": 2.0, "first_token": 1.5,
}  # fmt: skip
_SHEET: Final[Mapping[str, float]] = {"A": 0.1, "B": 0.15, "C": 0.3, "D": 0.5, "E": 1.0}


@dataclass(frozen=True, slots=True)
class Found:
    """A profile, and the median and 90th percentile of relative errors: of the tables, of the profile on the rows that
    it was made of, and on rows left out of making it.
    """

    profile: Profile
    before: tuple[float, float]
    after: tuple[float, float]
    left_out: tuple[float, float]
    estimates: NDArray[np.float64]

    @property
    def helps(self) -> bool:
        """Whether rows that were left out are predicted better with the corrections than without."""
        return self.left_out[0] < self.before[0]


@dataclass(frozen=True, slots=True)
class _Problem:
    """Rows to correct for: the tables' coefficients of each, and which corrections each row belongs to."""

    of: Design
    plain: StepCoefficients
    stream_s: Column
    keys: tuple[Correction, ...]
    index: NDArray[np.intp]  # a row a level, a column a measurement
    seen: NDArray[np.float64]
    weight: Column
    spread: Column


def find(measured: Sequence[Measurement], seen: NDArray[np.float64], tables: Tables = COMMITTED) -> Found:
    """The corrections for *measured*; *seen*: seconds, a row a quantity. Raises ValueError for too few rows."""
    if len(measured) < ENOUGH:
        raise ValueError(f"{len(measured)} usable rows; a profile needs at least {ENOUGH}")
    p = _problem(measured, np.log(seen), tables)
    values = _most_probable(p, np.ones(len(measured), dtype=bool))
    fold = np.arange(len(measured)) % FOLDS
    left_out = np.full(p.seen.shape, np.nan)
    for number in range(FOLDS):
        without = _most_probable(p, fold != number)
        left_out[:, fold == number] = _log_expected(p, without)[:, fold == number]
    fitted, off = _log_expected(p, values), left_out - p.seen
    return Found(
        _profile(p, values, measured, _band(off)),
        _errors(_log_expected(p, np.zeros_like(values)) - p.seen),
        _errors(fitted - p.seen),
        _errors(off),
        np.exp(fitted),
    )


def _problem(measured: Sequence[Measurement], seen: NDArray[np.float64], tables: Tables) -> _Problem:
    of = design(measured)
    use: Efficiency = used(of, tables)
    each = [belongs_to(m.shape) for m in measured]
    keys = tuple(sorted({key for row in each for key in row}))
    place = {key: n for n, key in enumerate(keys)}
    cards = {m.shape.card.name: m.shape.card for m in measured}
    widths = np.array([_width(key, tables, cards) for key in keys])
    alike = Counter((row[-1], row[-2]) for row in each)
    return _Problem(
        of,
        combine(of.best, use, (0.0,) * 6),
        np.asarray(use.stream_s),
        keys,
        np.array([[place[key] for key in row] for row in each]).T,
        seen,
        np.array([min(1.0, _ALIKE / alike[row[-1], row[-2]]) for row in each]),
        np.outer(widths, [_TERM_WIDTH[term] for term in TERMS]).ravel(),
    )


def _width(key: Correction, tables: Tables, cards: Mapping[str, Card]) -> float:
    """The standard deviation a priori of a correction's logarithm: the tables' own error of that row."""
    level, name = key
    if level in {"family", "engine"}:
        return float(tables[level][name].sigma)
    return _SHEET.get(cards[name].confidence, 0.5) if level == "card" else _WIDTH[level]


def _log_expected(p: _Problem, values: Column) -> NDArray[np.float64]:
    """Logarithms of the quantities of ``simulator.calibration.fit.seen``, with the corrections *values*."""
    each = values.reshape(len(p.keys), len(TERMS))[p.index].sum(axis=0)
    by: dict[str, Any] = {term: np.exp(each[:, n]) for n, term in enumerate(TERMS)}
    best: Ideal = p.of.best
    e = expected(corrected(p.plain, best, by), p.stream_s, p.of)
    return np.log(np.stack([e.tpot_s, e.ttft_s, e.e2e_s, e.tpot_s]))


def _most_probable(p: _Problem, which: NDArray[np.bool_]) -> Column:
    """Corrections given the rows *which*."""

    known = np.flatnonzero((np.isfinite(p.seen) & which).ravel())

    def residuals(values: Column) -> Column:
        return np.asarray((_log_expected(p, values) - p.seen).ravel()[known])

    def jacobian(values: Column, at: Column) -> NDArray[np.float64]:
        return _jacobian(np.tile(p.index, len(p.seen))[:, known], residuals, values, at)

    start = np.zeros(p.spread.size)
    weight = np.tile(p.weight, len(p.seen))[known]
    found = Posterior(residuals, jacobian, start, p.spread, weight).most_probable(_ROUNDS)
    return np.clip(found, -LOG_MOST / len(LEVELS), LOG_MOST / len(LEVELS))


def _jacobian(index: NDArray[np.intp], residuals: Any, values: Column, at: Column) -> NDArray[np.float64]:
    """Forward differences: a row belongs to one correction of each level, and all levels add up, so one prediction a
    term gives the derivative in every level's.
    """
    step, terms = 1e-4, len(TERMS)
    rows, found = np.arange(at.size), np.zeros((at.size, values.size))
    for n in range(terms):
        moved = values.copy()
        moved[n::terms] += step / len(LEVELS)  # each level a part of the step: their sum moves by one
        slope = (residuals(moved) - at) / step
        for level in index:
            found[rows, level * terms + n] = slope
    return found


def _errors(off: NDArray[np.float64]) -> tuple[float, float]:
    size = np.abs(np.expm1(off[np.isfinite(off)]))
    return float(np.median(size)), float(np.quantile(size, 0.9))


def _band(off: NDArray[np.float64]) -> float:
    """One sigma of a normal error whose band holds ``_COVERED`` of the errors on left-out rows."""
    size = np.abs(off[np.isfinite(off)])
    return max(_BAND_LEAST, float(np.quantile(size, _COVERED)) / _Z)


def _profile(p: _Problem, values: Column, measured: Sequence[Measurement], band: float) -> Profile:
    logs = values.reshape(len(p.keys), len(TERMS))
    rows = Counter(int(n) for n in p.index.ravel())
    return Profile(
        {key: tuple(float(each) for each in logs[n]) for n, key in enumerate(p.keys)},
        {key: rows[n] for n, key in enumerate(p.keys)},
        band,
        {"tables": tables_version(), "rows": len(measured)},
    )


def described(found: Found, facts: Mapping[str, Any]) -> Profile:
    """The profile with what it was made of and what it is worth."""
    worth = {
        name: {"median": round(each[0], 4), "p90": round(each[1], 4)}
        for name, each in (("tables", found.before), ("profile", found.after), ("left_out", found.left_out))
    }
    return replace(found.profile, facts={**found.profile.facts, **facts, "errors": worth})
