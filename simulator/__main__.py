"""The ``headroom-simulator`` command, and ``python -m simulator``.

What each command does is in ``simulator/commands``, one file a command; which commands there are, in its ``table.py``.
"""

import atexit
import gc
import os
import sys

from router.arguments import run
from simulator.commands.table import PROGRAM


def main() -> None:
    """The ``headroom-simulator`` command."""
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before numpy: nothing here is large enough to share
    os.environ["PYTHONSAFEPATH"] = "1"  # for processes that play: nothing in the working folder shadows a module
    gc.set_threshold(500_000, 50, 100)  # next to no cycles are made, but requests by the million
    atexit.register(gc.freeze)  # and the end is no time to look through them all
    sys.exit(run(PROGRAM, sys.argv[1:]))


if __name__ == "__main__":
    main()
