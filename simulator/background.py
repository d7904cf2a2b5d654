"""``python -m simulator.background COMMAND ...``: as ``python -m simulator``, at a low processor priority.

For a simulation on a machine that serves traffic. The priority is lowered before anything else is imported.
"""

import os
import sys

_CAP_SYS_NICE = 1 << 23
_NICE_VALUES = 20  # RLIMIT_NICE that allows nice 0


def lower_priority() -> None:
    """Run only while no other process needs the processor, where the one that waits can raise that later; elsewhere
    with a tenth of the share of others.

    On a machine that is never idle, a process of SCHED_IDLE gets three thousandths of a core.
    """
    if sys.platform == "linux" and _can_be_raised():
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    elif hasattr(os, "nice"):
        os.nice(10)


def _can_be_raised() -> bool:
    """Whether the kernel lets a process of this user leave SCHED_IDLE again."""
    import resource  # noqa: PLC0415 - POSIX alone has it

    with open("/proc/self/status", encoding="utf-8") as status:
        capabilities = next((int(line.split()[1], 16) for line in status if line.startswith("CapEff:")), 0)
    return bool(capabilities & _CAP_SYS_NICE) or resource.getrlimit(resource.RLIMIT_NICE)[0] >= _NICE_VALUES


if __name__ == "__main__":
    lower_priority()
    from simulator.__main__ import main

    main()
