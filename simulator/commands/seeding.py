"""The seeds of a command line. Apart from ``shared``, which an emulated engine imports: it must start quickly."""

from argparse import Namespace
from math import inf

from simulator.experiment import Seeding


def seeding_of(options: Namespace) -> Seeding:
    """The seeds that a command line describes."""
    return Seeding(options.seeds, inf if options.half_width is None else options.half_width, options.seeds_most)
