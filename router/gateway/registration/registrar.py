"""Announces one engine to the routers of a pool: a record in the shared state that is renewed until it ends.

Facts of the engine are read from itself and from this machine; what is given wins. It is announced once it has
answered. When this process is to end, the record says so, and routers send nothing more there. Of two engines that
announce themselves by one name the later is announced, and the other waits: a backend whose address changes to and fro
serves nobody. Must not depend on routers.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from secrets import token_hex
from time import monotonic
from typing import Any, Final

from router.config.settings import Backend, BackendDefaults
from router.core.errors import StoreGone, Unanswered
from router.gateway.discovery.reading import completed, read_engine
from router.gateway.monitoring.probe import ProbeClient
from router.gateway.registration.card import card_here
from router.gateway.sources.endpoint import Endpoint
from router.gateway.sources.engine_record import EngineRecord, hash_key, read, written
from router.gateway.sources.facts import FACTS, backend_of
from router.gateway.state.redis_clients import Command
from router.gateway.state.redis_link import RedisLink
from router.gateway.state.servers import RedisServers

RENEWALS: Final = 3  # in a lease: one may be lost
READ_S: Final = 60.0  # an engine that was started again has other facts
LOOKS_APART_MAX: Final = 64  # readings
TIMEOUT_S: Final = 2.0
_FAILING: Final = 500  # from this status on; one that has no such path serves all the same
_HASH_LEASES: Final = 60  # after so many without any renewal the hash goes, with all that is in it
_log = logging.getLogger("headroom")


@dataclass(frozen=True, slots=True)
class Announced:
    """``engine``: where this process reaches it; ``url``: where routers do; ``labels``: facts that are given."""

    name: str
    engine: str
    url: str
    pool: str = "default"
    ttl_s: float = 15.0
    labels: Mapping[str, Any] = field(default_factory=dict)
    key: str = field(default="", repr=False)


class Registrar:
    """Announces one engine."""

    def __init__(self, given: Announced, servers: RedisServers, clock: Callable[[], float] = monotonic) -> None:
        """Opens nothing yet."""
        self._given = given
        labelled, _ = backend_of(Endpoint(given.name, given.engine, given.labels), BackendDefaults())
        self._backend = labelled or Backend(name=given.name, url=given.engine)
        self._key = hash_key(given.pool)
        self._link = RedisLink(servers, self._key, TIMEOUT_S)
        self._facts: dict[str, Any] | None = None  # None: the engine has not answered yet
        self._failing = False
        self._clock = clock
        self._beat = ""  # of the record that was written last
        self._other: tuple[str, float] = ("", 0.0)  # the beat of another engine's record, and when it was seen first
        self._waits = False

    async def run(self) -> None:
        """Announce and renew until cancelled; then say that the engine ends."""
        client = ProbeClient(TIMEOUT_S)
        reading = asyncio.create_task(self._read(client), name="engine facts")
        try:
            while True:
                if self._facts is not None:
                    await self._write(terminating=False)
                await asyncio.sleep(self._given.ttl_s / RENEWALS if self._facts is not None else 0.1)
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)
            client.close()
            if self._facts is not None:
                await self._write(terminating=True)
            await self._link.close()

    async def _read(self, client: ProbeClient) -> None:
        """The engine's facts, again and again; those of the last answer stay while there is none.

        A card that was not found is looked for again, for its driver may be ready later, but less and less often: a
        tool that hangs in a driver cannot be ended, and stays.
        """
        card, last, readings = "", "", 0
        while True:
            try:
                found = await self._reported(client)
                readings += 1
                if not card and (readings.bit_count() == 1 or readings % LOOKS_APART_MAX == 0):
                    card = await card_here()
                self._facts = found | ({"card": card} if card else {})
                last = ""
            except Unanswered as why:
                if str(why) != last:
                    _log.warning("engine %s: %s; trying again", self._given.engine, why)
                last = str(why)
            await asyncio.sleep(READ_S if not last else 1.0)

    async def _reported(self, client: ProbeClient) -> dict[str, Any]:
        """What the engine reports of itself: nothing, where it lists no models and labels state them. Raises
        Unanswered.
        """
        given, key = self._backend, self._given.key
        try:
            kind, facts = await read_engine(given, client, key)
        except Unanswered:
            page = await client.get(given.url + given.kind.health_path, key)
            if not given.models or page.status >= _FAILING:
                raise
            return {}
        found = _labels(completed(given, kind, facts)) | {"engine_version": facts.version}
        return {name: value for name, value in found.items() if value}

    async def _write(self, *, terminating: bool) -> None:
        try:
            other = await self._announced_by_now()
            if not other:
                await self._announce(terminating=terminating)
            failed = ""
        except StoreGone as gone:
            other, failed = "", str(gone)
        if bool(failed) != self._failing:
            self._failing = bool(failed)
            _log.log(*(_GONE if failed else _BACK), self._given.name, failed)
        if bool(other) != self._waits and not failed:
            self._waits = bool(other)
            if other:
                _log.error(_TAKEN, self._given.name, other)

    async def _announced_by_now(self) -> str:
        """The address of another engine that has taken this name since the last record here, and renews its own; empty
        where there is none. Raises StoreGone.
        """
        given = self._given
        (raw,) = await self._link.run([("HGET", self._key, given.name)])
        found = read(given.name.encode(), raw) if isinstance(raw, bytes) else None
        own = found is None or found.beat == self._beat or found.endpoint.url == given.url
        if own or found is None or found.endpoint.terminating or not self._beat:
            return ""
        if self._other[0] != found.beat:
            self._other = found.beat, self._clock()
        return found.endpoint.url if self._clock() - self._other[1] <= found.ttl_s else ""

    async def _announce(self, *, terminating: bool) -> None:
        """Raises StoreGone."""
        given, beat = self._given, token_hex(8)
        labels = {**(self._facts or {}), **given.labels}
        record = EngineRecord(Endpoint(given.name, given.url, labels, terminating), beat, given.ttl_s)
        lease_ms = int(_HASH_LEASES * given.ttl_s * 1e3)
        commands: list[Command] = [
            ("HSET", self._key, given.name, written(record)),
            ("PEXPIRE", self._key, lease_ms, "NX"),
            ("PEXPIRE", self._key, lease_ms, "GT"),  # engines of one pool may have leases of different lengths
        ]
        for answer in await self._link.run(commands):
            if isinstance(answer, Exception):
                raise StoreGone(str(answer))
        self._beat = beat


_GONE: Final = (logging.WARNING, "engine %s is not announced, the shared state fails: %s")
_TAKEN: Final = (
    "engine %s is not announced: the engine at %s has announced itself by the same name; give each its own --name"
)
_BACK: Final = (logging.INFO, "engine %s is announced%s")


def _labels(whole: Backend) -> dict[str, Any]:
    """What the engine reported, as labels."""
    found = whole.model_dump(include=set(FACTS) & whole.model_fields_set, mode="json", exclude_none=True)
    if whole.model is not None and "model" in found:
        found["model"] = whole.model.like
    return found
