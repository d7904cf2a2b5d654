"""Clients of the kinds of Redis there are, as the link uses them: each runs a list of commands in one round trip.

They are redis-py's own, with what keeps a cluster usable while one of its nodes is frozen or new. Must not depend on
how a connection comes about, nor on what the commands mean.
"""

from collections.abc import Sequence
from typing import Any, Protocol

from redis.asyncio import Redis, RedisCluster, Sentinel
from redis.asyncio.cluster import ClusterNode
from redis.exceptions import SlotNotCoveredError

Command = tuple[Any, ...]  # a name, then its one key (none: TIME), then the rest


class Client(Protocol):
    """A connected client of one kind."""

    async def run(self, commands: Sequence[Command]) -> list[Any]:
        """The result of each; an error in place of a result where it concerns one command."""

    async def close(self) -> None:
        """Close its connections."""


class OneServer:
    """One server, or the primary that sentinels name."""

    def __init__(self, redis: Redis, sentinel: Sentinel | None = None) -> None:
        self._redis, self._sentinel = redis, sentinel

    async def run(self, commands: Sequence[Command]) -> list[Any]:
        """In one pipeline."""
        pipe = self._redis.pipeline(transaction=False)
        for command in commands:
            pipe.execute_command(*command)
        return list(await pipe.execute(raise_on_error=False))

    async def close(self) -> None:
        """The sentinels' connections too."""
        await self._redis.aclose()
        for each in self._sentinel.sentinels if self._sentinel is not None else ():
            await each.aclose()


class ClusterSlot:
    """The node of a cluster that has the pool's slot; redis-py follows where the slot moves to."""

    def __init__(self, cluster: RedisCluster, key: str) -> None:
        self._cluster, self._key = cluster, key

    async def run(self, commands: Sequence[Command]) -> list[Any]:
        """In one pipeline to that node. A command without a key is of the node too: its clock dates the values."""
        owner = self._cluster.get_node_from_key(self._key)
        pipe = self._cluster.pipeline()
        for command in commands:
            pipe.execute_command(*command, **({} if len(command) > 1 else {"target_nodes": owner}))
        return list(await pipe.execute(raise_on_error=False))

    async def close(self) -> None:
        """All nodes' connections."""
        await self._cluster.aclose()


class _FirstArgument:
    """Where the key of a command is: always first here.

    redis-py's own reads the table of all commands from the first primary of the cluster, so that one frozen node keeps
    every client from connecting, and a user has to be allowed COMMAND.
    """

    async def initialize(self, node: Any) -> None:
        """There is no table."""

    async def get_keys(self, *args: Any) -> list[Any]:
        """The key of the command ``args``."""
        return list(args[1:2])


class _FollowingCluster(RedisCluster):
    """A client that follows ASK to a node of which its map has nothing.

    A node to which its first slot is just migrating has no slots, and is in no map; redis-py fails there.
    """

    def get_node(
        self, host: str | None = None, port: int | None = None, node_name: str | None = None
    ) -> ClusterNode | None:
        """The node of that address; made where there was none."""
        found = super().get_node(host, port, node_name)
        if found is not None or node_name is None:
            return found
        name, _, number = node_name.rpartition(":")
        made = ClusterNode(name, int(number), "primary", **self.nodes_manager.connection_kwargs)
        self.nodes_manager.set_nodes(self.nodes_manager.nodes_cache, {made.name: made})
        return made


def cluster_of(host: str, port: int, options: dict[str, Any]) -> RedisCluster:
    """A client of the cluster that this node is of; not connected."""
    cluster = _FollowingCluster(startup_nodes=[ClusterNode(host, port)], require_full_coverage=False, **options)
    cluster.commands_parser = _FirstArgument()  # type: ignore[assignment]
    return cluster


async def owner_of(cluster: RedisCluster, key: str) -> ClusterNode:
    """Connect, and the node that has the key's slot. Raises an error of redis-py, also where no node has it, as while a
    cluster is being made.
    """
    try:
        await cluster.initialize()
    except IndexError as error:
        raise SlotNotCoveredError("no node of the cluster has any slot") from error
    owner = cluster.get_node_from_key(key)
    if owner is None:
        raise SlotNotCoveredError("no node of the cluster has the pool's slot")
    return owner
