"""Backends from a Kubernetes cluster, by watching it: a pod that ends is drained when the API server states it.

Rights that the service account needs in the namespace: get of the Service, list and watch of its EndpointSlices and
pods; for a selector, list and watch of pods alone. Must not depend on what the objects mean (``pods.py``).
"""

import asyncio
import os
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import Any

from router.config.discover import KubernetesSource
from router.core.errors import KubernetesError, SourceFailed
from router.gateway.sources.endpoint import Endpoint, Source
from router.gateway.sources.pods import Wanted, of_pods, of_slices
from router.kubernetes.access import Access, in_pod
from router.kubernetes.client import KubernetesClient
from router.kubernetes.watch import Collection

Objects = Mapping[str, Mapping[str, Any]]


class _Pods(Source):
    """What both kinds have in common: the client, and sets made of collections that are watched together."""

    def __init__(self, given: KubernetesSource, environment: Mapping[str, str] = os.environ) -> None:
        self._given, self._environment = given, environment
        self._wanted = Wanted(given.port, given.scheme, f".{given.namespace}" if given.namespace else "")

    @asynccontextmanager
    async def _client(self) -> AsyncIterator[tuple[KubernetesClient, str]]:
        """The API server and the namespace. Raises SourceFailed, also for an error of the API within."""
        url = self._given.url
        try:
            access = Access(url) if url else in_pod(self._environment)
            client = KubernetesClient(access, self._given.timeout_s)
        except (ValueError, OSError) as error:
            raise SourceFailed(str(error)) from None
        try:
            yield client, self._given.namespace or access.namespace
        except KubernetesError as error:
            raise SourceFailed(str(error)) from None
        finally:
            await client.close()


class PodsOfService(_Pods):
    """The pods behind one Service."""

    async def sets(self) -> AsyncGenerator[tuple[Endpoint, ...], None]:
        """By its EndpointSlices and, for their labels, its pods."""
        service = self._given.service
        async with self._client() as (client, namespace):
            core = f"/api/v1/namespaces/{namespace}"
            found = await client.get(f"{core}/services/{service}")
            slices = f"/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices"
            watched = [Collection(client, slices, f"kubernetes.io/service-name={service}")]
            if selector := _selector(found):  # one without has endpoints that others write, of no pods
                watched.append(Collection(client, f"{core}/pods", selector))

            def made(objects: Sequence[Objects]) -> tuple[Endpoint, ...]:
                return of_slices(objects[0].values(), objects[1] if selector else {}, self._wanted)

            async with aclosing(_together(watched, made)) as sets:
                async for endpoints in sets:
                    yield endpoints


class PodsOfSelector(_Pods):
    """The pods with some labels."""

    async def sets(self) -> AsyncGenerator[tuple[Endpoint, ...], None]:
        """By the pods alone."""
        async with self._client() as (client, namespace):
            watched = [Collection(client, f"/api/v1/namespaces/{namespace}/pods", self._given.selector or "")]

            def made(objects: Sequence[Objects]) -> tuple[Endpoint, ...]:
                return of_pods(objects[0].values(), self._wanted)

            async with aclosing(_together(watched, made)) as sets:
                async for endpoints in sets:
                    yield endpoints


def _selector(service: Mapping[str, Any]) -> str:
    spec = service.get("spec")
    selector = spec.get("selector") if isinstance(spec, dict) else None
    return ",".join(f"{key}={value}" for key, value in selector.items()) if isinstance(selector, dict) else ""


async def _together(
    watched: Sequence[Collection], made: Callable[[Sequence[Objects]], tuple[Endpoint, ...]]
) -> AsyncGenerator[tuple[Endpoint, ...], None]:
    """What is made of all collections, once each has been listed and whenever one has changed; equal ones once.

    Raises KubernetesError.
    """
    latest: list[Objects | None] = [None] * len(watched)
    changed = asyncio.Event()

    async def follow(index: int) -> None:
        try:
            async with aclosing(watched[index].sets()) as sets:
                async for objects in sets:
                    latest[index] = objects
                    changed.set()
        finally:
            changed.set()  # also for its failure

    tasks = [asyncio.create_task(follow(index), name=f"watch {index}") for index in range(len(watched))]
    try:
        last = None
        while True:
            await changed.wait()
            changed.clear()
            for task in tasks:
                if task.done():
                    task.result()
            listed = [objects for objects in latest if objects is not None]
            if len(listed) == len(watched) and (now := made(listed)) != last:
                last = now
                yield now
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
