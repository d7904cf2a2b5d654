"""Which of several autoscalers applies advice: the one that holds a lease.

The lease counts from before it was requested, so that the holder stops before another may begin, whatever the delay of
the answer. Must not depend on where the lease is kept: shared state and Kubernetes each have one.
"""

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from math import inf
from time import monotonic
from typing import Final, Protocol

from router.core.errors import LeaseGone

_log = logging.getLogger("headroom")
_RENEWALS: Final = 3  # in the time of one lease


class Lease(Protocol):
    """A lease that one holder at a time has. Each call ends in bounded time and may raise LeaseGone."""

    async def take(self, lease_s: float) -> bool:
        """Take or renew it; whether it is held."""
        ...

    async def release(self) -> None:
        """Give it back where it is held."""
        ...

    async def close(self) -> None:
        """Release what it needs; never raises."""
        ...


class Election:
    """Whether this autoscaler applies advice."""

    def __init__(
        self,
        lease: Lease | None = None,
        lease_s: float = inf,
        clock: Callable[[], float] = monotonic,
        alone: Callable[[], bool] = lambda: True,
    ) -> None:
        """``alone``: whether it does without a lease: the only one always, of several workers the first."""
        self._lease, self._lease_s, self._clock, self._alone = lease, lease_s, clock, alone
        self._until_s = -inf
        self.terms = 0  # how often the lease has come to this one: between two terms another may have had it

    def holds(self) -> bool:
        """Whether this one applies advice now."""
        return self._alone() if self._lease is None else self._clock() < self._until_s

    async def renew(self) -> None:
        """Take or renew the lease once. Without an answer it ends when it would have ended."""
        if self._lease is None:
            return
        asked_s, held = self._clock(), self.holds()
        try:
            taken = await self._lease.take(self._lease_s)
        except LeaseGone as error:
            _log.warning("the autoscaler's lease cannot be renewed: %s", error)
            return
        self._until_s = asked_s + self._lease_s if taken else -inf
        self.terms += taken and not held
        if self.holds() != held:
            _log.info("this autoscaler %s", "applies advice from now" if self.holds() else "applies no advice from now")

    async def run(self) -> None:
        """Keep renewing until cancelled."""
        while self._lease is not None:
            await self.renew()
            await asyncio.sleep(self._lease_s / _RENEWALS)

    async def close(self) -> None:
        """Give the lease back, so that another need not wait for its end; without time left it just ends."""
        if self._lease is None:
            return
        left_s, self._until_s = self._until_s - self._clock(), -inf
        if left_s > self._lease_s / _RENEWALS:
            with suppress(LeaseGone):
                await self._lease.release()
        await self._lease.close()
