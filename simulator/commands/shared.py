"""What several commands do alike: what the user got wrong is one line, not a traceback; figures as JSON."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from router.arguments import WRONG_USE, Stop


@contextmanager
def plain_errors() -> Iterator[None]:
    """A ValueError or OSError within ends the command with its text."""
    try:
        yield
    except (ValueError, OSError) as problem:
        raise Stop(f"error: {problem}", WRONG_USE) from None


def wants_table(json_file: Path | None) -> bool:
    """Whether tables are printed: not where JSON goes to stdout."""
    return json_file is None or str(json_file) != "-"


def write_json(path: Path, facts: object) -> None:
    """To a file, or to stdout for ``-``."""
    text = json.dumps(facts, indent=2, allow_nan=False) + "\n"
    if str(path) == "-":
        sys.stdout.write(text)
    else:
        path.write_text(text, encoding="utf-8")
