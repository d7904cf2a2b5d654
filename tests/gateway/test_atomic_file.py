"""A file is replaced whole, and only its user may read it."""

import stat
from pathlib import Path

from router.gateway.atomic_file import replace_content


def test_a_reader_that_has_the_file_open_keeps_the_old_content_whole(tmp_path: Path):
    """The new content is another file under the same name."""
    path = tmp_path / "config.json"
    replace_content(path, b"old content")
    with path.open("rb") as reader:
        replace_content(path, b"new")
        assert (reader.read(), path.read_bytes()) == (b"old content", b"new")


def test_no_other_user_may_read_it_and_nothing_else_is_left(tmp_path: Path):
    """A config may hold keys."""
    path = tmp_path / "config.json"
    replace_content(path, b"a key")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [path]
