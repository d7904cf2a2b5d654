"""The Kubernetes target: replicas set by the scale subresource, observed, no more rights than it needs."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from pydantic import ValidationError

from router.core.errors import NotObserved
from router.targets import Advice, Applied, Outcome, Replicas, Target, spec_of
from tests.deploy.chart import of_everything, one
from tests.kubernetes.fake_api import FakeApi

SMALL = "/apis/apps/v1/namespaces/llm/deployments/llama-small"
BIG = "/apis/leaderworkerset.x-k8s.io/v1/namespaces/gpu/leaderworkersets/llama-big"
OWN = "/apis/serving.example.io/v1alpha1/namespaces/llm/engines/llama-odd"
WORKLOADS = [
    {"variant": "small", "name": "llama-small"},
    {"variant": "big", "kind": "LeaderWorkerSet", "name": "llama-big", "namespace": "gpu"},
    {"variant": "odd", "resource": "serving.example.io/v1alpha1/engines", "name": "llama-odd", "model": "m"},
]


def advice(variant: str, replicas: int, model: str = "m") -> Advice:
    return Advice(model, variant, replicas, 1, "because")


@asynccontextmanager
async def cluster() -> AsyncIterator[tuple[FakeApi, Target]]:
    async with FakeApi("secret") as api:
        options = {"workloads": WORKLOADS, "namespace": "llm", "url": api.url, "token_env": "TOKEN", "timeout_s": 5}
        target = spec_of("kubernetes").model_validate(options).make({"TOKEN": "secret"})
        for path in (SMALL, BIG, OWN):
            api.add(path, 1)
        yield api, target
        await target.close()


@pytest.mark.parametrize(("variant", "path"), [("small", SMALL), ("big", BIG), ("odd", OWN)])
async def test_a_workload_gets_the_advised_replicas_once(variant: str, path: str) -> None:
    """A Deployment, a LeaderWorkerSet, a kind of one's own; nothing is written where nothing changes; 0 is a number."""
    async with cluster() as (api, target):
        name = "/".join(path.split("/")[-2:])
        assert await target.apply(advice(variant, 3)) == Applied(Outcome.APPLIED, f"{name}: 1 -> 3")
        assert api.objects[path]["spec"]["replicas"] == 3
        assert await target.apply(advice(variant, 3)) == Applied(Outcome.UNCHANGED, f"{name} has 3")
        assert api.writes() == [("PATCH", f"{path}/scale")]
        assert (await target.apply(advice(variant, 0))).outcome is Outcome.APPLIED
        assert (await target.apply(advice(variant, 0))).outcome is Outcome.UNCHANGED
        assert api.objects[path]["spec"]["replicas"] == 0


async def test_what_somebody_else_has_set_is_set_again() -> None:
    """The number is compared with what is there, not with what was advised before."""
    async with cluster() as (api, target):
        await target.apply(advice("small", 3))
        api.set_replicas(SMALL, 7)
        assert (await target.apply(advice("small", 3))).reason == "deployments/llama-small: 7 -> 3"


async def test_a_write_in_between_is_seen_and_the_change_made_on_top() -> None:
    """409 for what was read before it; not for ever, where somebody writes without end."""
    async with cluster() as (api, target):
        writes = iter((5, 3))
        api.before_write = lambda: api.set_replicas(SMALL, next(writes, 3)) if len(api.writes()) == 1 else None
        assert await target.apply(advice("small", 3)) == Applied(Outcome.APPLIED, "deployments/llama-small: 5 -> 3")
        api.before_write = lambda: api.touch(SMALL)
        failed = await target.apply(advice("small", 4))
        assert failed.outcome is Outcome.FAILED
        assert "409 the object has been modified" in failed.reason
        assert api.objects[SMALL]["spec"]["replicas"] == 3


async def test_replicas_are_observed_with_those_that_are_not_ready() -> None:
    """Of a variant without a workload nothing is; after a scale-in those that still end are not counted."""
    async with cluster() as (api, target):
        api.add(SMALL, 5, ready=2)
        assert await target.observe("m", "small") == Replicas(2, starting=3)
        api.add(SMALL, 2, ready=5)
        assert await target.observe("m", "small") == Replicas(2)
        assert await target.observe("m", "elsewhere") is None
        assert await target.observe("another", "odd") is None
        api.objects[OWN]["status"] = {"replicas": 1}  # a kind that does not count those that are ready
        assert await target.observe("m", "odd") == Replicas(1, ready_stated=False)
        api.objects[SMALL]["status"] = {"replicas": 2}  # a Deployment leaves out a count of 0
        assert await target.observe("m", "small") == Replicas(0, starting=2)


async def test_what_cannot_be_read_is_not_taken_for_none() -> None:
    """An object that is gone, a right that is missing, numbers that are none."""
    async with cluster() as (api, target):
        api.objects[SMALL]["spec"]["replicas"] = "many"
        with pytest.raises(NotObserved, match="expected a count of replicas, not 'many'"):
            await target.observe("m", "small")
        del api.objects[SMALL]
        with pytest.raises(NotObserved, match="404"):
            await target.observe("m", "small")
        assert (await target.apply(advice("small", 3))).outcome is Outcome.FAILED
        api.token = "another"
        with pytest.raises(NotObserved, match="401"):
            await target.observe("m", "big")
        assert "401" in (await target.apply(advice("big", 3))).reason


async def test_the_rights_of_the_chart_are_enough_and_no_others_are_used() -> None:
    """Those of the workload that its values name, and of the lease."""
    roles = [one(of_everything(), "Role", f"headroom-autoscaler{part}", "llm") for part in ("", "-election")]
    role = {"rules": [rule for each in roles for rule in each["rules"]]}
    assert {verb for rule in role["rules"] for verb in rule["verbs"]} == {"get", "patch", "create", "update"}
    async with cluster() as (api, target):
        api.rules = role["rules"]
        (name,) = {name for rule in role["rules"] for name in rule.get("resourceNames", ()) if "llama" in name}
        options = {"workloads": [{"variant": "v", "name": name}], "namespace": "llm", "url": api.url}
        mine = spec_of("kubernetes").model_validate(options | {"token_env": "T"}).make({"T": "secret"})
        api.add(f"/apis/apps/v1/namespaces/llm/deployments/{name}", 1)
        assert await mine.observe("m", "v") == Replicas(1)
        assert (await mine.apply(advice("v", 2))).outcome is Outcome.APPLIED
        assert "403" in (await target.apply(advice("small", 2))).reason
        await mine.close()


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"workloads": []}, "at least 1 item"),
        ({"workloads": [{"variant": "v", "name": "A b"}]}, "workloads.0.name"),
        ({"workloads": [{"variant": "v", "name": "a", "kind": "DaemonSet"}]}, "expected Deployment, StatefulSet"),
        ({"workloads": [{"variant": "v", "name": "a", "resource": "pods"}]}, "expected group/version/plural"),
        ({"workloads": [{"variant": "v", "name": "a"}, {"variant": "v", "name": "b"}]}, "two for variant 'v'"),
        ({"workloads": [{"variant": "v", "name": "a"}], "token_env": "T"}, "go with url"),
        ({"workloads": [{"variant": "v", "name": "a", "replicas": 3}]}, "Extra inputs"),
    ],
)
def test_options_that_cannot_be_are_refused(options: dict[str, object], why: str) -> None:
    with pytest.raises(ValidationError, match=why):
        spec_of("kubernetes").model_validate(options)


def test_a_target_that_has_no_cluster_is_refused_when_it_is_made() -> None:
    spec = spec_of("kubernetes").model_validate({"workloads": [{"variant": "v", "name": "a"}]})
    with pytest.raises(ValueError, match="in no pod; give url"):
        spec.make({})
