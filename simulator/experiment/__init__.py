"""Experiments: cases of workload, pool, policy and seed, played one by one or many at once."""

from simulator.experiment.case import Case, bounded, figures, figures_of
from simulator.experiment.confidence import batched, interval
from simulator.experiment.faults import check_faults
from simulator.experiment.options import (
    CLAIRVOYANT,
    admission_of,
    pool_of,
    pools_of,
    rate_of,
    routing_of,
    strategies_of,
    window_of,
)
from simulator.experiment.parallel import executor_of, in_parallel
from simulator.experiment.source import Source

__all__ = [
    "CLAIRVOYANT",
    "Case",
    "Source",
    "admission_of",
    "batched",
    "bounded",
    "check_faults",
    "executor_of",
    "figures",
    "figures_of",
    "in_parallel",
    "interval",
    "pool_of",
    "pools_of",
    "rate_of",
    "routing_of",
    "strategies_of",
    "window_of",
]
