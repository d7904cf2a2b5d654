"""What the running thread has used so far: CPU time, and how often it waited.

Tells apart what a call computes or waits for from what it loses because the machine runs something else meanwhile.
"""

import sys
from itertools import count
from time import thread_time

Usage = tuple[float, int]
"""CPU seconds; voluntary context switches: what ran while they grew has waited."""

if sys.platform == "linux":
    import resource

    def usage() -> Usage:
        """Of this thread."""
        return thread_time(), resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw

else:  # unknown: everything counts as something that waited
    _waits = count().__next__

    def usage() -> Usage:
        """Of this thread."""
        return thread_time(), _waits()


def own_s(took_s: float, before: Usage, after: Usage) -> float:
    """Of *took_s* by the wall clock, what is due to the code that ran: what it computed; all of it where it waited."""
    return took_s if after[1] > before[1] else min(took_s, after[0] - before[0])
