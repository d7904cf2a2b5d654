"""``python -m simulator.background COMMAND ...``: as ``python -m simulator``, at the lowest processor priority.

For a simulation on a machine that serves traffic. The priority is lowered before anything else is imported.
"""

import os
import sys


def lower_priority() -> None:
    """Run only while no other process needs the processor (Linux), or at the lowest priority there is elsewhere."""
    if sys.platform == "linux":
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    elif hasattr(os, "nice"):
        os.nice(19)


if __name__ == "__main__":
    lower_priority()
    from simulator.__main__ import main

    main()
