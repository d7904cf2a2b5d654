"""Backends from a Kubernetes cluster, by watching it: a pod that ends is drained when the API server states it.

Rights that the service account needs in the namespace: list and watch of the Service and of its EndpointSlices; get,
list and watch of pods; for a selector, list and watch of pods alone. Must not depend on what the objects mean
(``pods.py``).
"""

import os
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import aclosing, asynccontextmanager
from time import monotonic
from typing import Any, Final

from router.config.discover import KubernetesSource
from router.core.errors import KubernetesError, SourceFailed
from router.gateway.sources.endpoint import Endpoint, Source
from router.gateway.sources.pods import Wanted, named, of_pods, of_slices
from router.gateway.sources.service_pods import ServicePods
from router.kubernetes.access import Access, in_pod
from router.kubernetes.client import KubernetesClient
from router.kubernetes.watch import Collection
from router.kubernetes.watched import Objects, Watched

_SERVICE, _SLICES = "service", "endpointslices"
OWNER: Final = "kubernetes.io/service-name"  # the label of a slice with the name of its Service


class _Pods(Source):
    """What both kinds have in common: the client."""

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
        async with self._client() as (client, namespace):
            following = followed(client, namespace, self._given.service or "", self._wanted)
            async with aclosing(following) as sets:
                async for endpoints in sets:
                    yield endpoints


class PodsOfSelector(_Pods):
    """The pods with some labels."""

    async def sets(self) -> AsyncGenerator[tuple[Endpoint, ...], None]:
        """By the pods alone."""
        async with self._client() as (client, namespace):
            pods = Collection(client, f"/api/v1/namespaces/{namespace}/pods", self._given.selector or "")
            last = None
            async with aclosing(pods.sets()) as sets:
                async for objects in sets:
                    now = of_pods(objects.values(), self._wanted)
                    if now != last:
                        last = now
                        yield now


async def followed(
    client: KubernetesClient,
    namespace: str,
    service: str,
    wanted: Wanted,
    clock: Callable[[], float] = monotonic,
) -> AsyncGenerator[tuple[Endpoint, ...], None]:
    """The endpoints of a Service, first when all has been listed, then whenever they are others.

    The Service is watched too: where its selector changes, so does what is watched of pods. Raises KubernetesError, and
    SourceFailed where there is no such Service.
    """
    core, slices = f"/api/v1/namespaces/{namespace}", f"/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices"
    async with Watched() as watched:
        await watched.begin(_SERVICE, Collection(client, f"{core}/services", fields=f"metadata.name={service}"))
        await watched.begin(_SLICES, Collection(client, slices, f"{OWNER}={service}"))
        pods = ServicePods(client, f"{core}/pods", watched, clock)
        last = None
        while True:
            await watched.change(pods.again_s)
            if (found := watched.latest(_SERVICE)) is None:
                continue
            if service not in found:
                raise SourceFailed(f"there is no Service {service} in namespace {namespace}")
            await pods.select(_selector(found[service]))
            now = await _endpoints(watched.latest(_SLICES), pods, wanted)
            if now is not None and now != last:
                last = now
                yield now


async def _endpoints(slices: Objects | None, pods: ServicePods, wanted: Wanted) -> tuple[Endpoint, ...] | None:
    """Those of all slices as they are once each of their pods is known; None before both have been listed."""
    if slices is None or not pods.listed:
        return None
    while await pods.look_up(named(slices.values())):
        pass  # the slices may have changed meanwhile
    return of_slices(slices.values(), pods.known(named(slices.values())), wanted)


def _selector(service: Mapping[str, Any]) -> str:
    spec = service.get("spec")
    selector = spec.get("selector") if isinstance(spec, dict) else None
    return ",".join(f"{key}={value}" for key, value in selector.items()) if isinstance(selector, dict) else ""
