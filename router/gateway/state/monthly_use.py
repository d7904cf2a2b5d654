"""The loop that adds what tenants used to the sums of the month in the shared state, and reads them back.

While the store is away quotas of a month go by what was read last and what this router used since, and what was used is
added later. An addition whose answer was lost is looked up before it is made again. Must not depend on what a quota is.
"""

import asyncio
import logging
import secrets
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Final, Protocol

from router.core.errors import StoreGone
from router.core.quota import Quotas, Use

_log = logging.getLogger("headroom")
PERIOD_S: Final = 1.0


class UseStore(Protocol):
    """What is needed of the store: see RedisStore. Each raises StoreGone."""

    async def add_use(self, month: str, addition: str, used: Mapping[str, Use]) -> None:
        """Add to the sums of a month."""
        ...

    async def last_addition(self, month: str) -> str:
        """The name of this router's last one."""
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
        self._sent: tuple[str, str, Mapping[str, Use]] | None = None  # month, name and content of an addition under way
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
        try:
            await self._look_up()
            await self._exchange()
        except StoreGone as gone:
            if not self._failing:
                _log.warning("the use of quotas could not be added up in the shared state, it is added later: %s", gone)
            self._failing = True
            return False
        self._failing = False
        return True

    async def _look_up(self) -> None:
        """Whether the addition whose answer was lost has been made."""
        if self._sent is None:
            return
        month, name, added = self._sent
        if await self._store.last_addition(month) == name:
            self._quotas.added(added)
        self._sent = None

    async def _exchange(self) -> None:
        month, used = self._month(), self._quotas.unsaved()
        if used:
            self._count += 1
            self._sent = (month, f"{self._run_id}-{self._count}", used)
            await self._store.add_use(*self._sent)
            self._sent = None
            self._quotas.added(used)
        self._quotas.read(await self._store.used(month, self._quotas.summed))
