"""Fits the efficiency tables to measurements.

The tables of `prior.py` are the prior, each entry with a relative error; errors of measurements
are relative too, with outliers. Must not depend on files or column names.

Maximum a posteriori in the logarithm of every entry (`posterior.py`), on numeric derivatives.
Entries no measurement reads stay at their prior.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from router.core import tables
from router.core.efficiency import Efficiency, EngineEfficiency, Family, Link, Precision, compose
from router.core.physics import combine
from simulator.calibration import prior
from simulator.calibration.design import Column, Design, column, design
from simulator.calibration.expect import Expected, expected
from simulator.calibration.measurements import Measurement
from simulator.calibration.posterior import Posterior

Row = EngineEfficiency | Family | Link | Precision
Tables = Mapping[str, Mapping[str, Any]]

PRIOR: Final[Tables] = {
    "engine": prior.ENGINES,
    "family": prior.FAMILIES,
    "link": prior.LINKS,
    "precision": prior.PRECISIONS,
}
COMMITTED: Final[Tables] = {
    "engine": tables.ENGINES,
    "family": tables.FAMILIES,
    "link": tables.LINKS,
    "precision": tables.PRECISIONS,
}
_ROW: Final[Mapping[str, type[Any]]] = {
    "engine": EngineEfficiency,
    "family": Family,
    "link": Link,
    "precision": Precision,
}
_FIXED: Final = {"sigma", "bytes_per_param", "peaks"}
_SPREAD: Final = {
    # relative error a priori (logarithm); what is not named is a duration of an engine
    "read": 0.04, "kv": 0.06, "gemm": 0.06, "attention": 0.2, "share": 0.15, "latency_s": 0.2, "hop_s": 0.2,
    "read_gain": 0.03, "gemm_gain": 0.1, "expert_gain": 0.15, "reduce_gain": 0.25, "small_share": 0.2, "host": 0.1,
    "stream_s": 0.7, "seq_s": 0.7, "eager_layer_s": 0.7, "launch_gain": 0.1,
    "kernel": 0.2, "seq": 0.3, "quantise_gain": 0.3, "first_token_s": 0.7, "latent_layer_s": 0.5,
    "expert_layer_s": 0.5, "linear_layer_s": 0.5, "expert_launch_s": 0.5, "expert_gemm_gain": 0.2,
    "first_expert_layer_s": 0.5,
}  # fmt: skip
_DURATION_SPREAD: Final = 0.3
_SOURCE_WEIGHT: Final = 10.0
_TRUST: Final = (1.0, 1.0, 0.3, 0.3)
"""Weight of what was measured itself, and of sums over a whole request or figures computed from others."""

Key = tuple[str, str, str]
Index = Mapping[tuple[str, str], NDArray[np.intp]]


@dataclass(frozen=True, slots=True)
class FitProblem:
    """The rows to fit, the entries they read, and the logarithms seen (nan: not seen)."""

    of: Design
    keys: tuple[Key, ...]
    index: Index
    prior: Column
    spread: Column
    seen: NDArray[np.float64]
    weight: Column


def problem(measured: Sequence[Measurement], start: Tables = PRIOR) -> FitProblem:
    """Everything a fit of *measured* needs, computed once."""
    of = design(measured)
    keys, index = _entries(of)
    values = [getattr(start[table][row], field) for table, row, field in keys]
    return FitProblem(
        of,
        keys,
        index,
        np.log(np.array(values)),
        np.array([_SPREAD.get(field, _DURATION_SPREAD) for _, _, field in keys]),
        np.log(seen(measured)),
        _weights(measured),
    )


def seen(measured: Sequence[Measurement]) -> NDArray[np.float64]:
    """Measured seconds of TPOT, unqueued TTFT, E2E and derived TPOT (nan: not measured). A queued TTFT depends more on
    the load than on the engine and is left out.
    """
    unqueued = np.array([m.unqueued for m in measured])
    ttft_s = np.where(unqueued, column(measured, "ttft_s"), np.nan)
    return np.stack([column(measured, "tpot_s"), ttft_s, column(measured, "e2e_s"), column(measured, "derived_tpot_s")])


def predicted(measured: Sequence[Measurement], given: Tables) -> NDArray[np.float64]:
    """Expected seconds of the same quantities with the tables *given*."""
    p = problem(measured, given)
    e = predict(p, p.prior)
    return _shown(e)


def _shown(e: Expected) -> NDArray[np.float64]:
    """The quantities as rows, in the order of ``seen``; a derived TPOT is expected as a direct one is."""
    return np.stack([e.tpot_s, e.ttft_s, e.e2e_s, e.tpot_s])


def _entries(of: Design) -> tuple[tuple[Key, ...], dict[tuple[str, str], NDArray[np.intp]]]:
    """The table entries read, and for each table field the entry every measurement reads."""
    keys: list[Key] = []
    index: dict[tuple[str, str], NDArray[np.intp]] = {}
    for table, names in of.rows.items():
        used, inverse = np.unique(names, return_inverse=True)
        for field in _free(table):
            index[table, field] = len(keys) + inverse
            keys.extend((table, str(row), field) for row in used)
    return tuple(keys), index


def _free(table: str) -> list[str]:
    return [f.name for f in fields(_ROW[table]) if f.name not in _FIXED]


def _weights(measured: Sequence[Measurement]) -> Column:
    """Rows of a source share its errors, so a source weighs as a few measurements however many it has."""
    counts = Counter(m.source for m in measured)
    return np.array([min(1.0, _SOURCE_WEIGHT / counts[m.source]) for m in measured])


def predict(p: FitProblem, values: Column) -> Expected:
    """What each row should show with the tables' entries at exp(*values*)."""
    use = _used(p.index, np.exp(values))
    return expected(combine(p.of.best, use, (0.0,) * 6), use.stream_s, p.of)


def used(of: Design, given: Tables) -> Efficiency:
    """What each row of *of* gets of the roofline by the tables *given*: columns."""
    keys, index = _entries(of)
    return _used(index, np.array([getattr(given[table][row], field) for table, row, field in keys]))


def _used(index: Index, entries: Column) -> Efficiency:
    read = {table: _gathered(index, entries, table) for table in _ROW}
    return compose(read["engine"], read["family"], read["link"], read["precision"])


def _gathered(index: Index, entries: Column, table: str) -> Any:
    """A row of columns: for every measurement the entry it reads."""
    given: dict[str, Any] = {field: entries[index[table, field]] for field in _free(table)}
    whole = {"sigma": 0.0, "bytes_per_param": 0.0, "peaks": ()}
    kind = _ROW[table]
    return kind(**given, **{f.name: whole[f.name] for f in fields(kind) if f.name in _FIXED})


def _residuals(p: FitProblem, values: Column) -> Column:
    """Relative errors of what was seen, flat; nothing seen gives nothing."""
    e = predict(p, values)
    off = np.log(_shown(e)) - p.seen
    return np.asarray(np.where(np.isfinite(p.seen), off, 0.0).ravel())


def fit(measured: Sequence[Measurement], start: Tables = PRIOR, rounds: int = 15) -> Tables:
    """The tables, with every entry that *measured* depends on moved to its most probable value."""
    p = problem(measured, start)
    values = Posterior(
        residuals=lambda values: _residuals(p, values),
        jacobian=lambda values, at: _jacobian(p, values, at),
        prior=p.prior,
        spread=p.spread,
        weight=np.outer(_TRUST, p.weight).ravel(),
    ).most_probable(rounds)
    changed: dict[str, dict[str, Any]] = {table: dict(rows) for table, rows in start.items()}
    for (table, row, field), value in zip(p.keys, np.exp(values), strict=True):
        changed[table][row] = replace(changed[table][row], **{field: float(value)})
    return changed


def _jacobian(p: FitProblem, values: Column, at: Column) -> NDArray[np.float64]:
    """Forward differences in each entry's logarithm.

    A row reads one entry of each table field, so all entries of a field are moved together, and
    what a row shows is the derivative of the one it reads: as many predictions as fields.
    """
    step = 1e-4
    rows = np.arange(at.size)
    found = np.zeros((at.size, len(values)))
    for read in p.index.values():
        moved = values.copy()
        moved[np.unique(read)] += step
        found[rows, np.tile(read, len(p.seen))] = (_residuals(p, moved) - at) / step
    return found
