"""The errors of the tables, by source, card, engine, precision, kind of model and batch, and the rank correlation of
configurations.

Compares predictions with measurements. Must not depend on how either was made.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from router.core.models import Model
from simulator.calibration.design import Column
from simulator.calibration.measurements import Measurement

QUANTITIES: Final = ("TPOT", "unqueued ttft", "e2e", "derived TPOT")
"""Rows of a table of errors: mean gap where ITL is direct; first token without queueing; whole request;
mean gap that a source computed from other figures."""


def half(m: Measurement) -> str:
    """Which of two halves of all configurations *m* is in: all of one source, card, engine and model are in the same,
    so that neither half has near copies of the other's. Half A may be looked at to choose terms; B judges them.
    """
    shape = m.shape
    key = f"{m.source} {shape.card.name} {shape.engine} {shape.model.name}"
    return "AB"[crc32(key.encode()) % 2]


def _kind(model: Model) -> str:
    if not model.experts:
        return "dense"
    return "MoE, latent KV" if model.latent_kv else "MoE"


_BANDS: Final = (1, 16, 128)


def _band(batch: float) -> str:
    """Batches within an order of magnitude."""
    least = 0
    for most in _BANDS:
        if batch <= most:
            return f"{least + 1} to {most}" if most > 1 else "1"
        least = most
    return f"more than {least}"


_GROUPS: Final[dict[str, Callable[[Measurement], str]]] = {
    "all": lambda _: "everything",
    "load": lambda m: "static batch" if m.lockstep else "closed loop",
    "source": lambda m: m.source,
    "half": half,
    "family": lambda m: m.shape.card.family,
    "card": lambda m: m.shape.card.name,
    "tp": lambda m: str(m.shape.tp),
    "precision": lambda m: m.shape.stored,
    "engine": lambda m: m.shape.engine,
    "model": lambda m: _kind(m.shape.model),
    "batch": lambda m: _band(m.batch),
}


@dataclass(frozen=True, slots=True)
class Errors:
    """Relative errors of one quantity in one group: how many, median and 90th percentile of the absolute, bias."""

    group: str
    name: str
    quantity: str
    count: int
    median: float
    p90: float
    bias: float


def errors(measured: Sequence[Measurement], seen: NDArray[np.float64], estimates: NDArray[np.float64]) -> list[Errors]:
    """Errors of every group and quantity that has any; *seen* and *estimates* are seconds, a row a quantity."""
    off = estimates / seen - 1
    found: list[Errors] = []
    for group, of in _GROUPS.items():
        names = np.array([of(m) for m in measured])
        for name in sorted(set(names.tolist())):
            found.extend(_group(group, name, off[:, names == name]))
    return found


def _group(group: str, name: str, off: NDArray[np.float64]) -> Iterator[Errors]:
    for quantity, row in zip(QUANTITIES, off, strict=True):
        each = row[np.isfinite(row)]
        if each.size:
            size = np.abs(each)
            yield Errors(
                group,
                name,
                quantity,
                each.size,
                float(np.median(size)),
                float(np.quantile(size, 0.9)),
                float(np.median(each)),
            )


def rank_correlation(seen: Column, estimates: Column) -> float:
    """Spearman's: the correlation of ranks, ties sharing theirs; nan for fewer than two pairs."""
    both = np.isfinite(seen) & np.isfinite(estimates)
    if np.count_nonzero(both) <= 1:
        return float("nan")
    return float(np.corrcoef(_ranks(seen[both]), _ranks(estimates[both]))[0, 1])


def _ranks(values: Column) -> Column:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return np.asarray((last - (counts - 1) / 2)[inverse])


def headline(found: Sequence[Errors]) -> list[str]:
    """One line for each quantity: the error by row, and by source, so that a large source has one vote."""
    lines = []
    for whole in (e for e in found if e.group == "all"):
        parts = [e.median for e in found if e.group == "source" and e.quantity == whole.quantity]
        lines.append(
            f"{whole.quantity}: {whole.count} rows of {len(parts)} sources, median {whole.median:.1%}, "
            f"p90 {whole.p90:.1%}; median of the sources' medians {np.median(parts):.1%}"
        )
    return lines


def text(found: Sequence[Errors], correlations: Sequence[tuple[str, float]]) -> str:
    """A table for a terminal, errors in percent."""
    lines = [f"{'group':10} {'name':30} {'quantity':14} {'n':>6} {'median':>8} {'p90':>8} {'bias':>8}"]
    lines += [
        f"{e.group:10} {e.name[:30]:30} {e.quantity:14} {e.count:6d} {e.median:8.1%} {e.p90:8.1%} {e.bias:+8.1%}"
        for e in found
    ]
    lines += headline(found)
    lines += [f"rank correlation of configurations, {name}: {value:.3f}" for name, value in correlations]
    return "\n".join(lines)
