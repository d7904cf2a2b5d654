"""Measurements as columns: the ideal roofline of each, and which table rows it depends on.

Believes: one row, one measurement. Must not know: the tables' values or how a fit moves them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from router.core.coefficients import row_names
from router.core.physics import Ideal, ideal
from simulator.calibration.measurements import Measurement

Column = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Design:
    """Columns over measurements. ``rows`` maps a table to the row name each measurement reads of it.
    ``waited_s`` is the measured first token, 0 where there was none."""

    best: Ideal
    rows: dict[str, NDArray[np.str_]]
    batch: Column
    prompt_tokens: Column
    output_tokens: Column
    lockstep: NDArray[np.bool_]
    waited_s: Column


def design(measured: Sequence[Measurement]) -> Design:
    """The columns of *measured*, in its order."""
    each = [ideal(m.shape) for m in measured]
    names = [row_names(m.shape.engine, m.shape.card.family, m.shape.card.link, m.shape.stored) for m in measured]
    return Design(
        best=Ideal(**{f.name: _stacked(each, f.name) for f in fields(Ideal)}),
        rows={table: np.array([name[table] for name in names]) for table in names[0]},
        batch=column(measured, "batch"),
        prompt_tokens=column(measured, "prompt_tokens"),
        output_tokens=column(measured, "output_tokens"),
        lockstep=np.array([m.lockstep for m in measured]),
        waited_s=np.nan_to_num(column(measured, "ttft_s"), nan=0.0),
    )


def column(measured: Sequence[Measurement], name: str) -> Column:
    """One field of every measurement."""
    return np.array([getattr(m, name) for m in measured], dtype=np.float64)


def _stacked(each: Sequence[Ideal], name: str) -> Any:
    return np.array([getattr(one, name) for one in each], dtype=np.float64)
