"""A lease kept in a ``Lease`` object, as the controllers of Kubernetes elect their leaders.

Clocks of two machines are not compared: a lease of another has ended once its object has not changed for its duration
on this machine's clock. Must not depend on what the holder does.
"""

from collections.abc import Callable
from datetime import UTC, datetime
from math import ceil
from time import monotonic
from typing import Any, Final

from router.core.errors import KubernetesError
from router.kubernetes.client import CONFLICT, NOT_FOUND, KubernetesClient, Object

_DURATION_S_MAX: Final = 3600


class LeaseObject:
    """One candidate for a lease."""

    def __init__(
        self,
        client: KubernetesClient,
        namespace: str,
        name: str,
        holder: str,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._client, self._name, self._holder, self._clock = client, name, holder, clock
        self._collection = f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases"
        self._path = f"{self._collection}/{name}"
        self._seen: tuple[Any, float] = (None, clock())  # the spec that was read last, and when it was first seen so

    async def take(self, lease_s: float) -> bool:
        """Take or renew it; whether it is held. Raises KubernetesError."""
        try:
            found = await self._client.get(self._path)
        except KubernetesError as error:
            if error.answer != NOT_FOUND:
                raise
            return await self._written(self._client.create, self._collection, {"name": self._name}, {}, lease_s)
        spec = found.get("spec")
        spec = spec if isinstance(spec, dict) else {}
        now_s = self._clock()
        if spec != self._seen[0]:
            self._seen = spec, now_s
        holder = spec.get("holderIdentity")
        if holder not in {None, "", self._holder} and now_s - self._seen[1] < _duration_s(spec):
            return False
        return await self._written(self._client.replace, self._path, found.get("metadata", {}), spec, lease_s)

    async def _written(
        self, write: Callable[[str, Object], Any], path: str, metadata: Any, before: dict[str, Any], lease_s: float
    ) -> bool:
        """Write the lease as this holder's; False where another was faster. Raises KubernetesError."""
        now, taken = _now(), before.get("holderIdentity") != self._holder
        transitions = before.get("leaseTransitions")
        spec = before | {
            "holderIdentity": self._holder,
            "leaseDurationSeconds": ceil(lease_s),
            "renewTime": now,
            "acquireTime": now if taken else before.get("acquireTime", now),
            "leaseTransitions": (transitions if isinstance(transitions, int) else 0) + (1 if taken and before else 0),
        }
        body = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": metadata, "spec": spec}
        try:
            await write(path, body)
        except KubernetesError as error:
            if error.answer != CONFLICT:
                raise
            return False
        self._seen = spec, self._clock()
        return True

    async def release(self) -> None:
        """Leave it without a holder, so that the next need not wait. Raises KubernetesError."""
        found = await self._client.get(self._path)
        spec = found.get("spec")
        if isinstance(spec, dict) and spec.get("holderIdentity") == self._holder:
            free = spec | {"holderIdentity": "", "leaseDurationSeconds": 1, "renewTime": _now()}
            await self._client.replace(self._path, {**found, "spec": free})


def _duration_s(spec: dict[str, Any]) -> float:
    """How long a holder has without a renewal; what is no plausible number counts as the longest there may be."""
    given = spec.get("leaseDurationSeconds")
    good = isinstance(given, int) and not isinstance(given, bool) and 0 < given <= _DURATION_S_MAX
    return float(given) if good and given is not None else float(_DURATION_S_MAX)


def _now() -> str:
    """As Kubernetes writes a MicroTime."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
