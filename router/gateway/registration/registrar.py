"""Announces one engine to the routers of a pool: a record in the shared state that is renewed until it ends.

Facts of the engine are read from itself and from this machine; what is given wins. It is announced once it has
answered. When this process is to end, the record says so, and routers send nothing more there. Must not depend on
routers.
"""

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from secrets import token_hex
from typing import Any, Final

from router.config.settings import Backend
from router.core.errors import StoreGone, Unanswered
from router.gateway.discovery.reading import completed, read_engine
from router.gateway.monitoring.probe import ProbeClient
from router.gateway.registration.card import card_here
from router.gateway.sources.endpoint import Endpoint
from router.gateway.sources.engine_record import EngineRecord, hash_key, written
from router.gateway.sources.facts import FACTS
from router.gateway.state.redis_clients import Command
from router.gateway.state.redis_link import RedisLink
from router.gateway.state.servers import RedisServers

RENEWALS: Final = 3  # in a lease: one may be lost
READ_S: Final = 60.0  # an engine that was started again has other facts
TIMEOUT_S: Final = 2.0
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

    def __init__(self, given: Announced, servers: RedisServers) -> None:
        """Opens nothing yet."""
        self._given = given
        self._key = hash_key(given.pool)
        self._link = RedisLink(servers, self._key, TIMEOUT_S)
        self._facts: dict[str, Any] | None = None  # None: the engine has not answered yet
        self._failing = False

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
        """The engine's facts, again and again; those of the last answer stay while there is none."""
        given, card, last = Backend(name=self._given.name, url=self._given.engine), await card_here(), ""
        while True:
            try:
                kind, facts = await read_engine(given, client, self._given.key)
                found = _labels(completed(given, kind, facts)) | {"engine_version": facts.version}
                self._facts = {key: value for key, value in found.items() if value} | ({"card": card} if card else {})
                last = ""
            except Unanswered as why:
                if str(why) != last:
                    _log.warning("engine %s: %s; trying again", self._given.engine, why)
                last = str(why)
            await asyncio.sleep(READ_S if not last else 1.0)

    async def _write(self, *, terminating: bool) -> None:
        given = self._given
        labels = {**(self._facts or {}), **given.labels}
        record = EngineRecord(Endpoint(given.name, given.url, labels, terminating), token_hex(8), given.ttl_s)
        lease_ms = int(_HASH_LEASES * given.ttl_s * 1e3)
        commands: list[Command] = [
            ("HSET", self._key, given.name, written(record)),
            ("PEXPIRE", self._key, lease_ms, "NX"),
            ("PEXPIRE", self._key, lease_ms, "GT"),  # engines of one pool may have leases of different lengths
        ]
        try:
            answers = await self._link.run(commands)
            failed = next((each for each in answers if isinstance(each, Exception)), None)
        except StoreGone as gone:
            failed = gone
        if (failed is not None) != self._failing:
            self._failing = failed is not None
            _log.log(*(_GONE if failed else _BACK), given.name, failed or "")


_GONE: Final = (logging.WARNING, "engine %s is not announced, the shared state fails: %s")
_BACK: Final = (logging.INFO, "engine %s is announced%s")


def _labels(whole: Backend) -> dict[str, Any]:
    """What the engine reported, as labels."""
    found = whole.model_dump(include=set(FACTS) & whole.model_fields_set, mode="json", exclude_none=True)
    if whole.model is not None and "model" in found:
        found["model"] = whole.model.like
    return found
