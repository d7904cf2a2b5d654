"""Which Headroom this is, and which build of it runs."""

from typing import Final

from router import compiled

VERSION: Final = "0.1.0"  # pyproject.toml has the same


def version() -> str:
    """For ``--version``."""
    return f"headroom {VERSION} ({build()})"


def build() -> str:
    """Whether compiled modules run; where they do not, what would help."""
    state = compiled.state()
    return "interpreted; `make fast` doubles the speed" if state == "interpreted" else state
