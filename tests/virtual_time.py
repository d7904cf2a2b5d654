"""An asyncio event loop whose time goes on only when nothing else is left to do: no test on it waits."""

import asyncio
from heapq import heappop


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """For code without sockets and threads. After ``asyncio.sleep`` in a test, everything due by then has run."""

    def __init__(self) -> None:
        super().__init__()
        self._now_s = 0.0

    def time(self) -> float:
        return self._now_s

    def _run_once(self) -> None:
        while self._scheduled and self._scheduled[0]._cancelled:
            heappop(self._scheduled)._scheduled = False
            self._timer_cancelled_count -= 1
        if not self._ready and self._scheduled:
            self._now_s = max(self._now_s, self._scheduled[0]._when)
        super()._run_once()
