"""A workload with a number of replicas, by its ``scale`` subresource: Deployment, StatefulSet, or any that has one.

Must not depend on why the number is changed. A write has the ``resourceVersion`` of what was read, so that a change
that came in between is not overwritten unseen.
"""

from dataclasses import dataclass
from typing import Any, Final

from router.core.errors import KubernetesError
from router.kubernetes.client import CONFLICT, KubernetesClient, Object

RESOURCES: Final = {
    "Deployment": "apps/v1/deployments",
    "StatefulSet": "apps/v1/statefulsets",
    "ReplicaSet": "apps/v1/replicasets",
    "LeaderWorkerSet": "leaderworkerset.x-k8s.io/v1/leaderworkersets",
}
_CONFLICTS_MAX: Final = 3
REPLICAS_MAX: Final = 100_000  # a number above it is no count of engines


@dataclass(frozen=True, slots=True)
class Counts:
    """``wanted``: the replicas that the workload is to have; ``ready``: those that serve (None: the workload does not
    state them).
    """

    wanted: int
    ready: int | None


class Workload:
    """One workload of a cluster."""

    def __init__(self, client: KubernetesClient, resource: str, namespace: str, name: str) -> None:
        """*resource*: ``group/version/plural``, ``version/plural`` for those of the core."""
        group = "apis" if resource.count("/") > 1 else "api"
        version, _, plural = resource.rpartition("/")
        self._client, self.name = client, f"{plural}/{name}"
        self._known = resource in RESOURCES.values()  # of which it is known that they leave out a count of 0
        self._path = f"/{group}/{version}/namespaces/{namespace}/{plural}/{name}"

    async def counts(self) -> Counts:
        """The replicas as they are. Raises KubernetesError."""
        scale = await self._client.get(f"{self._path}/scale")
        wanted = _count(scale, "spec", "replicas", self.name)
        status = (await self._client.get(self._path)).get("status")
        ready = status.get("readyReplicas") if isinstance(status, dict) else None
        if ready is None and not self._known:
            return Counts(wanted, None)
        return Counts(wanted, min(_number(ready or 0, self.name, "status.readyReplicas"), wanted))

    async def scale(self, replicas: int) -> int | None:
        """Set the number of replicas; the one before, None where it is that already. Raises KubernetesError."""
        for attempt in range(1, _CONFLICTS_MAX + 1):
            scale = await self._client.get(f"{self._path}/scale")
            before = _count(scale, "spec", "replicas", self.name)
            if before == replicas:
                return None
            version = scale.get("metadata", {}).get("resourceVersion")
            change: dict[str, Any] = {"metadata": {"resourceVersion": version}, "spec": {"replicas": replicas}}
            try:
                await self._client.patch(f"{self._path}/scale", change)
            except KubernetesError as error:
                if error.answer != CONFLICT or attempt == _CONFLICTS_MAX:
                    raise
            else:
                return before
        raise AssertionError  # the last attempt returns or raises


def _count(found: Object, section: str, key: str, name: str) -> int:
    """A count in an object; what Kubernetes leaves out is 0."""
    part = found.get(section)
    return _number(part.get(key, 0) if isinstance(part, dict) else 0, name, f"{section}.{key}")


def _number(value: Any, name: str, key: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= REPLICAS_MAX:
        raise KubernetesError(0, f"{name}: {key}: expected a count of replicas, not {value!r:.100}")
    return value
