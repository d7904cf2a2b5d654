"""Starting, pinning and ending engines, each a process group of its own.

vLLM's EngineCore and Worker spin while a request runs. Sharing a core with them, API servers, the gateway and the load
client see a whole reply in one read. So the upper half of the cores is for what computes and the lower half for what
serves; a gateway and a load client that measure them belong on the lower half (`RIM_CPUS`) too.
"""

import contextlib
import os
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path

from .catalog import ENGINES, HOST, Engine, EngineError

START_S = 900.0  # a cold vLLM imports PyTorch three to five times: 25 s on idle cores, minutes on busy ones
STOP_S = 5.0
CPUS = sorted(os.sched_getaffinity(0))
RIM_CPUS = CPUS[: max(1, len(CPUS) // 2)]
ENGINE_CPUS = CPUS[len(CPUS) // 2 :]


@dataclass(slots=True)
class Running:
    """One started engine: its process group, its log, how long it took to answer."""

    engine: Engine
    process: subprocess.Popen[bytes]
    log: Path
    started_s: float
    ready_after_s: float = 0.0

    @property
    def alive(self) -> bool:
        """Whether the engine's first process still runs."""
        return self.process.poll() is None

    def check_ready(self) -> bool:
        """True once the engine answers; then its processes are pinned to their cores.

        Raises EngineError, with the end of its log, when it died instead.
        """
        if not self.alive:
            raise EngineError(f"{self.engine.name} ended with status {self.process.returncode}\n{tail(self.log)}")
        if not answers(self.engine):
            return False
        self.ready_after_s = time.monotonic() - self.started_s
        self.pin()
        return True

    def pin(self) -> None:
        """Put what computes and what serves on cores of their own."""
        set_affinity(self.process.pid, RIM_CPUS if self.engine.serving_root else ENGINE_CPUS)
        for pid in descendants(self.process.pid):
            set_affinity(pid, ENGINE_CPUS)

    def stop(self) -> None:
        """End the whole group: SIGTERM, then SIGKILL (vLLM waits for its clients for ever, its orphans would spin)."""
        self.signal_group(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(STOP_S)
        self.signal_group(signal.SIGKILL)
        self.process.wait()

    def signal_group(self, number: signal.Signals) -> None:
        """Send *number* to every process of the engine that is left."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)


def start(engine: Engine, home: Path) -> Running:
    """Start *engine* from the installation in *home*; it is not ready yet.

    Raises EngineError when it is not installed or one of its ports is taken.
    """
    if reason := engine.missing(home):
        raise EngineError(reason)
    for port in engine.ports:
        if listens(port):
            raise EngineError(f"{engine.name}: port {port} is taken; end what listens there first")
    log = home / "logs" / f"{engine.name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    process = _spawn(engine, home, log)
    with contextlib.suppress(ProcessLookupError):
        os.sched_setaffinity(process.pid, CPUS)  # start on all cores, even where the caller has pinned itself
    return Running(engine, process, log, time.monotonic())


def _spawn(engine: Engine, home: Path, log: Path) -> subprocess.Popen[bytes]:
    env = {**os.environ, **engine.env(home)}
    with log.open("wb") as out:
        # `python -m` looks into the working folder first: it must hold no folder that is named like a module (triton).
        # A group and no session of its own: Linux shares a core out by session first, and an engine that spins while it
        # waits was not run for up to a minute while another computed in a session of its own.
        return subprocess.Popen(engine.command(home), cwd=log.parent, env=env, stdout=out, stderr=out, process_group=0)


def wait_ready(started: Sequence[Running], timeout_s: float = START_S) -> None:
    """Wait until all of *started* answer.

    Raises EngineError when one dies or does not answer within *timeout_s*.
    """
    deadline_s = time.monotonic() + timeout_s
    waiting = list(started)
    while waiting := [running for running in waiting if not running.check_ready()]:
        if time.monotonic() > deadline_s:
            late = waiting[0]
            raise EngineError(f"{late.engine.name} did not answer within {timeout_s:.0f} s\n{tail(late.log)}")
        time.sleep(0.1)


@contextlib.contextmanager
def up(names: Sequence[str], home: Path) -> Iterator[list[Running]]:
    """The named engines, ready; all of them end with the block, and also when one of them fails to start."""
    with contextlib.ExitStack() as ends:
        started = []
        for name in names:
            started.append(start(ENGINES[name], home))
            ends.callback(started[-1].stop)
        wait_ready(started)
        yield started


def there(names: Sequence[str], home: Path) -> contextlib.AbstractContextManager[list[Running]]:
    """The named engines, ready: those that answer already are taken as they are, the others are as ``up`` has them."""
    return up([name for name in names if not answers(ENGINES[name])], home)


def answers(engine: Engine) -> bool:
    """Whether the engine says that it is ready."""
    return http_ok(engine.url + engine.ready_path) if engine.ready_path else redis_ok(engine.ports[0])


def http_ok(url: str) -> bool:
    """Whether a GET of *url* gives 200 within a second."""
    try:
        with urllib.request.urlopen(url, timeout=1.0) as reply:
            return bool(reply.status == HTTPStatus.OK)
    except OSError:
        return False


def redis_ok(port: int) -> bool:
    """Whether a Redis on *port* answers PING."""
    try:
        with socket.create_connection((HOST, port), 1.0) as connection:
            connection.sendall(b"PING\r\n")
            return connection.recv(64).startswith(b"+PONG")
    except OSError:
        return False


def listens(port: int) -> bool:
    """Whether something accepts connections on *port* of this machine."""
    with socket.socket() as probe:
        probe.settimeout(1.0)
        return probe.connect_ex((HOST, port)) == 0


def descendants(pid: int) -> list[int]:
    """Children of *pid*, their children, and so on, from /proc."""
    found: list[int] = []
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            for child in map(int, children.read_text().split()):
                found += [child, *descendants(child)]
    return found


def set_affinity(pid: int, cpus: Sequence[int]) -> None:
    """Bind every thread of process *pid* to *cpus*; threads that have just ended are skipped."""
    for thread in Path(f"/proc/{pid}/task").glob("*"):
        with contextlib.suppress(ProcessLookupError):
            os.sched_setaffinity(int(thread.name), cpus)


def pin_client() -> None:
    """Put the calling process, a load client or what starts one, on the cores that are not the engines'."""
    set_affinity(os.getpid(), RIM_CPUS)


def tail(log: Path, lines: int = 15) -> str:
    """The path of *log* and its last lines, for a message."""
    return "\n".join([f"  {log}:", *log.read_text(errors="replace").splitlines()[-lines:]])
