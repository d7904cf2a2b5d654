"""The virtual environments that engines of the matrix run in, beside those of ``deploy.local``; packages only.

``HEADROOM_ENGINES=FOLDER python -m tests.real.matrix.environments [NAME ...]`` makes those that are missing, all or the
named ones. Delete ``FOLDER/NAME`` to make one anew.
"""

import subprocess
import sys

from deploy.local import catalog

PACKAGES: dict[str, tuple[str, ...]] = {
    "sse": ("sse-starlette", "uvicorn"),
}


def make(name: str) -> None:
    """Make one, unless an earlier run came to its end. Raises EngineError or CalledProcessError."""
    environment = catalog.home_folder() / name
    done = environment / ".installed"
    if done.exists():
        return
    print(f"{name}: {' '.join(PACKAGES[name])}")  # noqa: T201 - a command line
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(environment)], check=True)
    pip = [str(environment / "bin/python"), "-m", "pip", "--quiet", "--disable-pip-version-check", "install"]
    subprocess.run([*pip, *PACKAGES[name]], check=True)
    done.touch()


if __name__ == "__main__":
    for wanted in sys.argv[1:] or PACKAGES:
        make(wanted)
