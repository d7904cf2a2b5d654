"""Processes that run cases beside this one, and that end when it ends, however that happens.

Must not depend on what they run. They are children of a fork server, so that a signal's handler here cannot end them:
Ctrl-C in a terminal reaches them too and is blocked, and each ends once this process is gone.
"""

import copyreg
import gc
import os
import signal
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import forkserver, get_context, parent_process, resource_tracker
from threading import Thread
from types import MappingProxyType
from typing import Any

_SEMAPHORES = "ignore:resource_tracker:UserWarning"  # a signal leaves some; they are removed, which is all it warns of


def _read_only(given: dict[Any, Any]) -> MappingProxyType[Any, Any]:
    return MappingProxyType(given)


def _as_dict(given: MappingProxyType[Any, Any]) -> tuple[Callable[..., Any], tuple[dict[Any, Any]]]:
    return _read_only, (dict(given),)


copyreg.pickle(MappingProxyType, _as_dict)  # facts of a card given in place are such a mapping, which does not pickle


@contextmanager
def worker_processes(count: int) -> Iterator[Executor]:
    """An executor of *count* processes."""
    _start_fork_server()
    with ProcessPoolExecutor(count, get_context("forkserver"), _began, gc.get_threshold()) as pool:
        yield pool


def _start_fork_server() -> None:
    """Started here, not at the first case: what it inherits, each of its children does."""
    sys.warnoptions.append(_SEMAPHORES)
    try:
        resource_tracker.ensure_running()  # unblocks signals, so it comes first
    finally:
        sys.warnoptions.remove(_SEMAPHORES)
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


def _began(*threshold: int) -> None:
    """In a worker, before its first case. It collects garbage as seldom as the process that started it."""
    gc.set_threshold(*threshold)
    Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None  # this is a worker
    parent.join()
    os._exit(1)
