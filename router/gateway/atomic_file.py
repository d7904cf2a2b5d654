"""Replaces a file's content in one step: a reader sees the old content or the new one, never a part of either.

Depends on nothing else of the project.
"""

import os
from pathlib import Path


def replace_content(path: Path, content: bytes) -> None:
    """Make *content* the content of *path*, which only this user may read. Raises OSError.

    Nothing is synced to disk: after a power failure the file can be empty. Processes may replace the same file at once;
    the last one to finish wins.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.new")
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(content)
    temporary.replace(path)
