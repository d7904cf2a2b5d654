"""Candidates for a Lease object: one holds it, another takes over once it was not renewed for its duration."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from router.core.errors import KubernetesError
from router.kubernetes.access import Access
from router.kubernetes.client import KubernetesClient
from router.kubernetes.lease import LeaseObject
from tests.kubernetes.fake_api import FakeApi

PATH = "/apis/coordination.k8s.io/v1/namespaces/llm/leases/headroom-autoscaler"


class Clock:
    """What the candidates read; the machine's own time is of no meaning here."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@asynccontextmanager
async def candidates() -> AsyncIterator[tuple[FakeApi, Clock, Callable[[str], LeaseObject]]]:
    async with FakeApi() as api:
        clock, client = Clock(), KubernetesClient(Access(api.url), 5.0)
        yield api, clock, lambda holder: LeaseObject(client, "llm", "headroom-autoscaler", holder, clock)
        await client.close()


async def test_one_candidate_holds_it_and_another_takes_over_when_it_is_not_renewed() -> None:
    async with candidates() as (api, clock, candidate):
        first, second = candidate("a"), candidate("b")
        assert await first.take(15.0)
        assert not await second.take(15.0)
        spec = api.objects[PATH]["spec"]
        assert (spec["holderIdentity"], spec["leaseDurationSeconds"], spec["leaseTransitions"]) == ("a", 15, 0)
        clock.now_s += 14.0
        assert await first.take(15.0)
        clock.now_s += 14.0
        assert not await second.take(15.0)  # it was renewed since it was seen last
        clock.now_s += 15.0
        assert await second.take(15.0)
        assert not await first.take(15.0)
        spec = api.objects[PATH]["spec"]
        assert (spec["holderIdentity"], spec["leaseTransitions"]) == ("b", 1)


async def test_of_two_at_once_one_takes_it() -> None:
    """The object changes between the reading of one and its writing: 409, and it is not held."""
    async with candidates() as (api, clock, candidate):
        first, second = candidate("a"), candidate("b")
        assert await first.take(15.0)
        assert not await second.take(15.0)
        clock.now_s += 20.0
        api.before_write = lambda: api.touch(PATH)
        assert not await second.take(15.0)
        del api.objects[PATH]
        api.before_write = lambda: api.objects.update({PATH: {"metadata": {"name": "headroom-autoscaler"}, "spec": {}}})
        assert not await second.take(15.0)


async def test_a_released_lease_is_taken_at_once() -> None:
    async with candidates() as (api, _, candidate):
        first, second = candidate("a"), candidate("b")
        assert await first.take(15.0)
        await second.release()
        assert api.objects[PATH]["spec"]["holderIdentity"] == "a"
        await first.release()
        assert await second.take(15.0)


@pytest.mark.parametrize(
    "spec", [None, {"holderIdentity": "x", "leaseDurationSeconds": "long"}, {"holderIdentity": "x"}]
)
async def test_an_object_of_another_form_is_no_reason_to_lead_early(spec: object) -> None:
    """Without a holder it is free; without a duration the holder has the longest there may be."""
    async with candidates() as (api, clock, candidate):
        api.objects[PATH] = {"metadata": {"name": "headroom-autoscaler", "resourceVersion": "1"}, "spec": spec}
        it = candidate("a")
        assert await it.take(15.0) is (spec is None)
        clock.now_s += 3599.0
        assert await it.take(15.0) is (spec is None)
        clock.now_s += 1.0
        assert await it.take(15.0)


async def test_no_answer_is_an_error() -> None:
    async with candidates() as (api, _, candidate):
        api.token = "other"
        with pytest.raises(KubernetesError, match="401"):
            await candidate("a").take(15.0)
