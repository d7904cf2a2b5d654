"""How wide the promised error is: each engine's sigma from errors on measurements that were left out of the fit.

Believes: errors of left-out rows, in the logarithm; that an engine's and a card family's errors are independent and add
as squares. Must not know: how predictions were made.

The sigma of a row is chosen so that ``COVERED`` of its left-out errors lie inside the band that a normal error of
that sigma would have; few rows are held by a prior, as if ``_PRIOR_ROWS`` more had the prior's sigma.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from router.core.coefficients import row_names
from simulator.calibration.fit import Tables
from simulator.calibration.measurements import Measurement

COVERED: Final = 0.9
_Z: Final = 1.645
"""Half-width of a standard normal's band of ``COVERED``."""
_PRIOR_ROWS: Final = 10.0
_LEAST: Final = 0.1
_UNMODELLED_MOST: Final = 0.6


def log_errors(seen: NDArray[np.float64], said: NDArray[np.float64]) -> NDArray[np.float64]:
    """The logarithm of said over seen of each measurement: of the first of its quantities that was measured."""
    off = np.log(said / seen)
    return _first_finite(off)


def _first_finite(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of each column the first entry that is a number; nan where there is none."""
    first = np.argmax(np.isfinite(rows), axis=0)
    return np.asarray(rows[first, np.arange(rows.shape[1])])


def widened(given: Tables, measured: Sequence[Measurement], off: NDArray[np.float64]) -> Tables:
    """The tables with each engine's sigma as wide as its left-out errors *off* ask."""
    names = _rows(measured)
    engines: dict[str, Any] = dict(given["engine"])
    for engine, row in engines.items():
        of = np.array([name["engine"] == engine for name in names]) & np.isfinite(off)
        if of.any():
            shares = np.array([given["family"][name["family"]].sigma for name in names])[of]
            engines[engine] = replace(row, sigma=_sigma(off[of], shares, row.sigma))
    return {**given, "engine": engines}


def _sigma(off: NDArray[np.float64], family: NDArray[np.float64], prior: float) -> float:
    """What an engine must add, as squares, to its cards' sigmas for the band to hold; shrunk to *prior*."""
    whole = float(np.quantile(np.abs(off), COVERED)) / _Z
    own = np.sqrt(max(whole**2 - float(np.mean(family**2)), _LEAST**2))
    mean = (own * off.size + prior * _PRIOR_ROWS) / (off.size + _PRIOR_ROWS)
    return float(min(mean, _UNMODELLED_MOST))


def coverage(
    given: Tables,
    measured: Sequence[Measurement],
    off: NDArray[np.float64],
    part: Callable[[Measurement], str],
) -> Mapping[str, tuple[int, float]]:
    """Rows and share of errors inside the band, of each part and of ``everything``; bands are widened by the
    errors of the other parts alone, so that no part says how wide its own band is."""
    parts = np.array([part(m) for m in measured])
    inside = np.full(len(measured), np.nan)
    for name in sorted(set(parts.tolist())):
        others = parts != name
        held = widened(given, [m for m, keep in zip(measured, others, strict=True) if keep], off[others])
        here = np.flatnonzero(~others & np.isfinite(off))
        band = np.array([_band(held, measured[int(i)]) for i in here])
        inside[here] = np.abs(off[here]) <= band
    counted = {name: inside[(parts == name) & np.isfinite(inside)] for name in sorted(set(parts.tolist()))}
    counted["everything"] = inside[np.isfinite(inside)]
    return {name: (rows.size, float(rows.mean())) for name, rows in counted.items() if rows.size}


def _band(given: Tables, m: Measurement) -> float:
    name = _rows([m])[0]
    return _Z * float(np.hypot(given["engine"][name["engine"]].sigma, given["family"][name["family"]].sigma))


def _rows(measured: Sequence[Measurement]) -> list[Mapping[str, str]]:
    return [row_names(m.shape.engine, m.shape.card.family, m.shape.card.link, m.shape.stored) for m in measured]
