"""The leases by which autoscalers elect one of them: a key in the pool's Redis, or a ``Lease`` object of Kubernetes.

Must not depend on what the holder does.
"""

import os
import secrets
import socket
from collections.abc import Callable, Mapping
from typing import Any, Final

from router.autoscaler.election import Election
from router.core.errors import ConfigError, KubernetesError, LeaseGone, StoreGone
from router.gateway.config.plan import Plan
from router.gateway.state.redis_link import RedisLink
from router.kubernetes.access import in_pod
from router.kubernetes.client import KubernetesClient
from router.kubernetes.lease import LeaseObject

_TIMEOUT_S: Final = 5.0


class RedisLease:
    """A key with the holder as its value, which expires. Only the one that holds it extends it."""

    def __init__(self, link: RedisLink, key: str, holder: str) -> None:
        self._link, self._key, self._holder = link, key, holder.encode()
        self._held = False

    async def take(self, lease_s: float) -> bool:
        """Extend it where it was held; take it where nobody has it."""
        lease_ms = max(1, int(lease_s * 1e3))
        if self._held:
            self._held = await self._run("GETEX", self._key, "PX", lease_ms) == self._holder
        if not self._held:
            self._held = bool(await self._run("SET", self._key, self._holder, "NX", "PX", lease_ms))
        return self._held

    async def release(self) -> None:
        """Delete it where it is still held."""
        if self._held and await self._run("GET", self._key) == self._holder:
            await self._run("DEL", self._key)
        self._held = False

    async def close(self) -> None:
        """Close the connection."""
        await self._link.close()

    async def _run(self, *command: Any) -> Any:
        try:
            (result,) = await self._link.run([command])
        except StoreGone as gone:
            raise LeaseGone(str(gone)) from None
        if isinstance(result, Exception):
            raise LeaseGone(str(result))
        return result


class KubernetesLease:
    """A ``Lease`` object in the namespace of this pod."""

    def __init__(self, client: KubernetesClient, name: str, holder: str) -> None:
        self._client = client
        self._lease = LeaseObject(client, client.access.namespace, name, holder)

    async def take(self, lease_s: float) -> bool:
        """Take or renew it."""
        try:
            return await self._lease.take(lease_s)
        except KubernetesError as error:
            raise LeaseGone(str(error)) from None

    async def release(self) -> None:
        """Leave it without a holder."""
        try:
            await self._lease.release()
        except KubernetesError as error:
            raise LeaseGone(str(error)) from None

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()


def election_of(
    plan: Plan, environment: Mapping[str, str] = os.environ, alone: Callable[[], bool] = lambda: True
) -> Election:
    """The election that the config names; *alone*: whether this one applies where none is held. Raises ConfigError
    where what keeps the lease is missing.
    """
    given = plan.settings.autoscale.election
    by = given.by if given.by != "auto" else "state" if plan.redis else "none"
    holder = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
    if by == "none":
        return Election(alone=alone)
    if by == "kubernetes":
        try:
            client = KubernetesClient(in_pod(environment), min(_TIMEOUT_S, given.lease_s / 3))
        except ValueError as error:
            raise ConfigError([f"autoscale.election.by: {error}"]) from None
        return Election(KubernetesLease(client, given.name, holder), given.lease_s)
    if plan.redis is None:
        raise ConfigError(["autoscale.election.by: state needs state.redis_url or state.redis"])
    key = f"{{headroom:{plan.settings.state.pool}}}:autoscaler"
    link = RedisLink(plan.redis, key, plan.settings.state.timeout_s)
    return Election(RedisLease(link, key, holder), given.lease_s)
