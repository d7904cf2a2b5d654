"""The command lines: in this process, and as processes of their own."""

import asyncio
import contextlib
import io
import signal
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from typing import TextIO

from router import arguments, stop_signals
from router.arguments import Program
from router.commands.table import PROGRAM as ROUTER
from router.search_path import environment, module_command
from simulator.commands.table import PROGRAM as SIMULATOR


@contextlib.asynccontextmanager
async def command(*words: str, module: str = "router") -> AsyncIterator[Process]:
    """``python -m router WORDS``, killed at the end if it is still there."""
    process = await asyncio.create_subprocess_exec(
        *module_command(module, *words), stdout=PIPE, stderr=PIPE, env=environment()
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.communicate()


@dataclass(frozen=True, slots=True)
class Result:
    """What a command line came to."""

    exit_code: int
    stdout: str
    stderr: str

    @property
    def output(self) -> str:
        """On both streams."""
        return self.stdout + self.stderr


def router_command(words: Sequence[str], stderr: TextIO | None = None) -> Result:
    """``headroom WORDS`` in this process; *stderr*: a file in place of the result's text."""
    return _ran(ROUTER, words, stderr)


def simulator_command(words: Sequence[str]) -> Result:
    """``headroom-simulator WORDS`` in this process."""
    return _ran(SIMULATOR, words)


def calibrate(words: Sequence[str]) -> int:
    """``headroom-simulator calibrate WORDS`` in this process, on its own streams; the exit status."""
    with _signals_kept():
        return arguments.run(SIMULATOR, ["calibrate", *words])


@contextlib.contextmanager
def _signals_kept() -> Iterator[None]:
    """A command installs handlers; a test's process has others."""
    kept = {number: signal.getsignal(number) for number in stop_signals.ENDING}
    try:
        yield
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)


def _ran(program: Program, words: Sequence[str], stderr: TextIO | None = None) -> Result:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(stderr or err), _signals_kept():
        try:
            status = arguments.run(program, words)
        except SystemExit as ended:
            status = ended.code if isinstance(ended.code, int) else 1
    return Result(status, out.getvalue(), err.getvalue())
