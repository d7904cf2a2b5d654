"""What a gateway writes is for its user alone, and a file is replaced whole."""

import os
import stat
from pathlib import Path

from router.gateway.private_files import make_folder, private, replace_content
from router.gateway.rollout.audit import Audit
from router.gateway.rollout.versions import Versions
from router.gateway.telemetry.recorder import Recorder


def mode(path: Path) -> int:
    """Who may do what with it."""
    return stat.S_IMODE(path.stat().st_mode)


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
    assert mode(path) == 0o600
    assert list(tmp_path.iterdir()) == [path]


def test_record_audit_log_history_and_their_folders_are_for_this_user_alone(tmp_path: Path):
    """Whatever the umask allows; a file that was there keeps the rights that somebody gave it."""
    usual = os.umask(0)
    try:
        recorder = Recorder(tmp_path / "a" / "b" / "record.jsonl", 4096, {"seed": 1})
        for _ in range(200):  # over the bound, so that it begins another file
            recorder.write({"event": "x" * 50})
        recorder.close()
        audit = Audit()
        audit.file = tmp_path / "audit.jsonl"
        audit.note("serves")
        Versions(2, tmp_path / "c" / "history")
    finally:
        os.umask(usual)
    written = [path for path in sorted(tmp_path.rglob("*")) if path.is_file()]
    assert [path.name for path in written] == ["record.jsonl", "record.jsonl.1", "audit.jsonl"]
    assert {mode(path) for path in written} == {0o600}
    assert {mode(path) for path in tmp_path.rglob("*") if path.is_dir()} == {0o700}
    (tmp_path / "audit.jsonl").chmod(0o640)
    audit.note("serves")
    assert mode(tmp_path / "audit.jsonl") == 0o640


def test_a_folder_that_is_there_is_left_as_it_is(tmp_path: Path):
    """It may be a mounted one."""
    tmp_path.chmod(0o750)
    make_folder(tmp_path)
    assert mode(tmp_path) == 0o750
    with open(tmp_path / "new", "w", opener=private) as file:
        file.write("x")
    assert mode(tmp_path / "new") == 0o600
