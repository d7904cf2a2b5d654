"""Runs a command's coroutine: on uvloop, to its end or to a signal's.

A signal cancels the coroutine, wherever it is, so ``finally`` clauses wind up. What has a gentler end, such as a
server that drains, takes the signal for a while with ``on_signal``.
"""

import asyncio
import sys
from collections.abc import Callable, Coroutine
from contextlib import AbstractContextManager
from typing import Any

from router import stop_signals


def run(work: Coroutine[Any, Any, None]) -> None:
    """Run to the end. Raises SystemExit with the command's status when a signal cut the work short."""
    ended_by: list[int] = []

    async def cancellable() -> None:
        task = asyncio.current_task()
        assert task is not None  # a coroutine runs in one

        def cancel(number: int) -> None:
            ended_by.append(number)
            task.cancel()

        with on_signal(cancel):
            try:
                await work
            finally:
                stop_signals.kill_children()  # a thread that waits for one would keep the loop from closing

    try:
        with asyncio.Runner(loop_factory=_factory()) as runner:
            runner.run(cancellable())
    except asyncio.CancelledError:
        if not ended_by:
            raise
        raise SystemExit(stop_signals.status_of(ended_by[-1])) from None


def on_signal(act: Callable[[int], None]) -> AbstractContextManager[None]:
    """Within the context, a signal calls *act* in the running loop and does nothing else."""
    loop = asyncio.get_running_loop()
    return stop_signals.calls(lambda number: _soon(loop, act, number))


def _soon(loop: asyncio.AbstractEventLoop, act: Callable[[int], None], number: int) -> None:
    loop.call_soon_threadsafe(act, number)


def _factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop's: half the CPU a streamed token. There is none on Windows."""
    if sys.platform == "win32":
        return None
    from uvloop import new_event_loop  # noqa: PLC0415 - there is none on Windows

    return new_event_loop
