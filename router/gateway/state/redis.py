"""The store of several routers: Redis 7.0 or later, one pipelined call a sync, every wait bounded.

Keys share the hash tag ``{headroom:POOL}`` and so one slot of a cluster: the node that has it is all we need, so a
cluster is followed (its MOVED says where the slot is) and not mapped. ``redis_url`` names any of its nodes:

    {headroom:POOL}:routers         set    ids that ever spoke; who finds one without a view takes it out
    {headroom:POOL}:router:ID       string a router's view as JSON, expiring with its lease
    {headroom:POOL}:report:BACKEND  string an engine's report as JSON, its time on Redis's clock, expiring
    {headroom:POOL}:beliefs         hash   backend -> what was learnt of it

A time goes through Redis's clock (TIME, read in the same call), so routers and sidecars need no common one. A peer seen
for the first time is read with the next sync, one period later: that keeps a sync one round trip without a script.
"""

import asyncio
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import urlsplit, urlunsplit

from redis.asyncio import Redis
from redis.asyncio.client import Pipeline
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import MovedError, RedisError

from router.core.errors import StoreGone
from router.core.types import EngineReport
from router.gateway.state import RouterView, Shared
from router.gateway.state.wire import report_from, report_json, view_from, view_json

REPORT_LEASE_MS: Final = 30_000  # as long as the core believes a report at all
BELIEFS_LEASE_S: Final = 7 * 24 * 3600


class RedisStore:
    """One router's (or sidecar's, or autoscaler's) connection to the pool's Redis."""

    def __init__(self, url: str, pool: str, router_id: str, lease_s: float, timeout_s: float) -> None:
        """Opens nothing yet. ``timeout_s`` bounds every call; ``lease_s``: how long a view outlives its sync."""
        self._url = self._at = url
        self._timeout_s = timeout_s
        self._redis = self._client()
        self._tag = f"{{headroom:{pool}}}:"
        self._router_id = router_id
        self._lease_ms = int(lease_s * 1e3)
        self._peers: tuple[str, ...] = ()  # to read at the next sync
        self._gone: tuple[str, ...] = ()  # whose lease had expired at the last one

    async def sync(self, own: RouterView, backends: tuple[str, ...], now_s: float) -> Shared:
        """Publish this router's view and read the peers' in one round trip."""
        names = [self._key("router", peer) for peer in self._peers]
        pipe = self._redis.pipeline(transaction=False)
        pipe.time()
        pipe.set(self._key("router", self._router_id), view_json(own), px=self._lease_ms)
        if self._gone:
            pipe.srem(self._tag + "routers", *self._gone)
        pipe.sadd(self._tag + "routers", self._router_id)
        pipe.smembers(self._tag + "routers")
        pipe.mget(names + [self._key("report", name) for name in backends] or [self._tag + "none"])
        clock, *_, members, values = await self._run(pipe)
        found = dict(zip(self._peers, values, strict=False))
        self._gone = tuple(peer for peer, raw in found.items() if not raw)
        self._peers = tuple(sorted({_text(raw) for raw in members} - {self._router_id}))
        ahead_s = _redis_s(clock) - now_s
        said = zip(backends, values[len(names) :], strict=False)
        return Shared(
            {peer: view_from(raw) for peer, raw in found.items() if raw},
            {backend: report_from(raw, ahead_s) for backend, raw in said if raw},
        )

    async def report(self, reports: Mapping[str, EngineReport], now_s: float) -> None:
        """Publish engine reports, their times moved to Redis's clock."""
        ahead_s = _redis_s(await self._do(self._redis.time())) - now_s
        pipe = self._redis.pipeline(transaction=False)
        for backend, report in reports.items():
            pipe.set(self._key("report", backend), report_json(report, ahead_s), px=REPORT_LEASE_MS)
        await self._run(pipe)

    async def routers(self, now_s: float) -> Mapping[str, RouterView]:
        """Every router with a lease."""
        ids = sorted(_text(raw) for raw in await self._do(self._redis.smembers(self._tag + "routers")))
        if not ids:
            return {}
        values = await self._do(self._redis.mget([self._key("router", each) for each in ids]))
        return {each: view_from(raw) for each, raw in zip(ids, values, strict=True) if raw}

    async def beliefs(self) -> Mapping[str, bytes]:
        """The belief of each backend that was saved last."""
        saved = await self._do(self._redis.hgetall(self._tag + "beliefs"))
        return {_text(name): value for name, value in saved.items()}

    async def keep_beliefs(self, beliefs: Mapping[str, bytes]) -> None:
        """Save them; they expire a week after the last save."""
        if beliefs:
            pipe = self._redis.pipeline(transaction=False)
            for backend, learnt in beliefs.items():
                pipe.hset(self._tag + "beliefs", backend, learnt)
            pipe.expire(self._tag + "beliefs", BELIEFS_LEASE_S)
            await self._run(pipe)

    async def close(self) -> None:
        """Remove this router's view, so that peers do not count its load for another lease."""
        pipe = self._redis.pipeline(transaction=False)
        pipe.delete(self._key("router", self._router_id))
        pipe.srem(self._tag + "routers", self._router_id)
        try:
            await self._run(pipe)
        except StoreGone:
            pass  # the lease ends it instead
        finally:
            await self._redis.aclose()

    def _key(self, kind: str, name: str) -> str:
        return f"{self._tag}{kind}:{name}"

    async def _run(self, pipe: Pipeline) -> list[Any]:
        return list(await self._do(pipe.execute()))

    async def _do(self, call: Any) -> Any:
        """Await one call for at most ``timeout_s``. Raises StoreGone for every way in which it can fail.

        A cancellation may come out of the client as an error of its own or, at the end of a pipeline, not at all.
        """
        task = asyncio.current_task()
        assert task is not None  # a coroutine runs in one
        cancelled = task.cancelling()
        try:
            async with asyncio.timeout(self._timeout_s):
                answer = await call
        except MovedError as moved:
            await self._go(_elsewhere(self._at, moved.host, moved.port))
            raise StoreGone(f"the pool's slot is at {moved.host}:{moved.port}; trying there next") from moved
        except (RedisError, OSError, TimeoutError) as error:
            if task.cancelling() > cancelled:
                raise asyncio.CancelledError from error
            await self._go(self._url)  # a node that was followed may be gone for good; start over at the configured one
            raise StoreGone(f"{type(error).__name__}: {error}") from error
        if task.cancelling() > cancelled:
            raise asyncio.CancelledError
        return answer

    def _client(self) -> Redis:
        return Redis.from_url(
            self._at,
            socket_timeout=self._timeout_s,
            socket_connect_timeout=self._timeout_s,
            retry=Retry(NoBackoff(), 0),
            max_connections=4,
        )

    async def _go(self, url: str) -> None:
        """Use that node from now on."""
        if url != self._at:
            left, self._at = self._redis, url
            self._redis = self._client()
            await left.aclose()


def _elsewhere(url: str, host: str, port: int) -> str:
    """The same URL at another node; MOVED without a host means the same host."""
    parts = urlsplit(url)
    user, at, _ = parts.netloc.rpartition("@")
    name = host or parts.hostname or ""
    name = f"[{name}]" if ":" in name else name
    return urlunsplit(parts._replace(netloc=f"{user}{at}{name}:{port}"))


def _text(raw: bytes | str) -> str:
    return raw.decode(errors="replace") if isinstance(raw, bytes) else raw


def _redis_s(clock: tuple[int, int]) -> float:
    return clock[0] + clock[1] / 1e6
