"""The loop that adds what tenants used to the sums of the month in the shared state, and reads them back.

While the store is away quotas of a month go by what was read last and what this router used since, and what was used is
added later; a month ends all the same. An addition whose answer was lost is sent again as it was: the store makes it
once. Must not depend on what a quota is.
"""

import asyncio
import logging
import secrets
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Final, Protocol

from router.core.errors import StoreGone
from router.core.quota import ADDITION_MOST, Quotas, Use

_log = logging.getLogger("headroom")
PERIOD_S: Final = 1.0


class UseStore(Protocol):
    """What is needed of the store: see RedisStore. Each raises StoreGone."""

    async def add_use(self, month: str, run: str, number: int, used: Mapping[str, Use]) -> None:
        """Add to the sums of a month, once for each number of a run."""
        ...

    async def used(self, month: str, accounts: Sequence[str]) -> Mapping[str, Use]:
        """The sums of a month."""
        ...


def utc_month() -> str:
    """The month that quotas count in: ``2026-11``."""
    return datetime.now(UTC).strftime("%Y-%m")


class MonthlyUse:
    """Passes use between the accounts of this router and the store."""

    def __init__(self, store: UseStore, quotas: Quotas, month: Callable[[], str] = utc_month) -> None:
        self._store, self._quotas, self._month = store, quotas, month
        self._run_id = secrets.token_hex(8)
        self._count = 0
        self._sent: tuple[str, Mapping[str, Use]] | None = None  # month and content of an addition under way
        self._failing = False

    async def run(self) -> None:
        """Do so until cancelled."""
        while True:
            await self.once()
            await asyncio.sleep(PERIOD_S)

    async def once(self) -> bool:
        """One round; False where the store did not answer."""
        if not self._quotas.active:
            return True
        self._quotas.turn(self._month())
        try:
            while await self._add():
                pass
            await self._read()
        except StoreGone as gone:
            if not self._failing:
                _log.warning("the use of quotas could not be added up in the shared state, it is added later: %s", gone)
            self._failing = True
            return False
        self._failing = False
        return True

    async def _add(self) -> bool:
        """Add the next of what has been used; whether there may be more: of an earlier month, of what was under way, of
        further accounts than one addition has.
        """
        again = self._sent is not None
        if self._sent is None:
            due = self._quotas.unsaved()
            if not due[1]:
                return False
            self._count += 1
            self._sent = due
        month, used = self._sent
        await self._store.add_use(month, self._run_id, self._count, used)
        self._sent = None
        self._quotas.added(month, used)
        return again or month != self._quotas.month or len(used) == ADDITION_MOST

    async def _read(self) -> None:
        month = self._quotas.month
        sums = await self._store.used(month, self._quotas.summed)
        if month == self._quotas.month:
            self._quotas.read(sums)
