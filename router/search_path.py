"""Where modules come from: where this package was found, never the folder that a command happens to run in.

``python -m`` puts the working folder first on ``sys.path``; a ``policies/``, ``simulator.py`` or ``random.py`` that
lies there would stand in for the real one. Imports nothing that such a file could stand in for. A ``router/`` there
is found instead of this package and cannot be helped from here: that is what the command ``headroom`` is for.
"""

import os
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def leave_working_folder() -> None:
    """While ``python -m`` looks a module up (``sys.argv`` shows that), take off ``sys.path`` what it put there."""
    if sys.argv[:1] == ["-m"] and not sys.flags.safe_path and sys.path[0] != ROOT:
        del sys.path[0]
        sys.argv[0] = ""  # once


def module_command(module: str, *arguments: str) -> tuple[str, ...]:
    """The command of a child process that runs one of our modules; to be started with ``environment``."""
    return (sys.executable, "-P", "-m", module, *arguments)


def environment(**more: str) -> dict[str, str]:
    """The environment of a child process that imports from where this one does."""
    folders = [folder for folder in sys.path if folder]
    if ROOT not in folders:
        folders.insert(0, ROOT)
    return {**os.environ, "PYTHONPATH": os.pathsep.join(folders), "PYTHONSAFEPATH": "1", **more}
