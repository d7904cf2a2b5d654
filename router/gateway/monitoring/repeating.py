"""An act that is done again and again, about every period, with nothing but a timer in between.

A task that sleeps holds kilobytes, and a thousand engines would have some thousands of them. Acts that are started
together begin one after another, at most so many a second, and no more than so many run at once: connections to a
thousand engines that are opened in one turn of the event loop stop every stream for as long. Must not depend on what
the act does; one that fails by a fault is logged and done again.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from random import uniform
from typing import Final

JITTER: Final = 0.1  # of the period: routers started together shall not probe together
STARTS_A_S: Final = 1_000  # of acts that are started together
AT_ONCE: Final = 512  # that run: where a whole fleet does not answer, each waits for its time limit
_log = logging.getLogger("headroom")


def start_s(number: int) -> float:
    """How long the act of this number, of those that are started together, waits before its first time."""
    return number / STARTS_A_S


class Repeated:
    """One act, from ``start`` to ``stop``. A task is there only while it runs, or waits for others to end."""

    __slots__ = ("_act", "_name", "_period_s", "_places", "_stopped", "_task", "_timer")

    def __init__(
        self, act: Callable[[], Awaitable[None]], period_s: float, name: str, places: asyncio.Semaphore
    ) -> None:
        """``places``: one is taken while the act runs; ``name``: of its task, and for the log."""
        self._act, self._period_s, self._name, self._places = act, period_s, name, places
        self._timer: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None
        self._stopped = False

    def start(self, delay_s: float) -> None:
        """Do it for the first time in so long, without delay at once."""
        if delay_s > 0.0:
            self._timer = asyncio.get_running_loop().call_later(delay_s, self._begin)
        else:
            self._begin()

    def _begin(self) -> None:
        self._timer = None
        self._task = asyncio.get_running_loop().create_task(self._once(), name=self._name)
        self._task.add_done_callback(self._ended)

    async def _once(self) -> None:
        async with self._places:
            await self._act()

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._task = None
        if self._stopped:
            return
        if not task.cancelled() and (fault := task.exception()) is not None:
            _log.error("%s: failed by a fault of this router; it is done again", self._name, exc_info=fault)
        wait_s = self._period_s * uniform(1 - JITTER, 1 + JITTER)
        self._timer = asyncio.get_running_loop().call_later(wait_s, self._begin)

    async def stop(self) -> None:
        """Do it no more; one that runs is cancelled, and has ended. The act itself may call this: it ends by itself."""
        self._stopped = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if (task := self._task) is not None and task is not asyncio.current_task():
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
