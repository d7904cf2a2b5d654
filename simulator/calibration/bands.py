"""The width of the predicted error bands: sigmas from errors on measurements that were left out of the fit.

Uses the logarithmic errors of left-out rows; assumes that the errors of an engine and of a card family are independent
and add as squares. Must not depend on how predictions were made.

The sigma of an engine is chosen so that ``COVERED`` of its left-out errors lie inside the band that a normal error of
that sigma would have; few sources are held by a prior, as if ``_PRIOR_SOURCES`` more had the prior's sigma.

Errors of one source are alike, so the next source is further off than more rows of those that were seen. All sigmas are
therefore widened by the one factor that holds ``COVERED`` of every source whose own errors are left out.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from router.core.coefficients import row_names
from simulator.calibration.design import Column
from simulator.calibration.fit import Tables
from simulator.calibration.measurements import Measurement

COVERED: Final = 0.9
_Z: Final = 1.645
"""Half-width of a standard normal's band of ``COVERED``."""
_PRIOR_SOURCES: Final = 1.0
_LEAST: Final = 0.1
_UNMODELLED_MOST: Final = 0.6
_MOST: Final = 1.0
_SOURCE_ROWS: Final = 30.0
"""A source has as many votes as rows, and no more than these."""


@dataclass(frozen=True, slots=True)
class _Errors:
    """Left-out errors, each with its source and the table rows whose sigmas answer for it."""

    off: Column
    source: NDArray[np.str_]
    engine: NDArray[np.str_]
    family: NDArray[np.str_]

    def only(self, which: NDArray[Any]) -> "_Errors":
        return _Errors(self.off[which], self.source[which], self.engine[which], self.family[which])


def log_errors(seen: NDArray[np.float64], estimates: NDArray[np.float64]) -> NDArray[np.float64]:
    """The logarithm of estimates over seen of each measurement: of the first of its quantities that was measured."""
    off = np.log(estimates / seen)
    return _first_finite(off)


def _first_finite(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of each column the first entry that is a number; nan where there is none."""
    first = np.argmax(np.isfinite(rows), axis=0)
    return np.asarray(rows[first, np.arange(rows.shape[1])])


def widened(given: Tables, measured: Sequence[Measurement], off: NDArray[np.float64]) -> Tables:
    """The tables with sigmas as wide as the left-out errors *off* ask."""
    return _widened(given, _errors(measured, off))


def coverage(
    given: Tables,
    measured: Sequence[Measurement],
    off: NDArray[np.float64],
    part: Callable[[Measurement], str],
) -> Mapping[str, tuple[int, float]]:
    """Rows and share of errors inside the band, for each part and for ``everything``. The bands of a part are widened
    by the errors of the other parts alone, so that no part sets the width of its own band.
    """
    known = np.isfinite(off)
    parts = np.array([part(m) for m in measured])[known]
    errors = _errors(measured, off)
    inside = np.zeros(errors.off.size, dtype=bool)
    for here in _each(parts):
        inside[here] = np.abs(errors.off[here]) <= _bands(_widened(given, errors.only(~here)), errors.only(here))
    found = {str(parts[here][0]): inside[here] for here in _each(parts)} | {"everything": inside}
    return {name: (rows.size, float(rows.mean())) for name, rows in found.items() if rows.size}


def _errors(measured: Sequence[Measurement], off: Column) -> _Errors:
    """Those of *measured* that have one."""
    known = [m for m, each in zip(measured, off, strict=True) if np.isfinite(each)]
    names = [row_names(m.shape.engine, m.shape.card.family, m.shape.card.link, m.shape.stored) for m in known]
    return _Errors(
        off[np.isfinite(off)],
        np.array([m.source for m in known], dtype=np.str_),
        np.array([name["engine"] for name in names], dtype=np.str_),
        np.array([name["family"] for name in names], dtype=np.str_),
    )


def _each(names: NDArray[np.str_]) -> Iterator[NDArray[np.bool_]]:
    """For each name which rows are its."""
    for name in sorted(set(names.tolist())):
        yield names == name


def _widened(given: Tables, errors: _Errors) -> Tables:
    factor, own = _unseen(given, errors), _of_engines(given, errors)
    wide = {
        table: {name: replace(row, sigma=min(factor * row.sigma, _MOST)) for name, row in own[table].items()}
        for table in ("engine", "family")
    }
    return {**own, **wide}


def _of_engines(given: Tables, errors: _Errors) -> Tables:
    """The tables with each engine's sigma as wide as its own errors ask."""
    engines: dict[str, Any] = dict(given["engine"])
    for here in _each(errors.engine):
        name = str(errors.engine[here][0])
        shares = np.array([given["family"][each].sigma for each in errors.family[here]])
        sources = np.unique(errors.source[here]).size
        engines[name] = replace(engines[name], sigma=_sigma(errors.off[here], shares, sources, engines[name].sigma))
    return {**given, "engine": engines}


def _sigma(off: NDArray[np.float64], family: NDArray[np.float64], sources: int, prior: float) -> float:
    """What an engine must add, as squares, to its cards' sigmas for the band to hold; shrunk to *prior*."""
    whole = float(np.quantile(np.abs(off), COVERED)) / _Z
    own = np.sqrt(max(whole**2 - float(np.mean(family**2)), _LEAST**2))
    mean = (own * sources + prior * _PRIOR_SOURCES) / (sources + _PRIOR_SOURCES)
    return float(min(mean, _UNMODELLED_MOST))


def _unseen(given: Tables, errors: _Errors) -> float:
    """How much wider bands must be, at least 1, to hold ``COVERED`` of sources whose errors made none of them."""
    beyond, votes = np.zeros(errors.off.size), np.zeros(errors.off.size)
    for here in _each(errors.source):
        if not here.all():
            held = _of_engines(given, errors.only(~here))
            beyond[here] = np.abs(errors.off[here]) / _bands(held, errors.only(here))
            votes[here] = min(1.0, _SOURCE_ROWS / np.count_nonzero(here))
    return max(1.0, _quantile(beyond, votes)) if votes.any() else 1.0


def _quantile(values: Column, votes: Column) -> float:
    """The value that ``COVERED`` of the votes do not exceed."""
    order = np.argsort(values)
    cumulative = np.cumsum(votes[order])
    return float(values[order][np.searchsorted(cumulative, COVERED * cumulative[-1])])


def _bands(given: Tables, errors: _Errors) -> Column:
    """Half the width of each row's band, in the logarithm."""
    of = [
        np.array([given[table][name].sigma for name in names])
        for table, names in (("engine", errors.engine), ("family", errors.family))
    ]
    return np.asarray(_Z * np.hypot(*of))
