"""The pods that the slices of a Service name: by a watch of its selector, others each by itself.

A slice and a pod come by two watches, in either order; and a slice may name pods that the selector does not match:
those of another selector a moment ago, or what somebody wrote by hand. Such a pod is read before the slices count, so
that none is left out because it is not known yet. Must not depend on what becomes of them.
"""

import asyncio
from collections.abc import Callable, Collection, Mapping
from typing import Final
from urllib.parse import quote

from router.core.errors import KubernetesError
from router.gateway.sources.pods import PodRef, find
from router.kubernetes.client import NOT_FOUND, KubernetesClient, Object
from router.kubernetes.watch import Collection as WatchedCollection
from router.kubernetes.watched import Watched

AGAIN_S: Final = 30.0  # after which a pod that is not watched is read again
_AT_ONCE: Final = 8  # of pods that are read each by itself
_PODS: Final = "pods"


class ServicePods:
    """The pods behind one Service, whatever its selector is at the moment."""

    def __init__(self, client: KubernetesClient, path: str, watched: Watched, clock: Callable[[], float]) -> None:
        """*path*: of the namespace's pods; they are watched in *watched*."""
        self._client, self._path, self._watched, self._clock = client, path, watched, clock
        self._selector = ""
        self._read: dict[PodRef, tuple[Object | None, float]] = {}  # those not watched, and when they were read
        self._few = asyncio.Semaphore(_AT_ONCE)

    async def select(self, selector: str) -> None:
        """Watch the pods that *selector* matches; empty: none, for the Service has endpoints that others write."""
        if selector == self._selector:
            return
        self._selector = selector
        if selector:
            await self._watched.begin(_PODS, WatchedCollection(self._client, self._path, selector))
        else:
            await self._watched.end(_PODS)

    @property
    def listed(self) -> bool:
        """Whether those of the selector are known."""
        return not self._selector or self._watched.latest(_PODS) is not None

    @property
    def again_s(self) -> float | None:
        """After how long some pod has to be read again; None: none has."""
        return AGAIN_S if self._read else None

    async def look_up(self, named: Collection[PodRef]) -> bool:
        """Read those that are not watched, and forget all others; whether it had to wait. Raises KubernetesError."""
        others = [ref for ref in named if self._watched_pod(ref) is None]
        now_s = self._clock()
        kept = {ref: self._read[ref] for ref in others if ref in self._read and now_s - self._read[ref][1] < AGAIN_S}
        unread = [ref for ref in others if ref not in kept]
        try:
            async with asyncio.TaskGroup() as group:
                tasks = {ref: group.create_task(self._get(ref)) for ref in unread}
        except ExceptionGroup as failed:  # the others are cancelled: a server that is gone is waited for once
            raise failed.exceptions[0] from None
        self._read = kept | {ref: (task.result(), now_s) for ref, task in tasks.items()}
        return bool(unread)

    def known(self, named: Collection[PodRef]) -> Mapping[PodRef, Object]:
        """Those that there are."""
        pods = {ref: self._watched_pod(ref) or self._read.get(ref, (None, 0.0))[0] for ref in named}
        return {ref: pod for ref, pod in pods.items() if pod is not None}

    def _watched_pod(self, ref: PodRef) -> Object | None:
        return find(self._watched.latest(_PODS) or {}, ref)

    async def _get(self, ref: PodRef) -> Object | None:
        """The pod; None where there is none any more, or another one has its name."""
        async with self._few:
            try:
                pod = await self._client.get(f"{self._path}/{quote(ref.name, safe='')}")
            except KubernetesError as error:
                if error.answer != NOT_FOUND:
                    raise
                return None
        return find({ref.name: pod}, ref)
