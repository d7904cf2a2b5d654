"""Processes of engines on this machine: start one, see whether it lives and is connected, end it with its children.

Linux only (/proc). A process is known by its id and the time at which it began, so that one that has got the id of
another since is not taken for it. Its children may outlive it: they are in its group, whose id the kernel gives to no
other process while one of them lives. Must not depend on why a process is started.
"""

import os
import signal
import socket
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

HOST: Final = "127.0.0.1"
_ESTABLISHED: Final = "01"
_LOG_SHOWN: Final = 300


def start(command: Sequence[str], environment: Mapping[str, str], log: Path) -> tuple[int, int]:
    """Start a process in a group of its own; its id and when it began. It outlives this one. Raises OSError."""
    output = [
        (os.POSIX_SPAWN_OPEN, 1, str(log), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600),
        (os.POSIX_SPAWN_DUP2, 1, 2),
    ]
    nothing = (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0)
    pid = os.posix_spawnp(
        command[0], list(command), {**os.environ, **environment}, file_actions=[nothing, *output], setpgroup=0
    )
    return pid, began(pid)


@dataclass(frozen=True, slots=True)
class _Status:
    """``began``: in ticks since the machine did; ``ended``: only its exit status is left."""

    group: int
    began: int
    ended: bool


def _status(pid: int | str) -> _Status | None:
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()  # the name before it may hold anything
    return _Status(int(fields[2]), int(fields[19]), fields[0] in "ZX")


def began(pid: int) -> int:
    """When that process began, in ticks since the machine did; 0: there is none, or it has ended."""
    found = _status(pid)
    return 0 if found is None or found.ended else found.began


def group_lives(pid: int, began_at: int) -> bool:
    """Whether that process lives, which began then, or one of those that it has started in its group."""
    leader = _status(pid)
    if leader is not None and leader.began != began_at:
        return False  # the id is another process's, so the group is gone
    if leader is not None and not leader.ended:
        return True
    found = (_status(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit())
    return any(each is not None and each.group == pid and not each.ended for each in found)


def reap(pid: int) -> int | None:
    """Take the exit status of a child that has ended, so that nothing of it is left; None: it lives, or is no child."""
    with suppress(ChildProcessError):
        ended, status = os.waitpid(pid, os.WNOHANG)
        return os.waitstatus_to_exitcode(status) if ended else None
    return None


def send(pid: int, number: signal.Signals) -> None:
    """Send a signal to every process of the group."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, number)


def is_free(port: int) -> bool:
    """Whether a process could listen there."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
        return True


def connections(port: int) -> int:
    """How many connections to that port are open, of whatever client."""
    ending = f":{port:04X}"
    found = 0
    for table in ("tcp", "tcp6"):
        with suppress(OSError):
            lines = Path(f"/proc/net/{table}").read_text(encoding="ascii").splitlines()[1:]
            rows = (line.split() for line in lines)
            found += sum(row[1].endswith(ending) and row[3] == _ESTABLISHED for row in rows)
    return found


def end_of(log: Path) -> str:
    """The last words of a log, for a message."""
    try:
        text = log.read_bytes()[-_LOG_SHOWN:].decode(errors="replace")
    except OSError:
        return ""
    return " | ".join(line.strip() for line in text.splitlines()[-3:] if line.strip())
