"""Signals: what an engine reports of itself for policies to read. One file here is one signal; see ``signal.py``.

A signal has a live reading and a simulated one, or it cannot be made: what policies read in a simulation is what they
read in production. Everything between engine and policy (metrics page, report, JSON, record, boundary check, ledger,
simulator, emulated engine) goes through the registry and names no signal. Must not depend on the rest of the core.
"""

from router.core.signals.registry import in_order, names, registered, row_count, row_of, rows, simulated
from router.core.signals.signal import (
    Computed,
    Gauge,
    Page,
    Ratio,
    Reading,
    Sample,
    Share,
    Signal,
    SimulatedEngine,
    Value,
    value_since,
)

__all__ = [
    "Computed",
    "Gauge",
    "Page",
    "Ratio",
    "Reading",
    "Sample",
    "Share",
    "Signal",
    "SimulatedEngine",
    "Value",
    "in_order",
    "names",
    "registered",
    "row_count",
    "row_of",
    "rows",
    "simulated",
    "value_since",
]
