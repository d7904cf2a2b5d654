"""An act that is done again and again, about every period, with nothing but a timer in between.

A task that sleeps holds kilobytes, and a thousand engines would have some thousands of them. Acts that are started
together begin one after another, at most so many a second, and no more than so many run at once, nor begin in one turn
of the event loop: connections to a thousand engines that are opened in one turn stop every stream for as long, as where
the process stood still and all timers are due. Must not depend on what the act does; one that fails by a fault is
logged and done again.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from random import uniform
from typing import Final

JITTER: Final = 0.1  # of the period: routers started together shall not probe together
STARTS_A_S: Final = 1_000  # of acts that are started together
AT_ONCE: Final = 512  # that run: where a whole fleet does not answer, each waits for its time limit
A_TURN: Final = 16  # that begin in one turn of the event loop: some milliseconds
_log = logging.getLogger("headroom")


def start_s(number: int) -> float:
    """How long the act of this number, of those that are started together, waits before its first time."""
    return number / STARTS_A_S


class Places(asyncio.Semaphore):
    """For how many acts there is room at once, and those that are due, which begin a few in each turn."""

    def __init__(self, at_once: int = AT_ONCE) -> None:
        super().__init__(at_once)
        self._due: deque[Callable[[], None]] = deque()

    def begin(self, act: Callable[[], None]) -> None:
        """Call it in this turn of the event loop or one soon after."""
        if not self._due:
            asyncio.get_running_loop().call_soon(self._turn)
        self._due.append(act)

    def _turn(self) -> None:
        for _ in range(min(A_TURN, len(self._due))):
            self._due.popleft()()
        if self._due:
            asyncio.get_running_loop().call_soon(self._turn)


class Repeated:
    """One act, from ``start`` to ``stop``. A task is there only while it runs, or waits for others to end."""

    __slots__ = ("_act", "_name", "_period_s", "_places", "_stopped", "_task", "_timer")

    def __init__(self, act: Callable[[], Awaitable[None]], period_s: float, name: str, places: Places) -> None:
        """``places``: one is taken while the act runs; ``name``: of its task, and for the log."""
        self._act, self._period_s, self._name, self._places = act, period_s, name, places
        self._timer: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None
        self._stopped = False

    def start(self, delay_s: float) -> None:
        """Do it for the first time in so long, without delay at once."""
        if delay_s > 0.0:
            self._timer = asyncio.get_running_loop().call_later(delay_s, self._is_due)
        else:
            self._is_due()

    def _is_due(self) -> None:
        self._timer = None
        self._places.begin(self._begin)

    def _begin(self) -> None:
        if self._stopped:
            return
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
        self._timer = asyncio.get_running_loop().call_later(wait_s, self._is_due)

    async def stop(self) -> None:
        """Do it no more; one that runs is cancelled, and has ended. The act itself may call this: it ends by itself."""
        self._stopped = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if (task := self._task) is not None and task is not asyncio.current_task():
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
