"""A target that acts: sets the replicas of workloads in Kubernetes, by their ``scale`` subresource.

It may do that and read the workloads, nothing else (the Helm chart has the rights). Must not depend
on how pods become backends.
"""

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Final, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from router.core.errors import KubernetesError, NotObserved
from router.kubernetes.access import Access, in_pod
from router.kubernetes.client import KubernetesClient
from router.kubernetes.workload import RESOURCES, Workload
from router.targets.target import Advice, Applied, Outcome, Replicas, Target, TargetSpec
from router.urls import base_url

_log = logging.getLogger("headroom")

_NAME: Final = Field(pattern=r"^[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?$")
_RESOURCE: Final = re.compile(r"([a-z0-9.-]+/)?v[0-9a-z]+/[a-z]+")


def _resource(text: str) -> str:
    if not _RESOURCE.fullmatch(text):
        raise ValueError(f"expected group/version/plural, as {RESOURCES['Deployment']}, not {text!r}")
    return text


def _kind(text: str) -> str:
    if text not in RESOURCES:
        raise ValueError(f"expected {', '.join(RESOURCES)}, or resource: group/version/plural, not {text!r}")
    return text


class WorkloadSpec(BaseModel):
    """The workload whose replicas are those of a variant.

    ``model``: only advice for that model, left out: for any; ``kind``: one that is known, or ``resource``:
    ``group/version/plural`` of any that has a scale subresource; ``namespace``: left out, the target's.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    variant: Annotated[str, Field(min_length=1, max_length=200)]
    model: Annotated[str, Field(min_length=1, max_length=200)] | None = None
    kind: Annotated[str, AfterValidator(_kind)] = "Deployment"
    resource: Annotated[str, AfterValidator(_resource)] | None = None
    name: Annotated[str, _NAME]
    namespace: Annotated[str, _NAME] | None = None


class KubernetesSpec(TargetSpec):
    """``workloads``: what runs the replicas of each variant; ``namespace``: of those that name none, left out: the
    pod's own. ``url``: of the API server, left out: the cluster that this runs in; with it ``token_env``, the
    environment variable with a bearer token, and ``ca``, the file of its authority. ``timeout_s``: for one request.
    """

    workloads: Annotated[tuple[WorkloadSpec, ...], Field(min_length=1)]
    namespace: Annotated[str, _NAME] | None = None
    url: Annotated[str, AfterValidator(base_url)] | None = None
    token_env: Annotated[str, Field(min_length=1)] | None = None
    ca: Path | None = None
    timeout_s: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 5.0

    @model_validator(mode="after")
    def _once_each(self) -> Self:
        seen: set[tuple[str, str | None]] = set()
        for each in self.workloads:
            if (each.variant, each.model) in seen:
                raise ValueError(f"workloads: two for variant {each.variant!r}")
            seen.add((each.variant, each.model))
        if self.url is None and (self.token_env or self.ca):
            raise ValueError("token_env and ca go with url: in a pod its service account has both")
        return self

    def make(self, environment: Mapping[str, str]) -> Target:
        """Raises ValueError when this is in no pod and no ``url`` is given, or the token's variable is not set."""
        return Kubernetes(self, KubernetesClient(self._access(environment), self.timeout_s))

    def _access(self, environment: Mapping[str, str]) -> Access:
        if self.url is None:
            return in_pod(environment)
        token = environment.get(self.token_env, "") if self.token_env else ""
        if self.token_env and not token:
            raise ValueError(f"environment variable {self.token_env} is not set")
        return Access(self.url, token=token, ca=self.ca)


class Kubernetes(Target):
    """Sets replicas where they differ from the advice."""

    def __init__(self, spec: KubernetesSpec, client: KubernetesClient) -> None:
        self._client = client
        self._workloads = {
            (each.variant, each.model): Workload(
                client,
                each.resource or RESOURCES[each.kind],
                each.namespace or spec.namespace or client.access.namespace,
                each.name,
            )
            for each in spec.workloads
        }

    def _workload(self, model: str, variant: str) -> Workload | None:
        return self._workloads.get((variant, model)) or self._workloads.get((variant, None))

    async def observe(self, model: str, variant: str) -> Replicas | None:
        """What the workload is to have, of which some may not be ready yet."""
        workload = self._workload(model, variant)
        if workload is None:
            return None
        try:
            counts = await workload.counts()
        except KubernetesError as error:
            raise NotObserved(str(error)) from None
        if counts.ready is None:
            return Replicas(counts.wanted, ready_stated=False)
        return Replicas(counts.ready, counts.wanted - counts.ready)

    async def apply(self, advice: Advice) -> Applied:
        """Set the number, unless it is set already."""
        workload = self._workload(advice.model, advice.variant)
        if workload is None:
            return Applied(Outcome.UNCHANGED, f"no workload runs variant {advice.variant}")
        try:
            before = await workload.scale(advice.replicas)
        except KubernetesError as error:
            return Applied(Outcome.FAILED, str(error))
        if before is None:
            return Applied(Outcome.UNCHANGED, f"{workload.name} has {advice.replicas}")
        _log.info("%s: %d -> %d replicas: %s", workload.name, before, advice.replicas, advice.why)
        return Applied(Outcome.APPLIED, f"{workload.name}: {before} -> {advice.replicas}")

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()


SPEC: Final = KubernetesSpec
