"""A file that is refused: the error names the file and what was expected."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def refused(kind: type[Exception], path: Path, expected: str) -> Iterator[None]:
    """The block raises *kind*, whose message contains the path and *expected*."""
    with pytest.raises(kind) as caught:
        yield
    assert str(path) in str(caught.value)
    assert expected in str(caught.value)
