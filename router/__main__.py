"""The ``headroom`` command, and ``python -m router``.

What each command does is in ``router/commands``, one file a command; which commands there are, in its ``table.py``.
"""

import sys

from router.arguments import run
from router.commands.table import PROGRAM


def main() -> None:
    """The ``headroom`` command."""
    sys.exit(run(PROGRAM, sys.argv[1:]))


if __name__ == "__main__":
    main()
