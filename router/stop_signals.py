"""SIGTERM and SIGINT end a command at any moment: one handler, from a command's first line to its last.

A command that runs until a signal ends it (``serve``, ``demo``, ``top``) ends with status 0. A command with a result
(``check``, ``replay``) dies of the signal: the shell sees 143 or 130. While no event loop runs there is nothing to
wind up but child processes, so the process kills those and is gone. In a loop (``router/event_loop.py``) the handler
calls what the command registered. Imports little: it is installed before everything else is imported.
"""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Protocol, TypeVar

Act = Callable[[int], None]
ENDING = (signal.SIGINT, signal.SIGTERM)


class Child(Protocol):
    """A child process."""

    def kill(self) -> None:
        """End it at once."""


C = TypeVar("C", bound=Child)


class _State:
    """What the handler does now. A process has one handler, so there is one of these."""

    def __init__(self) -> None:
        self.status: int | None = None  # on a signal; None: die of it
        self.acts: list[Act] = []
        self.children: set[Child] = set()
        self.starting = 0  # children that are being started
        self.waiting: int | None = None  # a signal that came meanwhile


_state = _State()


def install(status: int | None) -> None:
    """Handle both signals from now on; *status*: the exit status of a command that a signal ends, None to die of it."""
    _state.status = status
    for number in ENDING:
        signal.signal(number, _handle)


def status_of(number: int) -> int:
    """The exit status of this command when this signal ends it."""
    return 128 + number if _state.status is None else _state.status


@contextmanager
def calls(act: Act) -> Iterator[None]:
    """Within the context a signal calls *act*, in the main thread between two of its instructions."""
    _state.acts.append(act)
    try:
        yield
    finally:
        _state.acts.remove(act)


@contextmanager
def child(start: Callable[[], C]) -> Iterator[C]:
    """A child process that is killed if a signal ends this process meanwhile."""
    _state.starting += 1
    try:
        process = start()
        _state.children.add(process)
    finally:
        _state.starting -= 1
        if _state.waiting is not None and not _state.starting:
            _handle(_state.waiting, None)
    try:
        yield process
    finally:
        _state.children.discard(process)


def kill_children() -> None:
    """Kill those that ``child`` started and that still run."""
    for process in tuple(_state.children):
        with suppress(OSError):
            process.kill()


def _handle(number: int, _: object) -> None:
    if _state.acts:
        _state.acts[-1](number)
    elif _state.starting:
        _state.waiting = number
    else:
        _leave(number)


def _leave(number: int) -> None:
    """End now. No exception is raised: one that passes through an import or a finaliser is printed and lost."""
    kill_children()
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):  # closed, or in the middle of a write
            stream.flush()
    if _state.status is not None:
        os._exit(_state.status)
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
    os._exit(128 + number)  # the first process of a container does not die of signals
