"""Faults of a pool against the time that is played: one outside of it would never happen, without a word."""

from collections.abc import Sequence

from simulator.pool import Pool
from simulator.workload.arrivals import Arrival, Workload


def check_faults(pool: Pool, arrivals: Sequence[Arrival] | Workload) -> None:
    """Raises ValueError for faults that begin after the last arrival; of loops that is not known before the run."""
    if not isinstance(arrivals, Sequence):
        return
    last_s = arrivals[-1].request.arrived_s
    late = [f"faults[{n}] ({fault.described()})" for n, fault in enumerate(pool.world.faults) if fault.at_s > last_s]
    if late:
        raise ValueError(f"pool {pool.name!r}: {', '.join(late)} after the last request, which arrives at {last_s:g} s")
