"""Backends that announce themselves through the shared state (``headroom register`` beside each engine).

An engine is taken away when its record says that it ends, or when its record has not been renewed for its lease while
the shared state could be read. The time in which it could not be read counts for nobody, and a state that was lost and
comes back empty leaves each engine a whole lease to announce itself again.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from time import monotonic
from typing import Any, Final

from router.core.errors import SourceFailed, StoreGone
from router.gateway.sources.endpoint import ENDPOINTS_MAX, Endpoint, Source
from router.gateway.sources.engine_record import EngineRecord, hash_key, read
from router.gateway.state.redis_clients import Command
from router.gateway.state.redis_link import RedisLink
from router.gateway.state.servers import RedisServers

FORGET_LEASES: Final = 10  # after so many without a renewal a record is removed


@dataclass(frozen=True, slots=True)
class _Seen:
    """The record of an engine, and the first successful reading at which it was as it is."""

    record: EngineRecord
    since_s: float


class RegisteredEngines(Source):
    """The engines of one pool."""

    def __init__(
        self,
        servers: RedisServers,
        pool: str,
        period_s: float,
        timeout_s: float,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        """Opens nothing yet. ``period_s``: of readings."""
        self._servers, self._key = servers, hash_key(pool)
        self._period_s, self._timeout_s, self._clock = period_s, timeout_s, clock
        self._seen: dict[str, _Seen] = {}  # those that are alive; kept while the state is away
        self._ended: dict[str, _Seen] = {}  # those whose last record is still there

    async def sets(self) -> AsyncGenerator[tuple[Endpoint, ...], None]:
        """Whenever an engine comes, changes or goes."""
        link, last = RedisLink(self._servers, self._key, self._timeout_s), None
        now_s = self._clock()
        self._seen = {name: _Seen(seen.record, now_s) for name, seen in self._seen.items()}
        try:
            while True:
                now = self._taken(await self._read(link))
                if now != last:
                    last = now
                    yield now
                await asyncio.sleep(self._period_s)
        finally:
            await link.close()

    async def _read(self, link: RedisLink) -> dict[str, EngineRecord]:
        try:
            *_, answer = await link.run([*self._forgetting(), ("HGETALL", self._key)])
        except StoreGone as gone:
            raise SourceFailed(str(gone)) from None
        if isinstance(answer, Exception):
            raise SourceFailed(f"{self._key}: {answer}")
        records = (read(name, value) for name, value in _pairs(answer)[: 2 * ENDPOINTS_MAX])
        return {record.endpoint.name: record for record in records if record is not None}

    def _forgetting(self) -> list[Command]:
        """Removes records that have not been renewed for long; an engine that is there after all writes another."""
        now_s = self._clock()
        old = [name for name, seen in self._ended.items() if now_s - seen.since_s > FORGET_LEASES * seen.record.ttl_s]
        return [("HDEL", self._key, name) for name in old]

    def _taken(self, records: dict[str, EngineRecord]) -> tuple[Endpoint, ...]:
        now_s = self._clock()
        for name, record in records.items():
            known = self._seen.get(name) or self._ended.get(name)
            if known is None or known.record.beat != record.beat:
                self._seen[name] = _Seen(record, now_s)
        alive = {name: seen for name, seen in self._seen.items() if now_s - seen.since_s <= seen.record.ttl_s}
        ended = self._ended | {name: seen for name, seen in self._seen.items() if name not in alive}
        self._ended = {name: seen for name, seen in ended.items() if name in records and name not in alive}
        self._seen = alive
        return tuple(alive[name].record.endpoint for name in sorted(alive))


def _pairs(answer: Any) -> list[tuple[bytes, bytes]]:
    """Fields with values, in either form that the protocols have for a hash."""
    if isinstance(answer, dict):
        return list(answer.items())
    return list(zip(answer[::2], answer[1::2], strict=False)) if isinstance(answer, list) else []
