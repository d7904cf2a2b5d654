"""Lines to files and pipes that somebody else moves, empties, fills or does not read."""

import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from router.gateway.telemetry.line_sink import LineSink


def wait(condition: Callable[[], object]) -> None:
    """Until *condition* holds; the sink's own thread makes it so."""
    end_s = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end_s
        time.sleep(0.001)


def test_lines_are_appended_in_their_order(tmp_path: Path) -> None:
    """Behind what was there, and all of them at the end."""
    path = tmp_path / "logs/access.log"
    path.parent.mkdir()
    path.write_bytes(b"before\n")
    sink = LineSink(path)
    for number in range(5_000):
        sink.write(b"%d\n" % number)
    sink.close()
    assert path.read_bytes() == b"before\n" + b"".join(b"%d\n" % number for number in range(5_000))
    assert sink.dropped == 0


def test_a_file_that_was_moved_is_opened_anew(tmp_path: Path) -> None:
    """As logrotate does it without copytruncate: no signal is needed."""
    path, moved = tmp_path / "access.log", tmp_path / "access.log.1"
    sink = LineSink(path, at_once=True)
    sink.write(b"first\n")
    sink.flush()
    path.rename(moved)
    sink.write(b"second\n")
    sink.close()
    assert (moved.read_bytes(), path.read_bytes()) == (b"first\n", b"second\n")


def test_a_file_that_was_emptied_goes_on_at_its_begin(tmp_path: Path) -> None:
    """As logrotate's copytruncate does it: no hole is left behind."""
    path = tmp_path / "access.log"
    sink = LineSink(path, at_once=True)
    sink.write(b"first\n")
    sink.flush()
    os.truncate(path, 0)
    sink.write(b"second\n")
    sink.close()
    assert path.read_bytes() == b"second\n"


def test_a_reader_that_does_not_read_costs_lines_and_no_time() -> None:
    """A full pipe: the writer never waits, what has no room is counted, and what was taken comes once it is read."""
    reader, writer = os.pipe()
    sink = LineSink(writer, at_once=True, lines_max=100)
    line = b"x" * 1_023 + b"\n"
    for _ in range(1_000):  # more than a pipe and the sink hold
        sink.write(line)
    assert sink.dropped > 0
    got = 0
    os.set_blocking(reader, False)

    def drained() -> bool:
        nonlocal got
        with suppress(BlockingIOError):
            got += len(os.read(reader, 1 << 20))
        return got == (1_000 - sink.dropped) * len(line)

    wait(drained)
    sink.close()
    os.close(writer)
    os.close(reader)


def test_lines_to_a_pipe_are_not_mixed_with_those_of_others() -> None:
    """Each write is at most what a pipe takes at once, and of whole lines."""
    sizes = [1_500, 1_500, 1_500, 6_000, 10]
    reader, writer = os.pipe()
    sink = LineSink(writer)
    pieces = sink._pieces([b"y" * (size - 1) + b"\n" for size in sizes])
    assert [(count, len(piece)) for count, piece in pieces] == [(2, 3_000), (1, 1_500), (1, 6_000), (1, 10)]
    sink.close()
    os.close(writer)
    os.close(reader)


def test_a_disk_without_room_is_reported_once_and_counted() -> None:
    """/dev/full takes nothing; what works again is reported too."""
    seen: list[bool] = []
    device = os.open("/dev/full", os.O_WRONLY)
    sink = LineSink(device, at_once=True, changed=lambda error: seen.append(error is not None))
    for _ in range(3):
        sink.write(b"lost\n")
        sink.flush()
    assert (sink.dropped, seen) == (3, [True])
    good = os.open("/dev/null", os.O_WRONLY)
    os.dup2(good, device)
    sink.write(b"kept\n")
    sink.close()
    assert (sink.dropped, seen) == (3, [True, False])
    os.close(good)
    os.close(device)
