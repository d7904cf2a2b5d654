"""What several commands do alike: what the user got wrong is one line, not a traceback."""

from collections.abc import Iterator
from contextlib import contextmanager

from router.arguments import WRONG_USE, Stop


@contextmanager
def plain_errors() -> Iterator[None]:
    """A ValueError or OSError within ends the command with its text."""
    try:
        yield
    except (ValueError, OSError) as problem:
        raise Stop(f"error: {problem}", WRONG_USE) from None
