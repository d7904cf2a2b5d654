"""``python -m simulator.aside COMMAND ...``: the same as ``python -m simulator``, with whatever processor time is left.

For a simulation on a machine that serves traffic: from its first import on it yields to everything else.
"""

import os
import sys


def yield_to_all() -> None:
    """Take the processor only while nobody else wants it (Linux), or as seldom as can be asked for."""
    if sys.platform == "linux":
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    elif hasattr(os, "nice"):
        os.nice(19)


if __name__ == "__main__":
    yield_to_all()
    from simulator.__main__ import main

    main()
