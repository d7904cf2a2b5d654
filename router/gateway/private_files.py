"""The files that a gateway writes: for this user alone, since they hold keys of configs and what clients did.

Content is replaced in one step: a reader sees the old one or the new one, never a part of either. A file that is there
already keeps the rights that somebody gave it. Depends on nothing else of the project.
"""

import os
from pathlib import Path
from typing import Final

FILE_MODE: Final = 0o600
_FOLDER_MODE: Final = 0o700


def private(path: str, flags: int) -> int:
    """The opener (see ``open``) of a file that only this user may read."""
    return os.open(path, flags, FILE_MODE)


def make_folder(path: Path) -> None:
    """Make the folder, and those around it that are not there, for this user alone. Raises OSError."""
    if not path.is_dir():
        make_folder(path.parent)
        path.mkdir(mode=_FOLDER_MODE, exist_ok=True)


def replace_content(path: Path, content: bytes) -> None:
    """Make *content* the content of *path*, which only this user may read. Raises OSError.

    Nothing is synced to disk: after a power failure the file can be empty. Processes may replace the same file at once;
    the last one to finish wins.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.new")
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, FILE_MODE), "wb") as file:
        file.write(content)
    temporary.replace(path)
