"""The connection to the pool's Redis: one server, a primary behind sentinels, or a cluster, by redis-py's own clients.

Every wait is bounded: a call by ``timeout_s``, and a wait for a connection by as much again. Connecting goes on in the
background past that bound, since with frozen seeds before a good one it takes several. After any failure of a
connection everything is discovered anew, beginning with another seed: a failover, a moved slot and a changed
address are all found in that way, and nothing stale outlives them. Must not depend on what the commands mean.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from redis.asyncio import Redis, Sentinel
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import MasterNotFoundError
from redis.backoff import NoBackoff
from redis.exceptions import MovedError, ReadOnlyError, ResponseError

from router.core.errors import StateFault, StoreGone
from router.gateway.state.redis_clients import Client, ClusterSlot, Command, OneServer, cluster_of, owner_of
from router.gateway.state.redis_faults import is_of_the_link, store_gone
from router.gateway.state.servers import RedisServers, Seed

KNOWN_MOST: Final = 32  # nodes of a cluster that are kept as further seeds


@dataclass(frozen=True, slots=True)
class Found:
    """What answers: ``kind`` in words, ``server`` with its version, ``at``: the address of that which has the keys."""

    kind: str
    server: str
    at: str


class RedisLink:
    """One connection that is made again whenever it fails."""

    def __init__(self, servers: RedisServers, key: str, timeout_s: float) -> None:
        """Opens nothing yet. ``key``: any of the pool's: all are in one slot of a cluster."""
        self.servers, self._key, self._timeout_s = servers, key, timeout_s
        self._client: Client | None = None
        self._connecting: asyncio.Task[Client] | None = None
        self._is_cluster = False  # also where the server does not say so, once it has answered MOVED
        self._known: tuple[Seed, ...] = ()  # nodes of the cluster as it was last
        self._tries = 0
        self.found: Found | None = None

    async def run(self, commands: Sequence[Command]) -> list[Any]:
        """The result of each command, in one round trip; an error in place of a result where it concerns one alone.

        Raises StoreGone for every way in which the connection can fail. A cancellation may come out of the client as
        an error of its own or, at the end of a pipeline, not at all.
        """
        client = await self._connected()
        drop = partial(self._drop, client)
        results: list[Any] = await self._bounded(client.run(commands), self._where(), drop)
        failed = next(filter(is_of_the_link, results), None)
        if failed is not None:
            self._is_cluster |= isinstance(failed, MovedError)
            await drop()
            raise store_gone(failed, self._where())
        if len(self.servers.seeds) > 1 and any(isinstance(each, ReadOnlyError) for each in results):
            await drop()  # another of the seeds may be the primary by now
        return results

    async def close(self) -> None:
        """Close everything; never raises."""
        if self._connecting is not None:
            self._connecting.cancel()
            await asyncio.gather(self._connecting, return_exceptions=True)
            if not self._connecting.cancelled() and not self._connecting.exception():
                self._client = self._connecting.result()
            self._connecting = None
        if self._client is not None:
            await self._drop(self._client)

    def _where(self) -> str:
        return self.found.at if self.found else str(self.servers)

    async def _drop(self, client: Client) -> None:
        """Close a client that failed. One that another call has connected since stays."""
        if self._client is client:
            self._client = None
        with suppress(Exception):  # of a connection that is broken
            await client.close()

    async def _bounded(self, call: Awaitable[Any], where: str, failed: Callable[[], Awaitable[None]]) -> Any:
        """Await the call for at most ``timeout_s``; *failed* cleans up. Raises StoreGone."""
        task = asyncio.current_task()
        assert task is not None  # a coroutine runs in one
        cancelled = task.cancelling()
        try:
            async with asyncio.timeout(self._timeout_s):
                answer = await call
        except Exception as error:
            await failed()
            if task.cancelling() > cancelled:
                raise asyncio.CancelledError from error
            raise store_gone(error, where) from error
        except asyncio.CancelledError:
            await failed()
            raise
        if task.cancelling() > cancelled:
            raise asyncio.CancelledError
        return answer

    # -- connecting ----------------------------------------------------------------------------------------------------

    async def _connected(self) -> Client:
        """The client; waits for it at most ``timeout_s``. Raises StoreGone."""
        if self._client is not None:
            return self._client
        if self._connecting is None:
            self._connecting = asyncio.create_task(self._connect(), name="shared state")
        attempt = self._connecting
        await asyncio.wait({attempt}, timeout=self._timeout_s)
        if not attempt.done():
            raise StoreGone(f"{self.servers}: no connection yet", StateFault.TIMEOUT)
        if self._connecting is attempt:
            self._connecting = None
            self._client = attempt.result()
        if self._client is None:  # of two calls that waited for it, the other's has failed already
            raise StoreGone(f"{self.servers}: the connection was lost", StateFault.UNREACHABLE)
        return self._client

    async def _connect(self) -> Client:
        """A client of whatever the seeds are of. Raises StoreGone, naming what each of them said."""
        seeds = self._rotated()
        if self.servers.service:
            return await self._behind_sentinels(seeds)
        faults: list[StoreGone] = []
        replicas: list[tuple[Seed, dict[str, Any]]] = []
        for seed in seeds:
            try:
                hello = await self._bounded(self._hello(seed), str(seed), _nothing)
                if hello.get("role") != "replica" or hello.get("mode") == "cluster":
                    return await self._client_of(seed, hello)
                replicas.append((seed, hello))
            except StoreGone as gone:
                faults.append(gone)
        if replicas:  # what others wrote can be read there
            return await self._client_of(*replicas[0])
        raise StoreGone("; ".join(map(str, faults)), faults[-1].fault)

    async def _client_of(self, seed: Seed, hello: dict[str, Any]) -> Client:
        """A client of what said this. Raises StoreGone."""
        if self._is_cluster or hello.get("mode") == "cluster":
            return await self._of_cluster(seed, hello)
        if hello.get("mode") == "sentinel":
            raise StoreGone(f"{seed}: a sentinel; name the primary in state.redis.service")
        role = ", a read-only replica" if hello.get("role") == "replica" else ""
        self.found = Found(f"one server{role}", _version(hello), str(seed))
        return OneServer(Redis(**self._options(seed)))

    def _rotated(self) -> list[Seed]:
        """Where to begin, another one at each attempt: the seeds, and the nodes of the cluster as it was last."""
        seeds = list(dict.fromkeys(self.servers.seeds + self._known))
        first = self._tries % len(seeds)
        self._tries += 1
        return seeds[first:] + seeds[:first]

    async def _hello(self, seed: Seed) -> dict[str, Any]:
        """What a server says of itself; nothing where it does not know the command (a proxy, an old release)."""
        redis = Redis(**self._options(seed) | {"db": 0})
        try:
            return await _said_by(redis)
        finally:
            await redis.aclose()

    async def _of_cluster(self, seed: Seed, hello: dict[str, Any]) -> Client:
        """A client of the cluster that this seed is of."""
        self._is_cluster = True
        if self.servers.db:
            raise StoreGone(f"{seed}: a node of a cluster, which has no database {self.servers.db}; only 0")
        options = {name: value for name, value in self._options(seed).items() if name not in _ONE_SERVER}
        cluster = cluster_of(seed.host, seed.port, options)
        owner = await self._bounded(owner_of(cluster, self._key), str(seed), cluster.aclose)
        every = cluster.get_nodes()
        who = {"username": seed.username, "password": seed.password}
        self._known = tuple(Seed(node.host, int(node.port), **who) for node in every)[:KNOWN_MOST]
        self.found = Found(f"a cluster of {len(every)} nodes", _version(hello), f"{owner.host}:{owner.port}")
        return ClusterSlot(cluster, self._key)

    async def _behind_sentinels(self, seeds: list[Seed]) -> Client:
        """A client of the primary that the sentinels name; redis-py goes from one to the next."""
        first = seeds[0]
        data = Seed(username=self.servers.username, password=self.servers.password)
        options = {name: v for name, v in self._options(data).items() if name not in {"host", "port", "path"}}
        own = {name: v for name, v in self._options(first).items() if name not in {"host", "port", "path", "db"}}
        addresses = [(seed.host, seed.port) for seed in seeds]
        sentinel = Sentinel(addresses, sentinel_kwargs=own, **options)  # type: ignore[no-untyped-call]
        primary = sentinel.master_for(self.servers.service)
        client = OneServer(primary, sentinel)
        try:
            async with asyncio.timeout(self._timeout_s * (len(seeds) + 1)):
                await sentinel.discover_master(self.servers.service)
        except MasterNotFoundError as error:
            await client.close()
            whys = [part.partition(", <")[0] for part in str(error).split(" - ")[1:]]  # redis-py names clients whole
            why = f" ({'; '.join(whys)})" if whys else ""
            text = f"{self.servers}: no sentinel names a primary of {self.servers.service!r}{why}"
            raise StoreGone(text, StateFault.NO_PRIMARY) from error
        except Exception as error:
            await client.close()
            raise store_gone(error, str(self.servers)) from error
        except asyncio.CancelledError:
            await client.close()
            raise
        hello = await self._bounded(_said_by(primary), f"the primary of {self.servers.service}", client.close)
        host, port = primary.connection_pool.master_address  # the client looked it up once more
        kind = f"the primary of {self.servers.service}, by {len(seeds)} sentinels"
        self.found = Found(kind, _version(hello), f"{_text(host)}:{port}")
        return client

    def _options(self, seed: Seed) -> dict[str, Any]:
        """What redis-py needs to connect there."""
        servers = self.servers
        own = not servers.service  # else the seed is a sentinel, whose user is its own
        options: dict[str, Any] = {
            "username": (own and servers.username) or seed.username or None,
            "password": (own and servers.password) or seed.password or None,
            "db": servers.db,
            "protocol": 2,
            "socket_timeout": self._timeout_s,
            "socket_connect_timeout": self._timeout_s,
            "retry": Retry(NoBackoff(), 0),
            "max_connections": 8,
        }
        if seed.path:
            return options | {"unix_socket_path": seed.path}
        if servers.tls:
            files = {"ca_certs": servers.ca, "certfile": servers.client_cert, "keyfile": servers.client_key}
            options |= {f"ssl_{name}": path for name, path in files.items() if path}
            options |= {"ssl": True, "ssl_check_hostname": servers.verify_hostname}
        return options | {"host": seed.host, "port": seed.port}


_ONE_SERVER: Final = frozenset({"host", "port", "db", "unix_socket_path"})


async def _said_by(redis: Redis) -> dict[str, Any]:
    """The answer to HELLO; empty where the server does not know the command."""
    try:
        answer = await redis.execute_command("HELLO")  # type: ignore[no-untyped-call]
    except ResponseError as error:
        if "unknown command" not in str(error).lower():
            raise
        return {}
    plain = answer.items() if isinstance(answer, dict) else zip(answer[::2], answer[1::2], strict=False)
    return {_text(name): _text(value) for name, value in plain}


async def _nothing() -> None:
    """There is nothing to clean up."""


def _text(raw: Any) -> Any:
    return raw.decode(errors="replace") if isinstance(raw, bytes) else raw


def _version(hello: dict[str, Any]) -> str:
    """Name and version of a server; empty where it does not say."""
    return f"{hello.get('server', '')} {hello.get('version', '')}".strip()
