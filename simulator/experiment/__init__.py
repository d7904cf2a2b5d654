"""Experiments: cases of workload, pool, policy and seed, played one by one or many at once."""

from simulator.experiment.attaining import Attained, attained
from simulator.experiment.case import Case, bounded, figures, figures_of
from simulator.experiment.confidence import batched, interval
from simulator.experiment.differences import difference, differences, is_clear, pairs
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
from simulator.experiment.seeding import Seeding, until_narrow
from simulator.experiment.source import Source

__all__ = [
    "CLAIRVOYANT",
    "Attained",
    "Case",
    "Seeding",
    "Source",
    "admission_of",
    "attained",
    "batched",
    "bounded",
    "check_faults",
    "difference",
    "differences",
    "executor_of",
    "figures",
    "figures_of",
    "in_parallel",
    "interval",
    "is_clear",
    "pairs",
    "pool_of",
    "pools_of",
    "rate_of",
    "routing_of",
    "strategies_of",
    "until_narrow",
    "window_of",
]
